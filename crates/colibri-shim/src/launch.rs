//! How a shim is started: one JSON document on its stdin, one line of answer on its stdout.
//!
//! Standard input carries the environment, because argv and files can be read by others.

use serde::{Deserialize, Serialize};

use crate::restart::RestartPolicy;

/// What the shim is to run. Sent as JSON on the shim's stdin, which is then closed.
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
    /// The first process is a wrapper (bubblewrap) that ends the sandbox when signalled: a signal meant
    /// for the agent goes to its descendants only.
    #[serde(default)]
    pub wrapper: bool,
    /// Whether it is started again when it has ended.
    #[serde(default)]
    pub restart: RestartPolicy,
    /// The agent is ended so long after its first start, whatever it does, in milliseconds.
    #[serde(default)]
    pub wall_time_ms: Option<u64>,
    /// Size at which a journal segment is closed, in bytes.
    pub segment_bytes: u64,
}

/// The shim's one line of answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum LaunchReport {
    /// The first process runs.
    Started {
        /// Its process id.
        pid: i32,
    },
    /// Nothing runs. The shim has ended.
    Failed {
        /// What failed, and on what.
        message: String,
        /// The system's error number, if it was the system that refused.
        errno: Option<i32>,
    },
}
