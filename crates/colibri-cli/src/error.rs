//! Errors of commands, and their exit codes.

use std::io;
use std::path::PathBuf;

use colibri_client::{ClientError, ErrorKind};

use crate::exit::OWN_FAILURE;
use crate::flags;

/// The command that starts the installed service.
const START_SERVICE: &str = if cfg!(target_os = "freebsd") {
    "service colibri start"
} else {
    "systemctl start colibri"
};

/// An error of a command.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CliError {
    #[error(transparent)]
    Client(#[from] ClientError),
    #[error(transparent)]
    Settings(#[from] colibri_config::SettingsError),
    #[error(transparent)]
    Prepare(#[from] colibri_prepare::PrepareError),
    #[error(transparent)]
    Profile(#[from] colibri_config::ProfileError),
    #[error(transparent)]
    Preset(#[from] colibri_presets::UnknownPreset),
    #[error(transparent)]
    Plan(#[from] colibri_presets::PlanError),
    #[error(transparent)]
    EnvFile(#[from] colibri_config::env_file::EnvFileError),
    #[error(transparent)]
    DaemonUser(#[from] colibri_client::UnknownUser),
    #[error(transparent)]
    Template(#[from] colibri_template::TemplateError),
    /// No process listens at the socket, and the daemon is that of another user, so this user starts none.
    #[error(
        "cannot connect to the daemon of uid {uid} at {path}: {source}; run as root: {START_SERVICE}; or set COLIBRI_DAEMON_USER to your user to start a separate daemon"
    )]
    NoService {
        path: PathBuf,
        source: io::Error,
        uid: u32,
    },
    #[error(
        "cannot run top: standard input and output must be a terminal; use colibri ps or colibri events instead"
    )]
    NoTerminal,
    #[error(
        "cannot run an agent with a terminal: standard input and output must be a terminal; leave out -t, or use colibri spawn -t"
    )]
    NotInteractive,
    #[error("{context}: {source}")]
    Io {
        context: &'static str,
        source: io::Error,
    },
    #[error("cannot start threads: {0}; raise the process limit (ulimit -u)")]
    Runtime(io::Error),
    /// The reader of stdout or stderr has closed the pipe, which the user does not see as an error.
    #[error("cannot write the output: its reader has closed the pipe")]
    ReaderClosed,
    /// The agent has no jail, and neither an option nor the settings say that it needs none.
    #[error(
        "the agent has no jail; give one of --jail-name, --jail-path and --no-jail, or set one in [defaults] of the settings file"
    )]
    NoJail,
    /// Any other error; the message.
    #[error("{0}")]
    Message(String),
}

impl CliError {
    pub(crate) fn io(context: &'static str) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Io { context, source }
    }

    /// Returns whether the daemon has no agent with the id.
    pub(crate) fn is_unknown_agent(&self) -> bool {
        matches!(self, Self::Client(ClientError::Rpc(error)) if error.data.kind == ErrorKind::UnknownAgent)
    }

    /// Returns the message, with command-line options in place of request fields.
    pub(crate) fn message(&self) -> String {
        match self {
            // Errors in the settings file keep the keys of that file.
            Self::Client(ClientError::Rpc(error))
                if error.data.kind != ErrorKind::InvalidConfig =>
            {
                flags::with_options(&error.message)
            }
            Self::Prepare(error) => flags::with_options(&error.to_string()),
            _ => self.to_string(),
        }
    }

    /// Returns the exit code: 3 if no daemon can be used, 2 for an unknown daemon user, a missing terminal or a missing jail, otherwise 1.
    pub(crate) fn exit_code(&self) -> u8 {
        match self {
            Self::Client(
                ClientError::NoDaemon { .. }
                | ClientError::OtherSocket { .. }
                | ClientError::UntrustedPeer { .. }
                | ClientError::Start(_),
            )
            | Self::NoService { .. } => 3,
            Self::DaemonUser(_) | Self::NoTerminal | Self::NotInteractive | Self::NoJail => 2,
            _ => 1,
        }
    }

    /// Returns the exit code of `run`, `wait` and `attach`, whose other codes are an agent's: 126 and 127 as shells
    /// use them, and 125 for a failure of Colibri itself.
    pub(crate) fn agent_exit_code(&self) -> u8 {
        match (self, self.exit_code()) {
            (Self::Client(ClientError::Rpc(error)), _) => match error.data.kind {
                ErrorKind::ProgramNotFound => 127,
                ErrorKind::ProgramNotExecutable => 126,
                _ => OWN_FAILURE,
            },
            (_, code @ (2 | 3)) => code,
            _ => OWN_FAILURE,
        }
    }
}
