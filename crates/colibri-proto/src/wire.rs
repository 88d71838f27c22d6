//! Parameters, results and notifications, as docs/protocol.md describes them.

use colibri_glasspane::{AgentState, AgentView};
use colibri_jail_core::JailConfig;
use colibri_types::{AgentRuntime, Exit, Finding, KillOutcome, RestartPolicy};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::OutputData;

/// Most bytes that one `read-journal` gives: they fit into a frame however they are written.
pub const MAX_READ: u64 = 131_072;

/// No parameters, or an empty result.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Empty {}

/// An agent's id.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct IdParams {
    /// The agent.
    pub id: String,
}

/// The result of `spawn-agent`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct SpawnResult {
    /// The agent.
    pub id: String,
    /// What it was to have and runs without, by `best_effort`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub warnings: Vec<String>,
}

/// The result of `version`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct VersionResult {
    /// `colibri-daemon`.
    pub name: String,
    /// The daemon's version.
    pub version: String,
    /// The protocol's version: 1.
    pub protocol: u32,
}

/// The result of `explain-spawn`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ExplainResult {
    /// The program that would be executed.
    pub program: String,
    /// Its arguments.
    pub args: Vec<String>,
    /// What confines: `freebsd` or `bubblewrap`.
    pub engine: String,
    /// The privilege backend; `none` where nothing is elevated.
    pub privilege: String,
}

/// `list-agents`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ListParams {
    /// Go on behind this agent: the `next` of the page before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub after: Option<String>,
    /// At most so many.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limit: Option<u32>,
    /// Only those that run; absent or false: those that have ended too.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub running: bool,
}

/// The result of `list-agents`: a page, because a frame is bounded.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct ListResult {
    /// Agents by id.
    pub agents: Vec<Agent>,
    /// There are more behind this one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next: Option<String>,
}

/// An agent. Times are RFC 3339 in UTC.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Agent {
    /// Its id.
    pub id: String,
    /// Its label.
    pub name: Option<String>,
    /// What it is doing.
    pub state: AgentState,
    /// The first process; with a jail the one that confines. Absent when it is gone.
    pub pid: Option<i32>,
    /// Its program.
    pub program: String,
    /// Its arguments.
    pub args: Vec<String>,
    /// Its working directory.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cwd: Option<String>,
    /// Its confinement.
    pub jail: Option<JailConfig>,
    /// What it was to have and runs without, by `best_effort`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub warnings: Vec<String>,
    /// Which agent program it is.
    pub runtime: AgentRuntime,
    /// Whether it is started again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub restart: Option<RestartPolicy>,
    /// Which run it is in, or has ended with; 1 is the first.
    #[serde(default)]
    pub run: u32,
    /// When it was started, for the first time.
    pub started_at: String,
    /// When it ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exited_at: Option<String>,
    /// How it ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exit: Option<Exit>,
    /// What to know about `exit`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exit_note: Option<String>,
    /// Why it is in error, stalled or waiting for its next run, where `exit` does not say it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// How much it has written to stdout.
    pub stdout_bytes: u64,
    /// How much it has written to stderr.
    pub stderr_bytes: u64,
    /// When it last wrote something.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_event_at: Option<String>,
    /// What its own events say; with runtime `pi` and `zot`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<serde_json::Value>")]
    pub view: Option<AgentView>,
}

/// A run that has ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Run {
    /// Its number, from 1.
    pub run: u32,
    /// When it was started (RFC 3339).
    pub started_at: String,
    /// When it ended (RFC 3339).
    pub exited_at: String,
    /// How it ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exit: Option<Exit>,
    /// Why there is no `exit`, or why it was the last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// Where its output begins and ends in the stdout journal.
    pub stdout: (u64, u64),
    /// Where its output begins and ends in the stderr journal.
    pub stderr: (u64, u64),
}

/// The result of `list-runs`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct RunsResult {
    /// The runs that have ended, in order; the newest 1000. Empty for an agent that is never started again.
    pub runs: Vec<Run>,
}

/// `get-usage`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct UsageParams {
    /// Of these agents; absent: of all that run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ids: Option<Vec<String>>,
}

/// What an agent uses at this moment, and has used.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Usage {
    /// The agent.
    pub id: String,
    /// CPU time, user and system, of all its processes of all runs, ended ones included, in milliseconds.
    pub cpu_ms: u64,
    /// Resident memory (RSS) of its processes; pages that several share count for each of them.
    pub memory_bytes: u64,
    /// How many processes it has, those that confine it included.
    pub processes: u32,
    /// How much it has written to stdout.
    pub stdout_bytes: u64,
    /// How much it has written to stderr.
    pub stderr_bytes: u64,
    /// Turns it has ended.
    pub turns: u64,
    /// Tokens read, as its events say.
    pub input_tokens: u64,
    /// Tokens written, as its events say.
    pub output_tokens: u64,
    /// Cost in US dollars, as its events say.
    pub cost_usd: f64,
}

/// The result of `get-usage`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct UsageResult {
    /// When it was measured, in milliseconds of the daemon's own clock, which never goes back.
    pub at_ms: u64,
    /// Those that run; what has ended is left out.
    pub agents: Vec<Usage>,
}

/// `kill-agent`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct KillParams {
    /// The agent.
    pub id: String,
    /// The first signal, by name; default TERM.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub signal: Option<String>,
    /// How long to wait before KILL, in milliseconds; default 5000.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub grace_ms: Option<u64>,
    /// `false`: deliver the signal and do no more.
    #[serde(default = "yes")]
    pub escalate: bool,
    /// With `escalate` false: no restart follows this signal, whatever the restart policy.
    #[serde(default, skip_serializing_if = "is_false")]
    pub no_restart: bool,
}

impl Default for KillParams {
    fn default() -> Self {
        Self {
            id: String::new(),
            signal: None,
            grace_ms: None,
            escalate: true,
            no_restart: false,
        }
    }
}

fn yes() -> bool {
    true
}

/// `restart-agent`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct RestartAgentParams {
    /// The agent.
    pub id: String,
    /// Time between TERM and KILL for a running agent, in milliseconds; default 5000.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub grace_ms: Option<u64>,
}

/// The result of `restart-agent`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct RestartResult {
    /// The agent that runs now: the same one if it was running, else a new one.
    pub id: String,
}

/// The result of `kill-agent`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct KillResult {
    /// How it went.
    pub outcome: KillOutcome,
    /// Always empty after a verified kill; an unverified one is an error.
    pub remaining_pids: Vec<i32>,
}

/// `send-input`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct InputParams {
    /// The agent.
    pub id: String,
    /// What to write to its stdin.
    #[serde(flatten)]
    pub data: OutputData,
}

/// The result of `send-input`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct InputResult {
    /// How many bytes were taken. Fewer than given: the agent does not read; send the rest later.
    pub written: u64,
}

/// One of an agent's outputs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Stream {
    /// Standard output.
    Stdout,
    /// Standard error.
    Stderr,
}

/// `read-journal`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ReadParams {
    /// The agent.
    pub id: String,
    /// Which output.
    pub stream: Stream,
    /// From which byte; 0 where absent.
    #[serde(default)]
    pub offset: u64,
    /// At most so many bytes; never more than 131072.
    #[serde(default = "max_read")]
    pub limit: u64,
    /// Instead of `offset`: from the first chunk that came at or after this time (RFC 3339).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub since: Option<String>,
    /// The answer ends with the chunk that it begins in, so that `time` is the time of all its bytes.
    #[serde(default, skip_serializing_if = "is_false")]
    pub timed: bool,
}

fn is_false(value: &bool) -> bool {
    !value
}

fn max_read() -> u64 {
    MAX_READ
}

/// The result of `read-journal`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ReadResult {
    /// Where `data` begins.
    pub offset: u64,
    /// Where to read on.
    pub next_offset: u64,
    /// The bytes.
    #[serde(flatten)]
    pub data: OutputData,
    /// The agent has ended, and these are its last bytes.
    pub end: bool,
    /// When the first of them came (RFC 3339).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub time: Option<String>,
}

/// Which outputs a subscription brings.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum StreamChoice {
    /// Standard output.
    Stdout,
    /// Standard error.
    Stderr,
    /// Neither: states and exits only.
    None,
}

/// `subscribe`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct SubscribeParams {
    /// One agent; absent: all of them, also those to come.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    /// One output; absent: both.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stream: Option<StreamChoice>,
    /// From this byte of each output on; absent: from now on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from_offset: Option<u64>,
    /// First offset in standard error; absent: the same as `from_offset`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stderr_from_offset: Option<u64>,
    /// Each `agent-output` ends with the chunk that it begins in, and says when that came.
    #[serde(default, skip_serializing_if = "is_false")]
    pub timed: bool,
    /// Also `agent-spawned`, `agent-run`, `agent-kill` and `agents-missed`.
    #[serde(default, skip_serializing_if = "is_false")]
    pub lifecycle: bool,
}

/// The result of `subscribe`, and the parameters of `unsubscribe`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Subscription {
    /// Its number on this connection.
    pub subscription: u64,
}

/// The result of `doctor`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct DoctorResult {
    /// What was looked at.
    pub findings: Vec<Finding>,
}
