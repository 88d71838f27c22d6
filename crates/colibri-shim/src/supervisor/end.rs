//! Ends a run, or the agent: kills, limits, and the end of the last process.

use std::time::{Duration, Instant};

use colibri_shim::control::{KillReport, ShimReply};
use colibri_types::ExitReason;
use rustix::process::Signal;

use super::running::Remaining;
use super::state::{EndedRun, NextRun, State};
use super::{Progress, Supervisor};
use crate::output::Drained;
use crate::runs::RunEnd;

/// How long output of a killed agent that cannot be stored is kept in memory and in the pipe.
const STORE_TIMEOUT: Duration = Duration::from_secs(5);

impl Supervisor {
    /// Ends the agent: signals its processes, and sends KILL after the grace period. `reason` is recorded unless the
    /// run has already ended by itself.
    pub(super) fn kill(&mut self, signal: Signal, grace: Duration, reason: Option<ExitReason>) {
        self.end_after_this_run(reason);
        if let State::Running(agent) = &mut self.state {
            agent.kill(signal, grace);
        }
    }

    /// Advances a kill in progress.
    pub(super) fn step_kill(&mut self, now: Instant) {
        if let State::Running(agent) = &mut self.state
            && let Some(report) = agent.step_kill(now, self.runs.cgroup.as_ref())
        {
            self.answer_kills(&report);
        }
    }

    /// Advances the commands of the privilege backend.
    pub(super) fn poll_elevation(&mut self, now: Instant) {
        if let State::Running(agent) = &mut self.state {
            for (request, reply) in agent.poll_elevation(now) {
                self.server.reply(request, reply);
            }
        }
    }

    /// Makes the current run the last one; between two runs that is the previous one. `reason` is recorded unless the
    /// run has already ended by itself.
    pub(super) fn end_after_this_run(&mut self, reason: Option<ExitReason>) {
        self.ending_since.get_or_insert_with(Instant::now);
        match &mut self.state {
            State::Running(agent) => {
                agent.next = NextRun::Never;
                agent.set_end_reason(reason);
            }
            State::Draining(run) | State::CleaningUp { run, .. } | State::Recording { run, .. } => {
                run.next = NextRun::Never
            }
            State::BackingOff { run, .. } => {
                if reason == Some(ExitReason::WallTime) {
                    run.end.reason = ExitReason::WallTime;
                }
                run.next = NextRun::Never;
                self.state = State::Recording {
                    run: *run,
                    failure: None,
                };
            }
            State::Preparing(commands) => {
                commands.abort();
                self.runs.fail_start("the agent was ended first");
                self.state = State::Draining(EndedRun {
                    end: RunEnd::without_exit(reason.unwrap_or(ExitReason::NotStarted)),
                    next: NextRun::Never,
                });
            }
        }
    }

    /// Reads the reports of the agent's monitor.
    pub(super) fn read_monitor(&mut self) {
        if let State::Running(agent) = &mut self.state {
            if agent.read_monitor() {
                self.server.mark_status_outdated();
            }
            for problem in agent.take_problems() {
                self.runs.add_error(problem);
            }
        }
    }

    /// Collects ended children. The run ends with its last process.
    pub(super) fn reap(&mut self) {
        let State::Running(agent) = &mut self.state else {
            return;
        };
        let was_lingering = agent.is_lingering();
        let remaining = agent.reap();
        for problem in agent.take_problems() {
            self.runs.add_error(problem);
        }
        if agent.is_lingering() != was_lingering {
            self.server.mark_status_outdated();
        }
        if remaining == Remaining::Unmonitored {
            self.runs
                .add_error("its monitor was killed, so the agent was ended".to_owned());
            self.kill(Signal::KILL, Duration::ZERO, None);
        }
        if remaining != Remaining::None {
            return;
        }
        let State::Running(agent) = &mut self.state else {
            return;
        };
        if agent.has_reported() {
            self.runs.mark_started();
        }
        for (request, reply) in agent.end_signals() {
            self.server.reply(request, reply);
        }
        let killed = KillReport {
            forced: agent.is_kill_forced(),
            ..KillReport::default()
        };
        self.state = State::Draining(EndedRun {
            end: agent.end(),
            next: agent.next,
        });
        self.answer_kills(&killed);
    }

    /// Copies the rest of the pipes after the last process has ended.
    pub(super) fn drain(&mut self, now: Instant) -> Progress {
        self.answer_kills(&KillReport::default());
        let State::Draining(run) = &self.state else {
            return Progress::Blocked;
        };
        let give_up = self
            .ending_since
            .is_some_and(|since| now.duration_since(since) >= STORE_TIMEOUT);
        match self.outputs.drain(now, give_up) {
            Drained::Stalled => return Progress::Blocked,
            Drained::Truncated => self.runs.add_error(
                "the rest of its output could not be stored after it was killed, and is lost"
                    .to_owned(),
            ),
            Drained::Complete => {}
        }
        self.terminal = None;
        self.state = State::CleaningUp {
            run: *run,
            commands: self.runs.post_run(),
        };
        let records = self.network.finish();
        self.publish_network(records);
        Progress::Advanced
    }

    /// Answers all kill requests.
    pub(super) fn answer_kills(&mut self, report: &KillReport) {
        for request in self.kill_requests.drain(..) {
            self.server
                .reply(request, ShimReply::Killed(report.clone()));
        }
    }
}
