//! Writer of a journal: appends, rotates segments, applies retention, and repairs the indexes on open.

use std::fs::{self, DirBuilder, File};
use std::io;
use std::os::unix::fs::{DirBuilderExt, FileExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime};

use crate::index::{self, IndexRecord, RECORD_SIZE, ValidPrefix, nanoseconds};
use crate::segment;
use crate::{AppendError, JournalError};

/// Maximum backward step of the clock within a segment, in nanoseconds. A larger step starts a new segment, so that the
/// times of a segment are monotonic; a smaller one repeats the previous time.
const MAX_CLOCK_STEP_NS: u64 = 1_000_000_000;

/// When appended bytes are synced to the disk. Bytes that are not synced survive the end of every process, but not a
/// crash of the machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(rename_all = "kebab-case"))]
pub enum Fsync {
    /// Never; the kernel writes them at some time.
    #[default]
    Never,
    /// At most this time after they were appended, if the caller calls [`JournalWriter::sync`] when
    /// [`JournalWriter::sync_due`] is reached.
    #[cfg_attr(
        feature = "serde",
        serde(rename = "interval-ms", with = "milliseconds")
    )]
    Interval(Duration),
    /// In every append.
    Always,
}

/// Options of a journal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(default))]
pub struct JournalOptions {
    /// Length of a segment, in bytes, from which the next append starts a new one.
    pub segment_bytes: u64,
    /// Number of bytes to keep: old segments are dropped as long as at least this many remain. `None` keeps all.
    pub retain_bytes: Option<u64>,
    /// When bytes are synced to the disk.
    pub fsync: Fsync,
    /// Maximum time that appends may share an index record, and so a timestamp. It bounds the size of the index for small
    /// appends.
    pub index_interval: Duration,
}

/// A duration as a number of milliseconds.
#[cfg(feature = "serde")]
mod milliseconds {
    use std::time::Duration;

    use serde::{Deserialize, Deserializer, Serializer};

    pub(super) fn serialize<S: Serializer>(value: &Duration, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_u64(u64::try_from(value.as_millis()).unwrap_or(u64::MAX))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Duration, D::Error> {
        u64::deserialize(from).map(Duration::from_millis)
    }
}

impl Default for JournalOptions {
    fn default() -> Self {
        Self {
            segment_bytes: 64 << 20,
            retain_bytes: None,
            fsync: Fsync::Never,
            index_interval: Duration::from_millis(10),
        }
    }
}

/// Appends to a journal. The caller ensures that there is one writer at a time.
#[derive(Debug)]
pub struct JournalWriter {
    directory: PathBuf,
    options: JournalOptions,
    /// Start offsets of all segments.
    segments: Vec<u64>,
    /// The last segment.
    open: OpenSegment,
    /// Time of the oldest append that is not synced.
    unsynced_since: Option<Instant>,
}

impl JournalWriter {
    /// Opens the journal in `directory`, which is created with mode 0700 if it does not exist, and repairs the indexes.
    ///
    /// # Errors
    /// [`JournalError::Io`] if a file cannot be opened or repaired, [`JournalError::Discontinuous`] if the segments have
    /// a gap or overlap.
    pub fn open(directory: &Path, options: JournalOptions) -> Result<Self, JournalError> {
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(directory)
            .map_err(JournalError::io(directory))?;
        let mut segments = segment::list(directory)?;
        if segments.is_empty() {
            segments.push(0);
        }
        let first = segments.first().copied().unwrap_or_default();
        let mut open = OpenSegment::repair(directory, first)?;
        for start in segments.iter().skip(1) {
            if open.end != *start {
                return Err(discontinuous(directory, *start, open.end));
            }
            open = OpenSegment::repair(directory, *start)?;
        }
        let writer = Self {
            directory: directory.to_owned(),
            options,
            segments,
            open,
            unsynced_since: None,
        };
        writer.sync_directory()?;
        Ok(writer)
    }

    /// Returns the offset of the next byte: the number of bytes appended so far.
    #[must_use]
    pub fn end_offset(&self) -> u64 {
        self.open.end
    }

    /// Returns the oldest offset that is kept.
    #[must_use]
    pub fn oldest_offset(&self) -> u64 {
        self.segments.first().copied().unwrap_or(self.open.start)
    }

    /// Appends `bytes` with the time `at`.
    ///
    /// # Errors
    /// [`AppendError`] if the bytes cannot be written or synced completely, with the number of written bytes.
    pub fn append(&mut self, bytes: &[u8], at: SystemTime) -> Result<(), AppendError> {
        if bytes.is_empty() {
            return Ok(());
        }
        let at_ns = nanoseconds(at);
        let clock_stepped_back = self
            .open
            .indexed
            .last
            .is_some_and(|last| last.at_ns.saturating_sub(at_ns) > MAX_CLOCK_STEP_NS);
        let is_full = self.open.end - self.open.start >= self.options.segment_bytes;
        if self.open.end > self.open.start && (is_full || clock_stepped_back) {
            self.rotate().map_err(|source| AppendError {
                accepted: 0,
                source,
            })?;
        }
        let (accepted, result) = write_at(&self.open.log, bytes, self.open.end - self.open.start);
        self.open.end += accepted as u64;
        if accepted > 0 {
            self.index_to_end(at_ns);
            self.unsynced_since = self.unsynced_since.or_else(|| Some(Instant::now()));
        }
        result
            .and_then(|()| self.sync_by_policy())
            .map_err(|error| AppendError {
                accepted,
                source: JournalError::io(&segment::log_path(&self.directory, self.open.start))(
                    error,
                ),
            })
    }

    /// Syncs all bytes and the open index to the disk.
    ///
    /// # Errors
    /// [`JournalError::Io`] if fdatasync(2) fails; unsynced bytes may be lost if the machine crashes.
    pub fn sync(&mut self) -> Result<(), JournalError> {
        let log = segment::log_path(&self.directory, self.open.start);
        self.sync_log().map_err(JournalError::io(&log))?;
        let index = segment::index_path(&self.directory, self.open.start);
        self.open
            .index
            .sync_data()
            .map_err(JournalError::io(&index))
    }

    /// Returns when [`JournalWriter::sync`] must be called for [`Fsync::Interval`]; `None` if all bytes are synced, and for
    /// the other policies. After a failed sync, the time is one interval later.
    #[must_use]
    pub fn sync_due(&self) -> Option<Instant> {
        match self.options.fsync {
            Fsync::Interval(interval) => self.unsynced_since?.checked_add(interval),
            Fsync::Never | Fsync::Always => None,
        }
    }

    fn sync_by_policy(&mut self) -> io::Result<()> {
        let is_due = match self.options.fsync {
            Fsync::Never => false,
            Fsync::Interval(_) => self.sync_due().is_some_and(|due| due <= Instant::now()),
            Fsync::Always => true,
        };
        if is_due { self.sync_log() } else { Ok(()) }
    }

    fn sync_log(&mut self) -> io::Result<()> {
        // Before the call, which may take long: later appends are not covered.
        let started = Instant::now();
        let result = self.open.log.sync_data();
        self.unsynced_since = result.is_err().then_some(started);
        result
    }

    /// Extends the last index record, or adds one, so that the index covers all bytes. A failed write is repaired by the
    /// next append or open.
    fn index_to_end(&mut self, at_ns: u64) {
        let interval = u64::try_from(self.options.index_interval.as_nanos()).unwrap_or(u64::MAX);
        let records = self.open.indexed.records;
        let (number, at_ns) = match self.open.indexed.last {
            Some(last) if at_ns.saturating_sub(last.at_ns) < interval => {
                (records.saturating_sub(1), last.at_ns)
            }
            Some(last) => (records, at_ns.max(last.at_ns)),
            None => (records, at_ns),
        };
        let record = IndexRecord {
            end: self.open.end,
            at_ns,
        };
        if let Ok(indexed) = record.write(&self.open.index, number) {
            self.open.indexed = indexed;
        }
    }

    fn rotate(&mut self) -> Result<(), JournalError> {
        if self.options.fsync != Fsync::Never {
            self.sync()?;
        }
        let segment = OpenSegment::repair(&self.directory, self.open.end)?;
        if segment.end != self.open.end {
            // Another writer has created the segment.
            return Err(discontinuous(&self.directory, self.open.end, self.open.end));
        }
        self.sync_directory()?;
        self.segments.push(segment.start);
        self.open = segment;
        self.apply_retention();
        Ok(())
    }

    /// Syncs the directory, so that the entries of new files survive a crash of the machine.
    fn sync_directory(&self) -> Result<(), JournalError> {
        if self.options.fsync == Fsync::Never {
            return Ok(());
        }
        File::open(&self.directory)
            .and_then(|directory| directory.sync_all())
            .map_err(JournalError::io(&self.directory))
    }

    /// Removes old segments that are not needed to keep `retain_bytes`. A failed removal is retried at the next rotation.
    fn apply_retention(&mut self) {
        let Some(retain) = self.options.retain_bytes else {
            return;
        };
        while let [oldest, next, ..] = self.segments.as_slice() {
            if self.open.end - next < retain {
                return;
            }
            // The index first: a log without an index is still listed as a segment.
            let removed = remove(&segment::index_path(&self.directory, *oldest))
                && remove(&segment::log_path(&self.directory, *oldest));
            if !removed {
                return;
            }
            self.segments.remove(0);
        }
    }
}

/// Open files of a segment with a repaired index.
#[derive(Debug)]
struct OpenSegment {
    start: u64,
    end: u64,
    log: File,
    index: File,
    /// Records in the index.
    indexed: ValidPrefix,
}

impl OpenSegment {
    fn repair(directory: &Path, start: u64) -> Result<Self, JournalError> {
        let log_path = segment::log_path(directory, start);
        let index_path = segment::index_path(directory, start);
        let log = segment::open_or_create(&log_path)?;
        let index = segment::open_or_create(&index_path)?;
        let metadata = log.metadata().map_err(JournalError::io(&log_path))?;
        let end = start + metadata.len();
        let repair_index = || -> io::Result<ValidPrefix> {
            let indexed = index::valid_prefix(&index, start, end)?;
            index.set_len(indexed.records * RECORD_SIZE)?;
            match IndexRecord::for_unindexed(indexed.last, start, end, &metadata) {
                Some(record) => record.write(&index, indexed.records),
                None => Ok(indexed),
            }
        };
        let indexed = repair_index().map_err(JournalError::io(&index_path))?;
        Ok(Self {
            start,
            end,
            log,
            index,
            indexed,
        })
    }
}

fn discontinuous(directory: &Path, start: u64, end: u64) -> JournalError {
    let path = segment::log_path(directory, start);
    JournalError::Discontinuous { path, end }
}

/// Writes at `position` until an error; returns the number of written bytes and the result.
fn write_at(file: &File, bytes: &[u8], position: u64) -> (usize, io::Result<()>) {
    let mut done = 0;
    while let Some(remaining) = bytes.get(done..).filter(|bytes| !bytes.is_empty()) {
        match file.write_at(remaining, position + done as u64) {
            Ok(0) => return (done, Err(io::ErrorKind::WriteZero.into())),
            Ok(count) => done += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return (done, Err(error)),
        }
    }
    (done, Ok(()))
}

/// Removes a file; returns whether it no longer exists.
fn remove(path: &Path) -> bool {
    match fs::remove_file(path) {
        Err(error) => error.kind() == io::ErrorKind::NotFound,
        Ok(()) => true,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn write_to_full_device_reports_written_bytes() {
        let full = fs::OpenOptions::new()
            .write(true)
            .open("/dev/full")
            .unwrap();
        let (done, result) = write_at(&full, b"bytes", 0);
        assert_eq!(done, 0);
        assert_eq!(result.unwrap_err().kind(), io::ErrorKind::StorageFull);
    }

    #[test]
    fn sync_is_due_only_for_unsynced_bytes_with_interval() {
        let interval = Duration::from_secs(3600);
        for (fsync, appends, due) in [
            (Fsync::Never, true, false),
            (Fsync::Always, true, false),
            (Fsync::Interval(interval), false, false),
            (Fsync::Interval(interval), true, true),
            (Fsync::Interval(Duration::ZERO), true, false),
            (Fsync::Interval(Duration::MAX), true, false),
        ] {
            let dir = tempfile::tempdir().unwrap();
            let options = JournalOptions {
                segment_bytes: 2,
                fsync,
                ..JournalOptions::default()
            };
            let mut writer = JournalWriter::open(dir.path(), options).unwrap();
            assert_eq!(writer.sync_due(), None, "{fsync:?}");
            let before = Instant::now();
            if appends {
                writer.append(b"a", SystemTime::now()).unwrap();
            }
            let first = writer.sync_due();
            assert_eq!(first.is_some(), due, "{fsync:?}");
            if let Some(at) = first {
                assert!(at >= before + interval && at <= Instant::now() + interval);
                writer.append(b"b", SystemTime::now()).unwrap();
                assert_eq!(
                    writer.sync_due(),
                    first,
                    "the oldest unsynced byte sets the time"
                );
                // Rotation syncs the old segment.
                let rotated = Instant::now();
                writer.append(b"c", SystemTime::now()).unwrap();
                assert!(writer.sync_due() >= Some(rotated + interval));
            }
            writer.sync().unwrap();
            assert_eq!(writer.sync_due(), None, "{fsync:?}");
        }
    }

    #[test]
    fn failed_sync_is_due_again_after_one_interval() {
        let interval = Duration::from_secs(3600);
        let dir = tempfile::tempdir().unwrap();
        let options = JournalOptions {
            fsync: Fsync::Interval(interval),
            ..JournalOptions::default()
        };
        let mut writer = JournalWriter::open(dir.path(), options).unwrap();
        writer.append(b"a", SystemTime::now()).unwrap();
        // A pipe cannot be synced (fsync(2): EINVAL).
        let (_reader, pipe) = io::pipe().unwrap();
        let log = std::mem::replace(
            &mut writer.open.log,
            std::os::fd::OwnedFd::from(pipe).into(),
        );
        let failed = Instant::now();
        assert!(writer.sync().is_err());
        assert!(writer.sync_due() >= Some(failed + interval));
        writer.open.log = log;
        writer.sync().unwrap();
        assert_eq!(writer.sync_due(), None);
    }
}
