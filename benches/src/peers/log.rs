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

use super::check;
use crate::colibri::PATIENCE;

/// Polling each write takes CPU time from the measured programs. While more bytes than this are missing, polls are
/// rare.
const CLOSE: u64 = 1 << 20;

/// A directory that inotify(7) watches.
pub(super) struct Watch {
    directory: PathBuf,
    inotify: OwnedFd,
}

impl Watch {
    /// Watches an existing directory.
    pub(super) fn new(directory: &Path) -> Result<Self> {
        let inotify = inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK)?;
        let what = WatchFlags::MODIFY | WatchFlags::CREATE;
        inotify::add_watch(&inotify, directory, what)
            .with_context(|| format!("watching {}", directory.display()))?;
        Ok(Self {
            directory: directory.to_owned(),
            inotify,
        })
    }

    /// Returns the total length of all files whose names have this suffix.
    fn length(&self, ending: &str) -> Result<u64> {
        let mut length = 0;
        for entry in fs::read_dir(&self.directory)? {
            let entry = entry?;
            if entry.file_name().to_string_lossy().ends_with(ending) {
                length += entry.metadata()?.len();
            }
        }
        Ok(length)
    }

    /// Waits until the files with this suffix have this total length, and returns that time.
    pub(super) fn wait_for(&self, ending: &str, bytes: u64) -> Result<Instant> {
        let until = Instant::now() + PATIENCE;
        loop {
            let length = self.length(ending)?;
            let now = Instant::now();
            if length >= bytes {
                return Ok(now);
            }
            ensure!(
                now < until,
                "{length} of {bytes} bytes are stored, and no more arrive"
            );
            if bytes - length > CLOSE {
                std::thread::sleep(Duration::from_millis(1));
            }
            self.wait()?;
        }
    }

    /// Waits at most a second for an event and drains the queue.
    fn wait(&self) -> Result<()> {
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

/// A file in a dedicated directory, watched before it exists.
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

    /// Waits until the log has this many bytes, and returns that time.
    pub(super) fn wait_for(&self, bytes: u64) -> Result<Instant> {
        self.watch.wait_for(&self.name, bytes)
    }

    /// Checks that the log equals `file`, and truncates it.
    pub(super) fn check(&self, file: &Path) -> Result<()> {
        check(file, std::slice::from_ref(&self.path))?;
        self.empty()
    }

    /// Checks that the log is a line feed, and truncates it.
    pub(super) fn check_line_feed(&self) -> Result<()> {
        let content = self.read()?;
        ensure!(
            content == b"\n",
            "the log is not a line feed: {:?}",
            String::from_utf8_lossy(&content)
        );
        self.empty()
    }

    pub(super) fn read(&self) -> Result<Vec<u8>> {
        fs::read(&self.path).with_context(|| format!("reading {}", self.path.display()))
    }

    /// Truncates the log; programs that append to it do not notice.
    pub(super) fn empty(&self) -> Result<()> {
        fs::File::create(&self.path)
            .with_context(|| format!("emptying {}", self.path.display()))?;
        Ok(())
    }
}
