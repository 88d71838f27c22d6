//! How a shim is started: one line of JSON on its stdin, one line of answer on its stdout. Where both are one
//! socket, it goes on as a control connection that is watched: see [`crate::control`].
//!
//! Standard input carries the environment, because argv and files can be read by others.

use std::path::PathBuf;
use std::time::Duration;

use colibri_journal::JournalOptions;
use serde::{Deserialize, Serialize};

use crate::restart::RestartPolicy;

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
    /// Its stdin is at its end from the start.
    #[serde(default)]
    pub no_input: bool,
    /// File mode creation mask of each run (umask(2)); absent: 022.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub umask: Option<u32>,
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
    pub journal: JournalSettings,
}

/// Limits that each process of the agent has (setrlimit(2)).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessLimits {
    /// How many files it may have open.
    pub open_files: Option<u64>,
    /// How many it may have open until it asks for more itself, where `open_files` says nothing: the soft limit,
    /// which the daemon has raised for itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub soft_files: Option<u64>,
    /// Its data, in bytes: heap and anonymous mappings.
    pub data: Option<u64>,
}

/// A command before or after a run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Step {
    /// An absolute path.
    pub program: String,
    /// Arguments after the program's own name.
    pub args: Vec<String>,
}

/// How the journal of each output is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct JournalSettings {
    /// Size at which a segment is closed, in bytes.
    pub segment_bytes: u64,
    /// Whole old segments are dropped as long as at least so many bytes are kept; absent: all are kept.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retain_bytes: Option<u64>,
    /// When output is forced onto the disk.
    pub fsync: Fsync,
}

/// When output is forced onto the disk: what a crash of the machine may take, for how many waits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Fsync {
    /// When the system likes, and at the agent's end.
    Never,
    /// At most so many milliseconds after it came.
    IntervalMs(u64),
    /// At once.
    Always,
}

impl JournalSettings {
    /// As the journal takes them.
    #[must_use]
    pub fn options(&self) -> JournalOptions {
        JournalOptions {
            segment_bytes: self.segment_bytes,
            retain_bytes: self.retain_bytes,
            fsync: match self.fsync {
                Fsync::Never => colibri_journal::Fsync::Never,
                Fsync::IntervalMs(ms) => {
                    colibri_journal::Fsync::Interval(Duration::from_millis(ms))
                }
                Fsync::Always => colibri_journal::Fsync::Always,
            },
            ..JournalOptions::default()
        }
    }
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
