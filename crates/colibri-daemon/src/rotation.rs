//! Log rotation by size: a full file is renamed to `NAME.1`, `NAME.1` to `NAME.2`, and so on; the oldest is deleted.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::PathBuf;

use colibri_config::LogLimits;
use parking_lot::Mutex;

/// A log file. It is reopened when its path names another file or none, so that other programs may rotate it.
pub(crate) struct RotatedLog {
    pub(crate) path: PathBuf,
    limits: LogLimits,
    file: Mutex<Option<File>>,
}

impl RotatedLog {
    /// Creates a log for a path; the first write opens the file.
    pub(crate) fn new(path: PathBuf, limits: LogLimits) -> Self {
        Self {
            path,
            limits,
            file: Mutex::default(),
        }
    }

    /// Opens the file now, so that an error is reported at the start and not with the first line.
    pub(crate) fn open(&self) -> io::Result<()> {
        self.opened(&mut self.file.lock()).map(drop)
    }

    /// Makes the next write reopen the file.
    pub(crate) fn reopen(&self) {
        *self.file.lock() = None;
    }

    /// Appends complete lines with one write(2); rotates first if they would exceed the size limit.
    pub(crate) fn append(&self, lines: &[u8]) -> io::Result<()> {
        let mut file = self.file.lock();
        let size = self.opened(&mut file)?.metadata()?.len();
        let after = size.saturating_add(lines.len() as u64);
        if size > 0 && after > self.limits.max_bytes {
            *file = None;
            self.rotate()?;
        }
        self.opened(&mut file)?.write_all(lines)
    }

    /// Returns the file that the path names; opens it if it is not the current one.
    fn opened<'a>(&self, current: &'a mut Option<File>) -> io::Result<&'a mut File> {
        let named = fs::symlink_metadata(&self.path).ok();
        let is_same = |file: &File| {
            let own = file.metadata().ok();
            let identity = |data: &fs::Metadata| (data.dev(), data.ino());
            own.as_ref().map(identity) == named.as_ref().map(identity)
        };
        let file = match current.take().filter(is_same) {
            Some(file) => file,
            None => OpenOptions::new()
                .append(true)
                .create(true)
                .mode(0o600)
                .open(&self.path)?,
        };
        Ok(current.insert(file))
    }

    fn rotate(&self) -> io::Result<()> {
        if self.limits.keep == 0 {
            return ignore_missing(fs::remove_file(&self.path));
        }
        // A missing file leaves a gap in the numbers, which later rotations close.
        (0..self.limits.keep).rev().try_for_each(|number| {
            let (from, to) = (self.numbered(number), self.numbered(number + 1));
            ignore_missing(fs::rename(from, to))
        })
    }

    /// Returns the path of a rotated file; number 0 is the log itself.
    fn numbered(&self, number: u32) -> PathBuf {
        let mut path = self.path.as_os_str().to_owned();
        if number > 0 {
            path.push(format!(".{number}"));
        }
        path.into()
    }
}

/// `tracing_subscriber` writes each log line with one call.
impl Write for &RotatedLog {
    fn write(&mut self, lines: &[u8]) -> io::Result<usize> {
        self.append(lines).map(|()| lines.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Treats the removal or the renaming of a missing file as done.
pub(crate) fn ignore_missing(outcome: io::Result<()>) -> io::Result<()> {
    match outcome {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn full_log_is_rotated_and_oldest_file_deleted() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        let limits = LogLimits {
            max_bytes: 10,
            keep: 2,
        };
        let log = RotatedLog::new(path.clone(), limits);
        for number in 1..=9 {
            log.append(format!("line {number}\n").as_bytes()).unwrap();
        }
        let read = |name: &str| fs::read_to_string(dir.path().join(name)).unwrap();
        assert_eq!(read("log"), "line 9\n");
        assert_eq!(read("log.1"), "line 8\n");
        assert_eq!(read("log.2"), "line 7\n");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 3);
        let mode = fs::metadata(&path).unwrap().mode() & 0o777;
        assert_eq!(mode, 0o600);
    }

    #[test]
    fn moved_log_is_reopened_by_its_path() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        let limits = LogLimits {
            max_bytes: 1000,
            keep: 0,
        };
        let log = RotatedLog::new(path.clone(), limits);
        log.append(b"a\n").unwrap();
        fs::rename(&path, dir.path().join("moved")).unwrap();
        log.append(b"b\n").unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "b\n");
        fs::remove_file(&path).unwrap();
        log.reopen();
        log.append(b"c\n").unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "c\n");
    }
}
