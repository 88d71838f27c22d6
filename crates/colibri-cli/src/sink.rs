//! Writes an agent's output on a separate thread, so that signals are served while the output is blocked.
//!
//! The queue is bounded and gives backpressure: when it is full, the command reads no more events, and further output
//! of the agent stays in its journals.

use std::io;
use std::os::fd::AsFd;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use colibri_client::Stream;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use tokio::sync::mpsc;

use crate::error::CliError;

/// Capacity of the queue, in pieces.
const WAITING: usize = 4;
/// Maximum size of one write(2), in bytes; progress is recorded between writes.
const AT_ONCE: usize = 64 * 1024;

/// Bytes for one of this process's outputs.
pub(crate) struct Piece {
    pub(crate) stream: Stream,
    pub(crate) bytes: Vec<u8>,
}

/// A failed output and its error.
#[derive(Debug)]
pub(crate) struct Failure {
    pub(crate) stream: Stream,
    pub(crate) error: io::Error,
}

impl Failure {
    /// Returns whether the reader has closed the pipe (EPIPE).
    pub(crate) fn is_reader_gone(&self) -> bool {
        self.error.kind() == io::ErrorKind::BrokenPipe
    }
}

/// Handle of the writer thread and its queue.
pub(crate) struct Sink {
    queue: Option<mpsc::Sender<Piece>>,
    writing: Writing,
}

/// Start time of the current write(2); absent between writes.
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
    /// Starts the thread. The receiver yields each failed output once, and ends when all pieces are written after
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

    /// Closes the queue; the receiver of failures ends when the last piece is written.
    pub(crate) fn close(&mut self) {
        self.queue = None;
    }

    /// Returns how long the current write(2) has been blocked; zero between writes.
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
            // Fails only if the main loop has ended.
            let _ = failed.send(Failure { stream, error });
        }
    }
}

/// Writes all bytes without the buffers and locks of `std`, which a blocked write would hold.
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

/// Starts a thread that reports when the reader of stdout has gone: poll(2) returns POLLERR for the write end of a
/// pipe then. For a file it never reports.
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
