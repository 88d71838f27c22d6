//! A question of an agent.

use serde_json::Value;

/// A question that an agent waits for a person to answer.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Question {
    /// Id that the agent gave the question; not sanitized.
    pub(crate) id: String,
    pub(crate) method: QuestionMethod,
    /// Sanitized text to show: the question and the valid answers.
    pub text: String,
    /// Options of a selection; not sanitized.
    pub(crate) options: Vec<String>,
}

/// Kind of a question: a method of pi's extension interface that waits for an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum QuestionMethod {
    Confirm,
    Select,
    /// Text of one line or more.
    Input,
}

impl QuestionMethod {
    /// Returns the method of this name; `None` for a method without an answer.
    pub(crate) fn from_name(name: &Value) -> Option<Self> {
        match name.as_str() {
            Some("confirm") => Some(Self::Confirm),
            Some("select") => Some(Self::Select),
            Some("input" | "editor") => Some(Self::Input),
            _ => None,
        }
    }
}
