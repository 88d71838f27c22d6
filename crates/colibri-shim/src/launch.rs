//! The launch request, one line of JSON on the shim's stdin, and the report, one line on its stdout. If both are one
//! socket, that becomes a control connection with events: see [`crate::control`].
//!
//! The environment travels on stdin, because other processes can read argv and files.

use std::path::PathBuf;

use colibri_journal::JournalOptions;
use colibri_types::{HeldFile, ProcessLimits, RunOptions, SignalTemplate};
use serde::{Deserialize, Serialize};

/// A launch request: the agent to run, and how.
#[derive(Clone, Serialize, Deserialize)]
pub struct Launch {
    /// Program to execute, including a wrapper that confines it. Searched in the `PATH` of `env` if it contains no slash.
    pub program: String,
    /// Arguments without the program name.
    pub args: Vec<String>,
    /// The complete environment; the agent inherits no other variable.
    pub env: Vec<(String, String)>,
    /// Working directory of the first process.
    pub cwd: String,
    /// Options of the agent that the shim applies.
    #[serde(flatten)]
    pub options: RunOptions,
    /// The first process is a wrapper (bubblewrap) that ends the sandbox when it gets a signal. Signals to the agent go
    /// to the wrapper's descendants only.
    #[serde(default)]
    pub wrapper: bool,
    /// The command makes the agent's terminal the controlling terminal of the agent itself, so that it is not that of the
    /// programs that confine the agent.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub takes_terminal: bool,
    /// The first process is, or becomes, a monitor of the agent, and gets a connection to the shim.
    #[serde(default)]
    pub monitored: bool,
    /// Directory of the cgroup that each run enters (Linux). The shim removes it after the last run.
    #[serde(default)]
    pub cgroup: Option<PathBuf>,
    /// Limits of each process of the agent.
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
    /// The privilege backend's command that signals processes of the agent. The shim runs it for processes that it may not
    /// signal. Absent if the backend has none, and in a launch by an earlier release.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub elevated_signal: Option<SignalTemplate>,
    /// The command that removes the agent's jail with all its processes. A kill runs it after the grace period. Absent if
    /// the jail is not the agent's own, and in a launch by an earlier release.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub remove_jail: Option<RunCommand>,
    /// Files that the shim opens before the first run and passes to each run (Linux).
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub held: Vec<HeldFile>,
    /// Number of the descriptor by which each run gets a pipe for the reports of its proxy. Absent without a proxy, and in a
    /// launch by an earlier release.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub network_events: Option<i32>,
    /// Settings of both journals.
    pub journal: JournalOptions,
}

impl Launch {
    /// Returns whether the first process leads a session, whose controlling terminal is the agent's.
    #[must_use]
    pub fn leads_session(&self) -> bool {
        self.options.terminal.is_some() && !self.takes_terminal
    }
}

/// A command that the shim runs: before or after each run of the agent, or to remove the agent's jail.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RunCommand {
    /// Absolute path of the program.
    pub program: String,
    /// Arguments without the program name.
    pub args: Vec<String>,
}

/// The shim's answer to the launch request.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum LaunchReport {
    /// The first process was started.
    Started {
        /// Its pid.
        pid: i32,
        /// Version of the shim's control protocol; 1 if absent.
        #[serde(default = "crate::record::default_one")]
        protocol: u32,
    },
    /// No process was started; the shim exits.
    Failed {
        /// The operation, its object and the cause.
        message: String,
        /// Error number of the system, if a system call failed.
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
            // A launch by an earlier release has no command of the privilege backend.
            assert_eq!(launch.elevated_signal, None);
            assert_eq!(launch.remove_jail, None);
            assert_eq!(launch.network_events, None);
        }
    }
}
