//! The prompts of a session: at most one runs, others wait. Does no I/O.
//!
//! ```text
//!            prompt                  ended, queue empty
//! idle ---------------> working ------------------------> idle
//!                        |   ^
//!                        '---'  prompt: queue or steer; ended: start the next
//! ```

use std::collections::VecDeque;

use crate::input::{Delivery, Prompt};

/// Maximum number of waiting prompts.
const MAX_WAITING: usize = 100;

#[derive(Debug, Default)]
pub(crate) struct PromptQueue {
    is_working: bool,
    waiting: VecDeque<Prompt>,
}

/// What to do with a new prompt.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Admission {
    Start(Prompt),
    Steer(Prompt),
    Queued,
    Refused(&'static str),
}

impl PromptQueue {
    /// Admits a prompt. `can_steer` is whether a prompt can be added to the current turn.
    pub(crate) fn admit(&mut self, prompt: Prompt, can_steer: bool) -> Admission {
        if !self.is_working {
            self.is_working = true;
            return Admission::Start(prompt);
        }
        match prompt.delivery {
            Delivery::Steer if can_steer => Admission::Steer(prompt),
            Delivery::Steer => Admission::Refused(
                "the agent cannot be steered while it works; queue the prompt as a follow-up",
            ),
            Delivery::Queue if self.waiting.len() >= MAX_WAITING => {
                Admission::Refused("too many prompts are queued; try again later")
            }
            Delivery::Queue => {
                self.waiting.push_back(prompt);
                Admission::Queued
            }
        }
    }

    /// Records the end of the current prompt, and returns the next one, which starts.
    pub(crate) fn end(&mut self) -> Option<Prompt> {
        let next = self.waiting.pop_front();
        self.is_working = next.is_some();
        next
    }

    pub(crate) fn is_working(&self) -> bool {
        self.is_working
    }

    /// Returns the number of waiting prompts.
    pub(crate) fn waiting(&self) -> usize {
        self.waiting.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn prompt(text: &str, delivery: Delivery) -> Prompt {
        Prompt {
            id: None,
            text: text.to_owned(),
            delivery,
        }
    }

    #[test]
    fn one_prompt_runs_and_others_wait_in_order() {
        let mut queue = PromptQueue::default();
        let queued = |text| prompt(text, Delivery::Queue);
        assert_eq!(
            queue.admit(queued("a"), false),
            Admission::Start(queued("a"))
        );
        assert_eq!(queue.admit(queued("b"), false), Admission::Queued);
        assert_eq!(queue.admit(queued("c"), false), Admission::Queued);
        assert_eq!(queue.end(), Some(queued("b")));
        assert_eq!(queue.waiting(), 1);
        assert_eq!(queue.end(), Some(queued("c")));
        assert_eq!(queue.end(), None);
        assert!(!queue.is_working());
    }

    #[test]
    fn steering_needs_a_protocol_with_it() {
        let steer = || prompt("a", Delivery::Steer);
        for (can_steer, expected) in [(true, "Steer"), (false, "Refused")] {
            let mut queue = PromptQueue::default();
            assert_eq!(queue.admit(steer(), can_steer), Admission::Start(steer()));
            let admission = format!("{:?}", queue.admit(steer(), can_steer));
            assert!(admission.starts_with(expected), "{admission}");
        }
    }

    #[test]
    fn queue_is_bounded() {
        let mut queue = PromptQueue::default();
        let admissions: Vec<Admission> = (0..MAX_WAITING + 2)
            .map(|_| queue.admit(prompt("a", Delivery::Queue), false))
            .collect();
        assert_eq!(queue.waiting(), MAX_WAITING);
        assert!(matches!(admissions.last(), Some(Admission::Refused(_))));
    }
}
