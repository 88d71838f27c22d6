//! Writes an agent's output on a separate thread, so that signals are served while the output is blocked.
//!
//! The queue is bounded and gives backpressure: when it is full, the command reads no more events, and further output
//! of the agent stays in its journals.

use std::io;
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use colibri_client::Stream;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use tokio::sync::{mpsc, oneshot, watch};

use crate::error::CliError;

/// Capacity of the queue, in blocks.
const QUEUE: usize = 4;
/// Maximum size of one write(2), in bytes; progress is recorded between writes.
const MAX_WRITE: usize = 64 * 1024;

/// Bytes to write to stdout or stderr of this process.
pub(crate) struct Block {
    pub(crate) stream: Stream,
    pub(crate) bytes: Vec<u8>,
}

/// The first write error of stdout or stderr.
#[derive(Debug)]
pub(crate) struct WriteFailure {
    pub(crate) stream: Stream,
    pub(crate) error: io::Error,
}

impl WriteFailure {
    /// Returns whether the reader has closed the pipe (EPIPE).
    pub(crate) fn is_broken_pipe(&self) -> bool {
        self.error.kind() == io::ErrorKind::BrokenPipe
    }
}

/// Handle of the writer thread and its queue.
pub(crate) struct Sink {
    queue: Option<mpsc::Sender<Block>>,
    /// Start time of the current write(2); absent between writes.
    write_start: watch::Receiver<Option<Instant>>,
}

impl Sink {
    /// Starts the thread. The receiver yields at most one failure for each stream, and ends when all blocks are written
    /// after [`Sink::close`].
    pub(crate) fn start() -> Result<(Self, mpsc::UnboundedReceiver<WriteFailure>), CliError> {
        let (queue, blocks) = mpsc::channel(QUEUE);
        let (failed, failures) = mpsc::unbounded_channel();
        let (started, write_start) = watch::channel(None);
        start_thread("output", move || write_blocks(blocks, &failed, &started))?;
        let sink = Self {
            queue: Some(queue),
            write_start,
        };
        Ok((sink, failures))
    }

    /// Waits for room in the queue. Cancel safe.
    pub(crate) fn room(&self) -> impl Future<Output = Option<mpsc::OwnedPermit<Block>>> + use<> {
        let queue = self.queue.clone();
        async move { queue?.reserve_owned().await.ok() }
    }

    /// Closes the queue; the receiver of failures ends when the last block is written.
    pub(crate) fn close(&mut self) {
        self.queue = None;
    }

    /// Returns how long the current write(2) has been blocked; zero between writes.
    pub(crate) fn blocked_for(&self) -> Duration {
        let start = *self.write_start.borrow();
        start.map_or(Duration::ZERO, |start| start.elapsed())
    }
}

fn write_blocks(
    mut blocks: mpsc::Receiver<Block>,
    failed: &mpsc::UnboundedSender<WriteFailure>,
    write_start: &watch::Sender<Option<Instant>>,
) {
    let mut failed_streams = Vec::new();
    while let Some(Block { stream, bytes }) = blocks.blocking_recv() {
        if failed_streams.contains(&stream) {
            continue;
        }
        let written = match stream {
            Stream::Stdout => write_all(io::stdout(), &bytes, write_start),
            Stream::Stderr => write_all(io::stderr(), &bytes, write_start),
        };
        write_start.send_replace(None);
        if let Err(error) = written {
            failed_streams.push(stream);
            // Fails only if the main loop has ended.
            let _ = failed.send(WriteFailure { stream, error });
        }
    }
}

/// Writes all bytes without the buffers and locks of `std`, which a blocked write would hold.
fn write_all(
    to: impl AsFd,
    bytes: &[u8],
    write_start: &watch::Sender<Option<Instant>>,
) -> io::Result<()> {
    let mut rest = bytes;
    while !rest.is_empty() {
        write_start.send_replace(Some(Instant::now()));
        let part = rest.get(..MAX_WRITE).unwrap_or(rest);
        match rustix::io::write(&to, part) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(count) => rest = rest.get(count..).unwrap_or_default(),
            Err(Errno::INTR) => {}
            Err(Errno::AGAIN) => wait_for(&to, PollFlags::OUT)?,
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

/// Starts a thread that reports when the reader of stdout has closed the pipe: poll(2) returns POLLERR for the write end
/// then. For a file it never reports.
pub(crate) fn watch_stdout_reader() -> Result<oneshot::Receiver<()>, CliError> {
    let (sender, closed) = oneshot::channel();
    start_thread("stdout-reader", move || {
        let _ = wait_for(io::stdout(), PollFlags::empty());
        let _ = sender.send(());
    })?;
    Ok(closed)
}

/// Starts a thread.
pub(crate) fn start_thread(
    name: &str,
    run: impl FnOnce() + Send + 'static,
) -> Result<(), CliError> {
    let thread = std::thread::Builder::new().name(name.to_owned());
    thread.spawn(run).map(drop).map_err(CliError::Runtime)
}

/// Waits until poll(2) reports one of the events, or an error of the descriptor.
fn wait_for(descriptor: impl AsFd, events: PollFlags) -> io::Result<()> {
    loop {
        let mut polled = [PollFd::new(&descriptor, events)];
        match poll(&mut polled, None) {
            Err(Errno::INTR) => {}
            other => return Ok(other.map(drop)?),
        }
    }
}
