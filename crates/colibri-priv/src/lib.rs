#![doc = include_str!("../README.md")]
#![forbid(unsafe_code)]

mod backends;
pub mod checks;
pub mod conformance;
#[cfg_attr(not(target_os = "freebsd"), allow(dead_code))]
mod macdo;
mod none;
mod preflight;
pub mod probe;
mod registry;

pub use backends::{Helper, Mdo};
pub use colibri_types::{Finding, FindingStatus};
pub use none::None;
pub use registry::{BackendRegistry, PrivMode};

use async_trait::async_trait;
use colibri_jail_core::{CommandLine, CommandLineError, JailEngine, JailError, JailOp};

/// The plug-in boundary: one way to get the right to do what needs root.
#[async_trait]
pub trait PrivBackend: Send + Sync {
    /// The name in `COLIBRI_JAIL_PRIV_MODE`: lower-case letters, digits and `-`.
    fn name(&self) -> &str;

    /// The command that does `op` with the right to do it. Pure: it reads nothing and starts nothing. The
    /// agent's words must come out as an unbroken, unchanged suffix, and no value of its environment may
    /// appear.
    ///
    /// # Errors
    /// The engine or this backend cannot do it; the message says what to do instead.
    fn elevate(&self, op: &JailOp, engine: &JailEngine) -> Result<CommandLine, PrivError>;

    /// Whether it can work on this host, and if not, how to fix that.
    async fn preflight(&self) -> Vec<Finding>;
}

/// Why an operation cannot be elevated, or a backend cannot be had.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PrivError {
    /// The engine cannot do it.
    #[error(transparent)]
    Jail(#[from] JailError),
    /// The command cannot be built.
    #[error(transparent)]
    Command(#[from] CommandLineError),
    /// The helper would be searched, and somebody else's found.
    #[error(
        "helper path {0:?} is not absolute; give its place from the root, as /usr/local/libexec/colibri-jail-helper"
    )]
    HelperPath(String),
    /// The helper has no verb for it.
    #[error("the helper has no verb to {doing}; {instead}")]
    NoVerb {
        /// What was to be done.
        doing: &'static str,
        /// What to do instead.
        instead: &'static str,
    },
    /// The helper makes jails with less.
    #[error(
        "the helper creates no jails with `mounts`, `hostname` or `allow`; remove them, or use another privilege backend"
    )]
    HelperSetup,
    /// Nobody registered a backend of this name.
    #[error("privilege backend {name:?} is unknown; known are {known}")]
    Unknown {
        /// The name asked for.
        name: String,
        /// All registered names.
        known: String,
    },
    /// The name is taken.
    #[error("privilege backend {0:?} is registered already; give yours another name")]
    Taken(String),
    /// The name would not do in a setting.
    #[error("privilege backend name {0:?} is not usable; use lower-case letters, digits and '-'")]
    BadName(String),
}
