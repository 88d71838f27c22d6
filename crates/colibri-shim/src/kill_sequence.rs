//! Ends all processes of a run: grace period, KILL, and further KILLs until no process is left or the time is over.
//!
//! ```text
//! Grace --deadline--> Removing --------> Killing --5 s--> unverified
//!   |                 removal of the     every 20 ms: STOP sweeps, then KILL to all
//!   |                 agent's own jail        ^
//!   `--no jail to remove---------------------'
//! ```
//!
//! A monitor of the agent sends KILL itself and removes the jail. Otherwise processes that the shim may not signal get
//! KILL through the privilege backend, at growing intervals.
//!
//! A sequence that ends before "unverified" is verified: the kernel reported that no descendant is left.

use std::collections::HashSet;
use std::time::{Duration, Instant};

use colibri_jail_core::SignalScope;
use colibri_shim::control::KillReport;
use rustix::process::Signal;

use crate::cgroup::Cgroup;
use crate::descendants;
use crate::elevation::Elevation;
use crate::monitor::MonitorLink;

/// Time from the first KILL until the kill counts as unverified.
const VERIFY_TIMEOUT: Duration = Duration::from_secs(5);
/// Interval between two rounds of KILL.
const ROUND_INTERVAL: Duration = Duration::from_millis(20);
/// First interval between two KILLs through the privilege backend; it doubles each time.
const FIRST_ELEVATED_INTERVAL: Duration = Duration::from_millis(50);
/// Maximum number of STOP sweeps before the next KILL.
const MAX_SWEEPS: u32 = 1000;

/// A kill in progress.
pub(crate) enum KillSequence {
    /// The first signal was sent; the processes have time to end.
    Grace { until: Instant },
    /// The privilege backend removes the agent's jail.
    Removing,
    /// KILL was sent.
    Killing {
        until: Instant,
        next_round: Instant,
        elevated: ElevatedRounds,
        /// Processes that were stopped since the last KILL, so that they cannot fork.
        stopped: HashSet<i32>,
        /// Number of STOP sweeps since the last KILL.
        sweeps: u32,
    },
}

/// The times at which KILL is sent through the privilege backend.
#[derive(Clone, Copy)]
pub(crate) struct ElevatedRounds {
    next: Instant,
    interval: Duration,
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

    /// Returns whether the grace period is over.
    pub(crate) fn is_forced(&self) -> bool {
        !matches!(self, Self::Grace { .. })
    }

    /// Returns when [`KillSequence::step`] is due; absent while it waits for the removal of the jail.
    pub(crate) fn deadline(&self, elevation: &Elevation) -> Option<Instant> {
        match self {
            Self::Grace { until } => Some(*until),
            Self::Removing => elevation.is_idle().then(Instant::now),
            Self::Killing { next_round, .. } => Some(*next_round),
        }
    }

    /// Advances if a step is due. Returns a report when the time is over and the kill could not be verified.
    ///
    /// The first KILL goes to all processes that are found. Processes that fork faster are then stopped, sweep by
    /// sweep, until a sweep finds no running process; the next KILL ends all of them. The agent's own jail is removed
    /// before the first KILL: jail(8) leaves an empty jail behind if a signal ends it.
    pub(crate) fn step(
        &mut self,
        now: Instant,
        cgroup: Option<&Cgroup>,
        elevation: &mut Elevation,
        monitor: Option<&MonitorLink>,
    ) -> Option<KillReport> {
        if self.deadline(elevation).is_none_or(|at| now < at) {
            return None;
        }
        let is_monitored =
            monitor.is_some_and(|monitor| monitor.signal(Signal::KILL, SignalScope::All));
        let command = elevation.pid();
        let (until, mut elevated) = match self {
            Self::Grace { .. } if elevation.can_remove_jail() && !is_monitored => {
                elevation.remove_jail();
                *self = Self::Removing;
                return None;
            }
            Self::Grace { .. } | Self::Removing => {
                let elevated = ElevatedRounds {
                    next: now,
                    interval: FIRST_ELEVATED_INTERVAL,
                };
                (now + VERIFY_TIMEOUT, elevated)
            }
            Self::Killing { until, .. } if now >= *until && elevation.is_idle() => {
                return Some(unverified(elevation));
            }
            Self::Killing {
                until,
                next_round,
                elevated,
                stopped,
                sweeps,
            } => {
                let sweep = |stopped| descendants::stop_running(stopped, command).unwrap_or(false);
                if !is_monitored && *sweeps < MAX_SWEEPS && sweep(stopped) {
                    *sweeps += 1;
                    *next_round = now;
                    return None;
                }
                (*until, *elevated)
            }
        };
        if let Some(cgroup) = cgroup {
            cgroup.kill();
        }
        // Processes that cannot be listed or signalled now are tried again in the next round. The monitor, a descendant too,
        // ends by itself.
        let delivery = (!is_monitored)
            .then(|| descendants::signal_all(Signal::KILL, None, None, command).ok())
            .flatten();
        if let Some(delivery) = delivery
            && !delivery.denied.is_empty()
            && now >= elevated.next
            && now < until
            && elevation.is_idle()
        {
            let _ = elevation.signal(Signal::KILL, delivery, None, None);
            elevated.next = now + elevated.interval;
            elevated.interval *= 2;
        }
        *self = Self::Killing {
            until,
            next_round: now + ROUND_INTERVAL,
            elevated,
            stopped: HashSet::new(),
            sweeps: 0,
        };
        None
    }
}

/// Sends KILL once more and reports the remaining processes.
fn unverified(elevation: &Elevation) -> KillReport {
    let delivery = descendants::signal_all(Signal::KILL, None, None, None).unwrap_or_default();
    KillReport {
        forced: true,
        remaining: descendants::list(None).unwrap_or_default(),
        reason: elevation.failure(&delivery.denied),
        denied: delivery.denied,
    }
}
