//! Errors on the wire: a number for machines of any kind, a kind for ours, a message and a hint for people.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// What went wrong. The names are stable.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum ErrorKind {
    /// Not JSON, not UTF-8, or nested too deeply.
    ParseError,
    /// Longer than a frame may be.
    FrameTooLong,
    /// JSON, but no request.
    InvalidRequest,
    /// No such method.
    UnknownMethod,
    /// Parameters are missing or of another type.
    InvalidParams,
    /// The confinement is not possible.
    InvalidJail,
    /// No such agent.
    UnknownAgent,
    /// No such profile.
    UnknownProfile,
    /// The settings file cannot be used.
    InvalidConfig,
    /// No such subscription on this connection.
    UnknownSubscription,
    /// The program does not exist.
    ProgramNotFound,
    /// The program exists but cannot be executed: no permission, or its interpreter is missing.
    ProgramNotExecutable,
    /// Another running agent has this name.
    NameInUse,
    /// A directory is not there, or is no directory.
    PathNotFound,
    /// The program that confines is not installed.
    EngineMissing,
    /// The privilege backend refuses.
    Privilege,
    /// It could not be started.
    SpawnFailed,
    /// The agent runs, and must not for this.
    AgentRunning,
    /// The agent has ended, and must run for this.
    AgentEnded,
    /// The agent's stdin is closed.
    InputClosed,
    /// The agent's shim did not answer within its timeout.
    AgentSilent,
    /// The agent cannot be spawned again, because its environment values are not kept.
    EnvironmentNotKept,
    /// Processes are left after a kill.
    KillUnverified,
    /// These bytes are not kept any more.
    OffsetBelowOldest,
    /// These bytes are not written yet.
    OffsetBeyondEnd,
    /// The caller may not use this daemon.
    PeerRefused,
    /// The system is out of processes, descriptors, memory or disk.
    ResourceExhausted,
    /// The daemon ends.
    ShuttingDown,
    /// Anything else.
    Internal,
}

impl ErrorKind {
    /// The JSON-RPC code: the standard ones, and -32000 for all that JSON-RPC has no number for.
    #[must_use]
    pub fn code(self) -> i32 {
        match self {
            Self::ParseError => -32700,
            Self::InvalidRequest | Self::FrameTooLong => -32600,
            Self::UnknownMethod => -32601,
            Self::InvalidParams | Self::InvalidJail => -32602,
            Self::Internal => -32603,
            _ => -32000,
        }
    }
}

/// The machine-readable part of an error.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ErrorData {
    /// What went wrong.
    pub kind: ErrorKind,
    /// What to do about it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hint: Option<String>,
    /// With `kill-unverified`: the processes that are left.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub remaining_pids: Option<Vec<i32>>,
    /// With `offset-below-oldest`: the first offset that is still kept.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub oldest_offset: Option<u64>,
}

/// A JSON-RPC error object.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema, thiserror::Error)]
#[error("{message}")]
pub struct RpcError {
    /// See [`ErrorKind::code`].
    pub code: i32,
    /// What failed, on what, and what to do, in one sentence.
    pub message: String,
    /// The same for machines.
    pub data: ErrorData,
}

impl RpcError {
    /// An error of a kind.
    #[must_use]
    pub fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Self {
            code: kind.code(),
            message: message.into(),
            data: ErrorData {
                kind,
                hint: None,
                remaining_pids: None,
                oldest_offset: None,
            },
        }
    }

    /// The same, with what to do about it.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.data.hint = Some(hint.into());
        self
    }
}
