//! A question of an agent.

use serde_json::Value;

use crate::CommandError;
use crate::sanitize::sanitize_line;

/// Maximum length of a text of a question, in characters.
const MAX_TEXT_CHARS: usize = 400;
/// Maximum length of an option's label, in characters.
const MAX_LABEL_CHARS: usize = 100;
/// Maximum number of options.
const MAX_OPTIONS: usize = 50;

/// A question that an agent waits for a person to answer.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Question {
    /// Sanitized text to show: the question and the valid answers.
    pub text: String,
    /// Id that the agent gave the question; not sanitized.
    pub(crate) id: Value,
    pub(crate) kind: QuestionKind,
    /// What an answer repeats, such as the input of the tool that the question is about.
    pub(crate) context: Value,
}

/// What a question expects.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum QuestionKind {
    /// Yes or no.
    Confirm,
    /// One of the options.
    Choice(Vec<QuestionOption>),
    /// Text of one line or more.
    Text,
}

/// A possible answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct QuestionOption {
    /// Value that the agent expects; not sanitized.
    pub(crate) id: Value,
    /// Text for the user; not sanitized.
    pub(crate) label: String,
    /// What the answer permits; absent for a question that is not about a permission.
    pub(crate) grant: Option<Grant>,
}

/// What an answer to a permission request permits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Grant {
    /// This use of the tool.
    Once,
    /// This use and later ones.
    Always,
    /// Nothing.
    Refused,
}

/// An answer that a question offers.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct AnswerOption {
    /// Text of [`crate::AgentCommand::Answer`] that selects the option.
    pub answer: String,
    /// Sanitized text to show; a line.
    pub label: String,
    /// What the answer permits; absent for a question that is not about a permission.
    pub grant: Option<Grant>,
}

/// A valid answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Answer<'a> {
    Confirmed(bool),
    Chosen(&'a QuestionOption),
    Text(&'a str),
}

impl Question {
    /// Creates a question. `detail` follows the title on the same line.
    pub(crate) fn new(id: &Value, title: &str, detail: &str, kind: QuestionKind) -> Self {
        let title = sanitize_line(title, MAX_TEXT_CHARS);
        let detail = sanitize_line(detail, MAX_TEXT_CHARS);
        let mut text = match (title.is_empty(), detail.is_empty()) {
            (_, true) => title,
            (true, _) => detail,
            _ => format!("{title} {detail}"),
        };
        let kind = match kind {
            QuestionKind::Confirm => {
                text.push_str(" (y or n)");
                QuestionKind::Confirm
            }
            QuestionKind::Choice(mut options) => {
                options.truncate(MAX_OPTIONS);
                for (number, option) in (1..).zip(&options) {
                    let label = sanitize_line(&option.label, MAX_LABEL_CHARS);
                    text.push_str(&format!("\n{number}: {label}"));
                }
                QuestionKind::Choice(options)
            }
            QuestionKind::Text => QuestionKind::Text,
        };
        Self {
            text,
            id: id.clone(),
            kind,
            context: Value::Null,
        }
    }

    /// Returns the answers that the question offers; none if it expects text.
    #[must_use]
    pub fn options(&self) -> Vec<AnswerOption> {
        let option = |answer: &str, label: &str, grant| AnswerOption {
            answer: answer.to_owned(),
            label: sanitize_line(label, MAX_LABEL_CHARS),
            grant,
        };
        match &self.kind {
            QuestionKind::Confirm => vec![option("y", "yes", None), option("n", "no", None)],
            QuestionKind::Choice(options) => (1..)
                .zip(options)
                .filter_map(|(number, one)| {
                    // A label may look like the number of another option.
                    let number = number.to_string();
                    let id = one.id.as_str().unwrap_or_default();
                    let answer = [number.as_str(), id, &one.label]
                        .into_iter()
                        .find(|answer| self.parse_answer(answer) == Ok(Answer::Chosen(one)))?;
                    Some(option(answer, &one.label, one.grant))
                })
                .collect(),
            QuestionKind::Text => Vec::new(),
        }
    }

    /// Interprets a typed answer. A permission request also takes `y` and `n`, which permit once and refuse.
    pub(crate) fn parse_answer<'a>(&'a self, typed: &'a str) -> Result<Answer<'a>, CommandError> {
        let answer = typed.trim();
        let invalid = |expected: &str| {
            CommandError::new(format!("invalid answer {answer:?}; enter {expected}"))
        };
        let yes_or_no = match answer.to_lowercase().as_str() {
            "y" | "yes" => Some(true),
            "n" | "no" => Some(false),
            _ => None,
        };
        match &self.kind {
            QuestionKind::Confirm => yes_or_no
                .map(Answer::Confirmed)
                .ok_or_else(|| invalid("y or n")),
            QuestionKind::Choice(options) => {
                let named = options
                    .iter()
                    .find(|option| option.label == answer || option.id == answer);
                let numbered = || {
                    let number = answer.parse::<usize>().ok()?;
                    options.get(number.checked_sub(1)?)
                };
                let granted = || {
                    let wanted = match yes_or_no? {
                        true => Grant::Once,
                        false => Grant::Refused,
                    };
                    options.iter().find(|option| option.grant == Some(wanted))
                };
                named
                    .or_else(numbered)
                    .or_else(granted)
                    .map(Answer::Chosen)
                    .ok_or_else(|| invalid(&format!("a number from 1 to {}", options.len())))
            }
            QuestionKind::Text => Ok(Answer::Text(typed)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn offered_answer_selects_its_option() {
        let option = |id: &str, label: &str| QuestionOption {
            id: id.into(),
            label: label.to_owned(),
            grant: Some(Grant::Once),
        };
        let options = vec![option("a", "2"), option("b", "x\u{1b}y"), option("3", "z")];
        let question = Question::new(
            &Value::Null,
            "Which?",
            "",
            QuestionKind::Choice(options.clone()),
        );
        let offered = question.options();
        assert_eq!(offered.len(), 3);
        for (offered, expected) in offered.iter().zip(&options) {
            let chosen = question.parse_answer(&offered.answer);
            assert_eq!(chosen, Ok(Answer::Chosen(expected)), "{offered:?}");
            assert!(!offered.label.contains('\u{1b}'));
        }
        let confirm = Question::new(&Value::Null, "Sure?", "", QuestionKind::Confirm);
        let answers: Vec<_> = confirm
            .options()
            .into_iter()
            .map(|one| one.answer)
            .collect();
        assert_eq!(answers, ["y", "n"]);
        let text = Question::new(&Value::Null, "Name?", "", QuestionKind::Text);
        assert_eq!(text.options(), []);
    }
}
