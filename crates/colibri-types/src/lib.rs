#![doc = include_str!("../README.md")]
#![forbid(unsafe_code)]

mod agent_id;
mod agent_name;
mod exit;
mod finding;
mod kill;
mod network;
mod offset_range;
mod restart;
mod runtime;
mod signal_template;
mod spawn;
mod terminal;

pub use agent_id::{AgentId, AgentIdError};
pub use agent_name::{AgentName, AgentNameError, MAX_NAME};
pub use colibri_jail_core::is_unprintable;
pub use exit::{Exit, ExitReason, ExitStatus};
pub use finding::{Finding, FindingStatus};
pub use kill::KillOutcome;
pub use network::{NetworkAction, NetworkRecord, NetworkSummary};
pub use offset_range::OffsetRange;
pub use restart::{RestartPolicy, RestartWhen};
pub use runtime::{AgentRuntime, UnknownName};
// Part of the launch of a shim, not of the public API.
#[doc(hidden)]
pub use signal_template::{PID_PLACEHOLDER, SIGNAL_PLACEHOLDER, SignalTemplate};
pub use spawn::{
    AGENT_VARIABLE, AdapterOptions, AgentSpawnConfig, AgentSpec, Env, HeldFile, NoProgram,
    ProcessLimits, RunOptions, SpawnConfigError, SpawnRequest, ValidatedSpawn,
};
pub use terminal::{MAX_CELLS, TerminalSize, TerminalSizeError};

/// Reports whether a count is zero, so that `skip_serializing_if` omits it.
#[doc(hidden)]
#[must_use]
pub fn is_zero(count: &u64) -> bool {
    *count == 0
}
