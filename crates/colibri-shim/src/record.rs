//! The records that the shim writes to files: their content, and atomic writing.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use colibri_sys::atomic_file;
pub use colibri_sys::atomic_file::Durability;
use colibri_types::{Exit, ExitReason, ExitStatus, NetworkSummary, OffsetRange};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

/// `shim.json`: the processes of a running agent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ShimRecord {
    /// Pid of the shim.
    pub shim_pid: i32,
    /// Start time of the shim, see [`Process::start`](colibri_sys::process::Process::start); 0 if unknown.
    #[serde(default)]
    pub shim_start: u64,
    /// Pid of the first process, which is also its process group.
    pub agent_pid: i32,
    /// Start time of the first process, in nanoseconds since 1970.
    pub started_at_ns: u64,
    /// Number of the run, from 1.
    #[serde(default = "default_one")]
    pub run: u32,
    /// Version of the shim's control protocol: see [`PROTOCOL`](crate::control::PROTOCOL).
    #[serde(default = "default_one")]
    pub protocol: u32,
}

/// Returns the number of a run, or the version of a protocol, in a record of a shim that wrote none.
pub(crate) fn default_one() -> u32 {
    1
}

/// `exit.json`: the end of the agent and all its descendants.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExitRecord {
    /// Exit status of the first process; absent if the process was not started or its status was not collected, for example
    /// because the shim was killed.
    pub exit: Option<ExitStatus>,
    /// Why the agent ended; absent in records of earlier releases, see [`ExitRecord::exit`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<ExitReason>,
    /// Why `exit` is absent, or why the agent was ended or not restarted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// End time of the first process, in nanoseconds since 1970.
    pub exited_at_ns: u64,
    /// Length of the stdout journal, in bytes.
    pub stdout_bytes: u64,
    /// Length of the stderr journal, in bytes.
    pub stderr_bytes: u64,
    /// Number of the last run, from 1.
    #[serde(default = "default_one")]
    pub run: u32,
    /// What the agent's proxy refused.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub network: Option<NetworkSummary>,
    /// Its shim received SIGTERM, as at a shutdown of the machine.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub terminated: bool,
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

/// A line of `runs.jsonl`: an ended run. Its output is in the agent's journals between the offsets.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RunRecord {
    /// Number of the run, from 1.
    pub run: u32,
    /// Start time, in nanoseconds since 1970.
    pub started_at_ns: u64,
    /// End time of the first process, in nanoseconds since 1970.
    pub exited_at_ns: u64,
    /// Exit status of the first process; absent if it was not collected.
    pub exit: Option<ExitStatus>,
    /// Why the run ended; absent in records of earlier releases.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<ExitReason>,
    /// Why `exit` is absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// Offsets in the stdout journal at which the output starts and ends.
    pub stdout: OffsetRange,
    /// Offsets in the stderr journal at which the output starts and ends.
    pub stderr: OffsetRange,
}

/// Returns the current time in nanoseconds since 1970.
#[must_use]
pub fn now_ns() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0, |since| {
        u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
    })
}

/// Replaces the content of `path` with `value`, atomically: writes a temporary file, then calls rename(2). The mode of the
/// file is 0600.
///
/// # Errors
/// A file operation failed; the old content is unchanged.
pub fn replace<T: Serialize>(path: &Path, value: &T, durability: Durability) -> io::Result<()> {
    let mut content = serde_json::to_vec(value)?;
    content.push(b'\n');
    atomic_file::replace(path, &content, durability)
}

/// Appends a record as a line to a file with mode 0600. The line survives the crash of any process. A line that an
/// earlier crash or a full disk truncated is terminated first, so that no other record is lost.
///
/// # Errors
/// A file operation failed; a part of the line may have been written.
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

/// Reads the last records of a file: the complete lines in its last `most` bytes. Skips invalid lines. A missing file has
/// no records.
///
/// # Errors
/// The file cannot be read.
pub fn read_lines<T: DeserializeOwned>(path: &Path, most: u64) -> io::Result<Vec<T>> {
    let mut file = match File::open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        other => other?,
    };
    let from = file.metadata()?.len().saturating_sub(most);
    file.seek(SeekFrom::Start(from))?;
    let mut text = Vec::new();
    file.take(most).read_to_end(&mut text)?;
    // The first line of a longer file may be incomplete.
    let skipped = usize::from(from > 0);
    Ok(text
        .split(|byte| *byte == b'\n')
        .skip(skipped)
        .filter_map(|line| serde_json::from_slice(line).ok())
        .collect())
}

/// Reads a record. Returns `None` if the file does not exist.
///
/// # Errors
/// The file cannot be read, or contains no valid record.
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
    fn record_round_trips_and_replaces_the_old_one() {
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
                network: None,
                terminated: false,
            };
            replace(&path, &record, Durability::Machine).unwrap();
            assert_eq!(read(&path).unwrap(), Some(record));
        }
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn damaged_record_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("exit.json");
        fs::write(&path, "{\"exit\":").unwrap();
        assert!(read::<ExitRecord>(&path).is_err());
    }

    #[test]
    fn truncated_line_loses_no_other_record() {
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
