//! Readers: any number, in any process, while the writer goes on.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use crate::index::{self, Record};
use crate::{JournalError, segment};

/// The reading end of a journal. It keeps one segment open, so that following the end costs one read(2)
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

    /// Reads bytes from `offset` on into `buffer`, as many as are there and fit, and returns how many; a
    /// segment's end cuts a read short. 0 means that `offset` is the end for now.
    ///
    /// # Errors
    /// The offset is not kept any more, not written yet, or the system refuses.
    pub fn read(&mut self, offset: u64, buffer: &mut [u8]) -> Result<usize, JournalError> {
        // Retention may remove a segment between the look and the open: then look again.
        for _ in 0..8 {
            if let Some((start, file)) = self.current.as_ref().filter(|(start, _)| *start <= offset)
            {
                let path = segment::log_path(&self.directory, *start);
                let count = file
                    .read_at(buffer, offset - start)
                    .map_err(JournalError::io(&path))?;
                if count > 0 || buffer.is_empty() {
                    return Ok(count);
                }
                let length = file.metadata().map_err(JournalError::io(&path))?.len();
                let next = segment::log_path(&self.directory, offset);
                if offset == start + length && (offset == *start || !next.exists()) {
                    return Ok(0);
                }
            }
            self.current = match self.locate(offset)? {
                None => return Ok(0),
                found => found,
            };
        }
        Err(JournalError::io(&self.directory)(io::Error::other(
            "segments disappear faster than they can be read",
        )))
    }

    /// Opens the segment that holds `offset`, or would hold it next; `None` where the journal is empty.
    fn locate(&self, offset: u64) -> Result<Option<(u64, File)>, JournalError> {
        loop {
            let starts = segment::list(&self.directory)?;
            let Some(oldest) = starts.first().copied() else {
                return match offset {
                    0 => Ok(None),
                    asked => Err(JournalError::BeyondEnd { asked, end: 0 }),
                };
            };
            let position = starts.partition_point(|start| *start <= offset);
            let Some(start) = position
                .checked_sub(1)
                .and_then(|position| starts.get(position))
                .copied()
            else {
                return Err(JournalError::BelowOldest {
                    asked: offset,
                    oldest,
                });
            };
            let path = segment::log_path(&self.directory, start);
            let file = match File::open(&path) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                other => other.map_err(JournalError::io(&path))?,
            };
            let end = start + file.metadata().map_err(JournalError::io(&path))?.len();
            if offset > end {
                // Behind the last segment; or in a hole, which only damage makes.
                return Err(JournalError::BeyondEnd { asked: offset, end });
            }
            return Ok(Some((start, file)));
        }
    }

    /// The offset that the next byte will get.
    ///
    /// # Errors
    /// The system refuses.
    pub fn end_offset(&self) -> Result<u64, JournalError> {
        match segment::list(&self.directory)?.last() {
            Some(start) => Ok(start + segment::length(&self.directory, *start)?),
            None => Ok(0),
        }
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

    /// When the chunk came that holds the byte at `offset`, in nanoseconds since 1970; `None` where there
    /// is no such byte, or its index is lost.
    ///
    /// # Errors
    /// The system refuses.
    pub fn time_at(&self, offset: u64) -> Result<Option<u64>, JournalError> {
        let starts = segment::list(&self.directory)?;
        let position = starts.partition_point(|start| *start <= offset);
        let Some(start) = position
            .checked_sub(1)
            .and_then(|position| starts.get(position))
        else {
            return Ok(None);
        };
        self.indexed(*start, |file| {
            let number = index::partition(file, |record| record.end <= offset)?;
            Ok(if number < index::count(file)? {
                Some(Record::read(file, number)?.at_ns)
            } else {
                None
            })
        })
    }

    /// The offset of the first byte that came at or after a time, in nanoseconds since 1970; the end where
    /// there is none. Times are those of whole chunks.
    ///
    /// # Errors
    /// The system refuses.
    pub fn offset_at(&self, at_ns: u64) -> Result<u64, JournalError> {
        for start in segment::list(&self.directory)? {
            let found = self.indexed(start, |file| {
                let number = index::partition(file, |record| record.at_ns < at_ns)?;
                if number == index::count(file)? {
                    return Ok(None);
                }
                match number.checked_sub(1) {
                    Some(before) => Ok(Some(Record::read(file, before)?.end)),
                    None => Ok(Some(start)),
                }
            })?;
            if let Some(offset) = found {
                return Ok(offset);
            }
        }
        self.end_offset()
    }

    fn indexed<T>(
        &self,
        start: u64,
        look: impl FnOnce(&File) -> io::Result<Option<T>>,
    ) -> Result<Option<T>, JournalError> {
        let path = segment::index_path(&self.directory, start);
        match fs::File::open(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            other => other
                .and_then(|file| look(&file))
                .map_err(JournalError::io(&path)),
        }
    }
}
