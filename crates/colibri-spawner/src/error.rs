//! Errors of spawn, adoption and kill.

use std::io;
use std::path::{Path, PathBuf};

use colibri_prepare::{PrepareError, is_resource_exhaustion};
use colibri_types::{AgentId, AgentIdError, AgentNameError, MAX_NAME};

use crate::ShimClientError;

/// Why a spawn, an adoption or a kill failed. Nothing runs after a failed spawn.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SpawnError {
    /// The configuration cannot be turned into a command on this host.
    #[error(transparent)]
    Prepare(#[from] PrepareError),
    /// A text is not an agent id.
    #[error(transparent)]
    Id(#[from] AgentIdError),
    /// The name of the agent is invalid.
    #[error("agent name {}: {source}", shown(.name))]
    Name {
        /// The requested name.
        name: String,
        /// Cause.
        source: AgentNameError,
    },
    /// Another agent that runs or is being started has the name.
    #[error(
        "agent name {name:?} is in use by {}; choose another name, or end that agent first",
        holder(.id.as_ref())
    )]
    NameInUse {
        /// The name.
        name: String,
        /// The running agent; absent while it is being started.
        id: Option<AgentId>,
    },
    /// The agent of an `[[autostart]]` entry runs or is being started.
    #[error("the agent of [[autostart]] entry {key:?} is {}", holder(.id.as_ref()))]
    AutostartInUse {
        /// The entry.
        key: String,
        /// The running agent; absent while it is being started.
        id: Option<AgentId>,
    },
    /// The home is that of a running agent.
    #[error("the home belongs to agent {id}, which runs; send it a prompt, or end it first")]
    HomeInUse {
        /// The running agent.
        id: AgentId,
    },
    /// The home of an ended agent does not exist any more.
    #[error(
        "the home of agent {id} does not exist: a later agent has continued it, or it was removed; resume that agent, or start a new one"
    )]
    HomeMoved {
        /// The ended agent.
        id: AgentId,
    },
    /// The shim program cannot be started.
    #[error(
        "cannot start the shim {path}: {source}; install colibri-shim beside colibri-daemon or set COLIBRI_SHIM"
    )]
    Shim {
        /// Path of the program.
        path: PathBuf,
        /// Cause.
        source: io::Error,
    },
    /// The shim could not start the agent.
    #[error("cannot start the agent: {message}")]
    Launch {
        /// The shim's message.
        message: String,
        /// The error number, if a system call failed.
        errno: Option<i32>,
    },
    /// Processes, descriptors, memory or disk space are exhausted.
    #[error(
        "{doing} failed: a resource is exhausted: {source}; free some of it or raise the limit, then try again"
    )]
    Resources {
        /// The failed operation.
        doing: String,
        /// Cause.
        source: io::Error,
    },
    /// The state directory cannot be used.
    #[error("state directory {path}: {problem}")]
    State {
        /// The directory, or a file in it.
        path: PathBuf,
        /// Cause and hint.
        problem: String,
    },
    /// A file of an agent cannot be read or written.
    #[error("cannot read or write {path}: {source}")]
    File {
        /// The file.
        path: PathBuf,
        /// Cause.
        source: io::Error,
    },
    /// The agent has ended.
    #[error("agent {0} has ended")]
    Ended(String),
    /// The values of the agent's environment are not kept, so it cannot be spawned again.
    #[error(
        "agent {id} cannot be spawned again: the values of its environment variables ({}) are not kept; give them with --secret NAME or --env NAME=VALUE, or continue the session of an agent of a preset: colibri resume {id}",
        .variables.join(", ")
    )]
    EnvironmentNotKept {
        /// The agent.
        id: String,
        /// The names of the variables.
        variables: Vec<String>,
    },
    /// The agent still runs.
    #[error("agent {0} is running; kill it first")]
    Running(String),
    /// A request to the agent's shim failed.
    #[error(transparent)]
    ShimClient(#[from] ShimClientError),
    /// A command of the privilege backend failed.
    #[error(
        "privileged command '{command}' failed: {problem}; run colibri doctor to check the privilege backend"
    )]
    PrivilegedCommand {
        /// The command.
        command: String,
        /// Its exit status and stderr.
        problem: String,
    },
    /// Processes were not signalled, also not through the privilege backend.
    #[error("cannot signal agent {id}: {why}; run colibri doctor to check the privilege backend; not signalled: {}", pids(.denied))]
    SignalDenied {
        /// The agent.
        id: String,
        /// Processes that were not signalled.
        denied: Vec<i32>,
        /// Cause.
        why: String,
    },
    /// Processes survived a kill.
    #[error("cannot end agent {id}: {why}; still running: {}", pids(.remaining))]
    KillUnverified {
        /// The agent.
        id: String,
        /// Processes that survived.
        remaining: Vec<i32>,
        /// Cause, or what was tried.
        why: String,
    },
}

fn shown(name: &str) -> String {
    format!("{:?}", name.chars().take(MAX_NAME).collect::<String>())
}

fn holder(id: Option<&AgentId>) -> String {
    match id {
        Some(id) => format!("agent {id}"),
        None => "an agent that is being started".to_owned(),
    }
}

fn pids(pids: &[i32]) -> String {
    pids.iter()
        .map(|pid| format!("pid {pid}"))
        .collect::<Vec<_>>()
        .join(", ")
}

impl SpawnError {
    /// Returns the error for a failed operation on a file; an exhausted resource has its own variant.
    pub(crate) fn from_io(doing: &str, path: &Path, source: io::Error) -> Self {
        if is_resource_exhaustion(&source) {
            Self::Resources {
                doing: format!("{doing} {}", path.display()),
                source,
            }
        } else {
            Self::File {
                path: path.to_owned(),
                source,
            }
        }
    }

    /// Returns the error for a state directory, or a file in it, that cannot be used. `problem` is the cause and a hint.
    pub(crate) fn state(path: &Path, problem: impl Into<String>) -> Self {
        Self::State {
            path: path.to_owned(),
            problem: problem.into(),
        }
    }

    /// Returns the error for a shim that cannot be started; an exhausted resource has its own variant.
    pub(crate) fn shim(shim: &Path, source: io::Error) -> Self {
        match Self::from_io("starting", shim, source) {
            Self::File { path, source } => Self::Shim { path, source },
            other => other,
        }
    }

    /// Returns the error for a failed launch; an exhausted resource has its own variant.
    pub(crate) fn from_launch(message: String, errno: Option<i32>) -> Self {
        if errno.is_some_and(|errno| is_resource_exhaustion(&io::Error::from_raw_os_error(errno))) {
            Self::Resources {
                doing: "starting the agent".to_owned(),
                source: io::Error::other(message),
            }
        } else {
            Self::Launch { message, errno }
        }
    }
}
