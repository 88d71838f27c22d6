//! Detects that the agent's directory was removed.

use std::io;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use rustix::process::Signal;

use super::{SHIM_GRACE, Supervisor};

/// Interval at which the existence of the directory is checked.
const CHECK_INTERVAL: Duration = Duration::from_secs(1);

/// The agent's directory, which is the working directory of the shim.
pub(super) struct AgentDirectory {
    path: PathBuf,
    removed: bool,
    next_check: Instant,
}

impl AgentDirectory {
    pub(super) fn new(path: PathBuf) -> Self {
        Self {
            path,
            removed: false,
            next_check: Instant::now() + CHECK_INTERVAL,
        }
    }

    /// Makes the next check due immediately.
    pub(super) fn check_soon(&mut self) {
        self.next_check = self.next_check.min(Instant::now());
    }

    /// Returns a message if the removal was detected.
    pub(super) fn removal(&self) -> Option<String> {
        let path = self.path.display();
        self.removed
            .then(|| format!("its directory {path} was removed"))
    }
}

impl Supervisor {
    /// Checks at intervals whether the directory was removed. Without directory and connection the shim is unreachable
    /// for good, so it ends the agent.
    pub(super) fn check_directory(&mut self, now: Instant) {
        if now < self.directory.next_check || self.ending_since.is_some() {
            return;
        }
        self.directory.next_check = now + CHECK_INTERVAL;
        if self.detect_removal() && !self.server.has_connections() {
            self.kill(Signal::TERM, SHIM_GRACE, None);
        }
    }

    /// Returns whether the directory was removed (rmdir(2)); a renamed directory still accepts records. After the
    /// removal output is discarded, so that the agent does not block.
    pub(super) fn detect_removal(&mut self) -> bool {
        let is_missing =
            || std::env::current_dir().is_err_and(|error| error.kind() == io::ErrorKind::NotFound);
        if !self.directory.removed && is_missing() {
            self.directory.removed = true;
            self.outputs.discard();
            self.server.mark_status_outdated();
        }
        self.directory.removed
    }
}
