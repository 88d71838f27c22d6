#![doc = include_str!("../README.md")]
#![forbid(unsafe_code)]

mod backends;
pub mod checks;
mod none;
mod preflight;
pub mod probe;
mod registry;

pub use backends::{Helper, Mdo};
pub use colibri_types::{Finding, FindingStatus};
pub use none::None;
pub use registry::BackendRegistry;

use async_trait::async_trait;
use colibri_jail_core::{CommandLine, CommandLineError, JailEngine, JailError, JailOp};

/// A privilege backend: obtains the right to run a jail operation.
///
/// The methods with a default are capabilities. Callers ask for them; they never compare names.
#[async_trait]
pub trait PrivBackend: Send + Sync {
    /// Returns the name in `COLIBRI_JAIL_PRIV_MODE`: lower-case letters, digits and `-`.
    fn name(&self) -> &str;

    /// Returns the command that runs `op` with privilege. Pure: it does no I/O, reads no environment and starts no
    /// process. The agent's arguments must be an unbroken, unchanged suffix, and no value of its environment may
    /// appear.
    ///
    /// # Errors
    /// The engine or this backend does not support the operation; the message contains a hint.
    fn elevate(&self, op: &JailOp, engine: &dyn JailEngine) -> Result<CommandLine, PrivError>;

    /// Checks whether the backend works on this host, and returns how to fix it if not. Callers await it in a task with
    /// a timeout, so it must not block: run blocking work with `tokio::task::spawn_blocking`.
    async fn preflight(&self) -> Vec<Finding>;

    /// Returns whether elevated commands run as the calling user, because the backend adds no privilege.
    fn runs_as_caller(&self) -> bool {
        false
    }

    /// Returns whether the commands of the backend monitor the agent themselves, so that they need no monitor
    /// ([`JailEngine::monitor`]) and leave nothing to clean up.
    fn monitors(&self) -> bool {
        false
    }

    /// Returns why the backend replaces the open files limit that the caller sets, as `CAUSE; HINT`; `None` if the
    /// agent keeps the caller's.
    fn open_files_override(&self) -> Option<&'static str> {
        Option::None
    }

    /// Returns whether a policy of the backend restricts operations. A trial operation may then be refused although
    /// the backend works; `preflight` reports on the policy instead.
    fn has_policy(&self) -> bool {
        false
    }
}

/// Error of a privilege backend or of its selection.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PrivError {
    /// The engine does not support the operation.
    #[error(transparent)]
    Jail(#[from] JailError),
    /// The command is invalid.
    #[error(transparent)]
    Command(#[from] CommandLineError),
    /// The backend does not support an operation that the engine supports: the message.
    #[error("{0}")]
    Unsupported(String),
    /// A backend's name or program is invalid: the message.
    #[error("{0}")]
    Invalid(String),
}

impl PrivError {
    /// Returns the error of a backend that does not support an operation: `operation` is a verb phrase, `hint` starts
    /// with a verb.
    #[must_use]
    pub fn unsupported(backend: &str, operation: &str, hint: &str) -> Self {
        Self::Unsupported(format!(
            "privilege backend {backend} cannot {operation}; {hint}"
        ))
    }
}
