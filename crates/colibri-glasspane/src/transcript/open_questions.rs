//! The questions that an agent waits for, oldest first.

use std::collections::VecDeque;

use crate::question::Question;

/// Maximum number of open questions; later ones are dropped.
pub(super) const MAX_OPEN: usize = 64;

/// The open questions of an agent. Several are open at once if it wants to use several tools.
#[derive(Debug, Clone, Default)]
pub(super) struct OpenQuestions {
    questions: VecDeque<Question>,
    /// Several were open at once: progress of one tool does not answer the question about another.
    are_several: bool,
    /// A question was dropped, and the error was reported, since the queue was last empty.
    has_dropped: bool,
}

/// What happened to a new question.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum AskResult {
    /// It waits for its answer.
    Queued,
    /// The queue is full, and no question was dropped before.
    FirstDropped,
    /// The queue is full.
    Dropped,
}

impl OpenQuestions {
    pub(super) fn first(&self) -> Option<&Question> {
        self.questions.front()
    }

    pub(super) fn is_later(&self, question: &Question) -> bool {
        self.questions.iter().skip(1).any(|later| later == question)
    }

    /// Queues a question unless the queue is full.
    pub(super) fn ask(&mut self, question: Question) -> AskResult {
        if self.questions.len() >= MAX_OPEN {
            return match std::mem::replace(&mut self.has_dropped, true) {
                true => AskResult::Dropped,
                false => AskResult::FirstDropped,
            };
        }
        self.questions.push_back(question);
        self.are_several |= self.questions.len() > 1;
        AskResult::Queued
    }

    /// Records an answer to the first question.
    pub(super) fn answer(&mut self) {
        self.questions.pop_front();
        self.are_several &= !self.questions.is_empty();
        self.has_dropped &= !self.questions.is_empty();
    }

    /// Records that the agent continues.
    pub(super) fn progress(&mut self) {
        if !self.are_several {
            self.questions.clear();
        }
    }

    /// Records that the agent waits for a prompt.
    pub(super) fn end(&mut self) {
        *self = Self::default();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::question::QuestionKind;

    fn question(title: &str) -> Question {
        Question::new(&serde_json::Value::Null, title, "", QuestionKind::Text)
    }

    #[test]
    fn later_question_waits_and_does_not_replace_the_first() {
        let mut open = OpenQuestions::default();
        open.ask(question("one"));
        open.ask(question("two"));
        // The tool of another request runs.
        open.progress();
        assert_eq!(open.first().unwrap().text, "one");
        open.answer();
        open.progress();
        assert_eq!(open.first().unwrap().text, "two");
        open.answer();
        assert_eq!(open.first(), None);
        open.ask(question("three"));
        open.progress();
        assert_eq!(
            open.first(),
            None,
            "the agent has continued without an answer"
        );
        for number in 0..100 {
            let expected = match number {
                0..MAX_OPEN => AskResult::Queued,
                MAX_OPEN => AskResult::FirstDropped,
                _ => AskResult::Dropped,
            };
            assert_eq!(open.ask(question(&number.to_string())), expected);
        }
        assert_eq!(open.questions.len(), MAX_OPEN);
        open.end();
        assert_eq!(open.first(), None);
    }
}
