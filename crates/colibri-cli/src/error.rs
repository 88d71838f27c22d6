//! What can go wrong, and the exit code that says so.

use std::io;

use colibri_client::ClientError;

use crate::paths::PathError;

/// A failure of a command. The exit code is 3 where there is no daemon, 2 where the command makes no sense
/// here, and 1 for all else.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CliError {
    #[error(transparent)]
    Client(#[from] ClientError),
    #[error(transparent)]
    Settings(#[from] colibri_spawner::settings::SettingsError),
    #[error(transparent)]
    Spawn(#[from] colibri_spawner::SpawnError),
    #[error(transparent)]
    EnvFile(#[from] colibri_spawner::env_file::EnvFileError),
    #[error("the secret {0} is not set in this environment; set it, or give --env-file with it")]
    NoSecret(String),
    #[error("the value of the secret {0} is not UTF-8, and the daemon takes text only")]
    SecretNotText(String),
    #[error(transparent)]
    DaemonUser(#[from] colibri_client::UnknownUser),
    #[error(transparent)]
    Path(#[from] PathError),
    #[error(
        "colibri top needs a terminal as standard input and output; colibri ps lists agents, and colibri events prints what they do"
    )]
    NoTerminal,
    #[error("{doing}: {source}")]
    Io {
        doing: &'static str,
        source: io::Error,
    },
    #[error("threads cannot be started: {0}")]
    Runtime(io::Error),
}

impl CliError {
    pub(crate) fn io(doing: &'static str) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Io { doing, source }
    }

    pub(crate) fn exit_code(&self) -> u8 {
        match self {
            Self::Client(
                ClientError::NoDaemon { .. }
                | ClientError::Elsewhere { .. }
                | ClientError::UntrustedPeer { .. }
                | ClientError::Start { .. }
                | ClientError::StartFailed(_),
            ) => 3,
            Self::DaemonUser(_) => 2,
            Self::NoTerminal => 2,
            _ => 1,
        }
    }
}
