//! The one writer: appends, rotates, drops what is old, and repairs on open what a crash left.

use std::fs::{self, DirBuilder, File};
use std::io;
use std::os::unix::fs::{DirBuilderExt, FileExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime};

use crate::index::{self, RECORD, Record, nanoseconds};
use crate::segment;
use crate::{AppendError, JournalError};

/// A clock set back by more begins a new segment, so that times in one segment are in order; smaller steps
/// are taken for the last time.
const CLOCK_STEP_NS: u64 = 1_000_000_000;

/// When appended bytes are forced onto the disk. Without it they survive the death of every process, but
/// not that of the machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(rename_all = "kebab-case"))]
pub enum Fsync {
    /// When the system likes.
    #[default]
    Never,
    /// At most so long after they were appended, if the caller heeds [`JournalWriter::sync_due`].
    #[cfg_attr(
        feature = "serde",
        serde(rename = "interval-ms", with = "milliseconds")
    )]
    Interval(Duration),
    /// With every append.
    Always,
}

/// How a journal is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(default))]
pub struct JournalOptions {
    /// A segment that has reached this length, in bytes, gets no more.
    pub segment_bytes: u64,
    /// Whole old segments are dropped as long as at least so many bytes are kept; `None` keeps all.
    pub retain_bytes: Option<u64>,
    /// When bytes are forced onto the disk.
    pub fsync: Fsync,
    /// Appends closer together than this share an index record and so a time: a million tiny writes must
    /// not make the index larger than the data.
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

/// The writing end of a journal. There must be only one at a time; the caller sees to that.
#[derive(Debug)]
pub struct JournalWriter {
    directory: PathBuf,
    options: JournalOptions,
    /// Start offsets of all segments; the last one is open.
    segments: Vec<u64>,
    log: File,
    index: File,
    start: u64,
    end: u64,
    /// Records in the open index, and the last of them.
    records: u64,
    last: Option<Record>,
    /// Since when there are bytes that may not be on the disk.
    dirty: Option<Instant>,
}

impl JournalWriter {
    /// Opens or creates the journal in `directory`, and repairs its indexes.
    ///
    /// # Errors
    /// The system refuses a file, or segments do not join.
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
        let mut expected = None;
        let mut opened = None;
        for start in &segments {
            if let Some(end) = expected.filter(|end| end != start) {
                return Err(JournalError::Discontinuous {
                    path: segment::log_path(directory, *start),
                    end,
                });
            }
            let segment = OpenSegment::repair(directory, *start)?;
            expected = Some(segment.end);
            opened = Some((*start, segment));
        }
        let Some((start, segment)) = opened else {
            return Err(JournalError::io(directory)(io::Error::other("no segment")));
        };
        let writer = Self {
            directory: directory.to_owned(),
            options,
            segments,
            log: segment.log,
            index: segment.index,
            start,
            end: segment.end,
            records: segment.records,
            last: segment.last,
            dirty: None,
        };
        writer.sync_directory()?;
        Ok(writer)
    }

    /// The offset that the next byte gets: how many bytes were ever appended.
    #[must_use]
    pub fn end_offset(&self) -> u64 {
        self.end
    }

    /// The first offset that is still kept.
    #[must_use]
    pub fn oldest_offset(&self) -> u64 {
        self.segments.first().copied().unwrap_or(self.start)
    }

    /// Appends `bytes`, which came at `at`.
    ///
    /// # Errors
    /// The system takes no more; [`AppendError`] says how much it took.
    pub fn append(&mut self, bytes: &[u8], at: SystemTime) -> Result<(), AppendError> {
        if bytes.is_empty() {
            return Ok(());
        }
        let at_ns = nanoseconds(at);
        let set_back = self
            .last
            .is_some_and(|last| last.at_ns.saturating_sub(at_ns) > CLOCK_STEP_NS);
        let full = self.end - self.start >= self.options.segment_bytes;
        if self.end > self.start && (full || set_back) {
            self.rotate().map_err(|source| AppendError {
                accepted: 0,
                source,
            })?;
        }
        let (accepted, outcome) = write_at(&self.log, bytes, self.end - self.start);
        self.end += accepted as u64;
        if accepted > 0 {
            self.record(at_ns);
            self.dirty = self.dirty.or_else(|| Some(Instant::now()));
        }
        outcome
            .and_then(|()| self.sync_by_policy())
            .map_err(|error| AppendError {
                accepted,
                source: JournalError::io(&segment::log_path(&self.directory, self.start))(error),
            })
    }

    /// Forces everything onto the disk.
    ///
    /// # Errors
    /// The disk refuses; what was appended before may be lost with the machine.
    pub fn sync(&mut self) -> Result<(), JournalError> {
        let index = segment::index_path(&self.directory, self.start);
        self.sync_log()
            .map_err(JournalError::io(&segment::log_path(
                &self.directory,
                self.start,
            )))?;
        self.index.sync_data().map_err(JournalError::io(&index))
    }

    /// With [`Fsync::Interval`]: when [`JournalWriter::sync`] must be called if nothing is appended before;
    /// `None` where all is on the disk, so that nobody wakes up for nothing. After a sync that failed, an
    /// interval later.
    #[must_use]
    pub fn sync_due(&self) -> Option<Instant> {
        match self.options.fsync {
            Fsync::Interval(interval) => self.dirty?.checked_add(interval),
            Fsync::Never | Fsync::Always => None,
        }
    }

    fn sync_by_policy(&mut self) -> io::Result<()> {
        let due = match self.options.fsync {
            Fsync::Never => false,
            Fsync::Interval(_) => self.sync_due().is_some_and(|due| due <= Instant::now()),
            Fsync::Always => true,
        };
        if due { self.sync_log() } else { Ok(()) }
    }

    fn sync_log(&mut self) -> io::Result<()> {
        // The disk may take long: bytes count from the moment at which it was asked.
        let asked = Instant::now();
        let outcome = self.log.sync_data();
        self.dirty = outcome.is_err().then_some(asked);
        outcome
    }

    /// Covers all bytes up to the end with the last record or a new one. An index that cannot be written
    /// is caught up by the next append or the next open: the bytes are what counts.
    fn record(&mut self, at_ns: u64) {
        let interval = u64::try_from(self.options.index_interval.as_nanos()).unwrap_or(u64::MAX);
        let (number, at_ns) = match self.last {
            Some(last) if at_ns.saturating_sub(last.at_ns) < interval => {
                (self.records.saturating_sub(1), last.at_ns)
            }
            Some(last) => (self.records, at_ns.max(last.at_ns)),
            None => (self.records, at_ns),
        };
        let record = Record {
            end: self.end,
            at_ns,
        };
        if record.write(&self.index, number).is_ok() {
            self.records = number + 1;
            self.last = Some(record);
        }
    }

    fn rotate(&mut self) -> Result<(), JournalError> {
        if self.options.fsync != Fsync::Never {
            self.sync()?;
        }
        let segment = OpenSegment::repair(&self.directory, self.end)?;
        if segment.end != self.end {
            // A second writer was here.
            return Err(JournalError::Discontinuous {
                path: segment::log_path(&self.directory, self.end),
                end: self.end,
            });
        }
        self.sync_directory()?;
        self.start = self.end;
        self.segments.push(self.start);
        self.log = segment.log;
        self.index = segment.index;
        self.records = segment.records;
        self.last = segment.last;
        self.drop_old();
        Ok(())
    }

    /// Forces the names of new files onto the disk, where their bytes are.
    fn sync_directory(&self) -> Result<(), JournalError> {
        if self.options.fsync == Fsync::Never {
            return Ok(());
        }
        File::open(&self.directory)
            .and_then(|directory| directory.sync_all())
            .map_err(JournalError::io(&self.directory))
    }

    /// A segment goes when what is behind it is enough. One that cannot be removed is tried again later.
    fn drop_old(&mut self) {
        let Some(retain) = self.options.retain_bytes else {
            return;
        };
        while let [oldest, next, ..] = self.segments.as_slice() {
            if self.end - next < retain {
                return;
            }
            // The index first: alone it would stay for ever, the log alone is still a segment.
            let gone = remove(&segment::index_path(&self.directory, *oldest))
                && remove(&segment::log_path(&self.directory, *oldest));
            if !gone {
                return;
            }
            self.segments.remove(0);
        }
    }
}

/// A segment's files, with the index made to agree with the log.
struct OpenSegment {
    log: File,
    index: File,
    end: u64,
    records: u64,
    last: Option<Record>,
}

impl OpenSegment {
    fn repair(directory: &Path, start: u64) -> Result<Self, JournalError> {
        let log_path = segment::log_path(directory, start);
        let index_path = segment::index_path(directory, start);
        let log = segment::open(&log_path)?;
        let index = segment::open(&index_path)?;
        let data = log.metadata().map_err(JournalError::io(&log_path))?;
        let end = start + data.len();
        let mended = || -> io::Result<(u64, Option<Record>)> {
            let (mut records, mut last) = index::sound(&index, start, end)?;
            index.set_len(records * RECORD)?;
            if let Some(record) = Record::of_tail(last, start, end, &data) {
                record.write(&index, records)?;
                records += 1;
                last = Some(record);
            }
            Ok((records, last))
        };
        let (records, last) = mended().map_err(JournalError::io(&index_path))?;
        Ok(Self {
            log,
            index,
            end,
            records,
            last,
        })
    }
}

/// Writes as much as the file takes; returns how much, and why not more.
fn write_at(file: &File, bytes: &[u8], position: u64) -> (usize, io::Result<()>) {
    let mut done = 0;
    while let Some(rest) = bytes.get(done..).filter(|rest| !rest.is_empty()) {
        match file.write_at(rest, position + done as u64) {
            Ok(0) => return (done, Err(io::ErrorKind::WriteZero.into())),
            Ok(count) => done += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return (done, Err(error)),
        }
    }
    (done, Ok(()))
}

/// Whether the file is gone now.
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
    fn a_full_device_reports_what_it_took() {
        let full = fs::OpenOptions::new()
            .write(true)
            .open("/dev/full")
            .unwrap();
        let (done, outcome) = write_at(&full, b"bytes", 0);
        assert_eq!(done, 0);
        assert_eq!(outcome.unwrap_err().kind(), io::ErrorKind::StorageFull);
    }

    #[test]
    fn a_sync_is_due_only_where_an_interval_has_bytes_that_wait() {
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
                assert_eq!(writer.sync_due(), first, "the oldest byte counts");
                // A new segment: what the old one held is on the disk.
                let rotated = Instant::now();
                writer.append(b"c", SystemTime::now()).unwrap();
                assert!(writer.sync_due() >= Some(rotated + interval));
            }
            writer.sync().unwrap();
            assert_eq!(writer.sync_due(), None, "{fsync:?}");
        }
    }

    #[test]
    fn a_sync_that_failed_is_due_again_an_interval_later() {
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
        let log = std::mem::replace(&mut writer.log, std::os::fd::OwnedFd::from(pipe).into());
        let failed = Instant::now();
        assert!(writer.sync().is_err());
        assert!(writer.sync_due() >= Some(failed + interval));
        writer.log = log;
        writer.sync().unwrap();
        assert_eq!(writer.sync_due(), None);
    }
}
