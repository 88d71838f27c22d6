//! Errors between a request and a running agent.

use std::io;
use std::path::PathBuf;

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
        /// As asked for.
        name: String,
        /// What is wrong with it.
        source: AgentNameError,
    },
    /// Another agent that runs or is being started has the name.
    #[error(
        "agent name {name:?} is in use by {}; give another name, or end that agent first",
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
    /// The shim program is not where it should be.
    #[error(
        "the shim {path} cannot be started: {source}; install colibri-shim beside colibri-daemon or set COLIBRI_SHIM"
    )]
    Shim {
        /// Where it was expected.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The shim started and then gave up.
    #[error("the agent could not be started: {message}")]
    Launch {
        /// The shim's own words.
        message: String,
        /// The system's error number, where it was the system that refused.
        errno: Option<i32>,
    },
    /// The system has no more processes, descriptors, memory or disk.
    #[error(
        "{doing} failed: the system is out of a resource: {source}; free some or raise the limit, then try again"
    )]
    Resources {
        /// What was being done.
        doing: String,
        /// What the system said.
        source: io::Error,
    },
    /// The state directory cannot be trusted or used.
    #[error("state directory {path}: {problem}")]
    State {
        /// The directory, or a file in it.
        path: PathBuf,
        /// What is wrong, and what to do.
        problem: String,
    },
    /// An agent's file cannot be written or read.
    #[error("cannot write or read {path}: {source}")]
    File {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The agent has ended.
    #[error("agent {0} has ended")]
    Ended(String),
    /// The values of the agent's environment are not kept, so it cannot be spawned again.
    #[error(
        "agent {id} cannot be spawned again: the values of its environment variables ({}) are not kept; spawn a new agent with them",
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
    /// The agent's shim does not answer.
    #[error(transparent)]
    ShimClient(#[from] ShimClientError),
    /// A command of the privilege backend failed.
    #[error(
        "privileged command '{command}' failed: {problem}; run colibri doctor to check the privilege backend"
    )]
    PrivilegedCommand {
        /// The command.
        command: String,
        /// How it ended, and what it wrote to stderr.
        problem: String,
    },
    /// KILL was sent and some are still there.
    #[error("agent {id} could not be ended: {why}; still running: {}", pids(.remaining))]
    KillUnverified {
        /// The agent.
        id: String,
        /// Processes that survived.
        remaining: Vec<i32>,
        /// What was tried.
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
    /// Sorts an error of the system: out of resources, or about this file.
    pub(crate) fn from_io(doing: &str, path: &std::path::Path, source: io::Error) -> Self {
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

    /// Sorts what a shim says that gave up.
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
