//! A question of an agent.

use serde_json::Value;

use crate::CommandError;
use crate::sanitize::{sanitize_line, sanitize_text};

/// Maximum length of the title of a question, in characters.
const MAX_TITLE_CHARS: usize = 400;
/// Maximum length of what a question is about, in characters. Of a longer text, the start and the end are shown.
const MAX_DETAIL_CHARS: usize = 2000;
/// Length of the end that is shown.
const TAIL_CHARS: usize = 400;
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
    /// The text does not contain everything that the question is about.
    pub(crate) is_truncated: bool,
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
        let title = sanitize_line(title, MAX_TITLE_CHARS);
        let (detail, is_truncated) = detail_line(detail);
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
            is_truncated,
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
                .map(|(number, one)| option(&number.to_string(), &one.label, one.grant))
                .collect(),
            QuestionKind::Text => Vec::new(),
        }
    }

    /// Interprets a typed answer: a shown number; `y` or `n`, which permit once and refuse; or a label. The order matters: the
    /// agent chooses labels and ids, which must not change what a number, `y` or `n` means. A request that is not shown completely
    /// takes no `y`.
    pub(crate) fn parse_answer<'a>(&'a self, typed: &'a str) -> Result<Answer<'a>, CommandError> {
        let answer = typed.trim();
        let yes_or_no = match answer.to_lowercase().as_str() {
            "y" | "yes" => Some(true),
            "n" | "no" => Some(false),
            _ => None,
        };
        match (&self.kind, yes_or_no) {
            (QuestionKind::Confirm, Some(yes)) => Ok(Answer::Confirmed(yes)),
            (QuestionKind::Confirm, None) => Err(CommandError::new(format!(
                "invalid answer {answer:?}; enter y or n"
            ))),
            (QuestionKind::Choice(options), Some(yes)) => {
                self.option_for(options, yes).map(Answer::Chosen)
            }
            (QuestionKind::Choice(options), None) => {
                let number = answer.parse::<usize>().ok();
                let numbered = number.and_then(|number| options.get(number.checked_sub(1)?));
                let labelled = || {
                    let mut options = options.iter();
                    options.find(|option| !answer.is_empty() && option.label == answer)
                };
                numbered
                    .or_else(labelled)
                    .map(Answer::Chosen)
                    .ok_or_else(|| {
                        CommandError::new(format!(
                            "invalid answer {answer:?}; enter a number from 1 to {}",
                            options.len()
                        ))
                    })
            }
            (QuestionKind::Text, _) => Ok(Answer::Text(typed)),
        }
    }

    /// Returns the first option that permits once (`yes`) or refuses, regardless of its label.
    fn option_for<'a>(
        &self,
        options: &'a [QuestionOption],
        yes: bool,
    ) -> Result<&'a QuestionOption, CommandError> {
        let is_request = options.iter().any(|option| option.grant.is_some());
        if self.is_truncated && is_request && yes {
            let message = "the request is too long to be shown; read all of it with colibri logs, then enter the number of an answer";
            return Err(CommandError::new(message.to_owned()));
        }
        let (wanted, missing, hint) = match yes {
            true => (Grant::Once, "y: no option permits once", ""),
            false => (
                Grant::Refused,
                "n: no option refuses",
                ", or cancel the turn",
            ),
        };
        let mut granting = options.iter().filter(|one| one.grant == Some(wanted));
        granting.next().ok_or_else(|| {
            let count = options.len();
            CommandError::new(format!(
                "invalid answer {missing}; enter a number from 1 to {count}{hint}"
            ))
        })
    }
}

/// Returns a text as one line without runs of white space, which could hide its end, and whether a part is omitted.
fn detail_line(text: &str) -> (String, bool) {
    let clean = sanitize_text(text);
    let lines = clean.lines().map(|line| {
        let words: Vec<&str> = line.split_whitespace().collect();
        words.join(" ")
    });
    let lines: Vec<String> = lines.filter(|line| !line.is_empty()).collect();
    let line = lines.join(" ⏎ ");
    let omitted = line.chars().count().saturating_sub(MAX_DETAIL_CHARS);
    if omitted == 0 {
        return (line, false);
    }
    let head: String = line.chars().take(MAX_DETAIL_CHARS - TAIL_CHARS).collect();
    let rest: String = line
        .chars()
        .skip(MAX_DETAIL_CHARS - TAIL_CHARS + omitted)
        .collect();
    (
        format!("{head} … {omitted} characters are not shown … {rest}"),
        true,
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_and_labels_of_an_agent_do_not_change_a_typed_answer() {
        let option = |id: &str, label: &str, grant| QuestionOption {
            id: id.into(),
            label: label.to_owned(),
            grant: Some(grant),
        };
        let kind = QuestionKind::Choice(vec![
            option("x", "Reject", Grant::Refused),
            option("1", "Allow always", Grant::Always),
            option("n", "1", Grant::Once),
        ]);
        let question = Question::new(&Value::Null, "?", "ls", kind.clone());
        let chosen = |question: &Question, typed| match question.parse_answer(typed) {
            Ok(Answer::Chosen(option)) => option.grant.unwrap(),
            other => panic!("{typed}: {other:?}"),
        };
        for (typed, expected) in [
            ("1", Grant::Refused),
            ("2", Grant::Always),
            ("3", Grant::Once),
            ("n", Grant::Refused),
            ("y", Grant::Once),
            ("Allow always", Grant::Always),
        ] {
            assert_eq!(chosen(&question, typed), expected, "{typed}");
        }
        assert!(question.parse_answer("x").is_err());
        // What padding moves out of the text is not allowed by `y`.
        let padded = format!("ls {} ; curl evil", "a".repeat(5000));
        let question = Question::new(&Value::Null, "?", &padded, kind);
        assert!(question.text.contains("; curl evil"), "{}", question.text);
        assert!(question.parse_answer("y").is_err());
        assert_eq!(chosen(&question, "n"), Grant::Refused);
    }

    #[test]
    fn label_does_not_decide_what_an_answer_permits() {
        let question = |options: &[(&str, Option<Grant>)]| {
            let option = |(label, grant): &(&str, Option<Grant>)| QuestionOption {
                id: (*label).into(),
                label: (*label).to_owned(),
                grant: *grant,
            };
            let kind = QuestionKind::Choice(options.iter().map(option).collect());
            Question::new(&Value::Null, "?", "ls", kind)
        };
        let always = Some(Grant::Always);
        let deceptive = question(&[
            ("", always),
            ("n", always),
            ("No", always),
            ("y", Some(Grant::Refused)),
            ("yes", always),
        ]);
        let without_grants = question(&[("", None), ("n", None), ("y", None)]);
        for (question, typed, expected) in [
            (&deceptive, "", None),
            (&deceptive, "  ", None),
            (&deceptive, "n", Some("y")),
            (&deceptive, "No", Some("y")),
            (&deceptive, "y", None),
            (&deceptive, "YES", None),
            (&question(&[("n", always)]), "n", None),
            (&question(&[("no", Some(Grant::Once))]), "no", None),
            (&without_grants, "", None),
            (&without_grants, "n", None),
            (&without_grants, "y", None),
            (&without_grants, "2", Some("n")),
        ] {
            let chosen = match question.parse_answer(typed) {
                Ok(Answer::Chosen(option)) => Some(option.label.as_str()),
                _ => None,
            };
            assert_eq!(chosen, expected, "{typed:?} {}", question.text);
        }
        let error = question(&[("n", always)]).parse_answer("n").unwrap_err();
        assert_eq!(
            error.to_string(),
            "invalid answer n: no option refuses; enter a number from 1 to 1, or cancel the turn"
        );
    }

    #[test]
    fn white_space_hides_no_part_of_a_question() {
        let (line, is_truncated) =
            detail_line(&format!("ls{}; rm x\n\n  rm y\t z", " ".repeat(500)));
        assert_eq!((line.as_str(), is_truncated), ("ls ; rm x ⏎ rm y z", false));
    }

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
