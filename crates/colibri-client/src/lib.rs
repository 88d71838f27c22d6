#![doc = include_str!("../README.md")]
#![forbid(unsafe_code)]

mod client;
mod connection;
mod daemon_file;
mod drive;
mod endpoint;
mod follow;
mod peer;
mod resolve;
mod roster;

pub use client::{Client, Events};
pub use colibri_glasspane as glasspane;
pub use colibri_proto::*;
pub use daemon_file::{DAEMON_LOCK, DaemonFile};
pub use endpoint::{Endpoint, LinkNote};
pub use follow::{Follow, Followed, Following, Output};
pub use peer::{TrustedUsers, UnknownUser};
pub use resolve::{MIN_PREFIX, ResolveError, is_blank, resolve};
pub use roster::{Roster, Used, Watched};

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Why a call failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ClientError {
    /// Nobody listens.
    #[error(
        "no daemon listens at {path}: {source}; start colibri-daemon, or name its socket in COLIBRI_SOCKET"
    )]
    NoDaemon {
        /// The socket.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// No process listens at the requested socket, and the daemon of the state directory listens at another one.
    #[error(
        "no daemon listens at {wanted}, and the daemon of state directory {state_dir} (pid {pid}) listens at {socket}; pass --socket {socket}, or unset COLIBRI_SOCKET"
    )]
    Elsewhere {
        /// The requested socket.
        wanted: PathBuf,
        /// The state directory.
        state_dir: PathBuf,
        /// Process id of its daemon.
        pid: i32,
        /// Socket at which that daemon listens.
        socket: PathBuf,
    },
    /// The listening process belongs to a user who is not trusted. No byte was sent.
    #[error(
        "the process that listens at {path} is of uid {uid}, which is neither root nor you (uid {own}); nothing was sent to it. If that is the user of your daemon, set daemon_user = \"{uid}\" in colibri.toml or COLIBRI_DAEMON_USER={uid}"
    )]
    UntrustedPeer {
        /// The socket.
        path: PathBuf,
        /// User id of the listening process.
        uid: u32,
        /// User id of this process.
        own: u32,
    },
    /// The daemon's program cannot be executed.
    #[error(
        "cannot start {program}: {source}; install colibri-daemon beside colibri, or start it yourself"
    )]
    Start {
        /// The program.
        program: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The started daemon ended or did not listen in time; its message.
    #[error("a daemon could not be started:\n{0}")]
    StartFailed(String),
    /// The daemon refused; its own words.
    #[error(transparent)]
    Rpc(#[from] RpcError),
    /// The selector matches no agent, or several.
    #[error(transparent)]
    Resolve(#[from] ResolveError),
    /// The connection ended before the answer came.
    #[error("the daemon closed the connection before it answered; it may have been stopped")]
    Closed,
    /// The request is too large for the wire.
    #[error("the request cannot be sent: {0}")]
    Frame(#[from] FrameError),
    /// The daemon answered something else; another version?
    #[error(
        "the daemon's answer to {method} was not understood: {message}; is it of another version?"
    )]
    Protocol {
        /// The method called.
        method: &'static str,
        /// What did not fit.
        message: String,
    },
    /// The agent's runtime has no words for a command.
    #[error(transparent)]
    Command(#[from] glasspane::CommandError),
    /// The agent does not read its standard input.
    #[error("agent {id} does not read its input; {left} bytes were not sent")]
    InputStuck {
        /// The agent.
        id: String,
        /// How much it has not taken.
        left: usize,
    },
    /// The agent understood a command and refused it.
    #[error("agent {id} refused {command}: {error}")]
    Refused {
        /// The agent.
        id: String,
        /// The command, as the agent names it.
        command: String,
        /// The agent's own words, cleaned.
        error: String,
    },
    /// The agent took a command and does not answer.
    #[error(
        "agent {id} took it and has not answered within {waited:?}; only an agent that was started for commands answers them, like pi --mode rpc"
    )]
    NoAnswer {
        /// The agent.
        id: String,
        /// How long it was waited for.
        waited: Duration,
    },
    /// The agent ended before it answered.
    #[error("agent {0} ended before it answered; colibri logs {0} shows what it wrote")]
    Ended(String),
}

/// Returns the default socket of the daemon: `$XDG_RUNTIME_DIR/colibri/colibri.sock`, else
/// `/var/run/colibri/colibri.sock` for root, else `colibri.sock` in the state directory. `lookup` returns the value of
/// an environment variable.
#[must_use]
pub fn default_socket(
    lookup: impl Fn(&str) -> Option<String>,
    state_dir: Option<&Path>,
) -> PathBuf {
    default_socket_of(lookup, state_dir, peer::own_uid() == 0)
}

fn default_socket_of(
    lookup: impl Fn(&str) -> Option<String>,
    state_dir: Option<&Path>,
    is_root: bool,
) -> PathBuf {
    if let Some(directory) = lookup("XDG_RUNTIME_DIR").filter(|path| path.starts_with('/')) {
        return PathBuf::from(directory).join("colibri/colibri.sock");
    }
    match state_dir {
        Some(state_dir) if !is_root => state_dir.join("colibri.sock"),
        _ => PathBuf::from("/var/run/colibri/colibri.sock"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn default_socket_follows_the_documented_order() {
        let var_run = "/var/run/colibri/colibri.sock";
        for (runtime, state, is_root, socket) in [
            (
                Some("/run/user/1000"),
                Some("/s"),
                false,
                "/run/user/1000/colibri/colibri.sock",
            ),
            (
                Some("/run/user/0"),
                Some("/s"),
                true,
                "/run/user/0/colibri/colibri.sock",
            ),
            (None, Some("/s"), true, var_run),
            (None, Some("/s"), false, "/s/colibri.sock"),
            (Some(""), Some("/s"), false, "/s/colibri.sock"),
            (Some("relative"), Some("/s"), false, "/s/colibri.sock"),
            (None, None, false, var_run),
        ] {
            let lookup = |name: &str| {
                runtime
                    .filter(|_| name == "XDG_RUNTIME_DIR")
                    .map(str::to_owned)
            };
            let found = default_socket_of(lookup, state.map(Path::new), is_root);
            assert_eq!(found, PathBuf::from(socket), "{runtime:?} {state:?}");
        }
    }
}
