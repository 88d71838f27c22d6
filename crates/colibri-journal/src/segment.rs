//! Names of a journal's files, and how they are opened.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use rustix::fs::OFlags;

use crate::JournalError;

/// Returns the path of the log of the segment that starts at `start`: its bytes.
pub(crate) fn log_path(directory: &Path, start: u64) -> PathBuf {
    directory.join(format!("{start:020}.log"))
}

/// Returns the path of the index of the segment that starts at `start`.
pub(crate) fn index_path(directory: &Path, start: u64) -> PathBuf {
    directory.join(format!("{start:020}.idx"))
}

/// Maximum start offset of a segment, in bytes: the maximum of off_t. The sum of a start offset and the length of a file
/// cannot overflow a `u64`.
const MAX_START: u64 = i64::MAX.cast_unsigned();

/// Returns the start offsets of all segments in ascending order; none if the directory does not exist.
pub(crate) fn list(directory: &Path) -> Result<Vec<u64>, JournalError> {
    let entries = match fs::read_dir(directory) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        other => other.map_err(JournalError::io(directory))?,
    };
    let mut starts = Vec::new();
    for entry in entries {
        let name = entry.map_err(JournalError::io(directory))?.file_name();
        let digits = name.to_str().and_then(|name| name.strip_suffix(".log"));
        starts.extend(
            digits
                .filter(|digits| digits.len() == 20 && !digits.starts_with('+'))
                .and_then(|digits| digits.parse::<u64>().ok())
                .filter(|start| *start <= MAX_START),
        );
    }
    starts.sort_unstable();
    Ok(starts)
}

/// Returns the start of the segment that contains `offset` or will contain it next; `None` if all start after it.
pub(crate) fn containing(starts: &[u64], offset: u64) -> Option<u64> {
    let after = starts.partition_point(|start| *start <= offset);
    starts.get(after.checked_sub(1)?).copied()
}

/// Opens a file for reading and writing. Creates a missing file with mode 0600.
pub(crate) fn open_or_create(path: &Path) -> Result<File, JournalError> {
    OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .custom_flags(OFlags::NOFOLLOW.bits().cast_signed())
        .open(path)
        .map_err(JournalError::io(path))
}

/// Opens a file for reading; `None` if it does not exist, because retention may remove it at any time.
pub(crate) fn open_for_reading(path: &Path) -> Result<Option<File>, JournalError> {
    let opened = OpenOptions::new()
        .read(true)
        .custom_flags(OFlags::NOFOLLOW.bits().cast_signed())
        .open(path);
    match opened {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        other => other.map(Some).map_err(JournalError::io(path)),
    }
}
