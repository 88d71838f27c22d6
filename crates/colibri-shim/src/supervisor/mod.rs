//! Supervises one agent: copies its output, serves requests, collects its processes, records its end, and restarts it.
//!
//! The supervisor is a single-threaded loop around poll(2). Its [`State`] is one enum:
//!
//! ```text
//!    +--> Running      processes of the run exist
//!    |       | the kernel reports that no descendant is left
//!    |       v
//!    |    Draining     copies the rest of the pipes; waits while a journal cannot store it <--+
//!    |       v                                                                                |
//!    |    CleaningUp   runs the post-run commands                                             |
//!    |       v                                                                                |
//!    |    Recording    writes runs.jsonl and exit.json; retries while that fails <--+         |
//!    |       |     \                                                                |         |
//!    |       |      `--- no run follows ---> the shim exits                         |         |
//!    |       v                                                                      |         |
//!    |    BackingOff   waits for the restart time --------- kill, wall-clock limit -+         |
//!    |       v                                                                                |
//!    +--- Preparing    runs the pre-run commands ---------- failed command or start, kill ----+
//! ```
//!
//! `running` signals and kills the processes of a run, also through the privilege backend, `requests` serves the control socket, `end` ends a run or the
//! agent, and `record` writes the records.

mod directory;
mod end;
mod record;
mod requests;
mod running;
mod state;

use std::io::{self, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use colibri_shim::control::ShimStatus;
use colibri_shim::layout;
use colibri_types::{ExitReason, NetworkRecord};
use rustix::event::{PollFd, PollFlags};
use rustix::process::{Pid, Signal};

use crate::agent_process::AgentProcess;
use crate::connection::Connection;
use crate::control_server::{ControlServer, ShimRequestId};
use crate::input::Input;
use crate::monitor::MonitorLink;
use crate::network_events::NetworkEvents;
use crate::output::Outputs;
use crate::poll::poll_until;
use crate::runs::{RunEnd, Runs};
use crate::signals::Signals;
use directory::AgentDirectory;
use running::RunningAgent;
use state::{EndedRun, NextRun, State};

/// Grace period before KILL when the shim itself ends the agent.
const SHIM_GRACE: Duration = Duration::from_secs(5);

/// Supervises one agent through all of its runs.
pub(crate) struct Supervisor {
    state: State,
    runs: Runs,
    input: Input,
    /// The shim's end of the terminal of the current run.
    terminal: Option<OwnedFd>,
    outputs: Outputs,
    network: NetworkEvents,
    server: ControlServer,
    signals: Signals,
    directory: AgentDirectory,
    /// Kill requests that are answered when no process is left, or when the kill cannot be verified.
    kill_requests: Vec<ShimRequestId>,
    /// When the end of the agent was first requested. No run follows the current one after that.
    ending_since: Option<Instant>,
}

/// Result of a step of the state machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Progress {
    /// The state has changed; another step may be possible.
    Advanced,
    /// The next step waits for an event or a deadline.
    Blocked,
    /// The end of the agent is recorded, or cannot be recorded any more.
    Ended,
}

impl Supervisor {
    /// Takes over the first run, which has just been started in `directory`, the working directory.
    pub(crate) fn new(
        runs: Runs,
        agent: AgentProcess,
        mut outputs: Outputs,
        listener: UnixListener,
        signals: Signals,
        directory: PathBuf,
    ) -> Self {
        let state = running(agent.pid, agent.is_wrapper, agent.monitor, &runs);
        outputs.connect(agent.stdout, agent.stderr);
        let mut network = NetworkEvents::new();
        network.connect(agent.network_events);
        Self {
            state,
            runs,
            input: Input::new(agent.stdin),
            terminal: agent.terminal,
            outputs,
            network,
            server: ControlServer::new(listener),
            signals,
            directory: AgentDirectory::new(directory),
            kill_requests: Vec::new(),
            ending_since: None,
        }
    }

    /// Runs until the agent and its descendants have ended and `exit.json` is written. `starter` is the connection to
    /// the process that started the shim.
    ///
    /// # Errors
    /// poll(2) failed. The agent and its clients cause no error.
    pub(crate) fn run(mut self, starter: Option<Connection>) -> io::Result<()> {
        if let Some(connection) = starter {
            self.server.add(connection);
        }
        loop {
            self.wait()?;
            self.read_monitor();
            if self.signals.child_ended.take() {
                self.reap();
            }
            if self.signals.terminate.take() {
                self.runs.is_terminated = true;
                self.runs.add_error("its shim received SIGTERM".to_owned());
                self.kill(Signal::TERM, SHIM_GRACE, None);
            }
            self.serve_requests();
            self.deliver_deferred_signals();
            self.input.write();
            let now = Instant::now();
            self.copy_output(now);
            let records = self.network.receive(now);
            self.publish_network(records);
            self.check_directory(now);
            self.step_kill(now);
            if self.runs.check_wall_time(now) {
                self.kill(Signal::TERM, SHIM_GRACE, Some(ExitReason::WallTime));
            }
            // After all steps that may start a command.
            self.poll_elevation(now);
            if self.advance() {
                return Ok(());
            }
            if self.server.is_status_due() {
                let status = self.status();
                self.server.publish(status);
            }
        }
    }

    /// Waits for an event or the next deadline.
    fn wait(&self) -> io::Result<()> {
        let readable = |fd| PollFd::from_borrowed_fd(fd, PollFlags::IN);
        let mut fds: Vec<PollFd<'_>> = self.server.poll_fds().collect();
        fds.extend(self.signals.fds().map(readable));
        fds.extend(self.outputs.readable().map(AsFd::as_fd).map(readable));
        fds.extend(self.network.readable().map(readable));
        fds.extend(self.state.command_stderr().map(readable));
        fds.extend(self.state.monitor().map(|monitor| readable(monitor.fd())));
        if let Some(pipe) = self.input.writable() {
            fds.push(PollFd::new(pipe, PollFlags::OUT));
        }
        let deadlines = [
            self.state.deadline(),
            self.runs.limit_at,
            self.outputs.deadline(),
            self.network.deadline(),
            self.server.deadline(),
        ];
        poll_until(&mut fds, deadlines.into_iter().flatten().min())
    }

    /// Advances through the states until one waits for an event. Returns whether the agent has ended.
    fn advance(&mut self) -> bool {
        loop {
            match self.step() {
                Progress::Advanced => {}
                Progress::Blocked => return false,
                Progress::Ended => return true,
            }
        }
    }

    fn step(&mut self) -> Progress {
        let now = Instant::now();
        match &mut self.state {
            State::Running(_) => Progress::Blocked,
            State::Draining(_) => self.drain(now),
            State::CleaningUp { run, commands } => {
                let Some(outcome) = commands.poll(now) else {
                    return Progress::Blocked;
                };
                self.runs.finish_post_run(outcome);
                self.state = State::Recording {
                    run: *run,
                    failure: None,
                };
                Progress::Advanced
            }
            State::Recording { .. } => self.record(now),
            State::BackingOff { until, .. } if now < *until => Progress::Blocked,
            State::BackingOff { .. } => {
                self.state = State::Preparing(self.runs.begin(self.outputs.offsets()));
                Progress::Advanced
            }
            State::Preparing(commands) => {
                let Some(outcome) = commands.poll(now) else {
                    return Progress::Blocked;
                };
                self.start_run(outcome);
                Progress::Advanced
            }
        }
    }

    /// Executes the program of the run after its pre-run commands. A failure ends the run.
    fn start_run(&mut self, prepared: Result<(), String>) {
        let started = prepared.and_then(|()| self.runs.start().map_err(|error| error.to_string()));
        match started {
            Ok(agent) => {
                let pid = agent.pid.as_raw_nonzero().get();
                self.state = running(agent.pid, agent.is_wrapper, agent.monitor, &self.runs);
                self.input.connect(agent.stdin);
                self.terminal = agent.terminal;
                self.outputs.connect(agent.stdout, agent.stderr);
                self.network.connect(agent.network_events);
                if let Err(error) = self.runs.write_shim_record(pid) {
                    // The file is read only after this shim has ended; until then the shim reports the pid itself.
                    let _ = writeln!(io::stderr(), "cannot write {}: {error}", layout::SHIM);
                }
            }
            Err(error) => {
                self.runs.fail_start(&error);
                self.state = State::Draining(EndedRun {
                    end: RunEnd::without_exit(ExitReason::NotStarted),
                    next: NextRun::Undecided,
                });
            }
        }
        self.server.mark_status_outdated();
    }

    fn copy_output(&mut self, now: Instant) {
        if self.outputs.copy(now) {
            self.server.mark_status_outdated();
        }
        if self.outputs.stall_reason().is_some() {
            self.detect_removal();
        }
    }

    fn publish_network(&mut self, records: Vec<NetworkRecord>) {
        for record in records {
            self.server.publish_network(record);
            self.server.mark_status_outdated();
        }
    }

    fn status(&self) -> ShimStatus {
        let offsets = self.outputs.offsets();
        let running = self.state.running();
        let stalled = match self.directory.removal() {
            Some(removal) => Some(format!("{removal}; its later output is lost")),
            None => (self.outputs.stall_reason())
                .or(self.state.record_error())
                .cloned(),
        };
        ShimStatus {
            stdout: offsets.stdout,
            stderr: offsets.stderr,
            stalled,
            lingering: running.is_some_and(RunningAgent::is_lingering),
            pid: running
                .filter(|agent| !agent.is_lingering())
                .map(RunningAgent::pid),
            run: self.runs.current.number,
            run_from: self.runs.current.from.stdout,
            restart_message: self.runs.restart_message.clone(),
            network: self.network.summary(),
            terminal: self.runs.terminal_size(),
        }
    }
}

/// Returns the state of a run that has just been started.
fn running(pid: Pid, is_wrapper: bool, monitor: Option<MonitorLink>, runs: &Runs) -> State {
    let elevation = runs.elevation();
    State::Running(Box::new(RunningAgent::new(
        pid, is_wrapper, monitor, elevation,
    )))
}
