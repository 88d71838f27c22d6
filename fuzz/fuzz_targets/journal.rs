//! Arbitrary bytes as a journal's files: it opens or says why not, no byte of a log is ever dropped, and
//! what is appended is read back behind them.

#![no_main]

use std::fs;
use std::path::Path;
use std::time::{Duration, UNIX_EPOCH};

use colibri_journal::{JournalOptions, JournalReader, JournalWriter};
use libfuzzer_sys::fuzz_target;

/// One length byte before each part.
fn part<'a>(rest: &mut &'a [u8]) -> &'a [u8] {
    let Some((length, tail)) = rest.split_first() else {
        return &[];
    };
    let (part, tail) = tail.split_at(usize::from(*length).min(tail.len()));
    *rest = tail;
    part
}

fn read_all(directory: &Path, from: u64) -> Vec<u8> {
    let mut reader = JournalReader::new(directory);
    let mut bytes = Vec::new();
    let mut buffer = [0; 100];
    loop {
        let count = reader
            .read(from + bytes.len() as u64, &mut buffer)
            .expect("bytes that are there are read");
        if count == 0 {
            return bytes;
        }
        bytes.extend_from_slice(&buffer[..count]);
    }
}

fuzz_target!(|input: &[u8]| {
    // In memory where there is such a place: the fuzzer makes thousands of journals a second.
    let place = ["/dev/shm", "/tmp"]
        .into_iter()
        .find(|place| Path::new(place).is_dir());
    let place = tempfile::tempdir_in(place.expect("a place")).expect("a directory");
    let directory = place.path().join("journal");
    fs::create_dir(&directory).expect("a directory");
    let mut rest = input;
    let start = part(&mut rest);
    let start = if start.len() == 8 {
        u64::from_le_bytes(start.try_into().expect("8 bytes")) >> 2
    } else {
        0
    };
    let mut logs = Vec::new();
    let mut next = start;
    for number in 0..3 {
        let (log, index) = (part(&mut rest), part(&mut rest));
        if number > 0 && log.is_empty() {
            break;
        }
        fs::write(directory.join(format!("{next:020}.log")), log).expect("a log");
        fs::write(directory.join(format!("{next:020}.idx")), index).expect("an index");
        logs.extend_from_slice(log);
        next += log.len() as u64;
    }
    // Another file of any name does not matter.
    let name: String = part(&mut rest)
        .iter()
        .filter(|byte| byte.is_ascii_alphanumeric())
        .map(|byte| char::from(*byte))
        .collect();
    fs::write(directory.join(format!("x{name}")), "stranger").expect("a stranger");

    // Readers look before the repair, too.
    assert_eq!(read_all(&directory, start), logs);
    let options = JournalOptions {
        segment_bytes: 50,
        ..JournalOptions::default()
    };
    for (round, appended) in [part(&mut rest), part(&mut rest)].into_iter().enumerate() {
        let mut writer =
            JournalWriter::open(&directory, options.clone()).expect("segments that join");
        assert_eq!(writer.end_offset(), start + logs.len() as u64);
        assert_eq!(writer.oldest_offset(), start);
        let at = UNIX_EPOCH + Duration::from_secs(1_000_000 * (7 - round as u64));
        writer.append(appended, at).expect("there is room");
        logs.extend_from_slice(appended);
        assert_eq!(writer.end_offset(), start + logs.len() as u64);
        assert_eq!(read_all(&directory, start), logs);
    }
    let reader = JournalReader::new(&directory);
    assert_eq!(
        reader.end_offset().expect("an end"),
        start + logs.len() as u64
    );
    for offset in [0, 1, logs.len() as u64 / 2, logs.len() as u64] {
        // Any answer, but an answer.
        let _ = reader.time_at(start + offset);
    }
    let _ = reader.offset_at(u64::from_le_bytes([7; 8]));
});
