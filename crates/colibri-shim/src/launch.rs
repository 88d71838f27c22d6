//! How a shim is started: one line of JSON on its stdin, one line of answer on its stdout. Where both are one
//! socket, it goes on as a control connection that is watched: see [`crate::control`].
//!
//! Standard input carries the environment, because argv and files can be read by others.

use std::path::PathBuf;

use colibri_journal::JournalOptions;
use colibri_types::{ProcessLimits, RunOptions};
use serde::{Deserialize, Serialize};

/// What the shim is to run. Sent as a line of JSON on the shim's stdin.
#[derive(Clone, Serialize, Deserialize)]
pub struct Launch {
    /// Program to execute, already wrapped; searched in the `PATH` of `env` where it holds no slash.
    pub program: String,
    /// Arguments after the program's own name.
    pub args: Vec<String>,
    /// The whole environment; nothing is inherited.
    pub env: Vec<(String, String)>,
    /// Working directory of the process that the shim starts.
    pub cwd: String,
    /// Options of the agent that the shim applies.
    #[serde(flatten)]
    pub options: RunOptions,
    /// The first process is a wrapper (bubblewrap) that ends the sandbox when signalled: a signal meant
    /// for the agent goes to its descendants only.
    #[serde(default)]
    pub wrapper: bool,
    /// The cgroup that each run enters, and that is removed in the end (Linux).
    #[serde(default)]
    pub cgroup: Option<PathBuf>,
    /// Limits of each of its processes.
    #[serde(default)]
    pub limits: ProcessLimits,
    /// What is executed before each run; if one fails, the run is not started.
    #[serde(default)]
    pub before: Vec<Step>,
    /// What is executed after each run, when no process of it is left.
    #[serde(default)]
    pub after: Vec<Step>,
    /// How both journals are kept.
    pub journal: JournalOptions,
}

/// A command before or after a run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Step {
    /// An absolute path.
    pub program: String,
    /// Arguments after the program's own name.
    pub args: Vec<String>,
}

/// The shim's one line of answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum LaunchReport {
    /// The first process runs.
    Started {
        /// Its process id.
        pid: i32,
        /// The version of the control protocol that the shim speaks; absent: 1.
        #[serde(default = "crate::record::first")]
        protocol: u32,
    },
    /// Nothing runs. The shim has ended.
    Failed {
        /// What failed, and on what.
        message: String,
        /// The system's error number, if it was the system that refused.
        errno: Option<i32>,
    },
}
