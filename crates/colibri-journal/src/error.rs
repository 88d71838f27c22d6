//! Errors of a journal.

use std::io;
use std::path::{Path, PathBuf};

/// A journal cannot be opened or read.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum JournalError {
    /// An operation on a file or directory of the journal failed.
    #[error(
        "cannot use journal file {path}: {source}; check its owner, its mode and the free space of its disk"
    )]
    Io {
        /// The file or directory.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// Bytes are missing between two segments, or two segments overlap.
    #[error(
        "cannot open {path}: the previous segment ends at offset {end}; restore or remove the damaged segment"
    )]
    Discontinuous {
        /// The later segment.
        path: PathBuf,
        /// End offset of the earlier segment.
        end: u64,
    },
    /// Retention has dropped these bytes.
    #[error("cannot read offset {requested}: the oldest kept offset is {oldest}; read from there")]
    BelowOldest {
        /// The requested offset.
        requested: u64,
        /// The oldest offset that is kept.
        oldest: u64,
    },
    /// These bytes are not written yet.
    #[error(
        "cannot read offset {requested}: the journal ends at offset {end}; read from a lower offset"
    )]
    BeyondEnd {
        /// The requested offset.
        requested: u64,
        /// The offset of the next appended byte.
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

/// An append that failed. The first `accepted` bytes are in the journal; to lose or repeat nothing, retry with the
/// remaining bytes.
#[derive(Debug, thiserror::Error)]
#[error("cannot append after {accepted} bytes: {source}; retry with the remaining bytes")]
pub struct AppendError {
    /// Number of bytes of this call that are in the journal.
    pub accepted: usize,
    /// The cause.
    pub source: JournalError,
}
