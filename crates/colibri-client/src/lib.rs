#![doc = include_str!("../README.md")]
#![forbid(unsafe_code)]

mod client;
mod connection;
mod drive;
mod resolve;
mod roster;

pub use client::{Client, Events};
pub use colibri_glasspane as glasspane;
pub use colibri_proto::*;
pub use resolve::{MIN_PREFIX, NameError, ResolveError, check_name, is_blank, resolve};
pub use roster::{Roster, Used, Watched};

use std::io;
use std::path::PathBuf;
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
    /// The daemon refused; its own words.
    #[error(transparent)]
    Rpc(#[from] RpcError),
    /// What was typed selects no agent.
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

/// The daemon's socket where nobody names another: `$XDG_RUNTIME_DIR/colibri/colibri.sock`, else
/// `/var/run/colibri/colibri.sock`. `lookup` gives a variable's value.
#[must_use]
pub fn default_socket(lookup: impl Fn(&str) -> Option<String>) -> PathBuf {
    lookup("XDG_RUNTIME_DIR")
        .filter(|directory| directory.starts_with('/'))
        .map_or_else(|| PathBuf::from("/var/run"), PathBuf::from)
        .join("colibri/colibri.sock")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_socket_is_in_the_runtime_directory_if_there_is_one() {
        for (runtime, socket) in [
            (
                Some("/run/user/1000"),
                "/run/user/1000/colibri/colibri.sock",
            ),
            (None, "/var/run/colibri/colibri.sock"),
            (Some(""), "/var/run/colibri/colibri.sock"),
            (Some("relative"), "/var/run/colibri/colibri.sock"),
        ] {
            let lookup = |name: &str| {
                runtime
                    .filter(|_| name == "XDG_RUNTIME_DIR")
                    .map(str::to_owned)
            };
            assert_eq!(default_socket(lookup), PathBuf::from(socket));
        }
    }
}
