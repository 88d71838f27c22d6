//! A run with processes: collects them, signals them, and kills them.

use std::time::{Duration, Instant};

use colibri_shim::control::{KillReport, ShimReply, SignalDelivery, clock_ms};
use colibri_shim::record::now_ns;
use colibri_types::{ExitReason, ExitStatus};
use rustix::io::Errno;
use rustix::process::{Pid, Signal, WaitOptions, kill_process_group, wait};

use super::state::NextRun;
use crate::agent_process::AgentProcess;
use crate::cgroup::Cgroup;
use crate::control_server::ShimRequestId;
use crate::descendants;
use crate::kill_sequence::KillSequence;
use crate::runs::RunEnd;

/// Polling interval for the start of a sandbox's program while a signal waits for it.
const SANDBOX_POLL_INTERVAL: Duration = Duration::from_millis(2);
/// Maximum number of signals that wait for the program of a sandbox.
const MAX_DEFERRED: usize = 64;

/// A signal to the agent.
pub(super) struct AgentSignal {
    pub(super) signal: Signal,
    /// CONT follows, so that a stopped agent handles the signal.
    pub(super) then_continue: bool,
    /// The request to answer.
    pub(super) request: Option<ShimRequestId>,
    /// Time of [`clock_ms`] after which the signal is dropped, because its caller has timed out.
    pub(super) expires_ms: Option<u64>,
}

/// The processes of a run.
pub(super) struct RunningAgent {
    pid: Pid,
    is_wrapper: bool,
    /// End of the first process, once it is collected. Descendants may still run.
    end: Option<RunEnd>,
    /// Why Colibri ends the run, if it does.
    end_reason: Option<ExitReason>,
    pub(super) next: NextRun,
    kill: Option<KillSequence>,
    /// Signals that wait for the program of the sandbox.
    deferred: Vec<AgentSignal>,
    /// The sandbox has started its program. Checked only when a signal is sent.
    program_started: bool,
}

impl RunningAgent {
    pub(super) fn new(agent: &AgentProcess) -> Self {
        Self {
            pid: agent.pid,
            is_wrapper: agent.is_wrapper,
            end: None,
            end_reason: None,
            next: NextRun::Undecided,
            kill: None,
            deferred: Vec::new(),
            program_started: false,
        }
    }

    pub(super) fn pid(&self) -> i32 {
        self.pid.as_raw_nonzero().get()
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
        let kill = self.kill.as_ref().map(KillSequence::deadline);
        deferred.into_iter().chain(kill).min()
    }

    /// Collects ended children. Returns whether no descendant is left: wait(2) then fails with ECHILD, because orphans
    /// are children of the reaper.
    pub(super) fn reap(&mut self) -> bool {
        loop {
            match wait(WaitOptions::NOHANG) {
                Ok(Some((pid, status))) if pid == self.pid && self.end.is_none() => {
                    let (exit, reason) = match status.terminating_signal() {
                        Some(signal) => (ExitStatus::Signal(signal), ExitReason::Signalled),
                        None => (
                            ExitStatus::Code(status.exit_status().unwrap_or_default()),
                            ExitReason::Exited,
                        ),
                    };
                    self.end = Some(RunEnd {
                        exit: Some(exit),
                        reason: self.end_reason.unwrap_or(reason),
                        at_ns: now_ns(),
                    });
                }
                Ok(Some(_)) | Err(Errno::INTR) => {}
                Ok(None) => return false,
                Err(_) => return true,
            }
        }
    }

    /// Sends a signal now, or defers it until the sandbox has started the program that the signal is for. Returns the
    /// delivery unless the signal is deferred.
    pub(super) fn signal(&mut self, signal: AgentSignal) -> Option<SignalDelivery> {
        // KILL also ends a sandbox that is not set up yet. STOP would prevent the setup, so it is deferred too.
        let defers = signal.signal != Signal::KILL && self.deferred.len() < MAX_DEFERRED;
        if defers && self.is_program_pending() {
            self.deferred.push(signal);
            return None;
        }
        Some(self.deliver(&signal))
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
            let delivery = self.deliver(&signal);
            replies.extend(
                signal
                    .request
                    .map(|request| (request, ShimReply::Signalled(delivery))),
            );
        }
        replies
    }

    /// Returns the requests whose signals are deferred; no process is left to receive them.
    pub(super) fn deferred_requests(&self) -> impl Iterator<Item = ShimRequestId> {
        self.deferred.iter().filter_map(|signal| signal.request)
    }

    /// Signals all processes of the run and starts the grace period before KILL.
    pub(super) fn kill(&mut self, signal: Signal, grace: Duration) {
        let now = Instant::now();
        let then_continue = !matches!(signal, Signal::STOP | Signal::TSTP | Signal::KILL);
        if signal != Signal::KILL && self.is_program_pending() {
            self.deferred.push(AgentSignal {
                signal,
                then_continue,
                request: None,
                expires_ms: None,
            });
        } else {
            // Processes that this signal does not reach get KILL after the grace period.
            let _ = descendants::signal_all(signal, self.leader(), self.wrapper());
            if then_continue {
                self.continue_all();
            }
        }
        match &mut self.kill {
            Some(sequence) => sequence.shorten_grace(now, grace),
            None => self.kill = Some(KillSequence::new(now, grace)),
        }
    }

    /// Advances a kill in progress. Returns the report if the kill could not be verified.
    pub(super) fn step_kill(
        &mut self,
        now: Instant,
        cgroup: Option<&Cgroup>,
    ) -> Option<KillReport> {
        let report = self.kill.as_mut()?.step(now, cgroup)?;
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
        self.program_started = descendants::has_sandboxed_program();
        !self.program_started
    }

    /// Sends a signal as a terminal does, to the agent's process group, or to all processes in its sandbox.
    fn deliver(&self, signal: &AgentSignal) -> SignalDelivery {
        let mut delivery = SignalDelivery::default();
        match self.leader().filter(|_| !self.is_wrapper) {
            Some(leader) => match kill_process_group(leader, signal.signal) {
                Ok(()) => delivery.sent = 1,
                Err(Errno::PERM) => delivery.denied.push(self.pid()),
                Err(_) => {}
            },
            None => {
                let sent = descendants::signal_all(signal.signal, None, self.wrapper());
                delivery = sent.unwrap_or_default();
            }
        }
        if signal.then_continue {
            self.continue_all();
        }
        delivery
    }

    /// Sends CONT to all processes, because a stopped process handles no other signal. The wrapper gets it too: a
    /// stopped wrapper does not notice the end of its sandbox.
    fn continue_all(&self) {
        let _ = descendants::signal_all(Signal::CONT, self.leader(), None);
    }
}
