//! One output of the agent, copied from its pipe to its journal byte for byte.
//!
//! When the journal cannot take more (the disk is full) the bytes already read wait here and the pipe is
//! not read: the agent slows down, and nothing is lost.

use std::os::fd::OwnedFd;
use std::path::Path;
use std::time::{Instant, SystemTime};

use colibri_journal::{JournalError, JournalOptions, JournalWriter};
use rustix::io::Errno;

/// A pipe's usual capacity, so that one read can empty it (pipe(7)).
pub(crate) const CHUNK: usize = 65_536;

pub(crate) struct Stream {
    pipe: Option<OwnedFd>,
    journal: JournalWriter,
    waiting: Vec<u8>,
    stalled: Option<String>,
    /// Whether output is read and discarded.
    discarding: bool,
}

impl Stream {
    pub(crate) fn new(directory: &Path, options: &JournalOptions) -> Result<Self, JournalError> {
        Ok(Self {
            pipe: None,
            journal: JournalWriter::open(directory, *options)?,
            waiting: Vec::new(),
            stalled: None,
            discarding: false,
        })
    }

    pub(crate) fn connect(&mut self, pipe: OwnedFd) {
        self.pipe = Some(pipe);
    }

    /// The pipe, if it should be read now.
    pub(crate) fn readable(&self) -> Option<&OwnedFd> {
        self.pipe.as_ref().filter(|_| self.waiting.is_empty())
    }

    /// Length of the journal, in bytes.
    pub(crate) fn end(&self) -> u64 {
        self.journal.end_offset()
    }

    /// Why the pipe is not read, if it is not.
    pub(crate) fn stalled(&self) -> Option<&String> {
        self.stalled.as_ref()
    }

    /// One read, one append. Returns whether there may be more at once.
    pub(crate) fn copy(&mut self, buffer: &mut [u8]) -> bool {
        let Some(pipe) = self.readable() else {
            return false;
        };
        match rustix::io::read(pipe, &mut *buffer) {
            Ok(0) => {
                self.pipe = None;
                false
            }
            Ok(count) => {
                self.append(buffer.get(..count).unwrap_or_default());
                self.waiting.is_empty()
            }
            Err(Errno::INTR) => true,
            Err(Errno::AGAIN) => false,
            Err(_) => {
                self.pipe = None;
                false
            }
        }
    }

    /// Tries again what failed: to write what waits, or to put it on the disk.
    pub(crate) fn retry(&mut self) {
        let waiting = std::mem::take(&mut self.waiting);
        if !waiting.is_empty() {
            self.append(&waiting);
        } else if self.stalled.is_some() {
            self.stalled = self.sync().err().map(|error| error.to_string());
        }
    }

    /// When [`Stream::sync_if_due`] has something to do.
    pub(crate) fn sync_due(&self) -> Option<Instant> {
        self.journal.sync_due()
    }

    /// Puts the journal on the disk if its policy says so now.
    pub(crate) fn sync_if_due(&mut self, now: Instant) {
        if self.sync_due().is_some_and(|due| due <= now)
            && let Err(error) = self.sync()
        {
            self.stalled = Some(error.to_string());
        }
    }

    /// Forgets the pipe; whoever still holds its other end is no descendant of the agent.
    pub(crate) fn close(&mut self) {
        self.pipe = None;
    }

    /// Puts the journal on the disk.
    pub(crate) fn sync(&mut self) -> Result<(), JournalError> {
        self.journal.sync()
    }

    /// Makes later reads discard the output, because the directory of the journal was removed.
    pub(crate) fn discard(&mut self) {
        self.discarding = true;
        self.waiting = Vec::new();
        self.stalled = None;
    }

    fn append(&mut self, bytes: &[u8]) {
        if self.discarding {
            return;
        }
        match self.journal.append(bytes, SystemTime::now()) {
            Ok(()) => self.stalled = None,
            Err(error) => {
                self.waiting = bytes.get(error.accepted..).unwrap_or_default().to_vec();
                self.stalled = Some(error.to_string());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use colibri_journal::Fsync;
    use std::io::Write;
    use std::time::Duration;

    #[test]
    fn a_quiet_agents_last_bytes_are_synced_once_and_then_there_is_nothing_to_wake_up_for() {
        let interval = Duration::from_secs(3600);
        let dir = tempfile::tempdir().unwrap();
        let options = JournalOptions {
            fsync: Fsync::Interval(interval),
            ..JournalOptions::default()
        };
        let mut stream = Stream::new(dir.path(), &options).unwrap();
        let (reader, mut writer) = std::io::pipe().unwrap();
        stream.connect(reader.into());
        assert_eq!(stream.sync_due(), None);
        writer.write_all(b"last words").unwrap();
        stream.copy(&mut [0; 64]);
        assert_eq!(stream.end(), 10);
        let due = stream.sync_due().unwrap();
        stream.sync_if_due(due - Duration::from_nanos(1));
        assert_eq!(stream.sync_due(), Some(due));
        stream.sync_if_due(due);
        assert_eq!((stream.sync_due(), stream.stalled()), (None, None));
    }
}
