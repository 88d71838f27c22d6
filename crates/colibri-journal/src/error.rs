//! What can go wrong with a journal.

use std::io;
use std::path::{Path, PathBuf};

/// Why a journal cannot be opened or read.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum JournalError {
    /// The system refuses a file or directory of the journal.
    #[error("journal {path}: {source}; check its owner, its mode and the room on its disk")]
    Io {
        /// The file or directory.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// Bytes are missing between two segments, or two segments hold the same ones.
    #[error(
        "{path}: the segment before it ends at offset {end}; restore or remove the damaged segment"
    )]
    Discontinuous {
        /// The later segment.
        path: PathBuf,
        /// Where the earlier one ends.
        end: u64,
    },
    /// These bytes were dropped by retention.
    #[error(
        "offset {asked} is no longer kept; the oldest kept offset is {oldest}: read from there"
    )]
    BelowOldest {
        /// The offset asked for.
        asked: u64,
        /// The first offset that can be read.
        oldest: u64,
    },
    /// These bytes have not been written.
    #[error("offset {asked} is beyond the end; the journal ends at offset {end}")]
    BeyondEnd {
        /// The offset asked for.
        asked: u64,
        /// The offset of the next byte to come.
        end: u64,
    },
}

impl JournalError {
    pub(crate) fn io(path: &Path) -> impl FnOnce(io::Error) -> Self + '_ {
        |source| Self::Io {
            path: path.to_owned(),
            source,
        }
    }
}

/// An append that was not done to its end. The first `accepted` bytes are in the journal; append the rest
/// when there is room, and nothing is lost or repeated.
#[derive(Debug, thiserror::Error)]
#[error("appending stopped after {accepted} bytes, the rest can be appended later: {source}")]
pub struct AppendError {
    /// How many bytes of this call are in the journal.
    pub accepted: usize,
    /// What the system said about the next ones.
    pub source: JournalError,
}
