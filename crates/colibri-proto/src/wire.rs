//! Parameters and results of the methods, as docs/protocol.md describes them.

use colibri_types::{Env, Finding, KillOutcome, TerminalSize};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use strum::{Display, EnumString};

use crate::OutputData;

/// Maximum number of bytes in the result of `read-journal`: they fit into a frame in any encoding.
pub const MAX_READ: u64 = 131_072;

/// Empty parameters, or an empty result.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Empty {}

/// Parameters of methods that take an agent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct IdParams {
    /// ID of the agent.
    pub id: String,
}

/// The result of `spawn-agent`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct SpawnResult {
    /// ID of the agent.
    pub id: String,
    /// Limits that are not enforced, because `best_effort` is set, directories that the agent shares with another jail on a
    /// kernel without the fixes, and an agent that is root in its jail.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub warnings: Vec<String>,
}

/// The result of `version`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct VersionResult {
    /// Name of the program: `colibri-daemon`.
    pub name: String,
    /// Version of the daemon.
    pub version: String,
    /// Version of the protocol: 1.
    pub protocol: u32,
}

/// The result of `explain-spawn`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ExplainResult {
    /// Program that `spawn-agent` would execute.
    pub program: String,
    /// Arguments of the program.
    pub args: Vec<String>,
    /// Engine: `freebsd` or `bubblewrap`.
    pub engine: String,
    /// Privilege backend; `none` if the command needs no privilege.
    pub privilege: String,
}

/// Parameters of `kill-agent`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct KillParams {
    /// ID of the agent.
    pub id: String,
    /// Name of the first signal; default TERM.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub signal: Option<String>,
    /// Time between the first signal and KILL, in milliseconds; default 5000.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub grace_ms: Option<u64>,
    /// If false, only delivers the signal; default true.
    #[serde(default = "default_true")]
    pub escalate: bool,
    /// With `escalate` false: the agent is not restarted after this signal; default false.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub no_restart: bool,
}

impl KillParams {
    /// Returns the parameters for ending an agent by the default signal and within the default time.
    #[must_use]
    pub fn new(id: &str) -> Self {
        Self {
            id: id.to_owned(),
            signal: None,
            grace_ms: None,
            escalate: true,
            no_restart: false,
        }
    }
}

fn default_true() -> bool {
    true
}

/// Parameters of `restart-agent`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct RestartAgentParams {
    /// ID of the agent.
    pub id: String,
    /// Time between TERM and KILL for a running agent, in milliseconds; default 5000.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub grace_ms: Option<u64>,
    /// The environment variables of an ended agent, whose values are not kept.
    #[serde(default, skip_serializing_if = "no_variables")]
    pub env: Env,
}

fn no_variables(env: &Env) -> bool {
    env.is_empty()
}

/// The result of `restart-agent`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct RestartResult {
    /// ID of the agent that runs now: the same agent if it was running, otherwise a new one.
    pub id: String,
}

/// The result of `kill-agent`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct KillResult {
    /// Outcome of the kill.
    pub outcome: KillOutcome,
    /// Always empty: a kill that leaves processes is an error.
    pub remaining_pids: Vec<i32>,
}

/// Parameters of `send-input`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct InputParams {
    /// ID of the agent.
    pub id: String,
    /// Bytes to write to its stdin.
    #[serde(flatten)]
    pub data: OutputData,
}

/// The result of `send-input`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct InputResult {
    /// Number of accepted bytes. If it is less than the input, the agent does not read: send the rest later.
    pub written: u64,
}

/// An output stream of an agent.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema, Display, EnumString,
)]
#[serde(rename_all = "lowercase")]
#[strum(serialize_all = "lowercase")]
pub enum Stream {
    /// Standard output.
    Stdout,
    /// Standard error.
    Stderr,
}

/// Parameters of `read-journal`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ReadParams {
    /// ID of the agent.
    pub id: String,
    /// Stream to read.
    pub stream: Stream,
    /// Offset of the first byte; default 0.
    #[serde(default)]
    pub offset: u64,
    /// Maximum number of bytes; default and maximum 131072.
    #[serde(default = "default_read_limit")]
    pub limit: u64,
    /// Replaces `offset`: starts at the first chunk with this time or a later one (RFC 3339).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub since: Option<String>,
    /// Returns bytes of one chunk only, so that `time` applies to all of them.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub timed: bool,
}

fn default_read_limit() -> u64 {
    MAX_READ
}

/// The result of `read-journal`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ReadResult {
    /// Offset of the first byte of `data`.
    pub offset: u64,
    /// Offset for the next call.
    pub next_offset: u64,
    /// Output bytes.
    #[serde(flatten)]
    pub data: OutputData,
    /// The agent has ended and `data` contains its last bytes.
    pub end: bool,
    /// Time of the first byte (RFC 3339).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub time: Option<String>,
}

/// The streams that a subscription sends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum StreamChoice {
    /// Standard output.
    Stdout,
    /// Standard error.
    Stderr,
    /// No output: states and exits only.
    None,
}

/// Parameters of `subscribe`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct SubscribeParams {
    /// ID of the agent; absent: all running agents, and agents that are spawned later.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    /// Stream to send; absent: both.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stream: Option<StreamChoice>,
    /// Offset of the first byte of each stream; absent: the current end.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from_offset: Option<u64>,
    /// Offset of the first byte of stderr, if it differs from `from_offset`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stderr_from_offset: Option<u64>,
    /// Each `agent-output` contains bytes of one chunk, with its time.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub timed: bool,
    /// Also sends `agent-spawned`, `agent-run`, `agent-kill` and `agents-missed`.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub lifecycle: bool,
    /// Size of the subscriber's terminal, for the agent `id` with a terminal.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub terminal: Option<TerminalSize>,
}

/// Parameters of `resize-terminal`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ResizeParams {
    /// Number of the subscription on this connection.
    pub subscription: u64,
    /// New size of the subscriber's terminal.
    #[serde(flatten)]
    pub terminal: TerminalSize,
}

/// The result of `subscribe`, and the parameters of `unsubscribe`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Subscription {
    /// Number of the subscription on this connection.
    pub subscription: u64,
}

/// The result of `doctor`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct DoctorResult {
    /// Findings of all checks.
    pub findings: Vec<Finding>,
}
