//! Parses events of an agent. Each runtime has a module; an unknown event has no effect.

pub(crate) mod pi;
mod zot;

use serde_json::Value;

use crate::{Activity, AgentRuntime, AgentState};

/// The effect of one event on the state. `None` leaves a value unchanged.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct EventEffect {
    pub(crate) state: Option<AgentState>,
    /// Set together with `state`: `None` clears the activity.
    pub(crate) activity: Option<Activity>,
    pub(crate) tool: Option<ToolChange>,
    pub(crate) ends_turn: bool,
    pub(crate) usage: TokenUsage,
    pub(crate) error: Option<String>,
    /// Number of queued prompts.
    pub(crate) queued: Option<u64>,
}

/// A change of a running tool.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ToolChange {
    /// Id of its call.
    pub(crate) id: String,
    pub(crate) step: ToolStep,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum ToolStep {
    /// The tool of this name started.
    Started(String),
    Progressed,
    Ended,
}

/// Tokens and cost of a model call, or of a tool that calls a model.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(crate) struct TokenUsage {
    pub(crate) input: u64,
    pub(crate) cached: u64,
    pub(crate) output: u64,
    pub(crate) cost_usd: f64,
}

impl EventEffect {
    fn working(activity: impl Into<Option<Activity>>) -> Self {
        Self {
            activity: activity.into(),
            ..Self::state(AgentState::Working)
        }
    }

    fn state(state: AgentState) -> Self {
        Self {
            state: Some(state),
            ..Self::default()
        }
    }

    fn error(error: String) -> Self {
        Self {
            error: Some(error),
            ..Self::default()
        }
    }

    fn tool(id: &Value, step: ToolStep) -> Self {
        let id = string(id);
        Self {
            tool: Some(ToolChange { id, step }),
            ..Self::default()
        }
    }
}

/// Parses one line; `None` if it is not an event.
pub(crate) fn parse(runtime: AgentRuntime, line: &[u8]) -> Option<EventEffect> {
    // A cheap check first: parser errors are expensive for agents that write much output without events.
    if line.trim_ascii_start().first() != Some(&b'{') {
        return None;
    }
    match runtime {
        AgentRuntime::Pi => pi::parse(line),
        AgentRuntime::Zot => zot::parse(line),
        AgentRuntime::Generic => None,
    }
}

/// Returns an error field as text: a string as it is, other JSON serialized.
pub(crate) fn error_text(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Null => "an error without a message".to_owned(),
        value => value.to_string(),
    }
}

/// Returns a cost in US dollars; 0 if the value is not a finite number.
fn cost_usd(value: &Value) -> f64 {
    value
        .as_f64()
        .filter(|cost| cost.is_finite())
        .unwrap_or(0.0)
}

/// Returns a text field; empty if it is not a string.
pub(crate) fn string(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}
