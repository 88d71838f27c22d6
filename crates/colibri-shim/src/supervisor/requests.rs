//! Serves the requests from the control socket.

use std::time::{Duration, Instant};

use colibri_shim::control::{ShimOp, ShimReply, SignalDelivery};
use colibri_types::{ExitReason, TerminalSize};
use rustix::process::Signal;

use super::Supervisor;
use super::running::AgentSignal;
use super::state::{NextRun, State};
use crate::connection::Received;
use crate::control_server::ShimRequestId;
use crate::signals;
use crate::terminal::resize;

/// Why a request to close the input of a terminal is refused.
const NO_END_OF_INPUT: &str = "the input of a terminal has no end";

impl Supervisor {
    /// Reads and handles all available requests.
    pub(super) fn serve_requests(&mut self) {
        for (id, received) in self.server.receive() {
            if let Some(reply) = self.handle(id, received) {
                self.server.reply(id, reply);
            }
        }
        self.server.remove_closed();
        if !self.server.has_connections() {
            self.directory.check_soon();
        }
    }

    /// Handles a request. Returns the reply unless that follows later.
    fn handle(&mut self, id: ShimRequestId, received: Received) -> Option<ShimReply> {
        let Received { request, payload } = received;
        let unknown = |name: &str| Some(ShimReply::Refused(format!("unknown signal {name}")));
        match request.op {
            // The server has answered it.
            ShimOp::Watch { .. } => None,
            ShimOp::Signal { signal: name, last } => {
                let Some(signal) = signals::by_name(&name) else {
                    return unknown(&name);
                };
                if last {
                    self.end_after_this_run(Some(ExitReason::KilledByUser));
                }
                // Between two runs no process of the agent exists; a signal would hit the commands before or after a run.
                let State::Running(agent) = &mut self.state else {
                    return Some(ShimReply::Signalled(SignalDelivery::default()));
                };
                let delivery = agent.signal(AgentSignal {
                    signal,
                    then_continue: last,
                    request: Some(id),
                    expires_ms: request.expires_ms,
                });
                delivery.map(ShimReply::Signalled)
            }
            ShimOp::Kill {
                signal: name,
                grace_ms,
            } => {
                let Some(signal) = signals::by_name(&name) else {
                    return unknown(&name);
                };
                self.kill_requests.push(id);
                let grace = Duration::from_millis(grace_ms);
                self.kill(signal, grace, Some(ExitReason::KilledByUser));
                None
            }
            ShimOp::Restart { grace_ms } => Some(self.restart(Duration::from_millis(grace_ms))),
            ShimOp::Input { .. } => Some(self.input.push(&payload)),
            ShimOp::CloseInput if self.runs.terminal_size().is_some() => {
                Some(ShimReply::Refused(NO_END_OF_INPUT.to_owned()))
            }
            ShimOp::CloseInput => {
                self.input.close();
                Some(ShimReply::Ok)
            }
            ShimOp::Resize(size) => Some(self.resize(size)),
        }
    }

    /// Sets the size of the terminal of this run, if there is one, and of later runs.
    fn resize(&mut self, size: TerminalSize) -> ShimReply {
        if !self.runs.set_terminal_size(size) {
            return ShimReply::Refused("the agent has no terminal".to_owned());
        }
        self.server.mark_status_outdated();
        match self
            .terminal
            .as_ref()
            .map(|terminal| resize(terminal, size))
        {
            Some(Err(error)) => ShimReply::Refused(format!("cannot resize its terminal: {error}")),
            Some(Ok(())) | None => ShimReply::Ok,
        }
    }

    pub(super) fn deliver_deferred_signals(&mut self) {
        if let State::Running(agent) = &mut self.state {
            for (request, reply) in agent.deliver_deferred() {
                self.server.reply(request, reply);
            }
        }
    }

    /// Ends the current run as a kill with TERM does, and starts the next one immediately.
    fn restart(&mut self, grace: Duration) -> ShimReply {
        if self.ending_since.is_some() {
            return ShimReply::Refused("the agent is being ended".to_owned());
        }
        let immediately = NextRun::After(Duration::ZERO);
        match &mut self.state {
            State::Running(agent) => {
                agent.next = immediately;
                agent.set_end_reason(Some(ExitReason::KilledByUser));
                agent.kill(Signal::TERM, grace);
            }
            State::Draining(run) | State::CleaningUp { run, .. } | State::Recording { run, .. } => {
                run.next = immediately
            }
            State::BackingOff { until, .. } => *until = Instant::now(),
            // The run that is being prepared is the requested one.
            State::Preparing(_) => {}
        }
        ShimReply::Ok
    }
}
