//! Errors of the start and of a request, and the kinds of the latter on the wire.

use std::fmt::Display;

use colibri_config::ProfileError;
use colibri_journal::JournalError;
use colibri_prepare::PrepareError;
use colibri_priv::PrivError;
use colibri_proto::{ErrorKind, RpcError};
use colibri_spawner::{ShimClientError, SpawnError};
use colibri_types::SpawnConfigError;

/// Why the daemon cannot start: a message for its user.
pub(crate) type StartError = Box<dyn std::error::Error>;

/// Why a request failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CallError {
    /// The profile that the request names cannot be used.
    #[error(transparent)]
    Profile(#[from] ProfileError),
    /// An agent cannot be started, reached or ended.
    #[error(transparent)]
    Spawn(#[from] SpawnError),
    /// A journal cannot be read.
    #[error(transparent)]
    Journal(#[from] JournalError),
    /// The request itself is wrong, or its result cannot be sent.
    #[error(transparent)]
    Rpc(#[from] RpcError),
}

impl CallError {
    /// Returns an error of a kind.
    pub(crate) fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        RpcError::new(kind, message).into()
    }

    /// Returns the error for an invalid parameter.
    pub(crate) fn invalid<E: Display>(parameter: &str) -> impl FnOnce(E) -> Self {
        move |error| Self::invalid_params(format!("{parameter}: {error}"))
    }

    /// Returns the error for invalid parameters, with a message that names them.
    pub(crate) fn invalid_params(error: impl Display) -> Self {
        Self::new(ErrorKind::InvalidParams, error.to_string())
    }

    /// Returns the error for an operation of the daemon that failed.
    pub(crate) fn internal<E: Display>(action: &str) -> impl FnOnce(E) -> Self {
        move |error| Self::new(ErrorKind::Internal, format!("cannot {action}: {error}"))
    }

    /// Returns the error object for the answer.
    pub(crate) fn to_rpc_error(&self) -> RpcError {
        let kind = match self {
            Self::Rpc(error) => return error.clone(),
            Self::Profile(ProfileError::Unknown { .. }) => ErrorKind::UnknownProfile,
            Self::Profile(ProfileError::EnvFile(_)) => ErrorKind::InvalidConfig,
            Self::Profile(_) => ErrorKind::InvalidParams,
            Self::Spawn(error) => spawn_error_kind(error),
            Self::Journal(JournalError::BelowOldest { .. }) => ErrorKind::OffsetBelowOldest,
            Self::Journal(JournalError::BeyondEnd { .. }) => ErrorKind::OffsetBeyondEnd,
            Self::Journal(_) => ErrorKind::Internal,
        };
        let mut rpc = RpcError::new(kind, self.to_string());
        match self {
            Self::Spawn(SpawnError::KillUnverified { remaining, .. }) => {
                rpc.data.remaining_pids = Some(remaining.clone());
            }
            Self::Journal(JournalError::BelowOldest { oldest, .. }) => {
                rpc.data.oldest_offset = Some(*oldest);
            }
            _ => {}
        }
        rpc
    }
}

fn prepare_error_kind(error: &PrepareError) -> ErrorKind {
    match error {
        PrepareError::Config(SpawnConfigError::Jail(_))
        | PrepareError::Jail(_)
        | PrepareError::UnknownUser { .. }
        | PrepareError::Privilege(PrivError::Jail(_)) => ErrorKind::InvalidJail,
        PrepareError::Config(_) | PrepareError::Command(_) => ErrorKind::InvalidParams,
        PrepareError::Privilege(_) => ErrorKind::Privilege,
        PrepareError::ProgramNotFound { .. } => ErrorKind::ProgramNotFound,
        PrepareError::ProgramNotExecutable { .. } => ErrorKind::ProgramNotExecutable,
        PrepareError::Path(_) => ErrorKind::PathNotFound,
        PrepareError::WrapperMissing { .. } => ErrorKind::EngineMissing,
        _ => ErrorKind::Internal,
    }
}

/// Returns the kind of a spawn error on the wire.
pub(crate) fn spawn_error_kind(error: &SpawnError) -> ErrorKind {
    match error {
        SpawnError::Id(_) => ErrorKind::UnknownAgent,
        SpawnError::Prepare(error) => prepare_error_kind(error),
        SpawnError::Name { .. } => ErrorKind::InvalidParams,
        SpawnError::Launch { .. } | SpawnError::Shim { .. } => ErrorKind::SpawnFailed,
        SpawnError::Resources { .. } => ErrorKind::ResourceExhausted,
        SpawnError::ShimClient(ShimClientError::Silent(_)) => ErrorKind::AgentSilent,
        SpawnError::PrivilegedCommand { .. } | SpawnError::SignalDenied { .. } => {
            ErrorKind::Privilege
        }
        SpawnError::Ended(_) | SpawnError::ShimClient(ShimClientError::Closed) => {
            ErrorKind::AgentEnded
        }
        SpawnError::Running(_) | SpawnError::HomeInUse { .. } => ErrorKind::AgentRunning,
        SpawnError::HomeMoved { .. } => ErrorKind::InvalidParams,
        SpawnError::KillUnverified { .. } => ErrorKind::KillUnverified,
        SpawnError::NameInUse { .. } | SpawnError::AutostartInUse { .. } => ErrorKind::NameInUse,
        SpawnError::EnvironmentNotKept { .. } => ErrorKind::EnvironmentNotKept,
        _ => ErrorKind::Internal,
    }
}
