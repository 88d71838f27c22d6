//! A place in a journal that only goes forward: what a subscriber has been sent of one output.

use colibri_journal::{JournalError, JournalReader};
use colibri_proto::text_boundary;

/// Most bytes of output in one notification; six times as many fit into a frame, as escapes may need.
const CHUNK: u64 = 64 * 1024;

pub(crate) struct Cursor {
    journal: JournalReader,
    offset: u64,
    timed: bool,
}

/// Bytes to be sent.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Piece {
    pub(crate) offset: u64,
    pub(crate) bytes: Vec<u8>,
    /// When they came, in nanoseconds since 1970, if the cursor is timed and that is still known.
    pub(crate) at_ns: Option<u64>,
}

impl Cursor {
    pub(crate) fn new(journal: JournalReader, offset: u64, timed: bool) -> Self {
        Self {
            journal,
            offset,
            timed,
        }
    }

    /// Whether the journal, known to be `end` long, has more.
    pub(crate) fn has_more(&self, end: u64) -> bool {
        self.offset < end
    }

    /// Lets go of the open file, until there is more to read.
    pub(crate) fn rest(&mut self) {
        self.journal.rest();
    }

    /// The next bytes of a journal that is known to be `end` long, and moves behind them; `None` where there
    /// are none. Bytes that retention has dropped are passed over: the gap shows in the offsets.
    ///
    /// # Errors
    /// They cannot be read now; the place stays.
    pub(crate) fn next(&mut self, end: u64) -> Result<Option<Piece>, JournalError> {
        while self.has_more(end) {
            match self.read(end) {
                Err(JournalError::BelowOldest { oldest, .. }) if oldest > self.offset => {
                    self.offset = oldest;
                }
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
            let mut writer = JournalWriter::open(dir.path(), options.clone()).unwrap();
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
                        writer = JournalWriter::open(dir.path(), options.clone()).unwrap();
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
    }
}
