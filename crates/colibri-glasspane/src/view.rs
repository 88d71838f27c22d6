//! The state and counters of an agent, as clients see them.

use serde::{Deserialize, Serialize};
use strum::{Display, VariantNames};

use crate::AgentRuntime;

/// State of an agent.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "lowercase")]
#[derive(Display, VariantNames)]
#[strum(serialize_all = "lowercase")]
pub enum AgentState {
    /// It runs and has written nothing yet.
    #[default]
    Starting,
    /// It waits for a prompt.
    Idle,
    /// It processes a prompt.
    Working,
    /// It waits for a person to answer a question.
    Blocked,
    /// Its output is not read, because it cannot be stored.
    Stalled,
    /// It ended successfully or was ended by a user.
    Done,
    /// It failed.
    Error,
}

/// Activity of a working agent while no tool runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Display, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[strum(serialize_all = "lowercase")]
#[non_exhaustive]
pub enum Activity {
    /// It waits for its model.
    #[strum(to_string = "waiting for its model")]
    Waiting,
    /// The model thinks.
    Thinking,
    /// The model writes text or a tool call.
    Writing,
    /// It compacts its history.
    Compacting,
    /// It waits to retry after a failure.
    #[strum(to_string = "waiting to retry")]
    Retrying,
}

/// State and counters of an agent, derived from its output. Texts are sanitized and bounded; times are in the caller's
/// milliseconds.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct AgentView {
    /// Runtime of the agent; `auto` until it is recognized.
    #[serde(default)]
    pub runtime: AgentRuntime,
    /// Current state.
    pub state: AgentState,
    /// The state is a guess from the agent's activity, because it reports no events.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub guessed: bool,
    /// Why the output does not fit the runtime.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mismatch: Option<String>,
    /// Id of the agent's own session.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub session: Option<String>,
    /// Time of the last change of the state.
    pub since: u64,
    /// Name of the running tool; of several, the one that started last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub current_tool: Option<String>,
    /// Names of all running tools, in the order of their start.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tools: Vec<String>,
    /// Activity, if the runtime reports it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub activity: Option<Activity>,
    /// Number of accepted prompts that the agent has not started.
    #[serde(default)]
    pub queued: u64,
    /// Number of completed turns.
    pub turns: u64,
    /// Tokens read, as reported by the agent, without cached ones.
    pub input_tokens: u64,
    /// Tokens read from or written to a provider's cache, as reported by the agent.
    #[serde(default)]
    pub cached_tokens: u64,
    /// Tokens written, as reported by the agent.
    pub output_tokens: u64,
    /// Cost in US dollars, as reported by the agent.
    #[serde(default, deserialize_with = "crate::deserialize_cost")]
    pub cost_usd: f64,
    /// The last error that the agent reported, or the reason for the last restart.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_error: Option<String>,
    /// The last message of the model; at most its first 1000 characters.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub answer: Option<String>,
    /// Number of lines on stdout, events or not.
    pub events: u64,
    /// Number of lines that are not a JSON object or too long.
    pub malformed_lines: u64,
    /// Number of output bytes that were not parsed for events, because the agent wrote too fast.
    #[serde(default, skip_serializing_if = "colibri_types::is_zero")]
    pub skipped_bytes: u64,
    /// Time of the last output.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_activity: Option<u64>,
}
