//! Writes an agent's output by a thread of its own, so that signals are served while nobody reads.
//!
//! The queue is short: when it is full, no more events are taken, and what the agent writes waits in its journals.

use std::io;
use std::os::fd::AsFd;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use colibri_client::Stream;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use tokio::sync::mpsc;

use crate::error::CliError;

/// Pieces that wait for the thread.
const WAITING: usize = 4;
/// Most bytes of one write(2): progress is seen between writes.
const AT_ONCE: usize = 64 * 1024;

/// Bytes for one of this process's outputs.
pub(crate) struct Piece {
    pub(crate) stream: Stream,
    pub(crate) bytes: Vec<u8>,
}

/// Why an output is not written any more.
#[derive(Debug)]
pub(crate) struct Failure {
    pub(crate) stream: Stream,
    pub(crate) error: io::Error,
}

impl Failure {
    /// Whether the reader has gone. Every other failure is one that the reader does not know of.
    pub(crate) fn is_reader_gone(&self) -> bool {
        self.error.kind() == io::ErrorKind::BrokenPipe
    }
}

/// The thread that writes, and its queue.
pub(crate) struct Sink {
    queue: Option<mpsc::Sender<Piece>>,
    writing: Writing,
}

/// Since when the present write(2) makes no progress.
#[derive(Clone, Default)]
struct Writing(Arc<Mutex<Option<Instant>>>);

impl Writing {
    fn set(&self, since: Option<Instant>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = since;
    }

    fn since(&self) -> Option<Instant> {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Sink {
    /// Starts the thread. The receiver brings each output that fails, once, and ends when all is written after
    /// [`Sink::close`].
    pub(crate) fn start() -> Result<(Self, mpsc::UnboundedReceiver<Failure>), CliError> {
        let (queue, pieces) = mpsc::channel(WAITING);
        let (failed, failures) = mpsc::unbounded_channel();
        let writing = Writing::default();
        let shared = writing.clone();
        std::thread::Builder::new()
            .name("output".to_owned())
            .spawn(move || write_all_of(pieces, &failed, &shared))
            .map_err(CliError::Runtime)?;
        let sink = Self {
            queue: Some(queue),
            writing,
        };
        Ok((sink, failures))
    }

    /// Waits for room in the queue. Cancel safe.
    pub(crate) fn room(&self) -> impl Future<Output = Option<mpsc::OwnedPermit<Piece>>> + use<> {
        let queue = self.queue.clone();
        async move {
            match queue {
                Some(queue) => queue.reserve_owned().await.ok(),
                None => None,
            }
        }
    }

    /// Takes no more pieces; the failures end when the last one is written.
    pub(crate) fn close(&mut self) {
        self.queue = None;
    }

    /// Returns for how long nothing could be written; zero where there is nothing to write.
    pub(crate) fn blocked_for(&self) -> Duration {
        self.writing
            .since()
            .map_or(Duration::ZERO, |since| since.elapsed())
    }
}

fn write_all_of(
    mut pieces: mpsc::Receiver<Piece>,
    failed: &mpsc::UnboundedSender<Failure>,
    writing: &Writing,
) {
    let mut failed_streams = Vec::new();
    while let Some(Piece { stream, bytes }) = pieces.blocking_recv() {
        if failed_streams.contains(&stream) {
            continue;
        }
        let written = match stream {
            Stream::Stdout => write_all(io::stdout(), &bytes, writing),
            Stream::Stderr => write_all(io::stderr(), &bytes, writing),
        };
        writing.set(None);
        if let Err(error) = written {
            failed_streams.push(stream);
            // The main loop may have ended.
            let _ = failed.send(Failure { stream, error });
        }
    }
}

/// Writes past the buffers and the locks of `std`, which a blocked write would hold.
fn write_all(to: impl AsFd, bytes: &[u8], writing: &Writing) -> io::Result<()> {
    let mut rest = bytes;
    while !rest.is_empty() {
        writing.set(Some(Instant::now()));
        let part = rest.get(..AT_ONCE).unwrap_or(rest);
        match rustix::io::write(&to, part) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(count) => rest = rest.get(count..).unwrap_or_default(),
            Err(Errno::INTR) => {}
            Err(Errno::AGAIN) => {
                let mut watched = [PollFd::new(&to, PollFlags::OUT)];
                match poll(&mut watched, None) {
                    Ok(_) | Err(Errno::INTR) => {}
                    Err(error) => return Err(error.into()),
                }
            }
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

/// Returns when nobody reads stdout any more: a pipe's writing end becomes an error then (poll(2), POLLERR). A file
/// has no reader that could go.
pub(crate) fn until_unread() -> Result<tokio::sync::oneshot::Receiver<()>, CliError> {
    let (gone, unread) = tokio::sync::oneshot::channel();
    let watch = move || {
        let stdout = io::stdout();
        loop {
            let mut watched = [PollFd::new(&stdout, PollFlags::empty())];
            match poll(&mut watched, None) {
                Err(Errno::INTR) => {}
                Ok(_) | Err(_) => break,
            }
        }
        let _ = gone.send(());
    };
    std::thread::Builder::new()
        .name("unread".to_owned())
        .spawn(watch)
        .map_err(CliError::Runtime)?;
    Ok(unread)
}
