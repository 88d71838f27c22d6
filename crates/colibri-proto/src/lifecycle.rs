//! What a subscriber with `lifecycle` is told besides outputs, states and exits.

use colibri_glasspane::AgentRuntime;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::schema::RuntimeSchema;
use crate::wire::is_zero;

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
    #[schemars(with = "RuntimeSchema")]
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
