//! Errors between a configuration and a command.

use std::io;
use std::path::PathBuf;

use colibri_jail_core::{CommandLineError, JailError, PathError};
use colibri_priv::PrivError;
use colibri_types::{SpawnConfigError, is_unprintable};

/// Why a configuration cannot be turned into a command on this host.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PrepareError {
    /// The configuration is invalid on every host.
    #[error(transparent)]
    Config(#[from] SpawnConfigError),
    /// The command line exceeds a limit of the host.
    #[error("the command line cannot be executed: {0}")]
    Command(#[from] CommandLineError),
    /// The confinement cannot be applied on this host.
    #[error(transparent)]
    Jail(#[from] JailError),
    /// The program does not exist.
    #[error("program '{}' was not found {place}; {hint}", printable(.program))]
    ProgramNotFound {
        /// The requested program.
        program: String,
        /// Where it was searched, such as `on this host`, and why it is masked there, if it is.
        place: String,
        /// How to correct the request or the host.
        hint: String,
    },
    /// The program exists and cannot be executed.
    #[error("program '{}' is not executable: {problem}", printable(.program))]
    ProgramNotExecutable {
        /// The requested program.
        program: String,
        /// Cause and hint.
        problem: String,
    },
    /// A path of the request does not exist, or has the wrong type.
    #[error(transparent)]
    Path(#[from] PathError),
    /// The passwd(5) file in the jail's root does not contain the requested user.
    #[error("user '{user}' is not in {table}; give a user of that file, or UID or UID:GID")]
    UnknownUser {
        /// The requested user.
        user: String,
        /// The passwd(5) file that was read.
        table: PathBuf,
    },
    /// The program that confines is not installed.
    #[error("{program}, which starts this agent, is not installed or not executable; {hint}")]
    WrapperMissing {
        /// Path of the program.
        program: String,
        /// A hint that starts with a verb.
        hint: String,
    },
    /// The privilege backend refuses.
    #[error(transparent)]
    Privilege(#[from] PrivError),
}

/// Returns a text with control and invisible characters replaced.
fn printable(text: &str) -> String {
    text.replace(is_unprintable, "?")
}

/// Reports whether an error of the system means that a resource is exhausted: descriptors, processes, memory or disk.
#[must_use]
pub fn is_resource_exhaustion(error: &io::Error) -> bool {
    use rustix::io::Errno;
    matches!(
        Errno::from_io_error(error),
        Some(
            Errno::MFILE | Errno::NFILE | Errno::AGAIN | Errno::NOMEM | Errno::NOSPC | Errno::DQUOT
        )
    )
}
