//! What an agent reports, in terms that all runtimes share. The state machine, the transcript and the response parser
//! each apply the events that concern them.

use std::borrow::Cow;

use serde_json::Value;
use serde_json::value::RawValue;

use crate::cost::Cost;
use crate::question::Question;
use crate::{Activity, CommandResponse};

/// An event of an agent. Texts are not sanitized.
#[derive(Debug)]
pub(crate) enum Event<'a> {
    /// The agent works, with this activity if it is known.
    Working(Option<Activity>),
    /// The agent has finished its current work and waits for a prompt.
    Idle,
    /// Id of the agent's session.
    Session(&'a str),
    /// The agent starts to work on a prompt.
    Prompt(Content<'a>),
    /// The model starts a message.
    MessageStarted,
    /// A fragment of a message that is being streamed.
    Text(&'a str),
    /// A fragment of streamed reasoning.
    Thinking(&'a str),
    /// End of streamed text or reasoning.
    BlockEnded,
    /// A complete message of the model. Its fragments may have been reported before.
    Message(Content<'a>),
    /// A tool call starts.
    ToolStarted {
        id: &'a str,
        name: &'a str,
        arguments: Content<'a>,
    },
    /// A running tool reports progress.
    ToolProgressed(&'a str),
    /// A tool call ended.
    ToolEnded {
        id: &'a str,
        result: Content<'a>,
        failed: bool,
    },
    /// The agent waits for an answer.
    Question(Question),
    /// This number of turns ended.
    TurnsEnded(u64),
    /// Tokens and cost since the previous event of this kind.
    Usage(TokenUsage),
    /// Number of prompts that wait for the current work.
    Queued(u64),
    /// The current work failed.
    Failed(Cow<'a, str>),
    /// An error that does not end the current work.
    Error(Cow<'a, str>),
    /// A status message.
    Notice(Cow<'a, str>),
    /// Output of a command that the user started in the agent.
    Output(&'a str),
    /// The response to a command.
    Response(CommandResponse),
}

/// The content of a message or of a tool's result.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Content<'a> {
    Text(&'a str),
    /// A string, or an array of blocks.
    Json(&'a Value),
    /// The same, not parsed yet.
    Raw(&'a RawValue),
}

impl<'a> Content<'a> {
    /// Returns raw JSON that may be absent.
    pub(crate) fn raw(json: Option<&'a RawValue>) -> Self {
        json.map_or(Self::Text(""), Self::Raw)
    }

    /// Returns the JSON value.
    pub(crate) fn to_value(self) -> Cow<'a, Value> {
        match self {
            Self::Text(text) => Cow::Owned(text.into()),
            Self::Json(value) => Cow::Borrowed(value),
            Self::Raw(raw) => Cow::Owned(serde_json::from_str(raw.get()).unwrap_or_default()),
        }
    }
}

/// Tokens and cost of model calls.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(crate) struct TokenUsage {
    /// Tokens read, without cached ones.
    pub(crate) input: u64,
    pub(crate) cached: u64,
    pub(crate) output: u64,
    pub(crate) cost: Cost,
}

impl TokenUsage {
    /// Adds another usage.
    pub(crate) fn add(&mut self, other: Self) {
        self.input = self.input.saturating_add(other.input);
        self.cached = self.cached.saturating_add(other.cached);
        self.output = self.output.saturating_add(other.output);
        self.cost = self.cost.plus(other.cost);
    }

    /// Returns what `total` adds to the total `self` that was reported before, and stores `total`. A smaller total is the
    /// first one of another session.
    pub(crate) fn advance_to(&mut self, total: Self) -> Self {
        let before = std::mem::replace(self, total);
        if total.input < before.input || total.output < before.output {
            return total;
        }
        Self {
            input: total.input - before.input,
            cached: total.cached.saturating_sub(before.cached),
            output: total.output - before.output,
            cost: total.cost.since(before.cost),
        }
    }
}

/// Returns an error field as text: a string as it is, the `message` of an object, other JSON serialized.
pub(crate) fn error_text(value: &Value) -> Cow<'_, str> {
    match value {
        Value::String(text) => text.into(),
        Value::Null => "an error without a message".into(),
        Value::Object(fields) if fields.get("message").is_some_and(Value::is_string) => {
            text(&value["message"]).into()
        }
        value => value.to_string().into(),
    }
}

/// Returns a number of tokens; 0 if the value is not one.
pub(crate) fn tokens(value: &Value) -> u64 {
    value.as_u64().unwrap_or(0)
}

/// Returns a text field; empty if it is not a string.
pub(crate) fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}
