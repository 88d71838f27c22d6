//! Writes to a journal, as a shim does them, and reads, as the daemon does them. The journals are in temporary
//! directories.

use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use colibri_journal::{JournalOptions, JournalReader, JournalWriter};
use tempfile::TempDir;

use super::Operation;

/// Number of chunks in the large index.
const CHUNKS: u64 = 100_000;
/// Number of segments of the segmented journal.
const SEGMENTS: u64 = 200;

pub(crate) fn all() -> Vec<Operation> {
    let mut all = Vec::new();
    for (name, length) in [("64 B", 64), ("4 KiB", 4096), ("64 KiB", 65_536)] {
        let directory = create_directory();
        // Without retention, the benchmark would fill the disk.
        let options = JournalOptions {
            retain_bytes: Some(64 << 20),
            ..JournalOptions::default()
        };
        let mut writer = JournalWriter::open(directory.path(), options).unwrap();
        let bytes = vec![b'x'; length];
        let append = move || {
            // The closure owns the directory.
            let _ = &directory;
            writer.append(&bytes, SystemTime::now()).unwrap();
        };
        all.push(Operation::new(format!("append {name}"), append).with_bytes(length));
    }

    let directory = create_directory();
    write_journal(directory.path(), 1, 65_536, u64::MAX);
    let mut reader = JournalReader::new(directory.path());
    let mut buffer = vec![0; 65_536];
    let mut closing_reader = JournalReader::new(directory.path());
    let mut closing_buffer = buffer.clone();
    let read = move || reader.read(0, &mut buffer).unwrap();
    all.push(Operation::new("read 64 KiB", read).with_bytes(65_536));
    let reopen = move || {
        let _ = &directory;
        closing_reader.close_segment();
        closing_reader.read(0, &mut closing_buffer).unwrap()
    };
    all.push(Operation::new("read 64 KiB after close_segment", reopen).with_bytes(65_536));

    let segments = create_directory();
    write_journal(segments.path(), SEGMENTS, 4096, 4096);
    let open = move || JournalWriter::open(segments.path(), JournalOptions::default()).unwrap();
    all.push(Operation::new(
        format!("open with {SEGMENTS} segments"),
        open,
    ));

    let indexed = create_directory();
    write_journal(indexed.path(), CHUNKS, 10, u64::MAX);
    let reader = JournalReader::new(indexed.path());
    let offset_reader = JournalReader::new(indexed.path());
    let chunk = move || reader.chunk_at(CHUNKS * 10 / 3).unwrap().unwrap();
    all.push(Operation::new(
        format!("chunk_at among {CHUNKS} chunks"),
        chunk,
    ));
    let offset = move || {
        let _ = &indexed;
        offset_reader.offset_at(CHUNKS / 3 * 1_000_000_000).unwrap()
    };
    all.push(Operation::new(
        format!("offset_at among {CHUNKS} chunks"),
        offset,
    ));
    all
}

fn create_directory() -> TempDir {
    tempfile::tempdir().unwrap()
}

/// Writes a journal by appends of `length` bytes, one second apart.
fn write_journal(directory: &Path, appends: u64, length: usize, segment_bytes: u64) {
    let options = JournalOptions {
        segment_bytes,
        ..JournalOptions::default()
    };
    let mut writer = JournalWriter::open(directory, options).unwrap();
    for number in 0..appends {
        let time: SystemTime = UNIX_EPOCH + Duration::from_secs(number);
        writer.append(&vec![b'x'; length], time).unwrap();
    }
}
