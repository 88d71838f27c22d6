//! The states of the supervisor and their data.

use std::os::fd::{AsFd, BorrowedFd};
use std::time::{Duration, Instant};

use super::running::RunningAgent;
use crate::monitor::MonitorLink;
use crate::run_commands::RunCommands;
use crate::runs::RunEnd;

/// State of the agent. The module docs of [`super`] show the transitions.
pub(super) enum State {
    /// Processes of the run exist.
    Running(Box<RunningAgent>),
    /// The rest of the pipes is copied to the journals.
    Draining(EndedRun),
    /// The post-run commands run.
    CleaningUp {
        run: EndedRun,
        commands: RunCommands,
    },
    /// The end of the run is being recorded.
    Recording {
        run: EndedRun,
        failure: Option<RecordFailure>,
    },
    /// The run is recorded; the next one starts at `until`.
    BackingOff { run: EndedRun, until: Instant },
    /// The pre-run commands of the next run are running.
    Preparing(RunCommands),
}

/// A run without processes.
#[derive(Debug, Clone, Copy)]
pub(super) struct EndedRun {
    pub(super) end: RunEnd,
    pub(super) next: NextRun,
}

/// What follows a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum NextRun {
    /// The restart policy decides when the run is recorded.
    Undecided,
    /// Another run, after this backoff.
    After(Duration),
    /// The run is the last one.
    Never,
}

/// A failed write of `runs.jsonl` or `exit.json`.
pub(super) struct RecordFailure {
    pub(super) error: String,
    pub(super) retry_at: Instant,
}

impl State {
    /// Returns when the state needs a step without an event.
    pub(super) fn deadline(&self) -> Option<Instant> {
        match self {
            Self::Running(agent) => agent.deadline(),
            Self::Draining(_) => None,
            Self::CleaningUp { commands, .. } | Self::Preparing(commands) => commands.deadline(),
            Self::Recording { failure, .. } => Some(failure.as_ref()?.retry_at),
            Self::BackingOff { until, .. } => Some(*until),
        }
    }

    /// Returns the stderr of the command before or after the run, or of the privilege backend's.
    pub(super) fn command_stderr(&self) -> Option<BorrowedFd<'_>> {
        match self {
            Self::Running(agent) => agent.command_stderr().map(AsFd::as_fd),
            Self::CleaningUp { commands, .. } | Self::Preparing(commands) => {
                commands.stderr().map(AsFd::as_fd)
            }
            _ => None,
        }
    }

    /// Returns the connection to the agent's monitor.
    pub(super) fn monitor(&self) -> Option<&MonitorLink> {
        self.running()?.monitor()
    }

    /// Returns the run if it has processes.
    pub(super) fn running(&self) -> Option<&RunningAgent> {
        match self {
            Self::Running(agent) => Some(agent.as_ref()),
            _ => None,
        }
    }

    /// Returns why the end of the run is not recorded yet.
    pub(super) fn record_error(&self) -> Option<&String> {
        match self {
            Self::Recording { failure, .. } => Some(&failure.as_ref()?.error),
            _ => None,
        }
    }
}
