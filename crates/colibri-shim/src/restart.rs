//! Whether an agent that has ended is started again, and when. Pure: time and chance are given.
//!
//! The shim decides, and not the daemon, because it lives as long as the agent does and holds the
//! environment, which is written nowhere.

use std::collections::VecDeque;
use std::time::Duration;

use colibri_types::{ExitStatus, RestartPolicy, RestartWhen};

/// What follows the end of a run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Decision {
    /// Another run, after this wait.
    After(Duration),
    /// The agent has ended.
    Stop,
    /// It would be started again, but for the limit.
    GiveUp,
}

/// A policy, and what it remembers.
#[derive(Debug)]
pub struct Restarts {
    policy: RestartPolicy,
    /// Restarts since the last long run.
    streak: u32,
    /// When the restarts of the window were decided.
    recent: VecDeque<Duration>,
}

impl Restarts {
    /// Nothing has ended yet.
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

    /// A run has ended at `now` (of any clock that never goes back) after `lasted`; `None` is an end that
    /// nobody saw, which counts as a failure. The wait lies between half of its bound and all of it, where
    /// `chance` (0 to 1) says, so that agents that failed together do not come back together.
    pub fn decide(
        &mut self,
        exit: Option<ExitStatus>,
        lasted: Duration,
        now: Duration,
        chance: f64,
    ) -> Decision {
        let wanted = match self.policy.when() {
            RestartWhen::Never => false,
            RestartWhen::OnFailure => exit != Some(ExitStatus::Code(0)),
            RestartWhen::Always => true,
        };
        if !wanted {
            return Decision::Stop;
        }
        let window = self.policy.window();
        while self
            .recent
            .front()
            .is_some_and(|at| now.saturating_sub(*at) >= window)
        {
            self.recent.pop_front();
        }
        if self.recent.len() >= self.policy.limit() as usize {
            return Decision::GiveUp;
        }
        self.recent.push_back(now);
        let cap = self.policy.max_delay();
        if lasted >= cap {
            self.streak = 0;
        }
        let bound = self
            .policy
            .delay()
            .saturating_mul(2_u32.saturating_pow(self.streak))
            .min(cap);
        self.streak = self.streak.saturating_add(1);
        Decision::After(bound / 2 + (bound / 2).mul_f64(chance.clamp(0.0, 1.0)))
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
    fn who_is_started_again() {
        use Decision::{After, Stop};
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
            let mut restarts = Restarts::new(policy(when));
            assert_eq!(
                restarts.decide(exit, SECOND, SECOND, 1.0),
                expected,
                "{when:?} {exit:?}"
            );
        }
    }

    #[test]
    fn the_wait_doubles_up_to_its_cap_until_the_limit_and_a_long_run_sets_it_back() {
        let mut restarts = Restarts::new(policy(RestartWhen::Always));
        let mut step = |at: u64, lasted: u64, chance| {
            let lasted = Duration::from_secs(lasted);
            restarts.decide(None, lasted, Duration::from_secs(at), chance)
        };
        let after = |ms| Decision::After(Duration::from_millis(ms));
        assert_eq!(step(0, 0, 1.0), after(1_000));
        assert_eq!(step(1, 0, 1.0), after(2_000));
        assert_eq!(step(2, 0, 0.0), after(2_000), "half of 4 s");
        assert_eq!(step(3, 0, 1.0), after(5_000), "the cap");
        assert_eq!(step(59, 0, 1.0), Decision::GiveUp);
        assert_eq!(
            step(60, 0, 0.5),
            after(3_750),
            "the first has left the window"
        );
        assert_eq!(step(61, 5, 1.0), after(1_000), "it lasted");
    }

    proptest! {
        #[test]
        fn a_wait_is_within_its_bounds_and_the_limit_holds_in_every_window(
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
            let mut restarts = Restarts::new(policy);
            let mut now = Duration::ZERO;
            let mut decided = Vec::new();
            for (pause, lasted, chance) in ends {
                now += Duration::from_millis(pause);
                match restarts.decide(None, Duration::from_millis(lasted), now, chance) {
                    Decision::After(wait) => {
                        prop_assert!(wait <= Duration::from_millis(max_delay_ms));
                        prop_assert!(wait >= Duration::from_millis(delay_ms.min(max_delay_ms)) / 2);
                        decided.push(now);
                    }
                    Decision::GiveUp => {}
                    Decision::Stop => prop_assert!(false, "always means always"),
                }
                let window = Duration::from_millis(window_ms);
                let within = decided.iter().filter(|at| now - **at < window).count();
                prop_assert!(within <= limit as usize);
            }
        }
    }
}
