//! What a line of an agent's means for its state. Each runtime has its own events; unknown ones are counted and
//! change nothing.

pub(crate) mod pi;
mod zot;

use crate::{Activity, AgentRuntime, AgentState};

/// What one event says. What it is silent about stays as it is.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Meaning {
    /// What the agent does from now on; `Working` with `activity`, where the event says what at.
    pub(crate) state: Option<AgentState>,
    pub(crate) activity: Option<Activity>,
    pub(crate) tool: Option<Tool>,
    /// A turn has ended.
    pub(crate) turn: bool,
    pub(crate) usage: Usage,
    pub(crate) error: Option<String>,
    /// Prompts that wait for their turn.
    pub(crate) queued: Option<u64>,
}

/// A tool's run, by the id of its call.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Tool {
    Started { id: String, name: String },
    Progressed { id: String },
    Ended { id: String },
}

/// What a call of a model, or of a tool that calls one, has cost.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(crate) struct Usage {
    pub(crate) input: u64,
    pub(crate) cached: u64,
    pub(crate) output: u64,
    pub(crate) cost: f64,
}

impl Meaning {
    fn working(activity: impl Into<Option<Activity>>) -> Self {
        Self {
            state: Some(AgentState::Working),
            activity: activity.into(),
            ..Self::default()
        }
    }

    fn now(state: AgentState) -> Self {
        Self {
            state: Some(state),
            ..Self::default()
        }
    }

    fn failed(error: String) -> Self {
        Self {
            error: Some(error),
            ..Self::default()
        }
    }
}

/// Reads one line; `None` where it is no event.
pub(crate) fn read(runtime: AgentRuntime, line: &[u8]) -> Option<Meaning> {
    // A cheap check first: parser errors are expensive for agents that write much output without events.
    if line.trim_ascii_start().first() != Some(&b'{') {
        return None;
    }
    match runtime {
        AgentRuntime::Pi => pi::read(line),
        AgentRuntime::Zot => zot::read(line),
        AgentRuntime::Generic => None,
    }
}

/// An error as it was given: text, or whatever JSON stands in its place.
pub(crate) fn text_of(value: Option<&serde_json::Value>) -> String {
    match value {
        Some(serde_json::Value::String(text)) => text.clone(),
        Some(value) if !value.is_null() => value.to_string(),
        _ => "an error without a message".to_owned(),
    }
}

/// A price in dollars; what is no number costs nothing.
fn dollars(value: &serde_json::Value) -> f64 {
    value
        .as_f64()
        .filter(|cost| cost.is_finite())
        .unwrap_or(0.0)
}
