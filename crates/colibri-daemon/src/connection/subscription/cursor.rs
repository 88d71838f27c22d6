//! Reads the outputs of an agent for one subscriber: a forward cursor in each journal, and the merge of both streams by the
//! times in the journals.

use colibri_journal::{Chunk, JournalError, JournalReader};
use colibri_proto::Stream;

use crate::agent::read_text;

/// Maximum number of output bytes in one notification; a frame has room for six times as many, which escapes may need.
const MAX_BLOCK_BYTES: u64 = 64 * 1024;

/// A position in one journal.
pub(super) struct Cursor {
    stream: Stream,
    journal: JournalReader,
    offset: u64,
    timed: bool,
    /// The chunk that contains `offset`, as of the last index lookup.
    chunk: Option<Chunk>,
}

/// Output for one notification.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct OutputBlock {
    pub(super) stream: Stream,
    pub(super) offset: u64,
    pub(super) bytes: Vec<u8>,
    /// Time of the output, in nanoseconds since 1970, if the cursor is timed and the time is known.
    pub(super) at_ns: Option<u64>,
}

impl OutputBlock {
    /// Returns the offset after the last byte.
    pub(super) fn end(&self) -> u64 {
        self.offset + self.bytes.len() as u64
    }
}

/// Known lengths of both journals, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct JournalLengths {
    pub(super) stdout: u64,
    pub(super) stderr: u64,
}

impl JournalLengths {
    fn of(self, stream: Stream) -> u64 {
        match stream {
            Stream::Stdout => self.stdout,
            Stream::Stderr => self.stderr,
        }
    }
}

/// The outputs that a subscriber follows, merged by the times of their chunks.
pub(super) struct StreamMerge {
    cursors: Vec<Cursor>,
}

impl StreamMerge {
    pub(super) fn new(cursors: Vec<Cursor>) -> Self {
        Self { cursors }
    }

    /// Reports whether any cursor is before the end of its journal.
    pub(super) fn has_more(&self, ends: JournalLengths) -> bool {
        let mut cursors = self.cursors.iter();
        cursors.any(|cursor| cursor.has_more(ends.of(cursor.stream)))
    }

    /// Reports whether stdout is followed and its cursor is before `offset`.
    pub(super) fn is_before(&self, offset: u64) -> bool {
        let mut cursors = self.cursors.iter();
        cursors.any(|cursor| cursor.stream == Stream::Stdout && cursor.offset < offset)
    }

    /// Closes the open files until the next read.
    pub(super) fn close_files(&mut self) {
        for cursor in &mut self.cursors {
            cursor.journal.close_segment();
        }
    }

    /// Returns the next block before `ends`, of the stream with the earlier time, and advances its cursor; `None` at the
    /// ends. Bytes that retention has removed, or that were lost with their journal, are skipped: the offsets show the
    /// gap.
    ///
    /// # Errors
    /// A journal cannot be read now; the cursors do not move.
    pub(super) fn next(
        &mut self,
        ends: JournalLengths,
    ) -> Result<Option<OutputBlock>, JournalError> {
        loop {
            let Some(Earliest {
                index, other_at_ns, ..
            }) = self.earliest(ends)?
            else {
                return Ok(None);
            };
            let Some(cursor) = self.cursors.get_mut(index) else {
                return Ok(None);
            };
            let end = ends.of(cursor.stream);
            let end = match other_at_ns {
                Some(other_at_ns) => cursor.end_before(end, other_at_ns)?,
                None => end,
            };
            match cursor.next(end)? {
                Some(block) => return Ok(Some(block)),
                // The journal is shorter than its known length: it was truncated or removed.
                None => cursor.skip_lost(end),
            }
        }
    }

    /// Returns the cursor whose next chunk has the earliest time; `None` if all cursors are at their ends.
    fn earliest(&mut self, ends: JournalLengths) -> Result<Option<Earliest>, JournalError> {
        let has_more = |cursor: &&Cursor| cursor.has_more(ends.of(cursor.stream));
        let is_only_one = self.cursors.iter().filter(has_more).count() == 1;
        let mut earliest: Option<Earliest> = None;
        for (index, cursor) in self.cursors.iter_mut().enumerate() {
            if !cursor.has_more(ends.of(cursor.stream)) {
                continue;
            }
            // Bytes without a chunk were removed or lost: they sort first and are skipped.
            let at_ns = match is_only_one {
                true => 0,
                false => cursor.chunk()?.map_or(0, |chunk| chunk.at_ns),
            };
            match &mut earliest {
                Some(earliest) if at_ns >= earliest.at_ns => earliest.other_at_ns = Some(at_ns),
                _ => {
                    earliest = Some(Earliest {
                        index,
                        at_ns,
                        other_at_ns: earliest.map(|earliest| earliest.at_ns),
                    });
                }
            }
        }
        Ok(earliest)
    }
}

/// The cursor with the earliest next chunk.
struct Earliest {
    /// Its index among the cursors.
    index: usize,
    at_ns: u64,
    /// Time of the other stream's next chunk, if that stream has more output.
    other_at_ns: Option<u64>,
}

impl Cursor {
    pub(super) fn new(stream: Stream, journal: JournalReader, offset: u64, timed: bool) -> Self {
        Self {
            stream,
            journal,
            offset,
            timed,
            chunk: None,
        }
    }

    /// Reports whether a journal of length `end` has output after the cursor.
    fn has_more(&self, end: u64) -> bool {
        self.offset < end
    }

    /// Returns the chunk that contains the next byte; `None` if that byte was removed or lost.
    fn chunk(&mut self) -> Result<Option<Chunk>, JournalError> {
        let contains_next = |chunk: &Chunk| chunk.start <= self.offset && self.offset < chunk.end;
        if !self.chunk.as_ref().is_some_and(contains_next) {
            self.chunk = self.journal.chunk_at(self.offset)?;
        }
        Ok(self.chunk)
    }

    /// Returns the maximum end of the next block: it contains its first chunk, and further chunks not later than
    /// `other_at_ns`.
    fn end_before(&mut self, end: u64, other_at_ns: u64) -> Result<u64, JournalError> {
        let Some(chunk) = self.chunk()? else {
            return Ok(end);
        };
        let mut block_end = chunk.end;
        while block_end < end && block_end - self.offset < MAX_BLOCK_BYTES {
            match self.journal.chunk_at(block_end)? {
                Some(next) if next.at_ns <= other_at_ns && next.end > block_end => {
                    block_end = next.end;
                }
                _ => break,
            }
        }
        Ok(block_end.min(end))
    }

    fn skip_lost(&mut self, end: u64) {
        tracing::warn!(
            from = self.offset,
            to = end,
            "cannot send output: its journal was truncated or removed"
        );
        self.offset = self.offset.max(end);
    }

    /// Returns the next block of a journal of length `end`, and advances; `None` if the journal has no more bytes. Bytes
    /// that retention has removed are skipped.
    ///
    /// # Errors
    /// The journal cannot be read now; the cursor does not move.
    fn next(&mut self, end: u64) -> Result<Option<OutputBlock>, JournalError> {
        while self.has_more(end) {
            match self.read(end) {
                Err(JournalError::BelowOldest { oldest, .. }) if oldest > self.offset => {
                    self.offset = oldest;
                }
                Err(JournalError::BeyondEnd { .. }) => return Ok(None),
                other => return other,
            }
        }
        Ok(None)
    }

    fn read(&mut self, end: u64) -> Result<Option<OutputBlock>, JournalError> {
        let chunk = match self.timed {
            true => self.journal.chunk_at(self.offset)?,
            false => None,
        };
        let block_end = chunk.map_or(end, |chunk| chunk.end.min(end));
        let limit = block_end.saturating_sub(self.offset).min(MAX_BLOCK_BYTES);
        let block = OutputBlock {
            stream: self.stream,
            offset: self.offset,
            at_ns: chunk.map(|chunk| chunk.at_ns),
            bytes: read_text(&mut self.journal, self.offset, limit)?,
        };
        self.offset = block.end();
        Ok(Some(block).filter(|block| !block.bytes.is_empty()))
    }
}

#[cfg(test)]
mod tests;
