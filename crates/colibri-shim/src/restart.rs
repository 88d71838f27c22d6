//! The restart decision after each run: exponential backoff with jitter, and a limit on restarts within a window. Pure:
//! the caller passes the time and the random number.
//!
//! The shim decides and not the daemon, because the shim lives as long as the agent and holds the environment, which is
//! stored nowhere else.

use std::collections::VecDeque;
use std::time::Duration;

use colibri_types::{ExitStatus, RestartPolicy, RestartWhen};

/// What follows a run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RestartDecision {
    /// Another run, after this backoff.
    After(Duration),
    /// No run: the policy does not restart the agent after this end.
    Stop,
    /// No run: the limit of restarts within the window is reached.
    GiveUp,
}

/// A restart policy and its history.
#[derive(Debug)]
pub struct RestartBackoff {
    policy: RestartPolicy,
    /// Number of restarts since the last run that lasted `max_delay_ms`.
    streak: u32,
    /// Times of the restarts within the window.
    recent: VecDeque<Duration>,
}

impl RestartBackoff {
    /// Creates the state before the first run.
    #[must_use]
    pub fn new(policy: RestartPolicy) -> Self {
        Self {
            policy,
            streak: 0,
            recent: VecDeque::new(),
        }
    }

    /// Returns the policy.
    #[must_use]
    pub fn policy(&self) -> &RestartPolicy {
        &self.policy
    }

    /// Decides what follows a run that ended at `now`, a time of any monotonic clock, after `lasted`. An unknown exit
    /// status counts as a failure.
    ///
    /// The backoff doubles with each restart up to `max_delay_ms`. `jitter` (0 to 1) selects a time between half of the
    /// backoff and all of it, so that agents that failed together do not restart together.
    pub fn decide(
        &mut self,
        exit: Option<ExitStatus>,
        lasted: Duration,
        now: Duration,
        jitter: f64,
    ) -> RestartDecision {
        let restarts = match self.policy.when() {
            RestartWhen::Never | RestartWhen::OnReboot => false,
            RestartWhen::OnFailure => exit != Some(ExitStatus::Code(0)),
            RestartWhen::Always => true,
        };
        if !restarts {
            return RestartDecision::Stop;
        }
        let window = self.policy.window();
        self.recent.retain(|at| now.saturating_sub(*at) < window);
        if self.recent.len() >= self.policy.limit() as usize {
            return RestartDecision::GiveUp;
        }
        self.recent.push_back(now);
        let max_delay = self.policy.max_delay();
        if lasted >= max_delay {
            self.streak = 0;
        }
        let backoff = self
            .policy
            .delay()
            .saturating_mul(2_u32.saturating_pow(self.streak))
            .min(max_delay);
        self.streak = self.streak.saturating_add(1);
        RestartDecision::After(backoff / 2 + (backoff / 2).mul_f64(jitter.clamp(0.0, 1.0)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn policy(when: RestartWhen) -> RestartPolicy {
        RestartPolicy {
            policy: Some(when),
            delay_ms: Some(1_000),
            max_delay_ms: Some(5_000),
            limit: Some(4),
            window_ms: Some(60_000),
        }
    }

    #[test]
    fn restart_follows_the_policy() {
        use RestartDecision::{After, Stop};
        for (when, exit, expected) in [
            (RestartWhen::Never, Some(ExitStatus::Code(1)), Stop),
            (RestartWhen::OnFailure, Some(ExitStatus::Code(0)), Stop),
            (
                RestartWhen::OnFailure,
                Some(ExitStatus::Code(1)),
                After(SECOND),
            ),
            (
                RestartWhen::OnFailure,
                Some(ExitStatus::Signal(9)),
                After(SECOND),
            ),
            (RestartWhen::OnFailure, None, After(SECOND)),
            (
                RestartWhen::Always,
                Some(ExitStatus::Code(0)),
                After(SECOND),
            ),
        ] {
            let mut restarts = RestartBackoff::new(policy(when));
            assert_eq!(
                restarts.decide(exit, SECOND, SECOND, 1.0),
                expected,
                "{when:?} {exit:?}"
            );
        }
    }

    #[test]
    fn backoff_doubles_to_its_maximum_and_a_long_run_resets_it() {
        let mut restarts = RestartBackoff::new(policy(RestartWhen::Always));
        let mut decide = |at: u64, lasted: u64, jitter| {
            let lasted = Duration::from_secs(lasted);
            restarts.decide(None, lasted, Duration::from_secs(at), jitter)
        };
        let after = |ms| RestartDecision::After(Duration::from_millis(ms));
        assert_eq!(decide(0, 0, 1.0), after(1_000));
        assert_eq!(decide(1, 0, 1.0), after(2_000));
        assert_eq!(decide(2, 0, 0.0), after(2_000), "half of 4 s");
        assert_eq!(decide(3, 0, 1.0), after(5_000), "the maximum");
        assert_eq!(decide(59, 0, 1.0), RestartDecision::GiveUp);
        assert_eq!(
            decide(60, 0, 0.5),
            after(3_750),
            "the first restart has left the window"
        );
        assert_eq!(
            decide(61, 5, 1.0),
            after(1_000),
            "a long run resets the backoff"
        );
    }

    proptest! {
        #[test]
        fn backoff_and_restart_count_stay_within_their_bounds(
            delay_ms in 0..10_000_u64,
            max_delay_ms in 0..100_000_u64,
            limit in 0..6_u32,
            window_ms in 1..100_000_u64,
            ends in prop::collection::vec((0..50_000_u64, 0..200_000_u64, 0.0..1.0), 1..40),
        ) {
            let policy = RestartPolicy {
                policy: Some(RestartWhen::Always), delay_ms: Some(delay_ms), max_delay_ms: Some(max_delay_ms),
                limit: Some(limit), window_ms: Some(window_ms),
            };
            let mut restarts = RestartBackoff::new(policy);
            let mut now = Duration::ZERO;
            let mut decided = Vec::new();
            for (pause, lasted, jitter) in ends {
                now += Duration::from_millis(pause);
                match restarts.decide(None, Duration::from_millis(lasted), now, jitter) {
                    RestartDecision::After(wait) => {
                        prop_assert!(wait <= Duration::from_millis(max_delay_ms));
                        prop_assert!(wait >= Duration::from_millis(delay_ms.min(max_delay_ms)) / 2);
                        decided.push(now);
                    }
                    RestartDecision::GiveUp => {}
                    RestartDecision::Stop => prop_assert!(false, "the policy is always"),
                }
                let window = Duration::from_millis(window_ms);
                let within = decided.iter().filter(|at| now - **at < window).count();
                prop_assert!(within <= limit as usize);
            }
        }
    }
}
