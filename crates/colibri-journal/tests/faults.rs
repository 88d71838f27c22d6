//! Journals with removed files, clock steps and full disks.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::fs::{self, OpenOptions};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use colibri_journal::{Fsync, JournalError, JournalOptions, JournalReader, JournalWriter};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

fn at(seconds: u64) -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(seconds)
}

fn ns(seconds: u64) -> u64 {
    seconds * 1_000_000_000
}

fn small_segments(segment_bytes: u64, retain_bytes: Option<u64>) -> JournalOptions {
    JournalOptions {
        segment_bytes,
        retain_bytes,
        ..JournalOptions::default()
    }
}

fn file(directory: &Path, start: u64, kind: &str) -> PathBuf {
    directory.join(format!("{start:020}.{kind}"))
}

fn read_all(directory: &Path, from: u64) -> Vec<u8> {
    let mut reader = JournalReader::new(directory);
    let (mut all, mut buffer) = (Vec::new(), [0; 333]);
    loop {
        match reader.read(from + all.len() as u64, &mut buffer).unwrap() {
            0 => return all,
            count => all.extend_from_slice(&buffer[..count]),
        }
    }
}

#[test]
fn read_below_oldest_offset_reports_oldest() {
    let dir = tempfile::tempdir().unwrap();
    let mut writer = JournalWriter::open(dir.path(), small_segments(4, Some(4))).unwrap();
    writer.append(b"0000", at(1)).unwrap();
    let mut follower = JournalReader::new(dir.path());
    assert_eq!(follower.read(0, &mut [0; 8]).unwrap(), 4);
    assert_eq!(follower.read(4, &mut [0; 8]).unwrap(), 0);
    for second in 2..6 {
        writer.append(b"1111", at(second)).unwrap();
    }
    let oldest = writer.oldest_offset();
    assert_eq!(
        oldest, 12,
        "the follower's segment and the next one are removed"
    );
    match follower.read(4, &mut [0; 8]) {
        Err(JournalError::BelowOldest {
            requested: 4,
            oldest,
        }) => assert_eq!(oldest, 12),
        other => panic!("{other:?}"),
    }
    assert_eq!(follower.read(oldest, &mut [0; 8]).unwrap(), 4);
}

#[test]
fn retention_continues_after_missing_index() {
    let dir = tempfile::tempdir().unwrap();
    let mut writer = JournalWriter::open(dir.path(), small_segments(4, Some(4))).unwrap();
    writer.append(b"0000", at(1)).unwrap();
    fs::remove_file(file(dir.path(), 0, "idx")).unwrap();
    for second in 2..9 {
        writer.append(b"1111", at(second)).unwrap();
    }
    assert_eq!(writer.oldest_offset(), 24);
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 4);
}

#[test]
fn readers_follow_concurrent_rotation_and_retention() {
    const END: u64 = 60_000;
    let byte = |offset: u64| (offset % 251) as u8;
    let dir = tempfile::tempdir().unwrap();
    let done = AtomicBool::new(false);
    let follow = || {
        let mut reader = JournalReader::new(dir.path());
        let (mut offset, mut buffer) = (0, [0; 100]);
        loop {
            let writer_done = done.load(Ordering::SeqCst);
            match reader.read(offset, &mut buffer) {
                Ok(0) if writer_done => return offset,
                Ok(count) => {
                    for read in &buffer[..count] {
                        assert_eq!(*read, byte(offset), "at {offset}");
                        offset += 1;
                    }
                }
                Err(JournalError::BelowOldest { requested, oldest }) => {
                    assert!(
                        requested == offset && oldest > offset,
                        "{requested} {oldest}"
                    );
                    offset = oldest;
                }
                Err(error) => panic!("{error}"),
            }
            let end = reader.end_offset().unwrap();
            assert!(end >= offset, "{end} is before {offset}");
        }
    };
    thread::scope(|scope| {
        let followers = [scope.spawn(follow), scope.spawn(follow)];
        let mut writer = JournalWriter::open(dir.path(), small_segments(64, Some(0))).unwrap();
        while writer.end_offset() < END {
            let from = writer.end_offset();
            let bytes: Vec<u8> = (from..from + 20).map(byte).collect();
            writer.append(&bytes, at(from)).unwrap();
        }
        done.store(true, Ordering::SeqCst);
        for follower in followers {
            assert_eq!(follower.join().unwrap(), END);
        }
    });
}

#[test]
fn append_after_second_writer_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let options = small_segments(4, None);
    let mut first = JournalWriter::open(dir.path(), options).unwrap();
    first.append(b"0000", at(1)).unwrap();
    let mut second = JournalWriter::open(dir.path(), options).unwrap();
    second.append(b"1111", at(2)).unwrap();
    let error = first.append(b"2222", at(3)).unwrap_err();
    assert!(matches!(
        error.source,
        JournalError::Discontinuous { end: 4, .. }
    ));
    assert_eq!(error.accepted, 0);
    assert_eq!(read_all(dir.path(), 0), b"00001111");
}

#[test]
fn clock_set_back_keeps_recorded_times() {
    let dir = tempfile::tempdir().unwrap();
    let mut writer = JournalWriter::open(dir.path(), JournalOptions::default()).unwrap();
    for (second, bytes) in [
        (1000, "aa"),
        (2000, "bb"),
        (500, "cc"),
        (600, "dd"),
        (3000, "ee"),
    ] {
        writer.append(bytes.as_bytes(), at(second)).unwrap();
    }
    let reader = JournalReader::new(dir.path());
    for (offset, second) in [(0, 1000), (2, 2000), (4, 500), (6, 600), (8, 3000)] {
        assert_eq!(reader.chunk_at(offset).unwrap().unwrap().at_ns, ns(second));
    }
    // The first chunk at or after the time, in offset order.
    for (second, offset) in [(0, 0), (550, 0), (1500, 2), (2500, 8), (3001, 10)] {
        assert_eq!(reader.offset_at(ns(second)).unwrap(), offset, "{second}");
    }
    assert_eq!(read_all(dir.path(), 0), b"aabbccddee");
}

#[test]
fn unindexed_bytes_have_the_time_of_the_file() {
    let dir = tempfile::tempdir().unwrap();
    let mut writer = JournalWriter::open(dir.path(), JournalOptions::default()).unwrap();
    writer.append(b"known", at(1000)).unwrap();
    let log = OpenOptions::new()
        .append(true)
        .open(file(dir.path(), 0, "log"))
        .unwrap();
    drop(writer);
    std::io::Write::write_all(&mut &log, b"unknown").unwrap();
    log.set_modified(at(5000)).unwrap();
    let check = |offset, second| {
        let reader = JournalReader::new(dir.path());
        assert_eq!(reader.chunk_at(offset).unwrap().unwrap().at_ns, ns(second));
    };
    check(4, 1000);
    check(5, 5000);
    let reader = JournalReader::new(dir.path());
    assert_eq!(reader.offset_at(ns(4000)).unwrap(), 5);
    drop(JournalWriter::open(dir.path(), JournalOptions::default()).unwrap());
    check(5, 5000);
    fs::remove_file(file(dir.path(), 0, "idx")).unwrap();
    check(4, 5000);
    assert_eq!(reader.offset_at(ns(4000)).unwrap(), 0);
    assert_eq!(reader.offset_at(ns(5001)).unwrap(), 12);
}

#[test]
fn extreme_options_keep_every_byte() {
    for (fsync, retain_bytes, kept) in [
        (Fsync::Never, None, "abc"),
        (Fsync::Never, Some(0), "c"),
        (Fsync::Interval(Duration::ZERO), Some(1), "bc"),
        (Fsync::Interval(Duration::MAX), Some(u64::MAX), "abc"),
        (Fsync::Always, None, "abc"),
    ] {
        let dir = tempfile::tempdir().unwrap();
        let options = JournalOptions {
            segment_bytes: 0,
            retain_bytes,
            fsync,
            index_interval: Duration::ZERO,
        };
        let mut writer = JournalWriter::open(dir.path(), options).unwrap();
        writer.append(b"a", at(1)).unwrap();
        drop(writer);
        let mut writer = JournalWriter::open(dir.path(), options).unwrap();
        writer.append(b"b", at(2)).unwrap();
        writer.append(b"c", at(3)).unwrap();
        writer.sync().unwrap();
        assert_eq!(writer.end_offset(), 3);
        assert_eq!(
            read_all(dir.path(), writer.oldest_offset()),
            kept.as_bytes()
        );
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 2 * kept.len());
    }
}

#[test]
fn files_are_private_and_symlinks_refused() {
    let root = tempfile::tempdir().unwrap();
    let dir = root.path().join("agent/stdout");
    let mut writer = JournalWriter::open(&dir, JournalOptions::default()).unwrap();
    writer.append(b"secret", at(1)).unwrap();
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(&dir), 0o700);
    assert_eq!(mode(&file(&dir, 0, "log")), 0o600);
    assert_eq!(mode(&file(&dir, 0, "idx")), 0o600);

    let target = root.path().join("target");
    for kind in ["log", "idx"] {
        let linked = root.path().join(kind);
        fs::create_dir(&linked).unwrap();
        symlink(&target, file(&linked, 0, kind)).unwrap();
        assert!(JournalWriter::open(&linked, JournalOptions::default()).is_err());
        assert!(!target.exists());
    }
    assert!(
        JournalReader::new(&root.path().join("log"))
            .read(0, &mut [0; 8])
            .is_err()
    );
}

#[test]
fn files_with_other_names_are_ignored() {
    let dir = tempfile::tempdir().unwrap();
    for name in [
        "notes.txt",
        "7.log",
        "+0000000000000000007.log",
        "18446744073709551615.log",
        "99999999999999999999.log",
    ] {
        fs::write(dir.path().join(name), "other").unwrap();
    }
    let mut writer = JournalWriter::open(dir.path(), JournalOptions::default()).unwrap();
    writer.append(b"ours", at(1)).unwrap();
    assert_eq!(read_all(dir.path(), 0), b"ours");
}

/// Simulates a full disk by a limit on the size of files (setrlimit(2), `RLIMIT_FSIZE`). Runs in a separate process that
/// ignores SIGXFSZ.
#[test]
fn full_disk_neither_loses_nor_repeats_bytes() {
    const INSIDE: &str = "COLIBRI_JOURNAL_TEST_FULL_DISK";
    if std::env::var_os(INSIDE).is_none() {
        let output = Command::new("sh")
            .args(["-c", "trap '' XFSZ; exec \"$@\"", "sh"])
            .arg(std::env::current_exe().unwrap())
            .args(["--exact", "full_disk_neither_loses_nor_repeats_bytes"])
            .env(INSIDE, "1")
            .output()
            .unwrap();
        let stdout = String::from_utf8_lossy(&output.stdout);
        assert!(
            output.status.success() && stdout.contains("1 passed"),
            "{stdout}"
        );
        return;
    }
    let set_limit = |bytes: Option<u64>| {
        let maximum = getrlimit(Resource::Fsize).maximum;
        setrlimit(
            Resource::Fsize,
            Rlimit {
                current: bytes.or(maximum),
                maximum,
            },
        )
        .unwrap();
    };
    let dir = tempfile::tempdir().unwrap();
    let mut writer = JournalWriter::open(dir.path(), small_segments(2000, None)).unwrap();
    let model: Vec<u8> = (0..5000_u32).map(|number| (number % 251) as u8).collect();
    let (mut done, mut stalls) = (0, 0);
    for limit in (0..2500).step_by(70) {
        set_limit(Some(limit));
        let chunk = &model[done..model.len().min(done + 400)];
        match writer.append(chunk, at(1000 * limit)) {
            Ok(()) => done += chunk.len(),
            Err(error) => {
                stalls += 1;
                assert!(error.accepted < chunk.len());
                done += error.accepted;
            }
        }
        assert_eq!(writer.end_offset(), done as u64);
        assert_eq!(read_all(dir.path(), 0), &model[..done]);
    }
    assert!(stalls > 10, "only {stalls} appends reached the limit");
    set_limit(None);
    writer.append(&model[done..], at(9_000_000)).unwrap();
    drop(writer);
    let writer = JournalWriter::open(dir.path(), small_segments(2000, None)).unwrap();
    assert_eq!(writer.end_offset(), model.len() as u64);
    assert_eq!(read_all(dir.path(), 0), model);
    let reader = JournalReader::new(dir.path());
    for offset in 0..model.len() as u64 {
        assert!(reader.chunk_at(offset).unwrap().is_some(), "{offset}");
    }
}
