//! Results that describe agents: list, runs and usage.

use colibri_glasspane::{AgentState, AgentView};
use colibri_jail_core::JailConfig;
use colibri_types::{AgentRuntime, Exit, NetworkSummary, OffsetRange, RestartPolicy, TerminalSize};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::wire::Stream;

/// Parameters of `list-agents`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ListParams {
    /// Starts after this agent: `next` of the previous page.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub after: Option<String>,
    /// Maximum number of agents in the page.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limit: Option<u32>,
    /// Lists running agents only; default false.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub running: bool,
}

/// The result of `list-agents`: one page, because the size of a frame is limited.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[schemars(rename = "ListResult")]
pub struct ListResult<A = Agent> {
    /// Agents, sorted by ID.
    pub agents: Vec<A>,
    /// ID of the last agent in this page, if more agents follow.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next: Option<String>,
}

/// An agent. Times are RFC 3339 in UTC.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Agent {
    /// ID of the agent.
    pub id: String,
    /// Name of the agent.
    pub name: Option<String>,
    /// State of the agent.
    pub state: AgentState,
    /// Process ID of the agent's first process; with a jail, of the program that confines it. Absent after its end.
    pub pid: Option<i32>,
    /// Program of the agent.
    pub program: String,
    /// Arguments of the program.
    pub args: Vec<String>,
    /// Working directory.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cwd: Option<String>,
    /// Jail of the agent.
    pub jail: Option<JailConfig>,
    /// Limits that are not enforced, because `best_effort` is set, directories that the agent shares with another jail on a
    /// kernel without the fixes, and an agent that is root in its jail.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub warnings: Vec<String>,
    /// Runtime of the agent; `auto` until it is recognized.
    pub runtime: AgentRuntime,
    /// Preset of the agent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub preset: Option<String>,
    /// Arguments that the user added to those of the preset.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub added_args: Vec<String>,
    /// The agent of a preset asks before it runs commands.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub asks: bool,
    /// Names of the variables in the agent's environment.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub variables: Vec<String>,
    /// The ended agent that this one continues.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resumes: Option<String>,
    /// Size of the agent's terminal; absent if it has none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub terminal: Option<TerminalSize>,
    /// The state is a guess from the agent's activity, because it reports no events.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub guessed: bool,
    /// Restart policy.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub restart: Option<RestartPolicy>,
    /// Number of the current or last run, from 1.
    #[serde(default)]
    pub run: u32,
    /// Start time of the first run.
    pub started_at: String,
    /// End time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exited_at: Option<String>,
    /// How the agent ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exit: Option<Exit>,
    /// Why the agent is in error, stalled or waits for its next run, if `exit` does not contain it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// Number of bytes that the agent has written to stdout.
    pub stdout_bytes: u64,
    /// Number of bytes that the agent has written to stderr.
    pub stderr_bytes: u64,
    /// Time of the last output.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_event_at: Option<String>,
    /// What the agent's proxy has refused; absent if it has refused nothing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub network: Option<NetworkSummary>,
    /// What the agent's events report; absent for an agent without events.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<serde_json::Value>")]
    pub view: Option<AgentView>,
}

impl Agent {
    /// Returns the number of bytes that the agent has written to each stream.
    #[must_use]
    pub fn written(&self) -> [(Stream, u64); 2] {
        [
            (Stream::Stdout, self.stdout_bytes),
            (Stream::Stderr, self.stderr_bytes),
        ]
    }
}

/// An ended run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Run {
    /// Number of the run, from 1.
    pub run: u32,
    /// Start time (RFC 3339).
    pub started_at: String,
    /// End time (RFC 3339).
    pub exited_at: String,
    /// How the agent ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exit: Option<Exit>,
    /// Error that `exit` does not contain, or why no run followed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// Start and end offset of its output in the stdout journal.
    pub stdout: OffsetRange,
    /// Start and end offset of its output in the stderr journal.
    pub stderr: OffsetRange,
}

/// The result of `list-runs`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct RunsResult {
    /// The newest 1000 ended runs, oldest first. Empty for an agent without a restart policy.
    pub runs: Vec<Run>,
}

/// Parameters of `get-usage`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct UsageParams {
    /// IDs of the agents to measure; absent: all running agents.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ids: Option<Vec<String>>,
}

/// Resource usage of a running agent.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Usage {
    /// ID of the agent.
    pub id: String,
    /// User and system CPU time of all its processes in all runs, in milliseconds; includes ended processes.
    pub cpu_ms: u64,
    /// Resident memory (RSS) of its processes, in bytes; a shared page counts once for each process.
    pub memory_bytes: u64,
    /// Number of its processes, including those that confine it.
    pub processes: u32,
    /// Number of bytes that the agent has written to stdout.
    pub stdout_bytes: u64,
    /// Number of bytes that the agent has written to stderr.
    pub stderr_bytes: u64,
    /// Number of completed turns, as its events report.
    pub turns: u64,
    /// Number of input tokens, as its events report.
    pub input_tokens: u64,
    /// Number of output tokens, as its events report.
    pub output_tokens: u64,
    /// Cost in US dollars, as its events report.
    #[serde(deserialize_with = "colibri_glasspane::deserialize_cost")]
    pub cost_usd: f64,
}

/// The result of `get-usage`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct UsageResult {
    /// Time of the measurement, in milliseconds of a monotonic clock of the daemon.
    pub at_ms: u64,
    /// Running agents; ended and unknown agents are left out.
    pub agents: Vec<Usage>,
}
