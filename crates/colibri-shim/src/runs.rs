//! The runs of one agent: which one it is, what follows it, and what ends them all.

use std::fs::File;
use std::io;
use std::path::Path;
use std::time::{Duration, Instant};

use colibri_shim::control::PROTOCOL;
use colibri_shim::launch::Launch;
use colibri_shim::layout;
use colibri_shim::record::{self, Durability, ExitRecord, RunRecord, ShimRecord};
use colibri_shim::restart::{Decision, Restarts};
use colibri_types::{ExitReason, ExitStatus, RestartWhen};

use crate::cgroup::Cgroup;
use crate::run_commands::{OnError, RunCommands};
use crate::{agent, now_ns};

/// How a run ended.
#[derive(Debug, Clone, Copy)]
pub(crate) struct End {
    /// Exit status of the first process; absent if it was not collected.
    pub(crate) exit: Option<ExitStatus>,
    pub(crate) reason: ExitReason,
    /// End time, in nanoseconds since 1970.
    pub(crate) at_ns: u64,
}

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
    cgroup: Option<Cgroup>,
}

impl Runs {
    /// Nothing has been started.
    pub(crate) fn new(launch: Launch, shim_start: u64) -> Self {
        let now = Instant::now();
        Self {
            restarts: Restarts::new(launch.options.restart.clone().unwrap_or_default()),
            limit_at: launch
                .options
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

    /// Begins the next run, whose output begins at these offsets. Returns the commands to run before its program.
    pub(crate) fn begin(&mut self, from: [u64; 2]) -> RunCommands {
        self.number = self.number.saturating_add(1);
        self.began = Instant::now();
        self.began_ns = now_ns();
        self.from = from;
        self.why = None;
        self.recorded = false;
        RunCommands::new(&self.launch.pre_run, OnError::Stop)
    }

    /// Executes the program of the run that was begun.
    ///
    /// # Errors
    /// The program cannot be executed.
    pub(crate) fn start(&self) -> io::Result<agent::Agent> {
        agent::start(&self.launch, self.cgroup.as_ref())
    }

    /// Records why the program of the current run was not executed. The run still counts as one that has ended.
    pub(crate) fn not_started(&mut self, error: &str) {
        let program = &self.launch.program;
        self.add_reason(format!(
            "run {} could not be started: {program}: {error}",
            self.number
        ));
    }

    /// Returns the commands to run after the last process of this run has ended.
    pub(crate) fn clean_up(&self) -> RunCommands {
        RunCommands::new(&self.launch.post_run, OnError::Continue)
    }

    /// Records the outcome of the clean-up and whether the memory limit was reached. Called once for each run.
    pub(crate) fn cleaned_up(&mut self, outcome: Result<(), String>) {
        if self.cgroup.as_mut().is_some_and(Cgroup::out_of_memory) {
            self.add_reason("its memory limit was reached; give it more with --memory".to_owned());
        }
        if let Err(error) = outcome {
            self.add_reason(format!("{error}; run it manually"));
        }
    }

    /// Adds a text that is shown beside the exit status.
    pub(crate) fn add_reason(&mut self, reason: String) {
        self.why = Some(match self.why.take() {
            Some(why) => format!("{why}; {reason}"),
            None => reason,
        });
    }

    /// Returns the cgroup of the agent, if it has one.
    pub(crate) fn cgroup(&self) -> Option<&Cgroup> {
        self.cgroup.as_ref()
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
            protocol: PROTOCOL,
        };
        record::replace(Path::new(layout::SHIM), &shim, Durability::Process)
    }

    /// There is to be no other run: somebody ended the agent.
    pub(crate) fn close(&mut self) {
        self.closing = true;
    }

    /// Returns whether the current run is the last one.
    pub(crate) fn is_closing(&self) -> bool {
        self.closing
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
        let limit = Duration::from_millis(self.launch.options.wall_time_ms.unwrap_or_default());
        self.add_reason(format!(
            "its wall-clock limit of {limit:?} was reached; give it more with --wall-time"
        ));
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
                let policy = self.restarts.policy();
                let given_up = format!(
                    "given up after {} restarts within {:?}",
                    policy.limit(),
                    policy.window()
                );
                self.why = Some(match self.why.take() {
                    Some(why) => format!("{given_up}; {why}"),
                    None => given_up,
                });
                None
            }
        }
    }

    /// Appends this run to `runs.jsonl`, once. An agent with a single run has no such file.
    ///
    /// # Errors
    /// Whatever the file system refuses.
    pub(crate) fn record(&mut self, end: End, to: [u64; 2], is_last: bool) -> io::Result<()> {
        let is_only =
            self.restarts.policy().when() == RestartWhen::Never && self.number == 1 && is_last;
        if self.recorded || is_only {
            return Ok(());
        }
        let run = RunRecord {
            run: self.number,
            started_at_ns: self.began_ns,
            exited_at_ns: end.at_ns,
            exit: end.exit,
            reason: Some(end.reason),
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
    pub(crate) fn exit_record(&self, end: End, to: [u64; 2]) -> ExitRecord {
        let unknown = || {
            end.exit
                .is_none()
                .then(|| "the exit status of the agent is not known".to_owned())
        };
        ExitRecord {
            exit: end.exit,
            reason: Some(end.reason),
            error: self.why.clone().or_else(unknown),
            exited_at_ns: end.at_ns,
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
