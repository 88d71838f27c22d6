//! Errors between a request and a running agent.

use std::io;
use std::path::PathBuf;

use colibri_jail_core::{CommandLineError, JailError};
use colibri_priv::PrivError;

use crate::env_file::EnvFileError;
use crate::profile::ProfileError;
use crate::{AgentId, LinkError, MAX_NAME, NameError};

/// Why a spawn, an adoption or a kill failed. Nothing runs after a failed spawn.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SpawnError {
    /// The id is not one of ours.
    #[error(
        "'{0}' is not an agent id; give one of lower-case letters and digits, as list-agents shows them"
    )]
    BadId(String),
    /// The command line itself is unusable.
    #[error("the command line cannot be executed: {0}")]
    Command(#[from] CommandLineError),
    /// The confinement that was asked for is unusable.
    #[error(transparent)]
    Jail(#[from] JailError),
    /// The working directory cannot be one.
    #[error("working directory: {0}")]
    Workdir(#[source] JailError),
    /// The profile that was asked for cannot be used.
    #[error(transparent)]
    Profile(#[from] ProfileError),
    /// The environment file of a profile cannot be used.
    #[error(transparent)]
    EnvFile(#[from] EnvFileError),
    /// The privilege backend refuses.
    #[error(transparent)]
    Privilege(#[from] PrivError),
    /// The name of the agent is invalid.
    #[error("agent name {}: {source}", shown(.name))]
    Name {
        /// As asked for.
        name: String,
        /// What is wrong with it.
        source: NameError,
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
    /// A variable's name cannot be one.
    #[error("environment variable name {0:?} is empty or contains '=' or NUL; give another name")]
    EnvName(String),
    /// A variable's value cannot be passed on.
    #[error("the value of environment variable {0} contains a NUL byte; remove it")]
    EnvValue(String),
    /// A variable would act on the program that confines, outside of the jail.
    #[error(
        "environment variable {0} is refused for a jailed agent: the dynamic linker would apply it to the program that confines; set it inside the jail, e.g. with env(1)"
    )]
    EnvActsOutside(String),
    /// The program does not exist.
    #[error("program '{program}' was not found {place}; {hint}")]
    ProgramNotFound {
        /// As asked for.
        program: String,
        /// Where it was searched, and what hides it there.
        place: String,
        /// What to do.
        hint: String,
    },
    /// The program exists and cannot be executed.
    #[error("program '{program}' is not executable: {problem}")]
    ProgramNotExecutable {
        /// As asked for.
        program: String,
        /// Why, and what to do.
        problem: String,
    },
    /// A path of the request does not exist, or is not what it must be.
    #[error("{what} {path} {problem}")]
    Path {
        /// What the path was meant for.
        what: &'static str,
        /// The path.
        path: String,
        /// What is wrong, and what to do.
        problem: String,
    },
    /// The user named is not in the root's own user table.
    #[error("user '{user}' is not in {table}; give a user of that file, or UID or UID:GID")]
    UnknownUser {
        /// As asked for.
        user: String,
        /// The passwd(5) file that was read.
        table: PathBuf,
    },
    /// The program that confines is not installed.
    #[error(
        "{0}, which confines this agent, is not installed or not executable; install it (Debian and Ubuntu: apt install bubblewrap), or set COLIBRI_JAIL_ENGINE to another engine"
    )]
    WrapperMissing(String),
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
    Link(#[from] LinkError),
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
        if out_of_resources(&source) {
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
        if errno.is_some_and(|errno| out_of_resources(&io::Error::from_raw_os_error(errno))) {
            Self::Resources {
                doing: "starting the agent".to_owned(),
                source: io::Error::other(message),
            }
        } else {
            Self::Launch { message, errno }
        }
    }
}

/// Whether a system refuses for want of something that may be there later.
fn out_of_resources(error: &io::Error) -> bool {
    use rustix::io::Errno;
    matches!(
        Errno::from_io_error(error),
        Some(
            Errno::MFILE | Errno::NFILE | Errno::AGAIN | Errno::NOMEM | Errno::NOSPC | Errno::DQUOT
        )
    )
}
