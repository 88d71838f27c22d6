//! A run with processes: collects them, signals them, and kills them.

use std::process::ChildStderr;
use std::time::{Duration, Instant};

use colibri_jail_core::SignalScope;
use colibri_shim::control::{KillReport, ShimReply, SignalDelivery, clock_ms};
use colibri_shim::record::now_ns;
use colibri_types::{ExitReason, ExitStatus};
use rustix::io::Errno;
use rustix::process::{Pid, Signal, WaitOptions, wait};

use super::state::NextRun;
use crate::cgroup::Cgroup;
use crate::control_server::ShimRequestId;
use crate::descendants;
use crate::elevation::Elevation;
use crate::kill_sequence::KillSequence;
use crate::monitor::{MonitorLink, MonitorReport};
use crate::runs::RunEnd;

/// Polling interval for the start of a sandbox's program while a signal waits for it.
const SANDBOX_POLL_INTERVAL: Duration = Duration::from_millis(2);
/// Maximum number of signals that wait for the program of a sandbox.
const MAX_DEFERRED: usize = 64;

/// A signal to the agent.
#[derive(Clone, Copy)]
pub(super) struct AgentSignal {
    pub(super) signal: Signal,
    /// CONT follows, so that a stopped agent handles the signal.
    pub(super) then_continue: bool,
    /// The request to answer.
    pub(super) request: Option<ShimRequestId>,
    /// Time of [`clock_ms`] after which the signal is dropped, because its caller has timed out.
    pub(super) expires_ms: Option<u64>,
}

/// The processes of a run that have not ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Remaining {
    None,
    Some,
    /// Some are left, and their monitor has just ended.
    Unmonitored,
}

/// The processes of a run.
pub(super) struct RunningAgent {
    pid: Pid,
    is_wrapper: bool,
    /// The connection to the monitor, of which `pid` is the process.
    monitor: Option<MonitorLink>,
    /// The agent has a monitor, whose end has not been collected.
    awaits_monitor: bool,
    /// Pid of the agent's first process, as the monitor reports it.
    reported_pid: Option<i32>,
    /// The monitor has reported something.
    has_reported: bool,
    /// Problems that the monitor reported.
    problems: Vec<String>,
    /// End of the first process, once it is collected. Descendants may still run.
    end: Option<RunEnd>,
    /// Why Colibri ends the run, if it does.
    end_reason: Option<ExitReason>,
    pub(super) next: NextRun,
    kill: Option<KillSequence>,
    elevation: Elevation,
    /// Signals that wait for the program of the sandbox.
    deferred: Vec<AgentSignal>,
    /// The sandbox has started its program. Checked only when a signal is sent.
    program_started: bool,
}

impl RunningAgent {
    /// Takes over a started agent, whose pipes the caller has taken.
    pub(super) fn new(
        pid: Pid,
        is_wrapper: bool,
        monitor: Option<MonitorLink>,
        elevation: Elevation,
    ) -> Self {
        Self {
            pid,
            is_wrapper,
            awaits_monitor: monitor.is_some(),
            monitor,
            reported_pid: None,
            has_reported: false,
            problems: Vec::new(),
            end: None,
            end_reason: None,
            next: NextRun::Undecided,
            kill: None,
            elevation,
            deferred: Vec::new(),
            program_started: false,
        }
    }

    pub(super) fn pid(&self) -> i32 {
        self.reported_pid
            .unwrap_or_else(|| self.pid.as_raw_nonzero().get())
    }

    /// Returns the connection to the monitor, which the caller polls for input.
    pub(super) fn monitor(&self) -> Option<&MonitorLink> {
        self.monitor.as_ref()
    }

    /// Returns whether the monitor has reported something, so that the privilege backend has started it.
    pub(super) fn has_reported(&self) -> bool {
        self.has_reported
    }

    /// Returns the problems that the monitor has reported since the last call.
    pub(super) fn take_problems(&mut self) -> Vec<String> {
        std::mem::take(&mut self.problems)
    }

    /// Reads the reports of the monitor. Returns whether the pid or the state of the first process has changed.
    pub(super) fn read_monitor(&mut self) -> bool {
        let Some(monitor) = &mut self.monitor else {
            return false;
        };
        let (reports, is_open) = monitor.receive();
        if !is_open {
            self.monitor = None;
        }
        let has_changed = !reports.is_empty();
        self.has_reported |= has_changed;
        for report in reports {
            match report {
                MonitorReport::Agent(pid) => self.reported_pid = Some(pid),
                MonitorReport::Ended(exit) => self.set_end(exit),
                MonitorReport::Problem(problem) => self.problems.push(problem),
            }
        }
        has_changed
    }

    /// Records the end of the first process.
    fn set_end(&mut self, exit: ExitStatus) {
        let reason = match exit {
            ExitStatus::Signal(_) => ExitReason::Signalled,
            _ => ExitReason::Exited,
        };
        self.end.get_or_insert(RunEnd {
            exit: Some(exit),
            reason: self.end_reason.unwrap_or(reason),
            at_ns: now_ns(),
        });
    }

    /// Returns whether the first process has ended.
    pub(super) fn is_lingering(&self) -> bool {
        self.end.is_some()
    }

    /// Returns the end of the first process, or an unknown end if it was not collected.
    pub(super) fn end(&self) -> RunEnd {
        self.end
            .unwrap_or_else(|| RunEnd::without_exit(ExitReason::Lost))
    }

    /// Sets why Colibri ends the run, unless the first process has ended or a reason is set.
    pub(super) fn set_end_reason(&mut self, reason: Option<ExitReason>) {
        if self.end.is_none() {
            self.end_reason = self.end_reason.or(reason);
        }
    }

    /// Returns when a signal or a kill needs a step.
    pub(super) fn deadline(&self) -> Option<Instant> {
        let deferred = (!self.deferred.is_empty()).then(|| Instant::now() + SANDBOX_POLL_INTERVAL);
        let kill = self.kill.as_ref();
        let kill = kill.and_then(|kill| kill.deadline(&self.elevation));
        let elevated = self.elevation.deadline();
        [deferred, kill, elevated].into_iter().flatten().min()
    }

    /// Returns the stderr of the privilege backend's command.
    pub(super) fn command_stderr(&self) -> Option<&ChildStderr> {
        self.elevation.stderr()
    }

    /// Advances the commands of the privilege backend. Returns replies to signal requests.
    pub(super) fn poll_elevation(&mut self, now: Instant) -> Vec<(ShimRequestId, ShimReply)> {
        self.elevation.poll(now)
    }

    /// Collects ended children. The descendants have ended when wait(2) fails with ECHILD, because orphans are children of
    /// the reaper.
    pub(super) fn reap(&mut self) -> Remaining {
        let awaited_monitor = self.awaits_monitor;
        // A monitor reports the agent's end before its own.
        self.read_monitor();
        loop {
            match wait(WaitOptions::NOHANG) {
                Ok(Some((pid, status))) if self.elevation.collect(pid, status) => {}
                Ok(Some((pid, status))) if pid == self.pid => {
                    self.awaits_monitor = false;
                    self.set_end(match status.terminating_signal() {
                        Some(signal) => ExitStatus::Signal(signal),
                        None => ExitStatus::Code(status.exit_status().unwrap_or_default()),
                    });
                }
                Ok(Some(_)) | Err(Errno::INTR) => {}
                // A monitor ends after the agent's other processes.
                Ok(None) if awaited_monitor && !self.awaits_monitor => {
                    return Remaining::Unmonitored;
                }
                Ok(None) => return Remaining::Some,
                Err(_) => return Remaining::None,
            }
        }
    }

    /// Sends a signal now, or defers it until the sandbox has started the program that the signal is for. Returns the
    /// delivery unless the signal is deferred or is being delivered by the privilege backend.
    pub(super) fn signal(&mut self, signal: AgentSignal) -> Option<SignalDelivery> {
        // KILL also ends a sandbox that is not set up yet. STOP would prevent the setup, so it is deferred too.
        let defers = signal.signal != Signal::KILL && self.deferred.len() < MAX_DEFERRED;
        if defers && self.is_program_pending() {
            self.deferred.push(signal);
            return None;
        }
        self.deliver(&signal)
    }

    /// Sends the deferred signals when the sandbox has started its program, and drops the expired ones. Returns the
    /// replies.
    pub(super) fn deliver_deferred(&mut self) -> Vec<(ShimRequestId, ShimReply)> {
        let mut replies = Vec::new();
        if self.deferred.is_empty() {
            return replies;
        }
        let now = clock_ms();
        self.deferred.retain(|signal| {
            let expired = signal.expires_ms.is_some_and(|at| now >= at);
            if let (true, Some(request)) = (expired, signal.request) {
                replies.push((request, ShimReply::Expired));
            }
            !expired
        });
        if self.deferred.is_empty() || self.is_program_pending() {
            return replies;
        }
        for signal in std::mem::take(&mut self.deferred) {
            let reply = self.deliver(&signal).map(ShimReply::Signalled);
            replies.extend(signal.request.zip(reply));
        }
        replies
    }

    /// Returns the replies to the signals that are deferred or wait for the privilege backend; no process is left to
    /// receive them.
    pub(super) fn end_signals(&mut self) -> Vec<(ShimRequestId, ShimReply)> {
        let deferred = self.deferred.drain(..).filter_map(|signal| signal.request);
        let reply = || ShimReply::Signalled(SignalDelivery::default());
        let mut replies: Vec<_> = deferred.map(|request| (request, reply())).collect();
        replies.extend(self.elevation.end());
        replies
    }

    /// Signals all processes of the run and starts the grace period before KILL.
    pub(super) fn kill(&mut self, signal: Signal, grace: Duration) {
        let now = Instant::now();
        let then_continue = !matches!(signal, Signal::STOP | Signal::TSTP | Signal::KILL);
        let ends_jail = self.monitor.is_some() || self.elevation.can_remove_jail();
        let grace = match signal == Signal::KILL && ends_jail {
            // The monitor, or the removal of the jail, ends all its processes.
            true => Duration::ZERO,
            false => {
                self.send_first_signal(signal, then_continue);
                grace
            }
        };
        match &mut self.kill {
            Some(sequence) => sequence.shorten_grace(now, grace),
            None => self.kill = Some(KillSequence::new(now, grace)),
        }
    }

    /// Sends the first signal of a kill to all processes, or defers it. Processes that it does not reach get KILL after the
    /// grace period.
    fn send_first_signal(&mut self, signal: Signal, then_continue: bool) {
        if signal != Signal::KILL && self.is_program_pending() {
            self.deferred.push(AgentSignal {
                signal,
                then_continue,
                request: None,
                expires_ms: None,
            });
            return;
        }
        if self.request(signal, SignalScope::All, then_continue) {
            return;
        }
        let command = self.elevation.pid();
        let sent = descendants::signal_all(signal, self.leader(), self.wrapper(), command);
        let _ = self.elevate(signal, sent.unwrap_or_default(), None, None);
        if then_continue {
            self.continue_all();
        }
    }

    /// Advances a kill in progress. Returns the report if the kill could not be verified.
    pub(super) fn step_kill(
        &mut self,
        now: Instant,
        cgroup: Option<&Cgroup>,
    ) -> Option<KillReport> {
        let kill = self.kill.as_mut()?;
        let report = kill.step(now, cgroup, &mut self.elevation, self.monitor.as_ref())?;
        self.kill = None;
        Some(report)
    }

    /// Returns whether a kill has sent KILL.
    pub(super) fn is_kill_forced(&self) -> bool {
        self.kill.as_ref().is_some_and(KillSequence::is_forced)
    }

    /// Returns the first process until it is collected. After that, its pid and process group may be reused.
    fn leader(&self) -> Option<Pid> {
        self.end.is_none().then_some(self.pid)
    }

    /// Returns the first process if it is the wrapper of a sandbox, which a signal would end.
    fn wrapper(&self) -> Option<Pid> {
        self.leader().filter(|_| self.is_wrapper)
    }

    /// Returns whether the sandbox has not started its program yet; the kernel would discard a signal.
    fn is_program_pending(&mut self) -> bool {
        if self.wrapper().is_none() || self.program_started {
            return false;
        }
        self.program_started = descendants::has_sandboxed_program(self.elevation.pid());
        !self.program_started
    }

    /// Sends a signal as a terminal does, to the agent's process group, or to all processes in its sandbox. Returns the
    /// delivery unless the privilege backend is delivering the signal.
    fn deliver(&mut self, signal: &AgentSignal) -> Option<SignalDelivery> {
        if self.request(signal.signal, SignalScope::Group, signal.then_continue) {
            return Some(SignalDelivery {
                sent: 1,
                ..SignalDelivery::default()
            });
        }
        let command = self.elevation.pid();
        let sent = match self.leader().filter(|_| !self.is_wrapper) {
            Some(leader) => descendants::signal_group(signal.signal, leader),
            None => descendants::signal_all(signal.signal, None, self.wrapper(), command),
        };
        let AgentSignal {
            signal,
            then_continue,
            request,
            expires_ms,
        } = *signal;
        let delivery = self.elevate(signal, sent.unwrap_or_default(), request, expires_ms);
        if then_continue {
            self.continue_all();
        }
        delivery
    }

    /// Requests a signal from the monitor, and CONT for all processes after it. Returns whether the requests were sent.
    fn request(&self, signal: Signal, scope: SignalScope, then_continue: bool) -> bool {
        let Some(monitor) = &self.monitor else {
            return false;
        };
        monitor.signal(signal, scope)
            && (!then_continue || monitor.signal(Signal::CONT, SignalScope::All))
    }

    /// Sends a signal through the privilege backend to the processes that the shim was denied. Returns the delivery unless
    /// that has started.
    fn elevate(
        &mut self,
        signal: Signal,
        mut delivery: SignalDelivery,
        request: Option<ShimRequestId>,
        expires_ms: Option<u64>,
    ) -> Option<SignalDelivery> {
        if self.is_wrapper && signal != Signal::KILL && signal != Signal::CONT {
            delivery.denied = descendants::sandboxed(delivery.denied);
        }
        self.elevation.signal(signal, delivery, request, expires_ms)
    }

    /// Sends CONT to all processes, because a stopped process handles no other signal. The wrapper gets it too: a
    /// stopped wrapper does not notice the end of its sandbox. Through the privilege backend, only stopped processes get it.
    fn continue_all(&mut self) {
        let command = self.elevation.pid();
        let sent = descendants::signal_all(Signal::CONT, self.leader(), None, command);
        let mut delivery = sent.unwrap_or_default();
        delivery.denied = descendants::stopped(&delivery.denied).unwrap_or_default();
        let _ = self.elevate(Signal::CONT, delivery, None, None);
    }
}
