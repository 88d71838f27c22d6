//! Reads the kept output of an agent: its streams merged by time, and the offsets of its last lines.

use colibri_proto::{Agent, MAX_READ, ReadParams, ReadResult, Stream};

use crate::follow::output_bytes;
use crate::{Client, ClientError, OutputChunk};

/// A range of one output stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StreamRange {
    /// The stream.
    pub stream: Stream,
    /// Offset of the first byte.
    pub start: u64,
    /// Offset after the last byte; `u64::MAX`: the end of the journal.
    pub end: u64,
}

/// Reads ranges of an agent's output streams, merged by the times of their chunks.
pub struct OutputReader {
    streams: Vec<StreamReader>,
    timed: bool,
}

impl OutputReader {
    /// Creates a reader of these ranges, one for each stream. With `timed`, each chunk has its time; otherwise a stream
    /// whose rest needs no merging is read in longer chunks.
    #[must_use]
    pub fn new(client: &Client, id: &str, ranges: &[StreamRange], timed: bool) -> Self {
        Self {
            streams: ranges
                .iter()
                .map(|range| StreamReader {
                    client: client.clone(),
                    id: id.to_owned(),
                    range: *range,
                    chunk: None,
                    is_at_end: false,
                })
                .collect(),
            timed,
        }
    }

    /// Returns the next chunk: the earliest one, or that of the first stream if times are equal. Returns `None` at the
    /// end. Bytes that retention has dropped are skipped and counted in [`OutputChunk::gap`].
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn next(&mut self) -> Result<Option<OutputChunk>, ClientError> {
        let unread = self.streams.iter().filter(|stream| !stream.is_at_end);
        let timed = self.timed || unread.count() > 1;
        Ok(match self.earliest(timed).await? {
            Some(stream) => stream.take_chunk(),
            None => None,
        })
    }

    /// Returns the stream whose next byte is the oldest; `None` at the end of all streams.
    async fn earliest(&mut self, timed: bool) -> Result<Option<&mut StreamReader>, ClientError> {
        for stream in &mut self.streams {
            stream.fill(timed).await?;
        }
        let unread = self.streams.iter_mut();
        // RFC 3339 in UTC sorts as text.
        Ok(unread
            .filter(|stream| stream.chunk.is_some())
            .min_by_key(|stream| stream.chunk.as_ref().and_then(|chunk| chunk.time.clone())))
    }
}

/// Returns the ranges that contain the last `count` lines of an agent's output, one for each of `streams`. Lines of
/// several streams are counted together, ordered by the times of their first bytes.
///
/// The journals are read backwards from their ends, so that the cost depends on the requested lines and not on the
/// length of the journals. Memory is bounded by one chunk for each stream.
///
/// # Errors
/// See [`ClientError`].
pub async fn last_lines(
    client: &Client,
    agent: &Agent,
    streams: &[Stream],
    count: u64,
) -> Result<Vec<StreamRange>, ClientError> {
    let start = 0;
    let ranges = agent
        .written()
        .map(|(stream, end)| StreamRange { stream, start, end });
    let mut reader = OutputReader::new(client, &agent.id, &ranges, true);
    reader
        .streams
        .retain(|reader| streams.contains(&reader.range.stream));
    let mut lines = 0;
    for stream in &mut reader.streams {
        lines += stream.seek_to_last_lines(count).await?;
    }
    // Each stream contributed up to `count` lines: skip the oldest ones.
    for _ in count..lines {
        match reader.earliest(true).await? {
            Some(stream) => stream.skip_line().await?,
            None => break,
        }
    }
    Ok(reader.streams.iter().map(|stream| stream.range).collect())
}

/// Reads a range of one stream chunk by chunk.
struct StreamReader {
    client: Client,
    id: String,
    /// The range from the next byte on.
    range: StreamRange,
    /// The chunk that contains the next byte, if it was fetched.
    chunk: Option<OutputChunk>,
    is_at_end: bool,
}

impl StreamReader {
    /// Reads from `start` on, or from the oldest byte that retention has kept if `start` is before it.
    async fn read(&self, mut start: u64, end: u64, timed: bool) -> Result<ReadResult, ClientError> {
        loop {
            let params = ReadParams {
                id: self.id.clone(),
                stream: self.range.stream,
                offset: start,
                limit: end.saturating_sub(start).min(MAX_READ),
                since: None,
                timed,
            };
            match self.client.read_journal(params).await {
                Err(error) => match error.oldest_offset().filter(|oldest| *oldest > start) {
                    Some(oldest) => start = oldest,
                    None => return Err(error),
                },
                read => return read,
            }
        }
    }

    /// Fetches the chunk that contains the next byte, unless it was fetched before.
    async fn fill(&mut self, timed: bool) -> Result<(), ClientError> {
        let StreamRange { stream, start, end } = self.range;
        self.is_at_end |= start >= end && self.chunk.is_none();
        if self.chunk.is_some() || self.is_at_end {
            return Ok(());
        }
        let read = self.read(start, end, timed).await?;
        self.range.start = read.offset;
        let bytes = output_bytes(read.data)?;
        self.is_at_end = bytes.is_empty();
        self.chunk = (!bytes.is_empty()).then_some(OutputChunk {
            stream,
            offset: read.offset,
            bytes,
            gap: read.offset.saturating_sub(start),
            time: read.time,
        });
        Ok(())
    }

    /// Returns the fetched chunk, and moves the start to its end.
    fn take_chunk(&mut self) -> Option<OutputChunk> {
        let chunk = self.chunk.take()?;
        self.range.start = end_of(&chunk);
        Some(chunk)
    }

    /// Moves the start to the next line, or to the end of the range.
    async fn skip_line(&mut self) -> Result<(), ClientError> {
        loop {
            self.fill(true).await?;
            let Some(chunk) = &self.chunk else {
                self.range.start = self.range.end;
                return Ok(());
            };
            let skipped = self.range.start.saturating_sub(chunk.offset);
            let skipped = usize::try_from(skipped).unwrap_or(usize::MAX);
            let rest = chunk.bytes.get(skipped..).unwrap_or_default();
            let line_feed = rest.iter().position(|byte| *byte == b'\n');
            self.range.start += line_feed.map_or(rest.len(), |index| index + 1) as u64;
            if self.range.start >= end_of(chunk) {
                self.chunk = None;
            }
            if line_feed.is_some() {
                return Ok(());
            }
        }
    }

    /// Moves the start to the first of the last `count` lines of the range, and returns how many lines follow.
    async fn seek_to_last_lines(&mut self, count: u64) -> Result<u64, ClientError> {
        let end = self.range.end;
        self.range.start = end;
        if count == 0 {
            return Ok(0);
        }
        let mut oldest = self
            .client
            .oldest_offset(&self.id, self.range.stream)
            .await?;
        let mut lines = 0;
        while self.range.start > oldest {
            let block_end = self.range.start;
            let mut block_start = block_end.saturating_sub(MAX_READ).max(oldest);
            let mut bytes = Vec::new();
            while block_start + (bytes.len() as u64) < block_end {
                let next = block_start + bytes.len() as u64;
                let read = self.read(next, block_end, false).await?;
                if read.offset > next {
                    // Retention has dropped the bytes before meanwhile.
                    oldest = read.offset;
                    block_start = oldest;
                    bytes.clear();
                }
                let more = output_bytes(read.data)?;
                if more.is_empty() {
                    break;
                }
                bytes.extend(more);
            }
            for (index, _) in bytes
                .iter()
                .enumerate()
                .rev()
                .filter(|(_, byte)| **byte == b'\n')
            {
                let line_start = block_start + index as u64 + 1;
                // The line feed at the end begins no line.
                if line_start < end {
                    lines += 1;
                    if lines == count {
                        self.range.start = line_start;
                        return Ok(lines);
                    }
                }
            }
            self.range.start = block_start;
        }
        self.range.start = oldest.min(end);
        Ok(lines + u64::from(oldest < end))
    }
}

fn end_of(chunk: &OutputChunk) -> u64 {
    chunk.offset + chunk.bytes.len() as u64
}
