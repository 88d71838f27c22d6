//! Writes an agent's output on a separate thread, so that signals are served while the output is blocked.
//!
//! The queue gives backpressure: the command reads an event only while the queue has room, and further output of the
//! agent stays in its journals.

use std::io;
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use colibri_client::Stream;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use tokio::sync::{mpsc, oneshot, watch};

use crate::error::CliError;

/// Number of queued blocks from which on the command reads no more events.
const QUEUE: u64 = 4;
/// Maximum size of one write(2), in bytes; progress is recorded between writes.
const MAX_WRITE: usize = 64 * 1024;

/// Bytes to write to stdout or stderr of this process.
struct Block {
    stream: Stream,
    bytes: Vec<u8>,
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

/// Progress of the writer thread.
#[derive(Default)]
struct WriteProgress {
    /// Number of blocks that left the queue.
    blocks: u64,
    /// Start time of the current write(2); absent between writes.
    write_start: Option<Instant>,
}

/// Handle of the writer thread and its queue.
pub(crate) struct Sink {
    queue: Option<mpsc::UnboundedSender<Block>>,
    /// Number of blocks that entered the queue.
    queued: u64,
    progress: watch::Receiver<WriteProgress>,
}

impl Sink {
    /// Starts the thread. The receiver yields at most one failure for each stream, and ends when all blocks are written
    /// after [`Sink::close`].
    pub(crate) fn start() -> Result<(Self, mpsc::UnboundedReceiver<WriteFailure>), CliError> {
        let (queue, blocks) = mpsc::unbounded_channel();
        let (failed, failures) = mpsc::unbounded_channel();
        let (sender, progress) = watch::channel(WriteProgress::default());
        start_thread("output", move || write_blocks(blocks, &failed, &sender))?;
        let sink = Self {
            queue: Some(queue),
            queued: 0,
            progress,
        };
        Ok((sink, failures))
    }

    /// Queues bytes to write, unless there are none or the queue is closed.
    pub(crate) fn write(&mut self, stream: Stream, bytes: Vec<u8>) {
        if let Some(queue) = self.queue.as_ref().filter(|_| !bytes.is_empty())
            && queue.send(Block { stream, bytes }).is_ok()
        {
            self.queued += 1;
        }
    }

    /// Waits for room in the queue. Cancel safe.
    pub(crate) async fn room(&mut self) {
        let queued = self.queued;
        let has_room = |progress: &WriteProgress| queued < progress.blocks + QUEUE;
        // Fails only if the thread has ended, which empties the queue.
        let _ = self.progress.wait_for(has_room).await;
    }

    /// Closes the queue; the receiver of failures ends when the last block is written.
    pub(crate) fn close(&mut self) {
        self.queue = None;
    }

    /// Returns how long the current write(2) has been blocked; zero between writes.
    pub(crate) fn blocked_for(&self) -> Duration {
        let start = self.progress.borrow().write_start;
        start.map_or(Duration::ZERO, |start| start.elapsed())
    }
}

fn write_blocks(
    mut blocks: mpsc::UnboundedReceiver<Block>,
    failed: &mpsc::UnboundedSender<WriteFailure>,
    progress: &watch::Sender<WriteProgress>,
) {
    let mut failed_streams = Vec::new();
    while let Some(Block { stream, bytes }) = blocks.blocking_recv() {
        let written = match stream {
            _ if failed_streams.contains(&stream) => Ok(()),
            Stream::Stdout => write_all(io::stdout(), &bytes, progress),
            Stream::Stderr => write_all(io::stderr(), &bytes, progress),
        };
        progress.send_modify(|progress| {
            progress.blocks += 1;
            progress.write_start = None;
        });
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
    progress: &watch::Sender<WriteProgress>,
) -> io::Result<()> {
    let mut rest = bytes;
    while !rest.is_empty() {
        progress.send_modify(|progress| progress.write_start = Some(Instant::now()));
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
