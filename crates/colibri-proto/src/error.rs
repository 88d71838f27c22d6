//! Errors on the wire: a JSON-RPC code, a stable kind, a message and a hint.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Kind of an error. The names are stable.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum ErrorKind {
    /// The frame is not JSON, not UTF-8, or nested too deeply.
    ParseError,
    /// The frame is too long.
    FrameTooLong,
    /// The frame is JSON and not a valid request.
    InvalidRequest,
    /// The method does not exist.
    UnknownMethod,
    /// Parameters are missing or invalid.
    InvalidParams,
    /// The jail in the request is invalid, or not possible on this host.
    InvalidJail,
    /// No agent has the ID.
    UnknownAgent,
    /// No profile has the name.
    UnknownProfile,
    /// The settings file or an environment file is invalid.
    InvalidConfig,
    /// The connection has no subscription with the number.
    UnknownSubscription,
    /// The program does not exist.
    ProgramNotFound,
    /// The program exists but cannot be executed: no permission, or its interpreter is missing.
    ProgramNotExecutable,
    /// Another running agent has this name.
    NameInUse,
    /// A path does not exist or is not a directory.
    PathNotFound,
    /// The program of the engine is not installed.
    EngineMissing,
    /// The privilege backend refused the operation.
    Privilege,
    /// The agent could not be started.
    SpawnFailed,
    /// The method needs an ended agent, and the agent runs.
    AgentRunning,
    /// The method needs a running agent, and the agent has ended.
    AgentEnded,
    /// The agent's stdin is closed.
    InputClosed,
    /// The agent has a terminal, whose input cannot be closed.
    HasTerminal,
    /// The agent has no terminal.
    NoTerminal,
    /// The agent's shim did not answer within its timeout.
    AgentSilent,
    /// The agent cannot be spawned again, because its environment values are not stored.
    EnvironmentNotKept,
    /// Processes of the agent survived a kill, or that could not be verified.
    KillUnverified,
    /// Retention has removed the bytes at the offset.
    OffsetBelowOldest,
    /// The offset is after the end of the journal.
    OffsetBeyondEnd,
    /// The client's user may not use this daemon.
    PeerRefused,
    /// The system has no free processes, descriptors, memory or disk space.
    ResourceExhausted,
    /// The daemon is shutting down.
    ShuttingDown,
    /// Any other error.
    Internal,
}

impl ErrorKind {
    /// Returns the JSON-RPC code: a standard one, or -32000 for kinds that JSON-RPC does not define.
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

/// Machine-readable details of an error.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ErrorData {
    /// Kind of the error.
    pub kind: ErrorKind,
    /// What the caller can do.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hint: Option<String>,
    /// With `kill-unverified`: process IDs that remain.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub remaining_pids: Option<Vec<i32>>,
    /// With `offset-below-oldest`: the first offset in the journal.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub oldest_offset: Option<u64>,
}

/// A JSON-RPC error object.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema, thiserror::Error)]
#[error("{message}")]
pub struct RpcError {
    /// JSON-RPC error code.
    pub code: i32,
    /// Message for users: what failed, on what, and the cause.
    pub message: String,
    /// Machine-readable details.
    pub data: ErrorData,
}

impl RpcError {
    /// Returns an error of a kind.
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

    /// Adds a hint.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.data.hint = Some(hint.into());
        self
    }
}
