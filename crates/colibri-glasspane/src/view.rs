//! What is shown of an agent.

use std::fmt;

use serde::{Deserialize, Serialize};

/// Which agent program it is, and so how its output is read.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum AgentRuntime {
    /// `pi --mode json` or `--mode rpc`.
    Pi,
    /// `zot` with JSON lines of the same shape.
    Zot,
    /// Anything else: only activity and exit are looked at.
    #[default]
    Generic,
}

/// What an agent is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
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

/// All that is known of an agent from its output. Texts are cleaned of control characters and bounded.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct View {
    /// What it is doing.
    pub state: AgentState,
    /// Since when, in the caller's milliseconds.
    pub since: u64,
    /// The tool that it is using.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub current_tool: Option<String>,
    /// Turns it has ended.
    pub turns: u64,
    /// Tokens read and written, as its events say.
    pub input_tokens: u64,
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
    /// When it last wrote something, in the caller's milliseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_activity: Option<u64>,
}
