//! What is shown of an agent.

use std::fmt;

use serde::{Deserialize, Serialize};

/// What an agent is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "lowercase")]
pub enum AgentState {
    /// It runs and has shown nothing yet.
    Starting,
    /// It waits for something to do.
    Idle,
    /// It works.
    Working,
    /// It waits for a person.
    Blocked,
    /// Its output is not read, because it cannot be stored.
    Stalled,
    /// It ended well.
    Done,
    /// It ended badly.
    Error,
}

impl fmt::Display for AgentState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Starting => "starting",
            Self::Idle => "idle",
            Self::Working => "working",
            Self::Blocked => "blocked",
            Self::Stalled => "stalled",
            Self::Done => "done",
            Self::Error => "error",
        })
    }
}

/// What an agent is at while it works and no tool of its runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Activity {
    /// It waits for its model.
    Waiting,
    /// Its model thinks.
    Thinking,
    /// Its model writes an answer or the call of a tool.
    Writing,
    /// It makes its history shorter.
    Compacting,
    /// Something failed, and it will try that again.
    Retrying,
}

impl fmt::Display for Activity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Waiting => "waiting for its model",
            Self::Thinking => "thinking",
            Self::Writing => "writing",
            Self::Compacting => "compacting",
            Self::Retrying => "waiting to try again",
        })
    }
}

/// All that is known of an agent from its output. Texts are cleaned of control characters and bounded.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct View {
    /// What it is doing.
    pub state: AgentState,
    /// Since when, in the caller's milliseconds.
    pub since: u64,
    /// The tool that it is using; the one that started last, of those that still run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub current_tool: Option<String>,
    /// What it is at, where its events say it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub activity: Option<Activity>,
    /// Prompts that it has taken and not begun with.
    #[serde(default)]
    pub queued: u64,
    /// Turns it has ended.
    pub turns: u64,
    /// Tokens read and written, as its events say; those that a provider's cache read or kept are in
    /// `cached_tokens`.
    pub input_tokens: u64,
    /// See `input_tokens`.
    #[serde(default)]
    pub cached_tokens: u64,
    /// See `input_tokens`.
    pub output_tokens: u64,
    /// Cost in US dollars, as its events say.
    pub cost_usd: f64,
    /// The last error that it reported.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_error: Option<String>,
    /// Events understood or not, and lines that were none.
    pub events: u64,
    /// Lines that are no JSON object, or too long to be one.
    pub malformed_lines: u64,
    /// Number of output bytes that were not parsed for events, because the agent wrote too fast.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub skipped_bytes: u64,
    /// When it last wrote something, in the caller's milliseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_activity: Option<u64>,
}

// serde passes a reference.
fn is_zero(count: &u64) -> bool {
    *count == 0
}
