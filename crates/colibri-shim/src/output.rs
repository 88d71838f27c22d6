//! The agent's outputs: copies stdout and stderr from their pipes to their journals, byte for byte.
//!
//! When a journal cannot store output (the disk is full), the bytes already read stay in memory and the pipe is not
//! read. The agent gets backpressure, and no byte is lost.

use std::os::fd::OwnedFd;
use std::path::Path;
use std::time::{Duration, Instant, SystemTime};

use colibri_journal::{JournalError, JournalOptions, JournalWriter};
use colibri_shim::layout;
use rustix::io::Errno;

/// Size of the copy buffer in bytes: the default capacity of a pipe, so that one read can empty it (pipe(7)).
const BUFFER_SIZE: usize = 65_536;
/// Maximum number of reads from each output in one iteration of the supervisor's loop.
const MAX_READS: usize = 16;
/// Maximum number of reads from each output after the last process has ended; a pipe holds far less.
const MAX_DRAIN_READS: usize = 64;
/// Interval at which a failed write or sync is retried.
const RETRY_INTERVAL: Duration = Duration::from_millis(500);

/// Lengths of the two journals, in bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Offsets {
    pub(crate) stdout: u64,
    pub(crate) stderr: u64,
}

/// Result of [`Outputs::drain`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Drained {
    /// The journals contain all output.
    Complete,
    /// A journal could not store the rest of the output, which was discarded.
    Truncated,
    /// A journal cannot store output; a retry is due at [`Outputs::deadline`].
    Stalled,
}

/// Both outputs.
pub(crate) struct Outputs {
    /// stdout and stderr.
    outputs: [Output; 2],
    buffer: Vec<u8>,
    /// When a failed write or sync is retried; set while an output is stalled.
    retry_at: Option<Instant>,
}

impl Outputs {
    /// Opens the journals in the working directory, which is the agent's directory.
    pub(crate) fn open(options: JournalOptions) -> Result<Self, JournalError> {
        Ok(Self {
            outputs: [
                Output::open(Path::new(layout::STDOUT), options)?,
                Output::open(Path::new(layout::STDERR), options)?,
            ],
            buffer: vec![0; BUFFER_SIZE],
            retry_at: None,
        })
    }

    /// Sets the pipes of a new run; a terminal has no stderr.
    pub(crate) fn connect(&mut self, stdout: OwnedFd, stderr: Option<OwnedFd>) {
        for (output, pipe) in self.outputs.iter_mut().zip([Some(stdout), stderr]) {
            output.pipe = pipe;
        }
    }

    /// Returns the pipes to poll for input.
    pub(crate) fn readable(&self) -> impl Iterator<Item = &OwnedFd> {
        self.outputs.iter().filter_map(Output::readable)
    }

    /// Returns when [`Outputs::copy`] is due, even without input: a sync or a retry.
    pub(crate) fn deadline(&self) -> Option<Instant> {
        let syncs = self.outputs.iter().map(|output| output.journal.sync_due());
        syncs.flatten().chain(self.retry_at).min()
    }

    pub(crate) fn offsets(&self) -> Offsets {
        let [stdout, stderr] = &self.outputs;
        Offsets {
            stdout: stdout.journal.end_offset(),
            stderr: stderr.journal.end_offset(),
        }
    }

    /// Returns why output is not stored at the moment, if it is not.
    pub(crate) fn stall_reason(&self) -> Option<&String> {
        self.outputs
            .iter()
            .find_map(|output| output.stalled.as_ref())
    }

    /// Retries what failed if that is due, copies available output and syncs the journals that are due. The outputs
    /// take turns, and the number of reads is bounded, so that neither starves the other or the requests. Returns
    /// whether an offset or a stall has changed.
    pub(crate) fn copy(&mut self, now: Instant) -> bool {
        let before = self.progress();
        if self.retry_at.is_some_and(|at| now >= at) {
            self.retry_at = None;
            self.outputs.iter_mut().for_each(Output::retry);
        }
        for _ in 0..MAX_READS {
            let mut more = false;
            for output in &mut self.outputs {
                more |= output.copy(&mut self.buffer);
            }
            if !more {
                break;
            }
        }
        for output in &mut self.outputs {
            output.sync_if_due(now);
        }
        self.schedule_retry(now);
        self.progress() != before
    }

    /// Copies the rest of the pipes after the last process has ended, then closes them. `give_up` discards output that
    /// cannot be stored.
    pub(crate) fn drain(&mut self, now: Instant, give_up: bool) -> Drained {
        let mut drained = Drained::Complete;
        for output in &mut self.outputs {
            // Bounded: a process outside of the agent that received the pipe could write forever.
            for _ in 0..MAX_DRAIN_READS {
                if !output.copy(&mut self.buffer) {
                    break;
                }
            }
            if output.stalled.is_some() && !give_up {
                drained = Drained::Stalled;
                break;
            }
            if output.stalled.is_some() {
                output.discard();
                drained = Drained::Truncated;
            }
            output.pipe = None;
        }
        self.schedule_retry(now);
        drained
    }

    /// Discards unstored and all later output, because the journals were removed.
    pub(crate) fn discard(&mut self) {
        self.outputs.iter_mut().for_each(Output::discard);
        self.retry_at = None;
    }

    /// Syncs both journals to the disk.
    pub(crate) fn sync(&mut self) -> Result<(), JournalError> {
        self.outputs
            .iter_mut()
            .try_for_each(|output| output.journal.sync())
    }

    fn schedule_retry(&mut self, now: Instant) {
        if self.stall_reason().is_some() {
            self.retry_at.get_or_insert(now + RETRY_INTERVAL);
        }
    }

    fn progress(&self) -> [OutputProgress; 2] {
        self.outputs.each_ref().map(|output| OutputProgress {
            end_offset: output.journal.end_offset(),
            is_stalled: output.stalled.is_some(),
        })
    }
}

/// The state of an output that clients can observe.
#[derive(PartialEq, Eq)]
struct OutputProgress {
    end_offset: u64,
    is_stalled: bool,
}

/// One output: its pipe, its journal, and bytes between the two.
struct Output {
    pipe: Option<OwnedFd>,
    journal: JournalWriter,
    /// Bytes that were read and could not be stored.
    unstored: Vec<u8>,
    /// Why the last write or sync failed.
    stalled: Option<String>,
    /// Output is read and discarded.
    discarding: bool,
}

impl Output {
    fn open(directory: &Path, options: JournalOptions) -> Result<Self, JournalError> {
        Ok(Self {
            pipe: None,
            journal: JournalWriter::open(directory, options)?,
            unstored: Vec::new(),
            stalled: None,
            discarding: false,
        })
    }

    /// Returns the pipe unless unstored bytes block it.
    fn readable(&self) -> Option<&OwnedFd> {
        self.pipe.as_ref().filter(|_| self.unstored.is_empty())
    }

    /// Copies one chunk. Returns whether more may be available.
    fn copy(&mut self, buffer: &mut [u8]) -> bool {
        let Some(pipe) = self.readable() else {
            return false;
        };
        match rustix::io::read(pipe, &mut *buffer) {
            Ok(count @ 1..) => {
                self.append(buffer.get(..count).unwrap_or_default());
                self.unstored.is_empty()
            }
            Err(Errno::INTR) => true,
            Err(Errno::AGAIN) => false,
            Ok(0) | Err(_) => {
                self.pipe = None;
                false
            }
        }
    }

    fn retry(&mut self) {
        let unstored = std::mem::take(&mut self.unstored);
        if !unstored.is_empty() {
            self.append(&unstored);
        } else if self.stalled.is_some() {
            self.stalled = self.journal.sync().err().map(|error| error.to_string());
        }
    }

    fn sync_if_due(&mut self, now: Instant) {
        if self.journal.sync_due().is_some_and(|due| due <= now)
            && let Err(error) = self.journal.sync()
        {
            self.stalled = Some(error.to_string());
        }
    }

    fn discard(&mut self) {
        self.discarding = true;
        self.unstored = Vec::new();
        self.stalled = None;
    }

    fn append(&mut self, bytes: &[u8]) {
        if self.discarding {
            return;
        }
        match self.journal.append(bytes, SystemTime::now()) {
            Ok(()) => self.stalled = None,
            Err(error) => {
                self.unstored = bytes.get(error.accepted..).unwrap_or_default().to_vec();
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

    #[test]
    fn last_bytes_are_synced_once_and_then_no_sync_is_due() {
        let interval = Duration::from_secs(3600);
        let dir = tempfile::tempdir().unwrap();
        let options = JournalOptions {
            fsync: Fsync::Interval(interval),
            ..JournalOptions::default()
        };
        let mut output = Output::open(dir.path(), options).unwrap();
        let (reader, mut writer) = std::io::pipe().unwrap();
        output.pipe = Some(reader.into());
        assert_eq!(output.journal.sync_due(), None);
        writer.write_all(b"last words").unwrap();
        output.copy(&mut [0; 64]);
        assert_eq!(output.journal.end_offset(), 10);
        let due = output.journal.sync_due().unwrap();
        output.sync_if_due(due - Duration::from_nanos(1));
        assert_eq!(output.journal.sync_due(), Some(due));
        output.sync_if_due(due);
        assert_eq!((output.journal.sync_due(), output.stalled), (None, None));
    }
}
