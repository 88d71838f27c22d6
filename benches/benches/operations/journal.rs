//! A journal in a temporary directory, as a shim writes it and the daemon reads it.

use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use colibri_journal::{JournalOptions, JournalReader, JournalWriter};
use tempfile::TempDir;

use super::Operation;

/// Chunks in the large index.
const CHUNKS: u64 = 100_000;
const SEGMENTS: u64 = 200;

pub(crate) fn all() -> Vec<Operation> {
    let mut all = Vec::new();
    for (name, length) in [("64 B", 64), ("4 KiB", 4096), ("64 KiB", 65_536)] {
        let directory = directory();
        // Bounded, because the benchmark appends for as long as it runs.
        let options = JournalOptions {
            retain_bytes: Some(64 << 20),
            ..JournalOptions::default()
        };
        let mut writer = JournalWriter::open(directory.path(), options).unwrap();
        let bytes = vec![b'x'; length];
        let append = move || {
            let _ = &directory;
            writer.append(&bytes, SystemTime::now()).unwrap();
        };
        all.push(Operation::new(format!("append {name}"), append).over(length));
    }

    let directory = directory();
    write(directory.path(), 1, 65_536, u64::MAX);
    let mut reader = JournalReader::new(directory.path());
    let mut buffer = vec![0; 65_536];
    let mut again = JournalReader::new(directory.path());
    let mut other = buffer.clone();
    let read = move || reader.read(0, &mut buffer).unwrap();
    all.push(Operation::new("read 64 KiB", read).over(65_536));
    let reopen = move || {
        let _ = &directory;
        again.close_segment();
        again.read(0, &mut other).unwrap()
    };
    all.push(Operation::new("read 64 KiB after a rest", reopen).over(65_536));

    let segments = self::directory();
    write(segments.path(), SEGMENTS, 4096, 4096);
    let open = move || JournalWriter::open(segments.path(), JournalOptions::default()).unwrap();
    all.push(Operation::new(
        format!("open with {SEGMENTS} segments"),
        open,
    ));

    let indexed = self::directory();
    write(indexed.path(), CHUNKS, 10, u64::MAX);
    let reader = JournalReader::new(indexed.path());
    let at = JournalReader::new(indexed.path());
    let chunk = move || reader.chunk_at(CHUNKS * 10 / 3).unwrap().unwrap();
    all.push(Operation::new(
        format!("chunk_at among {CHUNKS} chunks"),
        chunk,
    ));
    let offset = move || {
        let _ = &indexed;
        at.offset_at(CHUNKS / 3 * 1_000_000_000).unwrap()
    };
    all.push(Operation::new(
        format!("offset_at among {CHUNKS} chunks"),
        offset,
    ));
    all
}

fn directory() -> TempDir {
    tempfile::tempdir().unwrap()
}

/// Appends of this many bytes, one second apart.
fn write(directory: &Path, appends: u64, length: usize, segment_bytes: u64) {
    let options = JournalOptions {
        segment_bytes,
        ..JournalOptions::default()
    };
    let mut writer = JournalWriter::open(directory, options).unwrap();
    for number in 0..appends {
        let at: SystemTime = UNIX_EPOCH + Duration::from_secs(number);
        writer.append(&vec![b'x'; length], at).unwrap();
    }
}
