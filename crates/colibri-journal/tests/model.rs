//! Compares the journal with a `Vec<u8>` over random sequences of appends, reopens, damaged indexes and retention.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::fs::{self, OpenOptions};
use std::io::Write;
use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use colibri_journal::{JournalError, JournalOptions, JournalReader, JournalWriter};
use proptest::prelude::*;

#[derive(Debug, Clone)]
enum Operation {
    Append(Vec<u8>),
    Reopen,
    /// Truncates the last index to this length.
    TruncateIndex(u64),
    /// Appends garbage to the last index.
    SpoilIndex(Vec<u8>),
    RemoveIndex,
}

fn operations() -> impl Strategy<Value = Vec<Operation>> {
    let operation = prop_oneof![
        8 => proptest::collection::vec(any::<u8>(), 0..200).prop_map(Operation::Append),
        1 => Just(Operation::Reopen),
        1 => (0..64_u64).prop_map(Operation::TruncateIndex),
        1 => proptest::collection::vec(any::<u8>(), 0..48).prop_map(Operation::SpoilIndex),
        1 => Just(Operation::RemoveIndex),
    ];
    proptest::collection::vec(operation, 0..40)
}

fn at(tick: u64) -> SystemTime {
    UNIX_EPOCH + Duration::from_millis(1_000_000 + tick)
}

fn last_index(directory: &Path) -> std::path::PathBuf {
    let mut names: Vec<_> = fs::read_dir(directory)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "idx"))
        .collect();
    names.sort();
    names.pop().unwrap()
}

/// Asserts that every index covers its log exactly, in order.
fn assert_indexes_agree(directory: &Path) {
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|extension| extension == "log") {
            let start: u64 = path.file_stem().unwrap().to_str().unwrap().parse().unwrap();
            let index = fs::read(path.with_extension("idx")).unwrap();
            let (records, torn) = index.as_chunks::<16>();
            assert!(torn.is_empty(), "{} torn bytes", torn.len());
            let mut last = (start, 0);
            for record in records {
                let field = |at: usize| u64::from_le_bytes(record[at..at + 8].try_into().unwrap());
                assert!(field(0) > last.0 && field(8) >= last.1, "{record:?}");
                last = (field(0), field(8));
            }
            assert_eq!(last.0, start + fs::metadata(&path).unwrap().len());
        }
    }
}

fn read_all(directory: &Path, from: u64, buffer_size: usize) -> Vec<u8> {
    let mut reader = JournalReader::new(directory);
    let mut all = Vec::new();
    let mut buffer = vec![0; buffer_size];
    loop {
        let count = reader.read(from + all.len() as u64, &mut buffer).unwrap();
        if count == 0 {
            return all;
        }
        all.extend_from_slice(&buffer[..count]);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    #[test]
    fn journal_matches_model(
        operations in operations(),
        segment_bytes in 1..400_u64,
        retain_bytes in proptest::option::of(0..800_u64),
        buffer_size in 1..300_usize,
        index_ms in prop_oneof![Just(0), Just(10)],
    ) {
        let dir = tempfile::tempdir().unwrap();
        let options = JournalOptions {
            segment_bytes,
            retain_bytes,
            index_interval: Duration::from_millis(index_ms),
            ..JournalOptions::default()
        };
        let open = || JournalWriter::open(dir.path(), options).unwrap();
        let mut writer = open();
        let mut follower = JournalReader::new(dir.path());
        let mut followed = Vec::new();
        let mut model = Vec::new();
        for (tick, operation) in operations.iter().enumerate() {
            match operation {
                Operation::Append(bytes) => {
                    // The clock advances, with small steps back.
                    let tick = tick as u64;
                    writer.append(bytes, at(tick * 7 + tick * tick % 50)).unwrap();
                    model.extend_from_slice(bytes);
                }
                Operation::Reopen => {}
                Operation::TruncateIndex(length) => {
                    let file = OpenOptions::new().write(true).open(last_index(dir.path())).unwrap();
                    let shorter = file.metadata().unwrap().len().min(*length);
                    file.set_len(shorter).unwrap();
                }
                Operation::SpoilIndex(garbage) => {
                    OpenOptions::new().append(true).open(last_index(dir.path())).unwrap().write_all(garbage).unwrap();
                }
                Operation::RemoveIndex => fs::remove_file(last_index(dir.path())).unwrap(),
            }
            if !matches!(operation, Operation::Append(_)) {
                drop(writer);
                writer = open();
            }
            assert_indexes_agree(dir.path());
            // A follower reads every byte once.
            let mut buffer = vec![0; 4096];
            loop {
                match follower.read(followed.len() as u64, &mut buffer) {
                    Ok(0) => break,
                    Ok(count) => followed.extend_from_slice(&buffer[..count]),
                    Err(error) => prop_assert!(false, "{error}"),
                }
            }
            prop_assert_eq!(&followed, &model);
        }
        prop_assert_eq!(writer.end_offset(), model.len() as u64);
        let oldest = writer.oldest_offset();
        let below_oldest = match JournalReader::new(dir.path()).read(0, &mut [0]) {
            Err(JournalError::BelowOldest { oldest, .. }) => oldest,
            other => { other.unwrap(); 0 }
        };
        prop_assert_eq!(below_oldest, oldest);
        if let Some(retain) = retain_bytes {
            prop_assert!(model.len() as u64 - oldest >= retain.min(model.len() as u64));
        } else {
            prop_assert_eq!(oldest, 0);
        }
        prop_assert_eq!(read_all(dir.path(), oldest, buffer_size), &model[usize::try_from(oldest).unwrap()..]);
        let mut reader = JournalReader::new(dir.path());
        for offset in (oldest..model.len() as u64).step_by(7) {
            prop_assert!(reader.chunk_at(offset).unwrap().is_some(), "no time at {offset}");
        }
        let beyond = model.len() as u64 + 1;
        let is_beyond = matches!(reader.read(beyond, &mut [0; 1]), Err(JournalError::BeyondEnd { end, .. }) if end == beyond - 1);
        prop_assert!(is_beyond);
        if let Some(below) = oldest.checked_sub(1) {
            let message = reader.read(below, &mut [0; 1]).unwrap_err().to_string();
            prop_assert!(message.contains(&format!("oldest kept offset is {oldest}")), "{message}");
        }
    }

    /// Without fsync, a crash of the machine may leave any prefix of the open segment's two files.
    #[test]
    fn machine_crash_keeps_every_byte_of_the_log(
        bytes in proptest::collection::vec(any::<u8>(), 1..500),
        segment_bytes in 1..600_u64,
        cut_log in 0..500_u64,
        cut_index in 0..200_u64,
        padding in 0..40_usize,
    ) {
        let dir = tempfile::tempdir().unwrap();
        let options = JournalOptions { segment_bytes, ..JournalOptions::default() };
        let open = || JournalWriter::open(dir.path(), options).unwrap();
        let mut writer = open();
        for (tick, chunk) in bytes.chunks(50).enumerate() {
            writer.append(chunk, at(tick as u64 * 100)).unwrap();
        }
        drop(writer);
        let index = last_index(dir.path());
        let log = index.with_extension("log");
        let start: u64 = log.file_stem().unwrap().to_str().unwrap().parse().unwrap();
        for (path, cut) in [(&log, cut_log), (&index, cut_index)] {
            let file = OpenOptions::new().write(true).open(path).unwrap();
            file.set_len(file.metadata().unwrap().len().min(cut)).unwrap();
        }
        // A file system may also leave blocks of zeros.
        OpenOptions::new().append(true).open(&index).unwrap().write_all(&vec![0; padding]).unwrap();
        let kept = start + fs::metadata(&log).unwrap().len();
        let mut writer = open();
        assert_indexes_agree(dir.path());
        prop_assert_eq!(writer.end_offset(), kept);
        writer.append(b"more", at(1_000_000)).unwrap();
        let mut expected = bytes[..usize::try_from(kept).unwrap()].to_vec();
        expected.extend_from_slice(b"more");
        prop_assert_eq!(read_all(dir.path(), 0, 64), expected);
        let reader = JournalReader::new(dir.path());
        for offset in (0..kept + 4).rev().step_by(7) {
            prop_assert!(reader.chunk_at(offset).unwrap().is_some(), "no time at {offset}");
        }
    }
}

#[test]
fn times_and_offsets_map_to_each_other() {
    let dir = tempfile::tempdir().unwrap();
    let options = JournalOptions {
        segment_bytes: 12,
        ..JournalOptions::default()
    };
    let mut writer = JournalWriter::open(dir.path(), options).unwrap();
    for second in 0..10 {
        writer.append(b"12345", at(second * 1000)).unwrap();
    }
    let ns = |tick: u64| (1_000_000 + tick) * 1_000_000;
    let reader = JournalReader::new(dir.path());
    for (time, offset) in [
        (0, 0),
        (1, 5),
        (1000, 5),
        (4500, 25),
        (9000, 45),
        (9001, 50),
    ] {
        assert_eq!(reader.offset_at(ns(time)).unwrap(), offset, "at {time} ms");
    }
    for (offset, time) in [
        (0, Some(0)),
        (4, Some(0)),
        (5, Some(1000)),
        (49, Some(9000)),
        (50, None),
    ] {
        assert_eq!(
            reader.chunk_at(offset).unwrap().map(|chunk| chunk.at_ns),
            time.map(ns),
            "offset {offset}"
        );
    }
}

#[test]
fn small_appends_share_index_records() {
    let dir = tempfile::tempdir().unwrap();
    let mut writer = JournalWriter::open(dir.path(), JournalOptions::default()).unwrap();
    for tick in 0..10_000 {
        // 100 appends per millisecond.
        writer
            .append(
                b"x",
                UNIX_EPOCH + Duration::from_micros(1_000_000 + tick * 10),
            )
            .unwrap();
    }
    let index = fs::metadata(last_index(dir.path())).unwrap().len();
    assert_eq!(index, 10 * 16, "ten intervals of 10 ms");
    assert!(
        JournalReader::new(dir.path())
            .chunk_at(9_999)
            .unwrap()
            .is_some()
    );
}

#[test]
fn open_with_gap_names_the_segment() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join(format!("{:020}.log", 0)), "abc").unwrap();
    fs::write(dir.path().join(format!("{:020}.log", 5)), "def").unwrap();
    let message = JournalWriter::open(dir.path(), JournalOptions::default())
        .unwrap_err()
        .to_string();
    assert!(
        message.contains("00000000000000000005.log") && message.contains("offset 3"),
        "{message}"
    );
}

#[test]
fn missing_directory_is_an_empty_journal() {
    let dir = tempfile::tempdir().unwrap();
    let mut reader = JournalReader::new(&dir.path().join("missing"));
    assert_eq!(reader.read(0, &mut [0; 8]).unwrap(), 0);
    assert_eq!(reader.end_offset().unwrap(), 0);
    assert!(reader.read(1, &mut [0; 8]).is_err());
}
