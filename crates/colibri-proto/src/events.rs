//! What subscribers are told: outputs, states and ends; with `lifecycle` spawns, runs and kills too.

use colibri_glasspane::AgentState;
use colibri_types::{AgentRuntime, Exit};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::OutputData;
use crate::wire::Stream;

/// `agent-spawned`: an agent that was not there before.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct SpawnedEvent {
    /// The subscription.
    pub subscription: u64,
    /// The agent.
    pub id: String,
    /// Its label.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Its program.
    pub program: String,
    /// Which agent program it is.
    pub runtime: AgentRuntime,
    /// When it was started (RFC 3339).
    pub started_at: String,
}

/// `agent-run`: the agent was started again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct RunEvent {
    /// The subscription.
    pub subscription: u64,
    /// The agent.
    pub id: String,
    /// The number of the run.
    pub run: u32,
    /// So many runs before it are not told; `list-runs` has them.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub merged: u64,
    /// How the run before ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// When this was noticed (RFC 3339).
    pub at: String,
}

/// `agent-kill`: somebody asked for the end of the agent, or for a signal to it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct KillEvent {
    /// The subscription.
    pub subscription: u64,
    /// The agent.
    pub id: String,
    /// The first signal, by name.
    pub signal: String,
    /// Whether KILL follows where that is not enough.
    pub escalate: bool,
    /// Who asked: the user at the other end of the socket.
    pub uid: u32,
    /// So many before it are not told.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub merged: u64,
    /// When (RFC 3339).
    pub at: String,
}

/// `agents-missed`: agents that were started, ended and removed before this subscription looked at them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct MissedEvent {
    /// The subscription.
    pub subscription: u64,
    /// How many.
    pub agents: u64,
}

/// `agent-output`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct OutputEvent {
    /// The subscription.
    pub subscription: u64,
    /// The agent.
    pub id: String,
    /// Which output.
    pub stream: Stream,
    /// Where `data` begins.
    pub offset: u64,
    /// The bytes.
    #[serde(flatten)]
    pub data: OutputData,
    /// When they came (RFC 3339), where the subscription is `timed`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub time: Option<String>,
}

/// `agent-state`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct StateEvent {
    /// The subscription.
    pub subscription: u64,
    /// The agent.
    pub id: String,
    /// What it is doing now.
    pub state: AgentState,
    /// What was told of it before; absent in the first notification of a subscription.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub previous: Option<AgentState>,
    /// So many changes between `previous` and `state` are not told: they came faster than they were looked at.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub merged: u64,
    /// Since when (RFC 3339).
    pub since: String,
    /// The tool that it is using.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub current_tool: Option<String>,
    /// The last error that it reported, or why it is stalled.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_error: Option<String>,
}

/// `agent-exit`: the last notification about an agent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ExitEvent {
    /// The subscription.
    pub subscription: u64,
    /// The agent.
    pub id: String,
    /// `done` or `error`.
    pub state: AgentState,
    /// How it ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exit: Option<Exit>,
    /// What to know about `exit`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exit_note: Option<String>,
    /// Why there is no `exit`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// When it ended (RFC 3339).
    pub exited_at: String,
}

/// `agent-removed`: an agent is forgotten. Only a subscription to all agents is told.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct RemovedEvent {
    /// The subscription.
    pub subscription: u64,
    /// The agent that was.
    pub id: String,
}

/// For counts that are left out where there is nothing to count.
pub(crate) fn is_zero(count: &u64) -> bool {
    *count == 0
}
