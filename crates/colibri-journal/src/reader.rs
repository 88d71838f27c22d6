//! Reader of a journal. Any number of readers in any process may run concurrently with the writer.

use std::fs::File;
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};

use crate::index::{self, IndexRecord, Neighbours};
use crate::{JournalError, segment};

/// Maximum number of attempts to open a segment. Retention may remove one between listing and opening.
const MAX_ATTEMPTS: u32 = 64;

/// Bytes that share a time: they were appended within one
/// [`JournalOptions::index_interval`](crate::JournalOptions::index_interval).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Chunk {
    /// Offset of the first byte.
    pub start: u64,
    /// Offset after the last byte; the last chunk may still grow.
    pub end: u64,
    /// Time of the first byte, in nanoseconds since 1970.
    pub at_ns: u64,
}

/// Reads a journal. The reader keeps one segment open: polling for new bytes costs one pread(2), and without new bytes one
/// stat(2) of the next segment.
#[derive(Debug)]
pub struct JournalReader {
    directory: PathBuf,
    current: Option<(u64, File)>,
}

impl JournalReader {
    /// Creates a reader of the journal in `directory`. A missing directory is an empty journal.
    #[must_use]
    pub fn new(directory: &Path) -> Self {
        Self {
            directory: directory.to_owned(),
            current: None,
        }
    }

    /// Closes the open segment; the next read opens it again. Saves descriptors when many readers are idle.
    pub fn close_segment(&mut self) {
        self.current = None;
    }

    /// Reads bytes from `offset` into `buffer` and returns their number. A read ends at the end of a segment; 0 is the
    /// current end of the journal.
    ///
    /// # Errors
    /// [`JournalError::BelowOldest`] if retention has dropped the offset, [`JournalError::BeyondEnd`] if it is not written
    /// yet, [`JournalError::Io`] if a file cannot be read.
    pub fn read(&mut self, offset: u64, buffer: &mut [u8]) -> Result<usize, JournalError> {
        for _ in 0..MAX_ATTEMPTS {
            if let Some((start, file)) = self.current.as_ref().filter(|(start, _)| *start <= offset)
            {
                let io_error =
                    |error| JournalError::io(&segment::log_path(&self.directory, *start))(error);
                let count = file.read_at(buffer, offset - start).map_err(io_error)?;
                if count > 0 || buffer.is_empty() {
                    return Ok(count);
                }
                // After retention has removed this segment, only a new listing finds the next one.
                let metadata = file.metadata().map_err(io_error)?;
                let exists = metadata.nlink() > 0;
                let next = segment::log_path(&self.directory, offset);
                let at_end = offset == start + metadata.len();
                if exists && at_end && (offset == *start || !next.exists()) {
                    return Ok(0);
                }
            }
            if !self.open_at(offset)? {
                return Ok(0);
            }
        }
        Err(self.lost_race())
    }

    /// Opens the segment that holds `offset` or will hold it next; opens none if it is removed concurrently. Returns false
    /// if the journal is empty.
    fn open_at(&mut self, offset: u64) -> Result<bool, JournalError> {
        self.current = None;
        let starts = segment::list(&self.directory)?;
        let Some(start) = segment::containing(&starts, offset) else {
            return match (starts.first(), offset) {
                (Some(oldest), requested) => Err(JournalError::BelowOldest {
                    requested,
                    oldest: *oldest,
                }),
                (None, 0) => Ok(false),
                (None, requested) => Err(JournalError::BeyondEnd { requested, end: 0 }),
            };
        };
        let path = segment::log_path(&self.directory, start);
        if let Some(file) = segment::open_for_reading(&path)? {
            let end = start + file.metadata().map_err(JournalError::io(&path))?.len();
            if offset > end {
                // After the last segment, or in a gap between damaged segments.
                return Err(JournalError::BeyondEnd {
                    requested: offset,
                    end,
                });
            }
            self.current = Some((start, file));
        }
        Ok(true)
    }

    fn lost_race(&self) -> JournalError {
        JournalError::io(&self.directory)(io::Error::other(
            "segments are removed faster than they can be opened",
        ))
    }

    /// Returns the offset of the next appended byte.
    ///
    /// # Errors
    /// [`JournalError::Io`] if the directory or a file cannot be read.
    pub fn end_offset(&self) -> Result<u64, JournalError> {
        for _ in 0..MAX_ATTEMPTS {
            let Some(start) = segment::list(&self.directory)?.pop() else {
                return Ok(0);
            };
            let path = segment::log_path(&self.directory, start);
            if let Some(file) = segment::open_for_reading(&path)? {
                return Ok(start + file.metadata().map_err(JournalError::io(&path))?.len());
            }
        }
        Err(self.lost_race())
    }

    /// Returns the chunk that contains the byte at `offset`; `None` if there is no such byte. Bytes without an index record
    /// are one chunk with the modification time of their file.
    ///
    /// # Errors
    /// [`JournalError::Io`] if the directory or a file cannot be read.
    pub fn chunk_at(&self, offset: u64) -> Result<Option<Chunk>, JournalError> {
        let starts = segment::list(&self.directory)?;
        match segment::containing(&starts, offset) {
            Some(start) => self.first_chunk(start, |record| record.end <= offset),
            None => Ok(None),
        }
    }

    /// Returns the offset of the first chunk with a time of at least `at_ns`, in nanoseconds since 1970; the end offset if
    /// there is none. Times are those of the writer's clock, also if it was wrong or was set back.
    ///
    /// # Errors
    /// [`JournalError::Io`] if the directory or a file cannot be read.
    pub fn offset_at(&self, at_ns: u64) -> Result<u64, JournalError> {
        for start in segment::list(&self.directory)? {
            let chunk = self.first_chunk(start, |record| record.at_ns < at_ns)?;
            if let Some(chunk) = chunk {
                return Ok(chunk.start);
            }
        }
        self.end_offset()
    }

    /// Returns the segment's first chunk for which `is_before` is false.
    fn first_chunk(
        &self,
        start: u64,
        is_before: impl Fn(IndexRecord) -> bool,
    ) -> Result<Option<Chunk>, JournalError> {
        // Reads the index before the log, so that the index never covers more than the log.
        let path = segment::index_path(&self.directory, start);
        let neighbours = match segment::open_for_reading(&path)? {
            Some(file) => index::search(&file, &is_before).map_err(JournalError::io(&path))?,
            None => Neighbours::default(),
        };
        let path = segment::log_path(&self.directory, start);
        let Some(log) = segment::open_for_reading(&path)? else {
            return Ok(None);
        };
        let metadata = log.metadata().map_err(JournalError::io(&path))?;
        let end = start + metadata.len();
        let chunk = neighbours
            .at_or_after
            .or_else(|| IndexRecord::for_unindexed(neighbours.before, start, end, &metadata))
            .filter(|record| !is_before(*record));
        // Offsets from an index that is not repaired yet may be outside the segment.
        let chunk_start = neighbours.before.map_or(start, |record| record.end);
        Ok(chunk.map(|record| Chunk {
            start: chunk_start.clamp(start, end),
            end: record.end.clamp(start, end),
            at_ns: record.at_ns,
        }))
    }
}
