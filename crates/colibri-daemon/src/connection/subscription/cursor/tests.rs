use super::*;
use colibri_journal::{JournalOptions, JournalWriter};
use proptest::prelude::*;
use std::path::Path;
use std::time::{Duration, SystemTime};

#[derive(Debug, Clone)]
enum Step {
    /// The agent writes this many bytes.
    Append(usize),
    /// Another shim continues the journal.
    Reopen,
    /// The subscriber gets the length of the journal.
    Measure,
    /// The subscriber reads this many blocks before the known length.
    Read(usize),
    /// The subscriber reconnects with its last offset.
    Reconnect,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => prop_oneof![0..40_usize, 0..3000_usize].prop_map(Step::Append),
        1 => Just(Step::Reopen),
        3 => Just(Step::Measure),
        4 => (1..4_usize).prop_map(Step::Read),
        1 => Just(Step::Reconnect),
    ]
}

fn cursor(stream: Stream, directory: &Path, offset: u64, timed: bool) -> Cursor {
    Cursor::new(stream, JournalReader::new(directory), offset, timed)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn subscriber_gets_all_output_without_gap_or_repeat(
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
        let mut subscriber = cursor(Stream::Stdout, dir.path(), start, timed);
        let mut clock = SystemTime::UNIX_EPOCH;
        let last = [Step::Measure, Step::Read(usize::MAX)];
        for step in steps.iter().chain(&last) {
            match step {
                Step::Append(count) => {
                    let from = model.len();
                    // Text with multi-byte characters that writes may cut.
                    model.extend("a\u{20ac}\n\u{0}".bytes().cycle().skip(from % 7).take(*count));
                    clock += Duration::from_millis(7);
                    writer.append(&model[from..], clock).unwrap();
                }
                Step::Reopen => {
                    drop(writer);
                    writer = JournalWriter::open(dir.path(), options).unwrap();
                }
                Step::Measure => known = writer.end_offset(),
                Step::Reconnect => subscriber = cursor(Stream::Stdout, dir.path(), at, timed),
                Step::Read(blocks) => for _ in 0..*blocks {
                    let Some(block) = subscriber.next(known).unwrap() else { break };
                    prop_assert!(!block.bytes.is_empty());
                    // Retention removes the times of a segment before its bytes.
                    prop_assert!(block.at_ns.is_some() == timed || retain_bytes.is_some());
                    if block.offset != at {
                        prop_assert!(block.offset > at && retain_bytes.is_some(), "only removed bytes are skipped");
                        prop_assert_eq!(block.offset, writer.oldest_offset());
                    }
                    let range = block.offset as usize..block.offset as usize + block.bytes.len();
                    prop_assert_eq!(&block.bytes[..], &model[range]);
                    at = block.offset + block.bytes.len() as u64;
                    prop_assert!(at <= known);
                },
            }
        }
        prop_assert_eq!(at.max(model.len() as u64), at, "all output was read");
    }

    #[test]
    fn merged_outputs_have_no_gap_and_no_repeat(
        writes in prop::collection::vec((any::<bool>(), 1..300_usize, 0..40_u64), 1..60),
        segment_bytes in 1..2000_u64,
        timed in any::<bool>(),
        batches in prop::collection::vec(1..20_usize, 0..20),
    ) {
        let dir = tempfile::tempdir().unwrap();
        let options = JournalOptions { segment_bytes, ..JournalOptions::default() };
        let journals = [dir.path().join("out"), dir.path().join("err")];
        let mut writers = journals.each_ref().map(|journal| JournalWriter::open(journal, options).unwrap());
        let mut merge = StreamMerge {
            stdout: cursor(Stream::Stdout, &journals[0], 0, timed),
            stderr: cursor(Stream::Stderr, &journals[1], 0, timed),
        };
        let mut model: [Vec<u8>; 2] = Default::default();
        let mut at = [0, 0];
        let mut clock = SystemTime::UNIX_EPOCH;
        let mut batches = batches.into_iter();
        let mut until_read = batches.next().unwrap_or(usize::MAX);
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
            until_read -= 1;
            if until_read > 0 && number + 1 < writes.len() {
                continue;
            }
            until_read = batches.next().unwrap_or(usize::MAX);
            let ends = StreamOffsets { stdout: model[0].len() as u64, stderr: model[1].len() as u64 };
            prop_assert_eq!(merge.has_more(ends), at != [model[0].len(), model[1].len()]);
            while let Some(block) = merge.next(ends).unwrap() {
                let (own, other) = (index(block.stream), 1 - index(block.stream));
                prop_assert_eq!(block.offset as usize, at[own], "no gap and no repeat");
                let end = at[own] + block.bytes.len();
                prop_assert_eq!(&block.bytes[..], &model[own][at[own]..end]);
                // A chunk holds the bytes of one index interval (10 ms). A block may end with a chunk, or with the
                // rest of a character that a chunk boundary splits.
                if at[other] < model[other].len() {
                    let slack = Duration::from_millis(25);
                    prop_assert!(times[own][at[own]] <= times[other][at[other]] + slack);
                }
                at[own] = end;
            }
            prop_assert_eq!(at, [model[0].len(), model[1].len()], "all output was read");
        }
    }
}
