//! A log that another program writes.

use std::fs;
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::inotify::{self, CreateFlags, Reader, WatchFlags};
use rustix::io::Errno;

use super::check_stored;
use crate::colibri::TIMEOUT;

/// Number of missing bytes above which the log is polled only once per millisecond, because a poll at each write takes
/// CPU time from the measured programs.
const SLOW_POLL_BYTES: u64 = 1 << 20;

/// A directory that inotify(7) watches.
pub(super) struct Watch {
    directory: PathBuf,
    inotify: OwnedFd,
}

impl Watch {
    /// Watches an existing directory.
    pub(super) fn new(directory: &Path) -> Result<Self> {
        let inotify = inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK)?;
        let flags = WatchFlags::MODIFY | WatchFlags::CREATE;
        inotify::add_watch(&inotify, directory, flags)
            .with_context(|| format!("watching {}", directory.display()))?;
        Ok(Self {
            directory: directory.to_owned(),
            inotify,
        })
    }

    /// Returns the total length of all files whose names have this suffix.
    fn total_length(&self, suffix: &str) -> Result<u64> {
        let mut length = 0;
        for entry in fs::read_dir(&self.directory)? {
            let entry = entry?;
            if entry.file_name().to_string_lossy().ends_with(suffix) {
                length += entry.metadata()?.len();
            }
        }
        Ok(length)
    }

    /// Waits until the files with this suffix have this total length, and returns the time.
    pub(super) fn wait_for(&self, suffix: &str, bytes: u64) -> Result<Instant> {
        let deadline = Instant::now() + TIMEOUT;
        loop {
            let length = self.total_length(suffix)?;
            let now = Instant::now();
            if length >= bytes {
                return Ok(now);
            }
            ensure!(
                now < deadline,
                "{length} of {bytes} bytes are stored, and the timeout has expired"
            );
            if bytes - length > SLOW_POLL_BYTES {
                std::thread::sleep(Duration::from_millis(1));
            }
            self.wait_for_event()?;
        }
    }

    /// Waits for an event, at most one second, and drains the queue of events.
    fn wait_for_event(&self) -> Result<()> {
        let second = Timespec {
            tv_sec: 1,
            tv_nsec: 0,
        };
        match poll(
            &mut [PollFd::new(&self.inotify, PollFlags::IN)],
            Some(&second),
        ) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        let mut buffer = [MaybeUninit::uninit(); 4096];
        let mut events = Reader::new(&self.inotify, &mut buffer);
        while events.next().is_ok() {}
        Ok(())
    }
}

/// A log file in a dedicated directory, which is watched before the file exists.
pub(super) struct Log {
    path: PathBuf,
    name: String,
    watch: Watch,
}

impl Log {
    /// Creates the directory, which must contain nothing else.
    pub(super) fn new(directory: &Path, name: &str) -> Result<Self> {
        fs::create_dir_all(directory)?;
        Ok(Self {
            path: directory.join(name),
            name: name.to_owned(),
            watch: Watch::new(directory)?,
        })
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Waits until the log has this many bytes, and returns the time.
    pub(super) fn wait_for(&self, bytes: u64) -> Result<Instant> {
        self.watch.wait_for(&self.name, bytes)
    }

    /// Checks that the log equals `file`, and truncates it.
    pub(super) fn check(&self, file: &Path) -> Result<()> {
        check_stored(file, std::slice::from_ref(&self.path))?;
        self.truncate()
    }

    /// Checks that the log is a line feed, and truncates it.
    pub(super) fn check_line_feed(&self) -> Result<()> {
        let content = self.read()?;
        ensure!(
            content == b"\n",
            "the log is not a line feed: {:?}",
            String::from_utf8_lossy(&content)
        );
        self.truncate()
    }

    pub(super) fn read(&self) -> Result<Vec<u8>> {
        fs::read(&self.path).with_context(|| format!("reading {}", self.path.display()))
    }

    /// Truncates the log. Programs that append to it continue at its new end.
    pub(super) fn truncate(&self) -> Result<()> {
        fs::File::create(&self.path)
            .with_context(|| format!("truncating {}", self.path.display()))?;
        Ok(())
    }
}
