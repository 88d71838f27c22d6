//! The files that the shim writes, and how they are written: whole or not at all.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;

use colibri_types::{Exit, ExitReason, ExitStatus};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

/// Maximum number of bytes that [`read_lines`] reads.
const MAX_LINES: usize = 1 << 20;

/// `shim.json`: the processes of an agent that runs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ShimRecord {
    /// The shim's process id.
    pub shim_pid: i32,
    /// When that process started, see [`Process::start`](crate::process::Process::start); 0 where it is
    /// not known.
    #[serde(default)]
    pub shim_start: u64,
    /// The first process's id; its process group has the same number.
    pub agent_pid: i32,
    /// When the first process was started, in nanoseconds since 1970.
    pub started_at_ns: u64,
    /// Number of the run, from 1.
    #[serde(default = "first")]
    pub run: u32,
    /// The version of the control protocol that the shim speaks: see [`PROTOCOL`](crate::control::PROTOCOL).
    #[serde(default = "first")]
    pub protocol: u32,
}

/// The number of a run, or the version of a protocol, where an older shim has written none.
pub(crate) fn first() -> u32 {
    1
}

/// `exit.json`: the agent and all its descendants are gone.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExitRecord {
    /// Exit status of the first process; absent if it was not collected because the shim was killed.
    pub exit: Option<ExitStatus>,
    /// Why the agent ended; absent in records of earlier releases, see [`ExitRecord::exit`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<ExitReason>,
    /// Why `exit` is absent, or why the agent was ended or not started again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// When the first process ended, in nanoseconds since 1970.
    pub exited_at_ns: u64,
    /// Length of the stdout journal, in bytes.
    pub stdout_bytes: u64,
    /// Length of the stderr journal, in bytes.
    pub stderr_bytes: u64,
    /// Number of the last run, from 1.
    #[serde(default = "first")]
    pub run: u32,
}

impl ExitRecord {
    /// Returns how the agent ended.
    #[must_use]
    pub fn exit(&self) -> Exit {
        Exit::new(self.exit, self.reason)
    }
}

impl RunRecord {
    /// Returns how the run ended.
    #[must_use]
    pub fn exit(&self) -> Exit {
        Exit::new(self.exit, self.reason)
    }
}

/// A line of `runs.jsonl`: a run that has ended. Its output is in the agent's journals between the offsets.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RunRecord {
    /// Its number, from 1.
    pub run: u32,
    /// When it was started, in nanoseconds since 1970.
    pub started_at_ns: u64,
    /// When its first process ended, in nanoseconds since 1970.
    pub exited_at_ns: u64,
    /// How; absent where nobody could see it.
    pub exit: Option<ExitStatus>,
    /// Why the run ended; absent in records of earlier releases.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<ExitReason>,
    /// Why `exit` is absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// Where its output begins and ends in the stdout journal.
    pub stdout: (u64, u64),
    /// Where its output begins and ends in the stderr journal.
    pub stderr: (u64, u64),
}

/// Whether a record must survive the machine's own death, or only that of processes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Durability {
    /// Whole or absent after the death of any process; costs no wait for the disk.
    Process,
    /// Whole or absent after a power failure too: fsync(2) on the file and its directory.
    Machine,
}

/// Replaces the content of `path` with `value`: either the old or the new content is there, never a
/// part of one (temporary file, then rename(2)). The file's mode is 0600.
///
/// # Errors
/// Whatever the file system refuses; the old content is then untouched.
pub fn replace<T: Serialize>(path: &Path, value: &T, durability: Durability) -> io::Result<()> {
    let temporary = path.with_extension("tmp");
    let mut file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(&temporary)?;
    let mut text = serde_json::to_vec(value)?;
    text.push(b'\n');
    file.write_all(&text)?;
    if durability == Durability::Machine {
        file.sync_all()?;
    }
    fs::rename(&temporary, path)?;
    if durability == Durability::Machine {
        let parent = path
            .parent()
            .filter(|parent| !parent.as_os_str().is_empty());
        File::open(parent.unwrap_or(Path::new(".")))?.sync_all()?;
    }
    Ok(())
}

/// Adds a line to a file of records, mode 0600, which survives the death of any process. A line that an
/// earlier death or a full disk cut is ended first, so that it costs itself only.
///
/// # Errors
/// Whatever the file system refuses; the line may then be there in part.
pub fn append<T: Serialize>(path: &Path, value: &T) -> io::Result<()> {
    let mut file = OpenOptions::new()
        .read(true)
        .append(true)
        .create(true)
        .mode(0o600)
        .open(path)?;
    let mut text = Vec::new();
    let length = file.metadata()?.len();
    if length > 0 {
        let mut last = [0];
        file.read_exact_at(&mut last, length - 1)?;
        if last != *b"\n" {
            text.push(b'\n');
        }
    }
    serde_json::to_writer(&mut text, value)?;
    text.push(b'\n');
    file.write_all(&text)
}

/// Reads the end of a file of records, at most `most` bytes of whole lines; lines that are none are left out, and a file
/// that is not there has none.
///
/// # Errors
/// The file cannot be read.
pub fn read_lines<T: DeserializeOwned>(path: &Path, most: u64) -> io::Result<Vec<T>> {
    let file = match File::open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        other => other?,
    };
    let from = file.metadata()?.len().saturating_sub(most);
    let mut text = vec![0; usize::try_from(most).unwrap_or(usize::MAX).min(MAX_LINES)];
    let mut count = 0;
    while let Some(room) = text.get_mut(count..).filter(|room| !room.is_empty()) {
        match file.read_at(room, from + count as u64)? {
            0 => break,
            more => count += more,
        }
    }
    text.truncate(count);
    // Where the file is longer, the first line may be a part of one.
    let first = usize::from(from > 0);
    Ok(text
        .split(|byte| *byte == b'\n')
        .skip(first)
        .filter_map(|line| serde_json::from_slice(line).ok())
        .collect())
}

/// Reads a record; `None` where there is no such file.
///
/// # Errors
/// The file cannot be read, or holds something else.
pub fn read<T: DeserializeOwned>(path: &Path) -> io::Result<Option<T>> {
    match fs::read(path) {
        Ok(text) => Ok(Some(serde_json::from_slice(&text)?)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_survives_the_round_trip_and_replaces_the_old_one() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("exit.json");
        assert_eq!(read::<ExitRecord>(&path).unwrap(), None);
        for exit in [ExitStatus::Code(7), ExitStatus::Signal(9)] {
            let record = ExitRecord {
                exit: Some(exit),
                reason: None,
                error: None,
                exited_at_ns: 1,
                stdout_bytes: 2,
                stderr_bytes: 3,
                run: 1,
            };
            replace(&path, &record, Durability::Machine).unwrap();
            assert_eq!(read(&path).unwrap(), Some(record));
        }
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_damaged_record_is_an_error_and_not_absent() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("exit.json");
        fs::write(&path, "{\"exit\":").unwrap();
        assert!(read::<ExitRecord>(&path).is_err());
    }
    #[test]
    fn a_line_that_was_cut_costs_itself_only() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("runs.jsonl");
        assert!(read_lines::<u32>(&path, 1000).unwrap().is_empty());
        for number in [1, 2] {
            append(&path, &number).unwrap();
        }
        OpenOptions::new()
            .append(true)
            .open(&path)
            .unwrap()
            .write_all(b"{\"run\":")
            .unwrap();
        append(&path, &3).unwrap();
        assert_eq!(read_lines::<u32>(&path, 1000).unwrap(), [1, 2, 3]);
    }
}
