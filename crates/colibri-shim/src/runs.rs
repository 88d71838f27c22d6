//! The runs of one agent: starts them, records them, and decides what follows.

use std::fs::File;
use std::io;
use std::path::Path;
use std::time::{Duration, Instant};

use colibri_shim::control::PROTOCOL;
use colibri_shim::launch::Launch;
use colibri_shim::layout;
use colibri_shim::record::{self, Durability, ExitRecord, RunRecord, ShimRecord, now_ns};
use colibri_shim::restart::{RestartBackoff, RestartDecision};
use colibri_types::{
    ExitReason, ExitStatus, NetworkSummary, OffsetRange, RestartWhen, TerminalSize,
};

use crate::agent_process::AgentProcess;
use crate::cgroup::Cgroup;
use crate::elevation::Elevation;
use crate::held::{self, OpenFile};
use crate::output::Offsets;
use crate::run_commands::{OnError, RunCommands};

/// How a run ended.
#[derive(Debug, Clone, Copy)]
pub(crate) struct RunEnd {
    /// Exit status of the first process; absent if it was not collected.
    pub(crate) exit: Option<ExitStatus>,
    pub(crate) reason: ExitReason,
    /// End time of the first process, in nanoseconds since 1970.
    pub(crate) at_ns: u64,
}

impl RunEnd {
    /// Creates the end, at this moment, of a run without an exit status.
    pub(crate) fn without_exit(reason: ExitReason) -> Self {
        Self {
            exit: None,
            reason,
            at_ns: now_ns(),
        }
    }
}

pub(crate) struct Runs {
    launch: Launch,
    /// Files that every run inherits; absent before the first run.
    held: Option<Vec<OpenFile>>,
    pub(crate) cgroup: Option<Cgroup>,
    backoff: RestartBackoff,
    /// Start time of the shim: see [`ShimRecord::shim_start`].
    shim_start: u64,
    first_started: Instant,
    /// When the wall-clock limit is reached; absent after that.
    pub(crate) limit_at: Option<Instant>,
    /// The shim received SIGTERM.
    pub(crate) is_terminated: bool,
    /// How the previous run ended and when the current one starts; absent when it has started.
    pub(crate) restart_message: Option<String>,
    pub(crate) current: CurrentRun,
}

/// The current run.
pub(crate) struct CurrentRun {
    /// Number of the run, from 1.
    pub(crate) number: u32,
    started: Instant,
    started_ns: u64,
    /// Lengths of the journals when the run started.
    pub(crate) from: Offsets,
    /// Explanations of the end of the run where the exit status does not suffice.
    errors: Vec<String>,
    /// The program runs and, if it needs a monitor, the privilege backend has started that.
    is_started: bool,
    /// The run is in `runs.jsonl`.
    recorded: bool,
}

impl CurrentRun {
    fn new(number: u32, from: Offsets) -> Self {
        Self {
            number,
            started: Instant::now(),
            started_ns: now_ns(),
            from,
            errors: Vec::new(),
            is_started: false,
            recorded: false,
        }
    }

    fn error(&self) -> Option<String> {
        (!self.errors.is_empty()).then(|| self.errors.join("; "))
    }
}

impl Runs {
    /// Creates the state before the first run.
    pub(crate) fn new(launch: Launch, shim_start: u64) -> Self {
        let now = Instant::now();
        Self {
            backoff: RestartBackoff::new(launch.options.restart.clone().unwrap_or_default()),
            limit_at: launch
                .options
                .wall_time_ms
                .and_then(|limit| now.checked_add(Duration::from_millis(limit))),
            cgroup: launch.cgroup.clone().map(Cgroup::new),
            launch,
            held: None,
            shim_start,
            first_started: now,
            is_terminated: false,
            restart_message: None,
            current: CurrentRun::new(0, Offsets::default()),
        }
    }

    /// Begins the next run, whose output starts at these offsets. Returns the commands to run before its program.
    pub(crate) fn begin(&mut self, from: Offsets) -> RunCommands {
        self.current = CurrentRun::new(self.current.number.saturating_add(1), from);
        RunCommands::new(&self.launch.pre_run, OnError::Stop)
    }

    /// Executes the program of the current run.
    ///
    /// # Errors
    /// The program cannot be executed.
    pub(crate) fn start(&mut self) -> io::Result<AgentProcess> {
        let held = match &mut self.held {
            Some(held) => held,
            none => none.insert(held::open(&self.launch.held)?),
        };
        let agent = AgentProcess::start(&self.launch, self.cgroup.as_ref(), held)?;
        self.restart_message = None;
        self.current.is_started = agent.monitor.is_none();
        Ok(agent)
    }

    /// Returns the size of the agent's terminal, if it has one.
    pub(crate) fn terminal_size(&self) -> Option<TerminalSize> {
        self.launch.options.terminal
    }

    /// Sets the size of the terminals of later runs. Returns `false` if the agent has none.
    pub(crate) fn set_terminal_size(&mut self, size: TerminalSize) -> bool {
        let terminal = &mut self.launch.options.terminal;
        *terminal = terminal.map(|_| size);
        terminal.is_some()
    }

    /// Records that the monitor of the current run works.
    pub(crate) fn mark_started(&mut self) {
        self.current.is_started = true;
    }

    /// Returns the commands of the privilege backend for the processes of the current run.
    pub(crate) fn elevation(&self) -> Elevation {
        let Launch {
            elevated_signal,
            remove_jail,
            ..
        } = &self.launch;
        Elevation::new(elevated_signal.clone(), remove_jail.clone())
    }

    /// Writes `shim.json` for the current run.
    ///
    /// # Errors
    /// The file cannot be written.
    pub(crate) fn write_shim_record(&self, agent_pid: i32) -> io::Result<()> {
        let shim = ShimRecord {
            shim_pid: rustix::process::getpid().as_raw_nonzero().get(),
            shim_start: self.shim_start,
            agent_pid,
            started_at_ns: self.current.started_ns,
            run: self.current.number,
            protocol: PROTOCOL,
        };
        record::replace(Path::new(layout::SHIM), &shim, Durability::Process)
    }

    /// Records why the program of the current run was not executed. The run still counts.
    pub(crate) fn fail_start(&mut self, error: &str) {
        let (number, program) = (self.current.number, &self.launch.program);
        self.add_error(format!(
            "run {number} could not be started: {program}: {error}"
        ));
    }

    /// Adds an explanation of the run's end, which is shown with the exit status.
    pub(crate) fn add_error(&mut self, error: String) {
        self.current.errors.push(error);
    }

    /// Returns whether the wall-clock limit is reached; `true` only once.
    pub(crate) fn check_wall_time(&mut self, now: Instant) -> bool {
        if self.limit_at.is_none_or(|at| now < at) {
            return false;
        }
        self.limit_at = None;
        let limit = Duration::from_millis(self.launch.options.wall_time_ms.unwrap_or_default());
        self.add_error(format!(
            "its wall-clock limit of {limit:?} was reached; raise it with --wall-time"
        ));
        true
    }

    /// Returns the commands to run after the last process of the current run has ended.
    pub(crate) fn post_run(&self) -> RunCommands {
        RunCommands::new(&self.launch.post_run, OnError::Continue)
    }

    /// Records the outcome of the post-run commands, and whether the memory limit was reached.
    pub(crate) fn finish_post_run(&mut self, outcome: Result<(), String>) {
        if self.cgroup.as_mut().is_some_and(Cgroup::check_memory_limit) {
            self.add_error("its memory limit was reached; raise it with --memory".to_owned());
        }
        if let Err(error) = outcome {
            // Without a start there is hardly anything to undo, and the commands probably failed for the same cause.
            let hint = match self.current.is_started {
                true => "run the failed commands manually",
                false => "the agent was not started; run: colibri doctor",
            };
            self.add_error(format!("{error}; {hint}"));
        }
    }

    /// Applies the restart policy to the end of the current run. Returns the time until the next run, if there is one.
    pub(crate) fn decide_restart(&mut self, exit: Option<ExitStatus>) -> Option<Duration> {
        let lasted = self.current.started.elapsed();
        let now = self.first_started.elapsed();
        match self.backoff.decide(exit, lasted, now, fastrand::f64()) {
            RestartDecision::After(wait) => Some(wait),
            RestartDecision::Stop => None,
            RestartDecision::GiveUp => {
                let policy = self.backoff.policy();
                let (limit, window) = (policy.limit(), policy.window());
                let error = format!("given up after {limit} restarts within {window:?}");
                self.current.errors.insert(0, error);
                None
            }
        }
    }

    /// Appends the current run to `runs.jsonl`, once. An agent with a single run has no such file.
    ///
    /// # Errors
    /// The file cannot be written.
    pub(crate) fn append_record(
        &mut self,
        end: RunEnd,
        to: Offsets,
        is_last: bool,
    ) -> io::Result<()> {
        let CurrentRun { number, from, .. } = self.current;
        let is_only = self.backoff.policy().when() == RestartWhen::Never && number == 1 && is_last;
        if self.current.recorded || is_only {
            return Ok(());
        }
        let run = RunRecord {
            run: number,
            started_at_ns: self.current.started_ns,
            exited_at_ns: end.at_ns,
            exit: end.exit,
            reason: Some(end.reason),
            error: self.current.error(),
            stdout: OffsetRange {
                start: from.stdout,
                end: to.stdout,
            },
            stderr: OffsetRange {
                start: from.stderr,
                end: to.stderr,
            },
        };
        record::append(Path::new(layout::RUNS), &run)?;
        self.current.recorded = true;
        Ok(())
    }

    /// Syncs `runs.jsonl` to the disk. Done only after the last run, because requests wait meanwhile.
    ///
    /// # Errors
    /// The file cannot be synced.
    pub(crate) fn sync(&self) -> io::Result<()> {
        match File::open(layout::RUNS) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            opened => opened?.sync_data(),
        }
    }

    /// Returns the content of `exit.json`, with the current run as the last one.
    pub(crate) fn exit_record(
        &self,
        end: RunEnd,
        to: Offsets,
        network: Option<NetworkSummary>,
    ) -> ExitRecord {
        let unknown = || "the exit status of the agent is not known".to_owned();
        ExitRecord {
            exit: end.exit,
            reason: Some(end.reason),
            error: (self.current.error()).or_else(|| end.exit.is_none().then(unknown)),
            exited_at_ns: end.at_ns,
            stdout_bytes: to.stdout,
            stderr_bytes: to.stderr,
            run: self.current.number,
            network,
            terminated: self.is_terminated,
        }
    }

    /// Removes the agent's cgroup after the last run.
    pub(crate) fn release(&self) {
        if let Some(cgroup) = &self.cgroup {
            cgroup.remove();
        }
    }

    /// Sets the restart message after the end of the current run.
    pub(crate) fn set_restart_message(&mut self, exit: Option<ExitStatus>, wait: Duration) {
        let number = self.current.number;
        let end = match (self.current.error(), exit) {
            (Some(error), _) => error,
            (None, Some(ExitStatus::Code(code))) => format!("run {number} ended with code {code}"),
            (None, Some(ExitStatus::Signal(signal))) => {
                format!("run {number} was ended by signal {signal}")
            }
            (None, None) => format!("run {number} ended with an unknown exit status"),
        };
        // Truncated to milliseconds for the message.
        let wait = Duration::from_millis(u64::try_from(wait.as_millis()).unwrap_or(u64::MAX));
        self.restart_message = Some(format!("{end}; restarting in {wait:?}"));
    }
}
