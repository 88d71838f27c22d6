//! Names and lengths of the files that a journal consists of.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use rustix::fs::OFlags;

use crate::JournalError;

/// The file with the bytes of the segment that starts at `start`.
pub(crate) fn log_path(directory: &Path, start: u64) -> PathBuf {
    directory.join(format!("{start:020}.log"))
}

/// The file with its chunk ends and times.
pub(crate) fn index_path(directory: &Path, start: u64) -> PathBuf {
    directory.join(format!("{start:020}.idx"))
}

/// The largest offset that off_t can name, so no segment starts behind it. Sums of an offset and a file's
/// length cannot overflow then.
const LAST_START: u64 = i64::MAX.cast_unsigned();

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
                .filter(|digits| digits.len() == 20 && !digits.starts_with('+'))
                .and_then(|digits| digits.parse::<u64>().ok())
                .filter(|start| *start <= LAST_START),
        );
    }
    starts.sort_unstable();
    Ok(starts)
}

/// The segment among `starts` that holds `offset`, or would hold it next; `None` where all begin behind it.
pub(crate) fn holding(starts: &[u64], offset: u64) -> Option<u64> {
    let behind = starts.partition_point(|start| *start <= offset);
    starts.get(behind.checked_sub(1)?).copied()
}

/// Opens a file for reading and writing at any place, created with mode 0600 where it is missing.
pub(crate) fn open(path: &Path) -> Result<File, JournalError> {
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

/// Opens a file for reading; `None` where it is missing, as retention may remove it at any time.
pub(crate) fn open_to_read(path: &Path) -> Result<Option<File>, JournalError> {
    let opened = OpenOptions::new()
        .read(true)
        .custom_flags(OFlags::NOFOLLOW.bits().cast_signed())
        .open(path);
    match opened {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        other => other.map(Some).map_err(JournalError::io(path)),
    }
}
