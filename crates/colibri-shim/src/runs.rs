//! The runs of one agent: which one it is, what follows it, and what ends them all.

use std::fs::File;
use std::io;
use std::path::Path;
use std::time::{Duration, Instant};

use colibri_shim::launch::Launch;
use colibri_shim::layout;
use colibri_shim::record::{self, Durability, ExitRecord, ExitStatus, RunRecord, ShimRecord};
use colibri_shim::restart::{Decision, RestartWhen, Restarts};

use crate::cgroup::Cgroup;
use crate::{agent, now_ns, steps};

/// How a run ended: absent where nobody saw it, and when, in nanoseconds since 1970.
pub(crate) type End = (Option<ExitStatus>, u64);

pub(crate) struct Runs {
    launch: Launch,
    restarts: Restarts,
    shim_start: u64,
    number: u32,
    /// Of the first run.
    first: Instant,
    /// Of this one.
    began: Instant,
    began_ns: u64,
    /// Where this run's output begins in the two journals.
    from: [u64; 2],
    /// When the wall-clock limit strikes, unless it has.
    limit_at: Option<Instant>,
    /// There is to be no other run.
    closing: bool,
    /// Why, where the exit status does not say it.
    why: Option<String>,
    /// This run is in `runs.jsonl`.
    recorded: bool,
    /// What is to be done after this run has been done.
    finished: bool,
    cgroup: Option<Cgroup>,
}

impl Runs {
    /// Nothing has been started.
    pub(crate) fn new(launch: Launch, shim_start: u64) -> Self {
        let now = Instant::now();
        Self {
            restarts: Restarts::new(launch.restart.clone()),
            limit_at: launch
                .wall_time_ms
                .and_then(|limit| now.checked_add(Duration::from_millis(limit))),
            cgroup: launch.cgroup.clone().map(Cgroup::new),
            launch,
            shim_start,
            number: 0,
            first: now,
            began: now,
            began_ns: 0,
            from: [0, 0],
            closing: false,
            why: None,
            recorded: false,
            finished: false,
        }
    }

    /// What is executed.
    pub(crate) fn program(&self) -> &str {
        &self.launch.program
    }

    /// Where it is executed.
    pub(crate) fn cwd(&self) -> &str {
        &self.launch.cwd
    }

    /// The number of this run, from 1.
    pub(crate) fn number(&self) -> u32 {
        self.number
    }

    /// Where this run's output begins in the stdout journal.
    pub(crate) fn stdout_from(&self) -> u64 {
        self.from[0]
    }

    /// Starts the next run, whose output begins at these offsets.
    ///
    /// # Errors
    /// What kept the program from being executed. The run counts all the same, as one that has ended.
    pub(crate) fn start(&mut self, from: [u64; 2]) -> io::Result<agent::Agent> {
        self.number = self.number.saturating_add(1);
        self.began = Instant::now();
        self.began_ns = now_ns();
        self.from = from;
        self.why = None;
        self.recorded = false;
        self.finished = false;
        let started = self
            .launch
            .before
            .iter()
            .try_for_each(steps::run)
            .and_then(|()| agent::start(&self.launch, self.cgroup.as_ref()));
        started.inspect_err(|error| {
            self.why = Some(format!(
                "run {} could not be started: {}: {error}",
                self.number, self.launch.program
            ));
            self.finish();
        })
    }

    /// No process of this run is left: what was done for it is undone, once.
    pub(crate) fn finish(&mut self) {
        if std::mem::replace(&mut self.finished, true) {
            return;
        }
        let mut add = |reason: String| {
            self.why = Some(match self.why.take() {
                Some(why) => format!("{why}; {reason}"),
                None => reason,
            });
        };
        if self.cgroup.as_mut().is_some_and(Cgroup::out_of_memory) {
            add("its memory limit was reached; give it more with --memory".to_owned());
        }
        if let Some(wrong) = steps::run_all(&self.launch.after) {
            add(wrong);
        }
    }

    /// There is no other run.
    pub(crate) fn end(&self) {
        if let Some(cgroup) = &self.cgroup {
            cgroup.remove();
        }
    }

    /// Writes `shim.json` for the run that was started.
    ///
    /// # Errors
    /// Whatever the file system refuses.
    pub(crate) fn announce(&self, agent_pid: i32) -> io::Result<()> {
        let shim = ShimRecord {
            shim_pid: rustix::process::getpid().as_raw_nonzero().get(),
            shim_start: self.shim_start,
            agent_pid,
            started_at_ns: self.began_ns,
            run: self.number,
        };
        record::replace(Path::new(layout::SHIM), &shim, Durability::Process)
    }

    /// There is to be no other run: somebody ended the agent.
    pub(crate) fn close(&mut self) {
        self.closing = true;
    }

    /// When the wall-clock limit strikes.
    pub(crate) fn limit_at(&self) -> Option<Instant> {
        self.limit_at
    }

    /// Whether the limit strikes now, which it does once.
    pub(crate) fn limit_strikes(&mut self, now: Instant) -> bool {
        if self.limit_at.is_none_or(|at| now < at) {
            return false;
        }
        self.limit_at = None;
        let limit = Duration::from_millis(self.launch.wall_time_ms.unwrap_or_default());
        self.why = Some(format!(
            "its wall-clock limit of {limit:?} was reached; give it more with --wall-time"
        ));
        self.closing = true;
        true
    }

    /// This run has ended. Returns the wait for the next, if there is to be one.
    pub(crate) fn next(&mut self, exit: Option<ExitStatus>) -> Option<Duration> {
        if self.closing {
            return None;
        }
        let (lasted, now) = (self.began.elapsed(), self.first.elapsed());
        match self.restarts.decide(exit, lasted, now, fastrand::f64()) {
            Decision::After(wait) => Some(wait),
            Decision::Stop => None,
            Decision::GiveUp => {
                let policy = &self.launch.restart;
                let given_up = format!(
                    "given up after {} restarts within {:?}",
                    policy.limit,
                    Duration::from_millis(policy.window_ms)
                );
                self.why = Some(match self.why.take() {
                    Some(why) => format!("{given_up}; {why}"),
                    None => given_up,
                });
                None
            }
        }
    }

    /// Adds this run to `runs.jsonl`, once. An agent that is never started again has no such file.
    ///
    /// # Errors
    /// Whatever the file system refuses.
    pub(crate) fn record(&mut self, (exit, exited_at_ns): End, to: [u64; 2]) -> io::Result<()> {
        if self.recorded || self.launch.restart.when == RestartWhen::Never {
            return Ok(());
        }
        let run = RunRecord {
            run: self.number,
            started_at_ns: self.began_ns,
            exited_at_ns,
            exit,
            reason: None,
            error: self.why.clone(),
            stdout: (self.from[0], to[0]),
            stderr: (self.from[1], to[1]),
        };
        record::append(Path::new(layout::RUNS), &run)?;
        self.recorded = true;
        Ok(())
    }

    /// Puts `runs.jsonl` on the disk. Only in the end: a disk may take long, and requests wait meanwhile.
    ///
    /// # Errors
    /// Whatever the file system refuses.
    pub(crate) fn sync(&self) -> io::Result<()> {
        match File::open(layout::RUNS) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            opened => opened?.sync_data(),
        }
    }

    /// How the agent ended, for `exit.json`.
    pub(crate) fn exit_record(&self, (exit, exited_at_ns): End, to: [u64; 2]) -> ExitRecord {
        let unseen = || {
            exit.is_none()
                .then(|| "the agent's exit status was not seen".to_owned())
        };
        ExitRecord {
            exit,
            reason: None,
            error: self.why.clone().or_else(unseen),
            exited_at_ns,
            stdout_bytes: to[0],
            stderr_bytes: to[1],
            run: self.number,
        }
    }

    /// One line on how this run ended and when the next comes.
    pub(crate) fn describe(&self, exit: Option<ExitStatus>, wait: Duration) -> String {
        let how = match (exit, &self.why) {
            (_, Some(why)) => why.clone(),
            (Some(ExitStatus::Code(code)), None) => {
                format!("run {} ended with code {code}", self.number)
            }
            (Some(ExitStatus::Signal(signal)), None) => {
                format!("run {} was ended by signal {signal}", self.number)
            }
            (None, None) => format!("run {} ended unseen", self.number),
        };
        let wait = Duration::from_millis(u64::try_from(wait.as_millis()).unwrap_or(u64::MAX));
        format!("{how}; restarting in {wait:?}")
    }
}
