//! Records the end of each run, and of the agent.

use std::path::Path;
use std::time::{Duration, Instant};

use colibri_shim::control::KillReport;
use colibri_shim::layout;
use colibri_shim::record::{self, Durability, ExitRecord};

use super::state::{NextRun, RecordFailure, State};
use super::{Progress, Supervisor};
use crate::output::Offsets;
use crate::runs::RunEnd;

/// Interval at which a failed record is retried.
const RETRY_INTERVAL: Duration = Duration::from_millis(500);

impl Supervisor {
    /// Decides what follows the run, and records its end. A failure is retried later, unless the directory was removed:
    /// then the daemon gets the exit record over the control socket and keeps it in memory.
    pub(super) fn record(&mut self, now: Instant) -> Progress {
        self.answer_kills(&KillReport::default());
        let State::Recording { run, failure } = &mut self.state else {
            return Progress::Blocked;
        };
        if failure
            .as_ref()
            .is_some_and(|failure| now < failure.retry_at)
        {
            return Progress::Blocked;
        }
        if run.next == NextRun::Undecided {
            let restart = self.runs.decide_restart(run.end.exit);
            run.next = restart.map_or(NextRun::Never, NextRun::After);
        }
        let (end, next, to) = (run.end, run.next, self.outputs.offsets());
        if let Err(error) = self.write_records(end, next, to) {
            if !self.detect_removal() {
                self.retry_later(error);
                return Progress::Blocked;
            }
            if let Some(removal) = self.directory.removal() {
                self.runs.add_error(format!(
                    "{removal} while it ran; its output and its exit record are lost"
                ));
            }
        } else if let NextRun::After(backoff) = next {
            self.back_off(backoff);
            return Progress::Advanced;
        }
        self.finish(self.runs.exit_record(end, to));
        Progress::Ended
    }

    fn retry_later(&mut self, error: String) {
        if let State::Recording { failure, .. } = &mut self.state {
            *failure = Some(RecordFailure {
                error,
                retry_at: Instant::now() + RETRY_INTERVAL,
            });
        }
        self.server.mark_status_outdated();
    }

    /// Writes `runs.jsonl`, and after the last run syncs the journals and writes `exit.json`.
    fn write_records(&mut self, end: RunEnd, next: NextRun, to: Offsets) -> Result<(), String> {
        let is_last = next == NextRun::Never;
        self.runs
            .append_record(end, to, is_last)
            .map_err(|error| format!("cannot write {}: {error}", layout::RUNS))?;
        if !is_last {
            return Ok(());
        }
        self.outputs.sync().map_err(|error| error.to_string())?;
        self.runs
            .sync()
            .map_err(|error| format!("cannot sync {}: {error}", layout::RUNS))?;
        let record = self.runs.exit_record(end, to);
        record::replace(Path::new(layout::EXIT), &record, Durability::Machine)
            .map_err(|error| format!("cannot write {}: {error}", layout::EXIT))
    }

    /// Waits for the next run.
    fn back_off(&mut self, backoff: Duration) {
        if let State::Recording { run, .. } = &self.state {
            self.runs.set_restart_message(run.end.exit, backoff);
            self.state = State::BackingOff {
                run: *run,
                until: Instant::now() + backoff,
            };
        }
        self.input.end_run();
        self.server.mark_status_outdated();
    }

    /// Releases the agent's resources and sends the exit event.
    fn finish(&mut self, record: ExitRecord) {
        self.runs.release();
        let _ = std::fs::remove_file(layout::CONTROL);
        self.server.publish_exit(record);
    }
}
