//! Streams of clients: with bytes that were read before, with a time of last use, and with checked framing.

use std::collections::VecDeque;
use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, ReadBuf};

use crate::framing::{BadFraming, Framing, Head};

/// Maximum number of bytes that are read at once.
const CHUNK: usize = 8 * 1024;
/// The request that hyper gets in place of one whose framing is invalid.
const REPLACED_REQUEST: &[u8] = b"GET / HTTP/1.1\r\nConnection: close\r\n\r\n";

/// Implements [`AsyncWrite`] by a field.
macro_rules! forward_writes {
    ($type:ident, $field:ident) => {
        impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for $type<S> {
            fn poll_write(
                mut self: Pin<&mut Self>,
                context: &mut Context<'_>,
                bytes: &[u8],
            ) -> Poll<io::Result<usize>> {
                Pin::new(&mut self.$field).poll_write(context, bytes)
            }

            fn poll_flush(
                mut self: Pin<&mut Self>,
                context: &mut Context<'_>,
            ) -> Poll<io::Result<()>> {
                Pin::new(&mut self.$field).poll_flush(context)
            }

            fn poll_shutdown(
                mut self: Pin<&mut Self>,
                context: &mut Context<'_>,
            ) -> Poll<io::Result<()>> {
                Pin::new(&mut self.$field).poll_shutdown(context)
            }
        }
    };
}

/// The time of the last transfer of a connection.
#[derive(Debug)]
pub(crate) struct LastUse {
    start: Instant,
    /// Milliseconds between `start` and the last transfer.
    elapsed: AtomicU64,
}

impl LastUse {
    fn new() -> Self {
        Self {
            start: Instant::now(),
            elapsed: AtomicU64::new(0),
        }
    }

    fn touch(&self) {
        let elapsed = u64::try_from(self.start.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.elapsed.store(elapsed, Ordering::Relaxed);
    }

    /// Waits until nothing was transferred for this time.
    pub(crate) async fn idle(&self, limit: Duration) {
        loop {
            let last = self.start + Duration::from_millis(self.elapsed.load(Ordering::Relaxed));
            let left = limit.saturating_sub(last.elapsed());
            if left.is_zero() {
                return;
            }
            tokio::time::sleep(left).await;
        }
    }
}

/// A stream that records its last use.
#[derive(Debug)]
pub(crate) struct Timed<S> {
    stream: S,
    last_use: Arc<LastUse>,
}

impl<S> Timed<S> {
    pub(crate) fn new(stream: S) -> (Self, Arc<LastUse>) {
        let last_use = Arc::new(LastUse::new());
        let timed = Self {
            stream,
            last_use: last_use.clone(),
        };
        (timed, last_use)
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Timed<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let result = ready!(Pin::new(&mut self.stream).poll_read(context, buffer));
        self.last_use.touch();
        Poll::Ready(result)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Timed<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let result = ready!(Pin::new(&mut self.stream).poll_write(context, bytes));
        self.last_use.touch();
        Poll::Ready(result)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

/// A stream with bytes that were read before.
#[derive(Debug)]
pub(crate) struct Buffered<S> {
    stream: S,
    /// Bytes that the next reads return.
    read: Vec<u8>,
}

impl<S: AsyncRead + Unpin> Buffered<S> {
    pub(crate) fn new(stream: S) -> Self {
        Self {
            stream,
            read: Vec::new(),
        }
    }

    /// Returns the bytes that are read and not consumed.
    pub(crate) fn peeked(&self) -> &[u8] {
        &self.read
    }

    /// Removes bytes from the front of those that were read.
    pub(crate) fn consume(&mut self, count: usize) {
        self.read.drain(..count.min(self.read.len()));
    }

    /// Reads more bytes without consuming them; an error if the stream has ended.
    pub(crate) async fn peek_more(&mut self) -> io::Result<()> {
        let mut chunk = [0; CHUNK];
        match self.stream.read(&mut chunk).await? {
            0 => Err(io::ErrorKind::UnexpectedEof.into()),
            count => {
                self.read
                    .extend_from_slice(chunk.get(..count).unwrap_or_default());
                Ok(())
            }
        }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Buffered<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.read.is_empty() {
            return Pin::new(&mut self.stream).poll_read(context, buffer);
        }
        move_bytes(&mut self.read, buffer);
        Poll::Ready(Ok(()))
    }
}

forward_writes!(Buffered, stream);

/// Moves as many bytes as possible to the reader.
fn move_bytes(bytes: &mut Vec<u8>, buffer: &mut ReadBuf<'_>) {
    let count = bytes.len().min(buffer.remaining());
    buffer.put_slice(bytes.get(..count).unwrap_or_default());
    bytes.drain(..count);
    if bytes.is_empty() && bytes.capacity() > CHUNK {
        *bytes = Vec::new();
    }
}

/// The heads of a connection's requests, in order. An error is the last one.
#[derive(Debug, Clone, Default)]
pub(crate) struct Heads(Arc<Mutex<VecDeque<Result<Head, BadFraming>>>>);

impl Heads {
    fn push(&self, head: Result<Head, BadFraming>) {
        let mut heads = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        heads.push_back(head);
    }

    /// Returns the head of the next request.
    pub(crate) fn next(&self) -> Result<Head, BadFraming> {
        let mut heads = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        heads.pop_front().unwrap_or(Err(BadFraming::Malformed))
    }
}

/// How a checked stream ends.
#[derive(Debug, Clone, Copy)]
enum StreamEnd {
    /// The client sends no more.
    Closed,
    /// The last head was an error. hyper waits for more while it answers; it would cancel the answer at the end of the stream.
    BadHead,
    /// A body was invalid. hyper reports it to the service.
    BadBody,
}

/// A stream of HTTP requests with valid framing. An invalid request becomes another one, whose head is an error, and ends the
/// stream.
#[derive(Debug)]
pub(crate) struct CheckedStream<S> {
    stream: S,
    framing: Framing,
    checked: Vec<u8>,
    heads: Heads,
    /// What the reader gets after `checked`; nothing more is read.
    end: Option<StreamEnd>,
}

impl<S: AsyncRead + Unpin> CheckedStream<S> {
    pub(crate) fn new(stream: S) -> (Self, Heads) {
        let heads = Heads::default();
        let checked = Self {
            stream,
            framing: Framing::new(),
            checked: Vec::new(),
            heads: heads.clone(),
            end: None,
        };
        (checked, heads)
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for CheckedStream<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        loop {
            if !this.checked.is_empty() {
                move_bytes(&mut this.checked, buffer);
                return Poll::Ready(Ok(()));
            }
            match this.end {
                None => {}
                Some(StreamEnd::Closed) => return Poll::Ready(Ok(())),
                Some(StreamEnd::BadHead) => return Poll::Pending,
                Some(StreamEnd::BadBody) => {
                    return Poll::Ready(Err(io::ErrorKind::InvalidData.into()));
                }
            }
            let mut chunk = [0; CHUNK];
            let mut input = ReadBuf::new(&mut chunk);
            ready!(Pin::new(&mut this.stream).poll_read(context, &mut input))?;
            if input.filled().is_empty() {
                this.end = Some(StreamEnd::Closed);
                continue;
            }
            let checked = this.framing.check(input.filled());
            this.checked = checked.bytes;
            for head in checked.heads {
                this.heads.push(Ok(head));
            }
            if let Some(error) = checked.error {
                if this.framing.is_at_head() {
                    this.heads.push(Err(error));
                    this.checked.extend_from_slice(REPLACED_REQUEST);
                    this.end = Some(StreamEnd::BadHead);
                } else {
                    this.end = Some(StreamEnd::BadBody);
                }
            }
        }
    }
}

forward_writes!(CheckedStream, stream);
