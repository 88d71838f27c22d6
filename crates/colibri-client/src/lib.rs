#![doc = include_str!("../README.md")]
#![forbid(unsafe_code)]

mod client;
mod connection;
mod drive;
mod endpoint;
mod follow;
mod output;
mod peer;
mod reconnect;
mod resolve;
mod roster;

pub use client::{Client, Events};
pub use colibri_glasspane as glasspane;
pub use colibri_proto::*;
pub use colibri_sys::daemon::{DaemonFile, default_socket};
pub use drive::{Acceptance, unique_command_id};
pub use endpoint::{ConnectionEvent, Endpoint};
pub use follow::{FollowEvent, FollowStream, OutputChunk, new_output, output_bytes};
pub use output::{OutputReader, StreamRange, last_lines};
pub use peer::{TrustedUsers, UnknownUser};
pub use reconnect::CurrentClient;
pub use resolve::{MIN_PREFIX, ResolveError, refuse_blank, resolve};
pub use roster::{AgentEntry, MeasuredUsage, Roster};

use std::io;
use std::path::PathBuf;
use std::time::Duration;

/// A failure of a call.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ClientError {
    /// No process listens at the socket.
    #[error(
        "cannot connect to a daemon at {path}: {source}; start colibri-daemon, or set COLIBRI_SOCKET to its socket"
    )]
    NoDaemon {
        /// The socket.
        path: PathBuf,
        /// The error of connect(2).
        source: io::Error,
    },
    /// No process listens at the requested socket, and the daemon of the state directory listens at another one.
    #[error(
        "cannot connect to a daemon at {requested}: the daemon of state directory {state_dir} (pid {pid}) listens at {socket}; pass --socket {socket}, or unset COLIBRI_SOCKET"
    )]
    OtherSocket {
        /// The requested socket.
        requested: PathBuf,
        /// The state directory.
        state_dir: PathBuf,
        /// Process id of its daemon.
        pid: i32,
        /// Socket at which that daemon listens.
        socket: PathBuf,
    },
    /// The listening process belongs to a user who is not trusted. No byte was sent.
    #[error(
        "refused to use the daemon at {path}: its process belongs to uid {uid}, which is neither root nor you (uid {own}), so nothing was sent; if that is the user of your daemon, set daemon_user = \"{uid}\" in colibri.toml or COLIBRI_DAEMON_USER={uid}"
    )]
    UntrustedPeer {
        /// The socket.
        path: PathBuf,
        /// User id of the listening process.
        uid: u32,
        /// User id of this process.
        own: u32,
    },
    /// The daemon's program cannot be executed, or it ended or did not listen in time; the message.
    #[error("cannot start {0}")]
    Start(String),
    /// The daemon refused the request; its message.
    #[error(transparent)]
    Rpc(#[from] RpcError),
    /// The selector selects no agent, or several.
    #[error(transparent)]
    Resolve(#[from] ResolveError),
    /// The connection ended before the response.
    #[error(
        "the daemon closed the connection before it answered; check whether it runs, and try again"
    )]
    Closed,
    /// The request is too large for the wire.
    #[error("cannot send the request: {0}")]
    Frame(#[from] FrameError),
    /// The response is invalid, which suggests a daemon of another version.
    #[error(
        "cannot parse the daemon's response to {method}: {message}; use a daemon and a client of the same version"
    )]
    Protocol {
        /// The method called.
        method: &'static str,
        /// The error.
        message: String,
    },
    /// The agent's runtime does not support the command.
    #[error(transparent)]
    Command(#[from] glasspane::CommandError),
    /// The agent was started in a mode that reads no commands.
    #[error("agent {id} reads no commands in the mode that it was started in; {hint}")]
    ReadsNoCommands {
        /// The agent.
        id: String,
        /// How to start it.
        hint: &'static str,
    },
    /// The agent does not read its standard input.
    #[error(
        "cannot send input to agent {id}: it does not read its input, and {left} bytes were not sent; try again when it reads"
    )]
    InputStuck {
        /// The agent.
        id: String,
        /// Number of bytes that were not accepted.
        left: usize,
    },
    /// The agent refused a command.
    #[error("agent {id} refused {command}: {error}")]
    Refused {
        /// The agent.
        id: String,
        /// The command, as the agent names it.
        command: String,
        /// The agent's message, without control characters.
        error: String,
    },
    /// The agent accepted the input of a command, and did not respond.
    #[error(
        "agent {id} did not respond to the command within {waited:?}; check its output with colibri logs {id}"
    )]
    NoAnswer {
        /// The agent.
        id: String,
        /// The timeout.
        waited: Duration,
    },
    /// The agent ended before it responded.
    #[error("agent {0} ended before it responded; see its output with colibri logs {0}")]
    Ended(String),
}

impl ClientError {
    /// Returns the oldest offset that is kept, for a read before it.
    #[must_use]
    pub fn oldest_offset(&self) -> Option<u64> {
        match self {
            Self::Rpc(error) => error.data.oldest_offset,
            _ => None,
        }
    }
}
