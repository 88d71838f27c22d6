//! Records the end of each run, and of the agent.

use std::path::Path;
use std::time::{Duration, Instant};

use colibri_shim::control::KillReport;
use colibri_shim::layout;
use colibri_shim::record::{self, Durability};

use super::state::{EndedRun, NextRun, RecordFailure, State};
use super::{Progress, Supervisor};
use crate::output::Offsets;

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
        let (run, to) = (*run, self.outputs.offsets());
        match self.write_records(run, to) {
            Ok(()) => {
                if let NextRun::After(backoff) = run.next {
                    self.runs.set_restart_message(run.end.exit, backoff);
                    let until = Instant::now() + backoff;
                    self.state = State::BackingOff { run, until };
                    self.input.end_run();
                    self.server.mark_status_outdated();
                    return Progress::Advanced;
                }
            }
            Err(error) if !self.detect_removal() => {
                let retry_at = Instant::now() + RETRY_INTERVAL;
                let failure = Some(RecordFailure { error, retry_at });
                self.state = State::Recording { run, failure };
                self.server.mark_status_outdated();
                return Progress::Blocked;
            }
            Err(_) => {
                if let Some(removal) = self.directory.removal() {
                    self.runs.add_error(format!(
                        "{removal} while it ran; its output and its exit record are lost"
                    ));
                }
            }
        }
        self.runs.release();
        let _ = std::fs::remove_file(layout::CONTROL);
        let network = self.network.summary();
        self.server
            .publish_exit(self.runs.exit_record(run.end, to, network));
        Progress::Ended
    }

    /// Writes `runs.jsonl`, and after the last run syncs the journals and writes `exit.json`.
    fn write_records(&mut self, run: EndedRun, to: Offsets) -> Result<(), String> {
        let is_last = run.next == NextRun::Never;
        self.runs
            .append_record(run.end, to, is_last)
            .map_err(|error| format!("cannot write {}: {error}", layout::RUNS))?;
        if !is_last {
            return Ok(());
        }
        self.outputs.sync().map_err(|error| error.to_string())?;
        self.runs
            .sync()
            .map_err(|error| format!("cannot sync {}: {error}", layout::RUNS))?;
        // At a shutdown, the agent may have got SIGTERM first.
        self.runs.is_terminated |= self.signals.terminate.take();
        let record = self.runs.exit_record(run.end, to, self.network.summary());
        record::replace(Path::new(layout::EXIT), &record, Durability::Machine)
            .map_err(|error| format!("cannot write {}: {error}", layout::EXIT))
    }
}
