//! Names and lengths of the files that a journal consists of.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use crate::JournalError;

/// The file with the bytes of the segment that starts at `start`.
pub(crate) fn log_path(directory: &Path, start: u64) -> PathBuf {
    directory.join(format!("{start:020}.log"))
}

/// The file with its chunk ends and times.
pub(crate) fn index_path(directory: &Path, start: u64) -> PathBuf {
    directory.join(format!("{start:020}.idx"))
}

/// Start offsets of all segments, sorted. A directory that is not there has none.
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
                .filter(|digits| digits.len() == 20)
                .and_then(|digits| digits.parse::<u64>().ok()),
        );
    }
    starts.sort_unstable();
    Ok(starts)
}

/// Length of a segment's log, in bytes.
pub(crate) fn length(directory: &Path, start: u64) -> Result<u64, JournalError> {
    let path = log_path(directory, start);
    Ok(fs::metadata(&path).map_err(JournalError::io(&path))?.len())
}

/// Opens a file for reading and writing at any place, created with mode 0600 where it is missing.
pub(crate) fn open(path: &Path) -> Result<File, JournalError> {
    OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(path)
        .map_err(JournalError::io(path))
}
