//! Opens a journal whose files contain arbitrary bytes. The repair must keep every byte of the logs, and appended bytes
//! must be readable after them.

#![no_main]

use std::fs;
use std::path::Path;
use std::time::{Duration, UNIX_EPOCH};

use colibri_journal::{JournalOptions, JournalReader, JournalWriter};
use libfuzzer_sys::fuzz_target;

/// Removes the next part from the input: a byte with its length, then its content.
fn take_part<'a>(input: &mut &'a [u8]) -> &'a [u8] {
    let Some((length, tail)) = input.split_first() else {
        return &[];
    };
    let (part, tail) = tail.split_at(usize::from(*length).min(tail.len()));
    *input = tail;
    part
}

/// Returns all bytes of a journal from an offset.
fn read_all(directory: &Path, from: u64) -> Vec<u8> {
    let mut reader = JournalReader::new(directory);
    let mut bytes = Vec::new();
    let mut buffer = [0; 100];
    loop {
        let count = reader
            .read(from + bytes.len() as u64, &mut buffer)
            .expect("cannot read");
        if count == 0 {
            return bytes;
        }
        bytes.extend_from_slice(&buffer[..count]);
    }
}

fuzz_target!(|input: &[u8]| {
    // In memory if possible, because the fuzzer creates thousands of journals per second.
    let parent = ["/dev/shm", "/tmp"]
        .into_iter()
        .find(|path| Path::new(path).is_dir())
        .expect("no temporary directory");
    let temporary = tempfile::tempdir_in(parent).expect("cannot create a directory");
    let directory = temporary.path().join("journal");
    fs::create_dir(&directory).expect("cannot create a directory");
    let mut input = input;
    let start = take_part(&mut input);
    let start = if start.len() == 8 {
        u64::from_le_bytes(start.try_into().expect("8 bytes")) >> 2
    } else {
        0
    };
    let mut logs = Vec::new();
    let mut next = start;
    for number in 0..3 {
        let (log, index) = (take_part(&mut input), take_part(&mut input));
        if number > 0 && log.is_empty() {
            break;
        }
        fs::write(directory.join(format!("{next:020}.log")), log).expect("cannot write a log");
        fs::write(directory.join(format!("{next:020}.idx")), index).expect("cannot write an index");
        logs.extend_from_slice(log);
        next += log.len() as u64;
    }
    // The journal ignores a file with another name.
    let name: String = take_part(&mut input)
        .iter()
        .filter(|byte| byte.is_ascii_alphanumeric())
        .map(|byte| char::from(*byte))
        .collect();
    fs::write(directory.join(format!("x{name}")), "other").expect("cannot write a file");

    // A reader may open the journal before its repair.
    assert_eq!(read_all(&directory, start), logs);
    let options = JournalOptions {
        segment_bytes: 50,
        ..JournalOptions::default()
    };
    for (round, appended) in [take_part(&mut input), take_part(&mut input)]
        .into_iter()
        .enumerate()
    {
        let mut writer = JournalWriter::open(&directory, options.clone()).expect("cannot open");
        assert_eq!(writer.end_offset(), start + logs.len() as u64);
        assert_eq!(writer.oldest_offset(), start);
        let at = UNIX_EPOCH + Duration::from_secs(1_000_000 * (7 - round as u64));
        writer.append(appended, at).expect("cannot append");
        logs.extend_from_slice(appended);
        assert_eq!(writer.end_offset(), start + logs.len() as u64);
        assert_eq!(read_all(&directory, start), logs);
    }
    let reader = JournalReader::new(&directory);
    assert_eq!(
        reader.end_offset().expect("cannot read the end offset"),
        start + logs.len() as u64
    );
    for offset in [0, 1, logs.len() as u64 / 2, logs.len() as u64] {
        // Any result is correct, but a panic is not.
        let _ = reader.chunk_at(start + offset);
    }
    let _ = reader.offset_at(u64::from_le_bytes([7; 8]));
});
