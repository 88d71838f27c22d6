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
    /// Commands to run before each start, in order. If one fails, the run does not start. Written as `before`, the name
    /// that shims of earlier releases read.
    #[serde(default, rename = "before", alias = "pre_run")]
    pub pre_run: Vec<RunCommand>,
    /// Commands to run after each run, when all its processes have ended. Each one undoes a separate preparation, so
    /// all of them run even if one fails. Written as `after`, the name that shims of earlier releases read.
    #[serde(default, rename = "after", alias = "post_run")]
    pub post_run: Vec<RunCommand>,
    /// How both journals are kept.
    pub journal: JournalOptions,
}

/// A command that the shim runs before or after each run of the agent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RunCommand {
    /// Absolute path of the program.
    pub program: String,
    /// Arguments without the program name.
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn run_commands_keep_their_old_names_and_accept_the_new() {
        let launch = |pre_run: &str, post_run: &str| -> Launch {
            serde_json::from_value(serde_json::json!({
                "program": "true", "args": [], "env": [], "cwd": "/",
                pre_run: [{"program": "/bin/one", "args": []}],
                post_run: [{"program": "/bin/two", "args": []}],
                "journal": {"segment_bytes": 65536, "fsync": "never"},
            }))
            .unwrap()
        };
        for launch in [launch("before", "after"), launch("pre_run", "post_run")] {
            let written = serde_json::to_value(&launch).unwrap();
            assert_eq!(written["before"][0]["program"], "/bin/one");
            assert_eq!(written["after"][0]["program"], "/bin/two");
        }
    }
}
