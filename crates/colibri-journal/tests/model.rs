//! The journal against a plain `Vec<u8>`: whatever is appended, cut, reopened or dropped, what is kept
//! reads back the same at the same offsets.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::fs::{self, OpenOptions};
use std::io::Write;
use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use colibri_journal::{JournalError, JournalOptions, JournalReader, JournalWriter};
use proptest::prelude::*;

#[derive(Debug, Clone)]
enum Step {
    Append(Vec<u8>),
    Reopen,
    /// Cut the last index to so many bytes, or write rubbish over it.
    CutIndex(u64),
    SpoilIndex(Vec<u8>),
    RemoveIndex,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        8 => proptest::collection::vec(any::<u8>(), 0..200).prop_map(Step::Append),
        1 => Just(Step::Reopen),
        1 => (0..64_u64).prop_map(Step::CutIndex),
        1 => proptest::collection::vec(any::<u8>(), 0..48).prop_map(Step::SpoilIndex),
        1 => Just(Step::RemoveIndex),
    ];
    proptest::collection::vec(step, 0..40)
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

/// Every index covers its log, all of it and nothing else, in order.
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

fn read_all(directory: &Path, from: u64, piece: usize) -> Vec<u8> {
    let mut reader = JournalReader::new(directory);
    let mut all = Vec::new();
    let mut buffer = vec![0; piece];
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
    fn a_journal_is_a_vec_of_bytes(
        steps in steps(),
        segment_bytes in 1..400_u64,
        retain_bytes in proptest::option::of(0..800_u64),
        piece in 1..300_usize,
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
        for (tick, step) in steps.iter().enumerate() {
            match step {
                Step::Append(bytes) => {
                    // The clock goes on, and now and then a little back.
                    let tick = tick as u64;
                    writer.append(bytes, at(tick * 7 + tick * tick % 50)).unwrap();
                    model.extend_from_slice(bytes);
                }
                Step::Reopen => {}
                Step::CutIndex(length) => {
                    let file = OpenOptions::new().write(true).open(last_index(dir.path())).unwrap();
                    let shorter = file.metadata().unwrap().len().min(*length);
                    file.set_len(shorter).unwrap();
                }
                Step::SpoilIndex(rubbish) => {
                    OpenOptions::new().append(true).open(last_index(dir.path())).unwrap().write_all(rubbish).unwrap();
                }
                Step::RemoveIndex => fs::remove_file(last_index(dir.path())).unwrap(),
            }
            if !matches!(step, Step::Append(_)) {
                drop(writer);
                writer = open();
            }
            assert_indexes_agree(dir.path());
            // One who follows closely sees every byte once, if retention leaves it.
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
        prop_assert_eq!(JournalReader::new(dir.path()).oldest_offset().unwrap(), oldest);
        if let Some(retain) = retain_bytes {
            prop_assert!(model.len() as u64 - oldest >= retain.min(model.len() as u64));
        } else {
            prop_assert_eq!(oldest, 0);
        }
        prop_assert_eq!(read_all(dir.path(), oldest, piece), &model[usize::try_from(oldest).unwrap()..]);
        let mut reader = JournalReader::new(dir.path());
        for offset in (oldest..model.len() as u64).step_by(7) {
            prop_assert!(reader.time_at(offset).unwrap().is_some(), "no time at {offset}");
        }
        let beyond = model.len() as u64 + 1;
        let is_beyond = matches!(reader.read(beyond, &mut [0; 1]), Err(JournalError::BeyondEnd { end, .. }) if end == beyond - 1);
        prop_assert!(is_beyond);
        if let Some(asked) = oldest.checked_sub(1) {
            let message = reader.read(asked, &mut [0; 1]).unwrap_err().to_string();
            prop_assert!(message.contains(&format!("oldest kept offset is {oldest}")), "{message}");
        }
    }

    /// Without fsync a crash of the machine may leave any prefix of the open segment's two files.
    #[test]
    fn a_crash_of_the_machine_leaves_all_that_is_in_the_log(
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
        // File systems also leave blocks of zeros where data was under way.
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
            prop_assert!(reader.time_at(offset).unwrap().is_some(), "no time at {offset}");
        }
    }
}

#[test]
fn times_lead_to_offsets_and_back() {
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
            reader.time_at(offset).unwrap(),
            time.map(ns),
            "offset {offset}"
        );
    }
}

#[test]
fn tiny_appends_share_records_and_every_byte_has_a_time() {
    let dir = tempfile::tempdir().unwrap();
    let mut writer = JournalWriter::open(dir.path(), JournalOptions::default()).unwrap();
    for tick in 0..10_000 {
        // 100 appends a millisecond.
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
            .time_at(9_999)
            .unwrap()
            .is_some()
    );
}

#[test]
fn segments_that_do_not_join_are_refused_by_name() {
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
fn a_journal_that_is_not_there_yet_is_empty() {
    let dir = tempfile::tempdir().unwrap();
    let mut reader = JournalReader::new(&dir.path().join("later"));
    assert_eq!(reader.read(0, &mut [0; 8]).unwrap(), 0);
    assert_eq!(reader.end_offset().unwrap(), 0);
    assert!(reader.read(1, &mut [0; 8]).is_err());
}
