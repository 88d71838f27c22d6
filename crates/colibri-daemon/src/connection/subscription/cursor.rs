//! Reads the outputs of an agent for one subscriber: a forward cursor in each journal, and the merge of both streams by the
//! times in the journals.

use colibri_journal::{Chunk, JournalError, JournalReader};
use colibri_proto::Stream;

use crate::agent::{StreamOffsets, read_text};

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

/// The outputs of an agent, merged by the times of their chunks.
pub(super) struct StreamMerge {
    pub(super) stdout: Cursor,
    pub(super) stderr: Cursor,
}

impl StreamMerge {
    /// Returns the offsets of the next bytes.
    pub(super) fn offsets(&self) -> StreamOffsets {
        StreamOffsets {
            stdout: self.stdout.offset,
            stderr: self.stderr.offset,
        }
    }

    /// Reports whether any cursor is before the end of its journal.
    pub(super) fn has_more(&self, ends: StreamOffsets) -> bool {
        self.stdout.offset < ends.stdout || self.stderr.offset < ends.stderr
    }

    /// Closes the open files until the next read.
    pub(super) fn close_files(&mut self) {
        self.stdout.journal.close_segment();
        self.stderr.journal.close_segment();
    }

    /// Returns the next block before `ends`, of the stream with the earlier time, and advances its cursor; `None` at the
    /// ends. Bytes that retention has removed, or that were lost with their journal, are skipped: the offsets show the
    /// gap.
    ///
    /// # Errors
    /// A journal cannot be read now; the cursors do not move.
    pub(super) fn next(
        &mut self,
        ends: StreamOffsets,
    ) -> Result<Option<OutputBlock>, JournalError> {
        loop {
            let (stdout, stderr) = (&mut self.stdout, &mut self.stderr);
            let (cursor, end) = match (stdout.offset < ends.stdout, stderr.offset < ends.stderr) {
                (false, false) => return Ok(None),
                (true, false) => (stdout, ends.stdout),
                (false, true) => (stderr, ends.stderr),
                (true, true) => {
                    let (stdout_ns, stderr_ns) = (stdout.next_ns()?, stderr.next_ns()?);
                    if stdout_ns <= stderr_ns {
                        let end = stdout.end_before(ends.stdout, stderr_ns)?;
                        (stdout, end)
                    } else {
                        let end = stderr.end_before(ends.stderr, stdout_ns)?;
                        (stderr, end)
                    }
                }
            };
            match cursor.next(end)? {
                Some(block) => return Ok(Some(block)),
                // The journal is shorter than its known length: it was truncated or removed.
                None => {
                    let from = cursor.offset;
                    tracing::warn!(
                        from,
                        to = end,
                        "cannot send output: its journal was truncated or removed"
                    );
                    cursor.offset = from.max(end);
                }
            }
        }
    }
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

    /// Returns the chunk that contains the next byte; `None` if that byte was removed or lost.
    fn chunk(&mut self) -> Result<Option<Chunk>, JournalError> {
        let contains_next = |chunk: &Chunk| chunk.start <= self.offset && self.offset < chunk.end;
        if !self.chunk.as_ref().is_some_and(contains_next) {
            self.chunk = self.journal.chunk_at(self.offset)?;
        }
        Ok(self.chunk)
    }

    /// Returns the time of the next byte. A byte that was removed or lost sorts first and is skipped.
    fn next_ns(&mut self) -> Result<u64, JournalError> {
        Ok(self.chunk()?.map_or(0, |chunk| chunk.at_ns))
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

    /// Returns the next block of a journal of length `end`, and advances; `None` if the journal has no more bytes. Bytes
    /// that retention has removed are skipped.
    ///
    /// # Errors
    /// The journal cannot be read now; the cursor does not move.
    fn next(&mut self, end: u64) -> Result<Option<OutputBlock>, JournalError> {
        while self.offset < end {
            let chunk = match self.timed {
                true => self.journal.chunk_at(self.offset)?,
                false => None,
            };
            let block_end = chunk.map_or(end, |chunk| chunk.end.min(end));
            let limit = block_end.saturating_sub(self.offset).min(MAX_BLOCK_BYTES);
            match read_text(&mut self.journal, self.offset, limit) {
                Ok(bytes) => {
                    let offset = self.offset;
                    self.offset += bytes.len() as u64;
                    return Ok((!bytes.is_empty()).then_some(OutputBlock {
                        stream: self.stream,
                        offset,
                        bytes,
                        at_ns: chunk.map(|chunk| chunk.at_ns),
                    }));
                }
                Err(JournalError::BelowOldest { oldest, .. }) if oldest > self.offset => {
                    self.offset = oldest;
                }
                Err(JournalError::BeyondEnd { .. }) => return Ok(None),
                Err(error) => return Err(error),
            }
        }
        Ok(None)
    }
}

#[cfg(test)]
mod tests;
