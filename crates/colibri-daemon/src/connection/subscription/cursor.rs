//! Reads the outputs of an agent for one subscriber: a cursor in each journal that only moves forward, and the merge of
//! both streams by the times in the journals.

use colibri_journal::{Chunk, JournalError, JournalReader};
use colibri_proto::{Stream, text_boundary};

/// Most bytes of output in one notification; six times as many fit into a frame, as escapes may need.
const CHUNK: u64 = 64 * 1024;

pub(crate) struct Cursor {
    journal: JournalReader,
    offset: u64,
    timed: bool,
    /// The chunk that contains `offset`, as of the last index lookup.
    chunk: Option<Chunk>,
}

/// Bytes to be sent.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Piece {
    pub(crate) offset: u64,
    pub(crate) bytes: Vec<u8>,
    /// When they came, in nanoseconds since 1970, if the cursor is timed and that is still known.
    pub(crate) at_ns: Option<u64>,
}

/// Known lengths of both outputs, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Ends {
    pub(crate) stdout: u64,
    pub(crate) stderr: u64,
}

impl Ends {
    pub(crate) fn of(self, stream: Stream) -> u64 {
        match stream {
            Stream::Stdout => self.stdout,
            Stream::Stderr => self.stderr,
        }
    }
}

/// The outputs that a subscriber follows, merged by the times of their chunks.
pub(crate) struct Merge {
    cursors: Vec<(Stream, Cursor)>,
}

impl Merge {
    pub(crate) fn new(cursors: Vec<(Stream, Cursor)>) -> Self {
        Self { cursors }
    }

    /// Returns whether any cursor is before the end of its output.
    pub(crate) fn has_more(&self, ends: Ends) -> bool {
        let mut cursors = self.cursors.iter();
        cursors.any(|(stream, cursor)| cursor.has_more(ends.of(*stream)))
    }

    /// Returns whether stdout is followed and its cursor is before `offset`.
    pub(crate) fn is_before(&self, offset: u64) -> bool {
        let mut cursors = self.cursors.iter();
        cursors.any(|(stream, cursor)| *stream == Stream::Stdout && cursor.offset < offset)
    }

    /// Closes the open files until the next read.
    pub(crate) fn rest(&mut self) {
        for (_, cursor) in &mut self.cursors {
            cursor.journal.close_segment();
        }
    }

    /// Returns the next piece before `ends`, the earlier stream first, and advances its cursor; `None` at the ends.
    /// Bytes that retention has dropped, or that are lost with their journal, are skipped: the offsets show the gap.
    ///
    /// # Errors
    /// A journal cannot be read now; the cursors do not move.
    pub(crate) fn next(&mut self, ends: Ends) -> Result<Option<(Stream, Piece)>, JournalError> {
        loop {
            let mut first: Option<(usize, u64)> = None;
            let mut other = None;
            let pending = self.cursors.iter();
            let pending = pending.filter(|(stream, cursor)| cursor.has_more(ends.of(*stream)));
            let is_one = pending.count() == 1;
            for (number, (stream, cursor)) in self.cursors.iter_mut().enumerate() {
                let end = ends.of(*stream);
                if !cursor.has_more(end) {
                    continue;
                }
                // Bytes without a chunk were dropped or lost: they sort first and are skipped.
                let at_ns = match is_one {
                    true => 0,
                    false => cursor.chunk()?.map_or(0, |chunk| chunk.at_ns),
                };
                match first {
                    Some((_, earliest)) if at_ns >= earliest => other = Some(at_ns),
                    _ => {
                        other = first.map(|(_, at_ns)| at_ns);
                        first = Some((number, at_ns));
                    }
                }
            }
            let Some((number, _)) = first else {
                return Ok(None);
            };
            let Some((stream, cursor)) = self.cursors.get_mut(number) else {
                return Ok(None);
            };
            let end = ends.of(*stream);
            let end = match other {
                Some(other) => cursor.end_before(end, other)?,
                None => end,
            };
            match cursor.next(end)? {
                Some(piece) => return Ok(Some((*stream, piece))),
                // The journal is shorter than its known length: it was truncated or removed.
                None => {
                    cursor.give_up(end);
                }
            }
        }
    }
}

impl Cursor {
    pub(crate) fn new(journal: JournalReader, offset: u64, timed: bool) -> Self {
        Self {
            journal,
            offset,
            timed,
            chunk: None,
        }
    }

    /// Whether the journal, known to be `end` long, has more.
    fn has_more(&self, end: u64) -> bool {
        self.offset < end
    }

    /// Returns the chunk that contains the next byte; `None` if that byte was dropped or lost.
    fn chunk(&mut self) -> Result<Option<Chunk>, JournalError> {
        let holds = |chunk: &Chunk| chunk.start <= self.offset && self.offset < chunk.end;
        if !self.chunk.as_ref().is_some_and(holds) {
            self.chunk = self.journal.chunk_at(self.offset)?;
        }
        Ok(self.chunk)
    }

    /// Returns the maximum end of the next piece: it contains its first chunk, and further chunks not later than
    /// `other_ns`.
    fn end_before(&mut self, end: u64, other_ns: u64) -> Result<u64, JournalError> {
        let Some(chunk) = self.chunk()? else {
            return Ok(end);
        };
        let mut upto = chunk.end;
        while upto < end && upto - self.offset < CHUNK {
            match self.journal.chunk_at(upto)? {
                Some(next) if next.at_ns <= other_ns && next.end > upto => upto = next.end,
                _ => break,
            }
        }
        Ok(upto.min(end))
    }

    fn give_up(&mut self, end: u64) {
        tracing::warn!(
            from = self.offset,
            to = end,
            "output not sent: its journal is shorter than it was, or was removed"
        );
        self.offset = self.offset.max(end);
    }

    /// The next bytes of a journal that is known to be `end` long, and moves behind them; `None` where there
    /// are none. Bytes that retention has dropped are passed over: the gap shows in the offsets.
    ///
    /// # Errors
    /// They cannot be read now; the place stays.
    fn next(&mut self, end: u64) -> Result<Option<Piece>, JournalError> {
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

    fn read(&mut self, end: u64) -> Result<Option<Piece>, JournalError> {
        let chunk = match self.timed {
            true => self.journal.chunk_at(self.offset)?,
            false => None,
        };
        let upto = chunk.map_or(end, |chunk| chunk.end.min(end));
        let room = upto.saturating_sub(self.offset).min(CHUNK);
        let piece = Piece {
            offset: self.offset,
            at_ns: chunk.map(|chunk| chunk.at_ns),
            bytes: bytes_at(&mut self.journal, self.offset, room)?,
        };
        self.offset += piece.bytes.len() as u64;
        Ok(Some(piece).filter(|piece| !piece.bytes.is_empty()))
    }
}

/// At most `limit` bytes from `offset` on, as many as one read brings, without a character that only its end cuts.
///
/// # Errors
/// They cannot be read.
pub(crate) fn bytes_at(
    journal: &mut JournalReader,
    offset: u64,
    limit: u64,
) -> Result<Vec<u8>, JournalError> {
    let mut bytes = vec![0; usize::try_from(limit).unwrap_or(0)];
    let count = journal.read(offset, &mut bytes)?;
    bytes.truncate(count);
    bytes.truncate(text_boundary(&bytes));
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use colibri_journal::{JournalOptions, JournalWriter};
    use proptest::prelude::*;
    use std::path::Path;
    use std::time::{Duration, SystemTime};

    #[derive(Debug, Clone)]
    enum Step {
        /// The agent writes so many bytes.
        Append(usize),
        /// The shim ends and another one goes on.
        Reopen,
        /// The subscriber hears how long the journal is.
        Look,
        /// It takes so many pieces of what it knows of.
        Take(usize),
        /// It comes back with its last offset.
        Reconnect,
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            4 => prop_oneof![0..40_usize, 0..3000_usize].prop_map(Step::Append),
            1 => Just(Step::Reopen),
            3 => Just(Step::Look),
            4 => (1..4_usize).prop_map(Step::Take),
            1 => Just(Step::Reconnect),
        ]
    }

    fn cursor(directory: &Path, offset: u64, timed: bool) -> Cursor {
        Cursor::new(JournalReader::new(directory), offset, timed)
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(200))]

        #[test]
        fn a_subscriber_gets_what_was_written_without_gap_or_repeat(
            steps in prop::collection::vec(step(), 1..60),
            segment_bytes in 1..2000_u64,
            retain_bytes in prop::option::of(0..4000_u64),
            timed in any::<bool>(),
            start in 0..100_u64,
        ) {
            let dir = tempfile::tempdir().unwrap();
            let options = JournalOptions { segment_bytes, retain_bytes, ..JournalOptions::default() };
            let mut writer = JournalWriter::open(dir.path(), options).unwrap();
            let mut model: Vec<u8> = Vec::new();
            let (mut known, mut at) = (0, start);
            let mut subscriber = cursor(dir.path(), start, timed);
            let mut clock = SystemTime::UNIX_EPOCH;
            let last = [Step::Look, Step::Take(usize::MAX)];
            for step in steps.iter().chain(&last) {
                match step {
                    Step::Append(count) => {
                        let from = model.len();
                        // Some of it is text whose characters are cut anywhere.
                        model.extend("a\u{20ac}\n\u{0}".bytes().cycle().skip(from % 7).take(*count));
                        clock += Duration::from_millis(7);
                        writer.append(&model[from..], clock).unwrap();
                    }
                    Step::Reopen => {
                        drop(writer);
                        writer = JournalWriter::open(dir.path(), options).unwrap();
                    }
                    Step::Look => known = writer.end_offset(),
                    Step::Reconnect => subscriber = cursor(dir.path(), at, timed),
                    Step::Take(pieces) => for _ in 0..*pieces {
                        let Some(piece) = subscriber.next(known).unwrap() else { break };
                        prop_assert!(!piece.bytes.is_empty());
                        // The times of a segment that is just being dropped are gone before its bytes.
                        prop_assert!(piece.at_ns.is_some() == timed || retain_bytes.is_some());
                        if piece.offset != at {
                            prop_assert!(piece.offset > at && retain_bytes.is_some(), "only dropped bytes are passed over");
                            prop_assert_eq!(piece.offset, writer.oldest_offset());
                        }
                        let range = piece.offset as usize..piece.offset as usize + piece.bytes.len();
                        prop_assert_eq!(&piece.bytes[..], &model[range]);
                        at = piece.offset + piece.bytes.len() as u64;
                        prop_assert!(at <= known);
                    },
                }
            }
            prop_assert_eq!(at.max(model.len() as u64), at, "all of it has come");
        }

        #[test]
        fn merged_outputs_come_in_order_without_gap_or_repeat(
            writes in prop::collection::vec((any::<bool>(), 1..300_usize, 0..40_u64), 1..60),
            segment_bytes in 1..2000_u64,
            timed in any::<bool>(),
            looks in prop::collection::vec(1..20_usize, 0..20),
        ) {
            let dir = tempfile::tempdir().unwrap();
            let options = JournalOptions { segment_bytes, ..JournalOptions::default() };
            let places = [dir.path().join("out"), dir.path().join("err")];
            let mut writers = places.each_ref().map(|place| JournalWriter::open(place, options).unwrap());
            let cursors = [Stream::Stdout, Stream::Stderr].into_iter().zip(&places);
            let mut merge = Merge::new(cursors.map(|(stream, place)| (stream, cursor(place, 0, timed))).collect());
            let mut model: [Vec<u8>; 2] = Default::default();
            let mut at = [0, 0];
            let mut clock = SystemTime::UNIX_EPOCH;
            let mut looks = looks.into_iter();
            let mut until_look = looks.next().unwrap_or(usize::MAX);
            let index = |stream| usize::from(stream == Stream::Stderr);
            // Times of the bytes, to check the order of both outputs.
            let mut times: [Vec<Duration>; 2] = Default::default();
            for (number, (error, count, wait)) in writes.iter().enumerate() {
                let to = usize::from(*error);
                clock += Duration::from_millis(*wait);
                let from = model[to].len();
                model[to].extend("a\u{20ac}\n".bytes().cycle().skip(from % 5).take(*count));
                times[to].resize(model[to].len(), clock.duration_since(SystemTime::UNIX_EPOCH).unwrap());
                writers[to].append(&model[to][from..], clock).unwrap();
                until_look -= 1;
                if until_look > 0 && number + 1 < writes.len() {
                    continue;
                }
                until_look = looks.next().unwrap_or(usize::MAX);
                let ends = Ends { stdout: model[0].len() as u64, stderr: model[1].len() as u64 };
                prop_assert_eq!(merge.has_more(ends), at != [model[0].len(), model[1].len()]);
                while let Some((stream, piece)) = merge.next(ends).unwrap() {
                    let (own, other) = (index(stream), 1 - index(stream));
                    prop_assert_eq!(piece.offset as usize, at[own], "no gap and no repeat");
                    let end = at[own] + piece.bytes.len();
                    prop_assert_eq!(&piece.bytes[..], &model[own][at[own]..end]);
                    // A chunk holds the bytes of one index interval (10 ms). A piece may end with a chunk, or with the
                    // rest of a character that a chunk boundary splits.
                    if at[other] < model[other].len() {
                        let slack = Duration::from_millis(25);
                        prop_assert!(times[own][at[own]] <= times[other][at[other]] + slack);
                    }
                    at[own] = end;
                }
                prop_assert_eq!(at, [model[0].len(), model[1].len()], "all of it has come");
            }
        }
    }
}
