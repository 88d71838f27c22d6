//! Notifications of a subscription: output, states and exits, and with `lifecycle` spawns, runs and kills.

use colibri_glasspane::AgentState;
use colibri_types::{AgentRuntime, Exit, NetworkRecord, TerminalSize};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::OutputData;
use crate::wire::Stream;

/// `agent-spawned`: an agent was spawned.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct SpawnedEvent {
    /// Number of the subscription.
    pub subscription: u64,
    /// ID of the agent.
    pub id: String,
    /// Name of the agent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Program of the agent.
    pub program: String,
    /// Runtime of the agent.
    pub runtime: AgentRuntime,
    /// Start time (RFC 3339).
    pub started_at: String,
}

/// `agent-run`: an agent was restarted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct RunEvent {
    /// Number of the subscription.
    pub subscription: u64,
    /// ID of the agent.
    pub id: String,
    /// Number of the run, from 1.
    pub run: u32,
    /// Number of earlier runs that this event replaces; `list-runs` returns them.
    #[serde(default, skip_serializing_if = "colibri_types::is_zero")]
    pub merged: u64,
    /// How the previous run ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// Time at which the daemon noticed the restart (RFC 3339).
    pub at: String,
}

/// `agent-kill`: a client requested a kill or a signal.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct KillEvent {
    /// Number of the subscription.
    pub subscription: u64,
    /// ID of the agent.
    pub id: String,
    /// Name of the first signal.
    pub signal: String,
    /// Whether KILL follows after the grace period.
    pub escalate: bool,
    /// User of the client.
    pub uid: u32,
    /// Number of earlier kills that this event replaces.
    #[serde(default, skip_serializing_if = "colibri_types::is_zero")]
    pub merged: u64,
    /// Time of the request (RFC 3339).
    pub at: String,
}

/// `agent-network`: the proxy of an agent refused a connection or a request.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct NetworkEvent {
    /// Number of the subscription.
    pub subscription: u64,
    /// ID of the agent.
    pub id: String,
    /// What was refused.
    #[serde(flatten)]
    pub record: NetworkRecord,
    /// Number of earlier events that this subscription misses; `network.jsonl` in the agent's directory has them.
    #[serde(default, skip_serializing_if = "colibri_types::is_zero")]
    pub merged: u64,
}

/// `agents-missed`: agents were spawned and removed before the subscription could follow them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct MissedEvent {
    /// Number of the subscription.
    pub subscription: u64,
    /// Number of agents.
    pub agents: u64,
}

/// `agent-output`: output of an agent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct OutputEvent {
    /// Number of the subscription.
    pub subscription: u64,
    /// ID of the agent.
    pub id: String,
    /// Stream of the output.
    pub stream: Stream,
    /// Offset of the first byte of `data`.
    pub offset: u64,
    /// Output bytes.
    #[serde(flatten)]
    pub data: OutputData,
    /// Time of the output (RFC 3339), if the subscription is `timed`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub time: Option<String>,
}

/// `agent-state`: the state, the tool or the last error of an agent changed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct StateEvent {
    /// Number of the subscription.
    pub subscription: u64,
    /// ID of the agent.
    pub id: String,
    /// New state.
    pub state: AgentState,
    /// State in the previous notification of this subscription; absent in the first one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub previous: Option<AgentState>,
    /// Number of state changes between `previous` and `state` that this event replaces.
    #[serde(default, skip_serializing_if = "colibri_types::is_zero")]
    pub merged: u64,
    /// Time at which the state began (RFC 3339).
    pub since: String,
    /// Tool that the agent uses.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub current_tool: Option<String>,
    /// Last error that the agent reported, or why it is stalled.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_error: Option<String>,
}

/// `agent-terminal`: the size of an agent's terminal, at the time of the subscription and after each change. Sent to
/// subscriptions with a terminal only.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct TerminalEvent {
    /// Number of the subscription.
    pub subscription: u64,
    /// ID of the agent.
    pub id: String,
    /// Size of the terminal.
    #[serde(flatten)]
    pub terminal: TerminalSize,
}

/// `agent-exit`: an agent has ended. It is the last notification about the agent, except `agent-removed`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ExitEvent {
    /// Number of the subscription.
    pub subscription: u64,
    /// ID of the agent.
    pub id: String,
    /// Final state: `done` or `error`.
    pub state: AgentState,
    /// How the agent ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exit: Option<Exit>,
    /// Error that `exit` does not contain.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// End time (RFC 3339).
    pub exited_at: String,
}

/// `agent-removed`: an agent was removed. Sent to subscriptions to all agents only.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct RemovedEvent {
    /// Number of the subscription.
    pub subscription: u64,
    /// ID of the removed agent.
    pub id: String,
}
