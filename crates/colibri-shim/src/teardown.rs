//! Ending an agent: signal, grace, KILL, and KILL again until nothing is left or time is up.

use std::collections::HashSet;
use std::time::{Duration, Instant};

use colibri_shim::control::Reply;
use rustix::process::Signal;

use crate::cgroup::Cgroup;
use crate::sys;

/// How long the dead may take to disappear after KILL before the kill counts as unverified.
const VERIFY: Duration = Duration::from_secs(5);
/// Between two rounds of KILL: a process that forks faster than it is found is hit again.
const ROUND: Duration = Duration::from_millis(20);

/// Maximum number of STOP sweeps before the next KILL.
const SWEEPS: u32 = 1000;

/// Whoever asked, to be answered at the end: connection and request number.
pub(crate) type Asker = (u64, u64);

/// A kill on its way.
pub(crate) struct Teardown {
    stage: Stage,
    askers: Vec<Asker>,
    /// Processes that were stopped since the last KILL, so that they fork no more.
    stopped: HashSet<i32>,
    sweeps: u32,
}

enum Stage {
    Grace { until: Instant },
    Killing { until: Instant, next_round: Instant },
}

impl Teardown {
    /// Starts with the grace period; the first signal has been sent by the caller.
    pub(crate) fn new(now: Instant, grace: Duration) -> Self {
        Self {
            stage: Stage::Grace { until: now + grace },
            askers: Vec::new(),
            stopped: HashSet::new(),
            sweeps: 0,
        }
    }

    pub(crate) fn add(&mut self, asker: Asker) {
        self.askers.push(asker);
    }

    /// Another kill came: the shorter grace counts.
    pub(crate) fn shorten(&mut self, now: Instant, grace: Duration) {
        if let Stage::Grace { until } = &mut self.stage {
            *until = (*until).min(now + grace);
        }
    }

    /// When [`Teardown::step`] wants to be called next.
    pub(crate) fn deadline(&self) -> Instant {
        match self.stage {
            Stage::Grace { until } => until,
            Stage::Killing { next_round, .. } => next_round,
        }
    }

    /// Goes on where its time has come. Returns the reply when the kill cannot be verified.
    ///
    /// The first KILL goes to all processes found. Processes that fork faster are then stopped, sweep by sweep, until a
    /// sweep finds none that runs; the next KILL ends all of them.
    pub(crate) fn step(&mut self, now: Instant, cgroup: Option<&Cgroup>) -> Option<Reply> {
        if now < self.deadline() {
            return None;
        }
        let until = match self.stage {
            Stage::Grace { .. } => now + VERIFY,
            Stage::Killing { until, .. }
                if now < until
                    && self.sweeps < SWEEPS
                    && sys::stop_running(&mut self.stopped).unwrap_or(false) =>
            {
                self.sweeps += 1;
                self.stage = Stage::Killing {
                    until,
                    next_round: now,
                };
                return None;
            }
            Stage::Killing { until, .. } if now >= until => {
                let delivery = sys::signal_all(Signal::KILL, None, None).unwrap_or_default();
                return Some(Reply::Killed {
                    forced: true,
                    remaining: sys::descendants().unwrap_or_default(),
                    denied: delivery.denied,
                });
            }
            Stage::Killing { until, .. } => until,
        };
        if let Some(cgroup) = cgroup {
            cgroup.kill();
        }
        self.stopped.clear();
        self.sweeps = 0;
        // What cannot be listed or signalled now is tried again next round, and reported in the end.
        let _ = sys::signal_all(Signal::KILL, None, None);
        self.stage = Stage::Killing {
            until,
            next_round: now + ROUND,
        };
        None
    }

    /// Nothing is left: the reply, and whom it goes to.
    pub(crate) fn verified(&self) -> Reply {
        Reply::Killed {
            forced: matches!(self.stage, Stage::Killing { .. }),
            remaining: Vec::new(),
            denied: Vec::new(),
        }
    }

    pub(crate) fn into_askers(self) -> Vec<Asker> {
        self.askers
    }
}
