//! Ends all processes of a run: grace period, KILL, and further KILLs until no process is left or the time is over.
//!
//! ```text
//! Grace --deadline--> Killing --5 s--> unverified
//!                     every 20 ms: STOP sweeps, then KILL to all
//! ```
//!
//! A sequence that ends before "unverified" is verified: the kernel reported that no descendant is left.

use std::collections::HashSet;
use std::time::{Duration, Instant};

use colibri_shim::control::KillReport;
use rustix::process::Signal;

use crate::cgroup::Cgroup;
use crate::descendants;

/// Time from the first KILL until the kill counts as unverified.
const VERIFY_TIMEOUT: Duration = Duration::from_secs(5);
/// Interval between two rounds of KILL.
const ROUND_INTERVAL: Duration = Duration::from_millis(20);
/// Maximum number of STOP sweeps before the next KILL.
const MAX_SWEEPS: u32 = 1000;

/// A kill in progress.
pub(crate) enum KillSequence {
    /// The first signal was sent; the processes have time to end.
    Grace { until: Instant },
    /// KILL was sent.
    Killing {
        until: Instant,
        next_round: Instant,
        /// Processes that were stopped since the last KILL, so that they cannot fork.
        stopped: HashSet<i32>,
        /// Number of STOP sweeps since the last KILL.
        sweeps: u32,
    },
}

impl KillSequence {
    /// Starts with the grace period; the caller has sent the first signal.
    pub(crate) fn new(now: Instant, grace: Duration) -> Self {
        Self::Grace { until: now + grace }
    }

    /// Applies the grace period of a further kill, if it ends earlier.
    pub(crate) fn shorten_grace(&mut self, now: Instant, grace: Duration) {
        if let Self::Grace { until } = self {
            *until = (*until).min(now + grace);
        }
    }

    /// Returns whether KILL was sent.
    pub(crate) fn is_forced(&self) -> bool {
        matches!(self, Self::Killing { .. })
    }

    /// Returns when [`KillSequence::step`] is due.
    pub(crate) fn deadline(&self) -> Instant {
        match self {
            Self::Grace { until } => *until,
            Self::Killing { next_round, .. } => *next_round,
        }
    }

    /// Advances if a step is due. Returns a report when the time is over and the kill could not be verified.
    ///
    /// The first KILL goes to all processes that are found. Processes that fork faster are then stopped, sweep by
    /// sweep, until a sweep finds no running process; the next KILL ends all of them.
    pub(crate) fn step(&mut self, now: Instant, cgroup: Option<&Cgroup>) -> Option<KillReport> {
        if now < self.deadline() {
            return None;
        }
        let until = match self {
            Self::Grace { .. } => now + VERIFY_TIMEOUT,
            Self::Killing { until, .. } if now >= *until => return Some(unverified()),
            Self::Killing {
                until,
                next_round,
                stopped,
                sweeps,
            } => {
                if *sweeps < MAX_SWEEPS && descendants::stop_running(stopped).unwrap_or(false) {
                    *sweeps += 1;
                    *next_round = now;
                    return None;
                }
                *until
            }
        };
        if let Some(cgroup) = cgroup {
            cgroup.kill();
        }
        // Processes that cannot be listed or signalled now are tried again in the next round.
        let _ = descendants::signal_all(Signal::KILL, None, None);
        *self = Self::Killing {
            until,
            next_round: now + ROUND_INTERVAL,
            stopped: HashSet::new(),
            sweeps: 0,
        };
        None
    }
}

/// Sends KILL once more and reports the remaining processes.
fn unverified() -> KillReport {
    let delivery = descendants::signal_all(Signal::KILL, None, None).unwrap_or_default();
    KillReport {
        forced: true,
        remaining: descendants::list().unwrap_or_default(),
        denied: delivery.denied,
    }
}
