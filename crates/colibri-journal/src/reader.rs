//! Readers: any number, in any process, while the writer goes on.

use std::fs::File;
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};

use crate::index::{self, Record};
use crate::{JournalError, segment};

/// Retention may remove a segment between the look at the directory and the open. So often we look again.
const ATTEMPTS: u32 = 64;

/// Bytes that came together, or nearly: see
/// [`JournalOptions::index_interval`](crate::JournalOptions::index_interval).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Chunk {
    /// The offset of the first byte.
    pub start: u64,
    /// The offset behind the last byte so far: a chunk may still grow.
    pub end: u64,
    /// When the first byte came, in nanoseconds since 1970.
    pub at_ns: u64,
}

/// The reading end of a journal. It keeps one segment open, so that following the end costs one pread(2)
/// and, where there is nothing new, one look for the next segment.
#[derive(Debug)]
pub struct JournalReader {
    directory: PathBuf,
    current: Option<(u64, File)>,
}

impl JournalReader {
    /// A reader of the journal in `directory`, which need not exist yet: then it reads as empty.
    #[must_use]
    pub fn new(directory: &Path) -> Self {
        Self {
            directory: directory.to_owned(),
            current: None,
        }
    }

    /// Closes the open segment; the next read opens it again. For readers that wait long, and are many.
    pub fn rest(&mut self) {
        self.current = None;
    }

    /// Reads bytes from `offset` on into `buffer`, as many as are there and fit, and returns how many; a
    /// segment's end cuts a read short. 0 means that `offset` is the end for now.
    ///
    /// # Errors
    /// The offset is not kept any more, not written yet, or the system refuses.
    pub fn read(&mut self, offset: u64, buffer: &mut [u8]) -> Result<usize, JournalError> {
        for _ in 0..ATTEMPTS {
            if let Some((start, file)) = self.current.as_ref().filter(|(start, _)| *start <= offset)
            {
                let refused =
                    |error| JournalError::io(&segment::log_path(&self.directory, *start))(error);
                let count = file.read_at(buffer, offset - start).map_err(refused)?;
                if count > 0 || buffer.is_empty() {
                    return Ok(count);
                }
                // What follows a segment that retention has removed, only the directory knows.
                let log = file.metadata().map_err(refused)?;
                let kept = log.nlink() > 0;
                let next = segment::log_path(&self.directory, offset);
                if kept && offset == start + log.len() && (offset == *start || !next.exists()) {
                    return Ok(0);
                }
            }
            if !self.open_at(offset)? {
                return Ok(0);
            }
        }
        Err(self.too_fast())
    }

    /// Opens the segment that holds `offset`, or would hold it next, unless it disappears at this moment;
    /// false where the journal is empty.
    fn open_at(&mut self, offset: u64) -> Result<bool, JournalError> {
        self.current = None;
        let starts = segment::list(&self.directory)?;
        let Some(start) = segment::holding(&starts, offset) else {
            return match (starts.first(), offset) {
                (Some(oldest), asked) => Err(JournalError::BelowOldest {
                    asked,
                    oldest: *oldest,
                }),
                (None, 0) => Ok(false),
                (None, asked) => Err(JournalError::BeyondEnd { asked, end: 0 }),
            };
        };
        let path = segment::log_path(&self.directory, start);
        if let Some(file) = segment::open_to_read(&path)? {
            let end = start + file.metadata().map_err(JournalError::io(&path))?.len();
            if offset > end {
                // Behind the last segment; or in a hole, which only damage makes.
                return Err(JournalError::BeyondEnd { asked: offset, end });
            }
            self.current = Some((start, file));
        }
        Ok(true)
    }

    fn too_fast(&self) -> JournalError {
        JournalError::io(&self.directory)(io::Error::other(
            "segments disappear faster than they can be read",
        ))
    }

    /// The offset that the next byte will get.
    ///
    /// # Errors
    /// The system refuses.
    pub fn end_offset(&self) -> Result<u64, JournalError> {
        for _ in 0..ATTEMPTS {
            let Some(start) = segment::list(&self.directory)?.pop() else {
                return Ok(0);
            };
            let path = segment::log_path(&self.directory, start);
            if let Some(file) = segment::open_to_read(&path)? {
                return Ok(start + file.metadata().map_err(JournalError::io(&path))?.len());
            }
        }
        Err(self.too_fast())
    }

    /// The first offset that is still kept.
    ///
    /// # Errors
    /// The system refuses.
    pub fn oldest_offset(&self) -> Result<u64, JournalError> {
        Ok(segment::list(&self.directory)?
            .first()
            .copied()
            .unwrap_or(0))
    }

    /// The chunk that holds the byte at `offset`; `None` where there is no such byte. Bytes that have no record
    /// yet, or have lost it, are one chunk with the time of their file.
    ///
    /// # Errors
    /// The system refuses.
    pub fn chunk_at(&self, offset: u64) -> Result<Option<Chunk>, JournalError> {
        let starts = segment::list(&self.directory)?;
        match segment::holding(&starts, offset) {
            Some(start) => self.first_chunk(start, |record| record.end <= offset),
            None => Ok(None),
        }
    }

    /// When the byte at `offset` came, in nanoseconds since 1970; see [`JournalReader::chunk_at`].
    ///
    /// # Errors
    /// The system refuses.
    pub fn time_at(&self, offset: u64) -> Result<Option<u64>, JournalError> {
        Ok(self.chunk_at(offset)?.map(|chunk| chunk.at_ns))
    }

    /// The offset of the first byte that came at or after a time, in nanoseconds since 1970; the end where
    /// there is none. Times are those of whole chunks. Bytes that came while the clock was wrong, or before
    /// it was set back, count by the time that it showed.
    ///
    /// # Errors
    /// The system refuses.
    pub fn offset_at(&self, at_ns: u64) -> Result<u64, JournalError> {
        for start in segment::list(&self.directory)? {
            let chunk = self.first_chunk(start, |record| record.at_ns < at_ns)?;
            if let Some(chunk) = chunk {
                return Ok(chunk.start);
            }
        }
        self.end_offset()
    }

    /// The segment's first chunk for which `before` does not hold.
    fn first_chunk(
        &self,
        start: u64,
        before: impl Fn(Record) -> bool,
    ) -> Result<Option<Chunk>, JournalError> {
        // The index first: it is never ahead of a log that is looked at later.
        let path = segment::index_path(&self.directory, start);
        let (last_before, first) = match segment::open_to_read(&path)? {
            Some(file) => index::partition(&file, &before).map_err(JournalError::io(&path))?,
            None => (None, None),
        };
        let path = segment::log_path(&self.directory, start);
        let Some(log) = segment::open_to_read(&path)? else {
            return Ok(None);
        };
        let log = log.metadata().map_err(JournalError::io(&path))?;
        let end = start + log.len();
        let chunk = first
            .or_else(|| Record::of_tail(last_before, start, end, &log))
            .filter(|record| !before(*record));
        // An index that awaits repair may say anything; only offsets of this segment leave here.
        let from = last_before.map_or(start, |record| record.end);
        Ok(chunk.map(|record| Chunk {
            start: from.clamp(start, end),
            end: record.end.clamp(start, end),
            at_ns: record.at_ns,
        }))
    }
}
