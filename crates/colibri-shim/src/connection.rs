//! One connection to the control socket: parses requests, and buffers replies until the socket accepts them.

use std::collections::VecDeque;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::net::{UnixListener, UnixStream};

use colibri_shim::control::{MAX_INPUT, MAX_REQUEST, ShimMessage, ShimOp, ShimReply, ShimRequest};
use rustix::io::Errno;

/// Maximum number of queued bytes for a client that gets another report of the agent's proxy.
const MAX_UNSENT_EVENTS: usize = 64 * 1024;

/// A request and the raw bytes that followed it.
pub(crate) struct Received {
    pub(crate) request: ShimRequest,
    pub(crate) payload: Vec<u8>,
}

pub(crate) struct Connection {
    /// Number of the connection, set by the server.
    pub(crate) id: u64,
    pub(crate) socket: UnixStream,
    received: Vec<u8>,
    unsent: VecDeque<u8>,
    /// The client requested events.
    pub(crate) watching: bool,
    /// The client requested reports of the agent's proxy.
    pub(crate) watches_network: bool,
    /// The status has changed since the last one that was sent.
    pub(crate) outdated: bool,
    /// The client closed the connection or violated the protocol.
    pub(crate) closed: bool,
}

impl Connection {
    /// Takes over a connected socket.
    fn new(socket: UnixStream) -> io::Result<Self> {
        socket.set_nonblocking(true)?;
        Ok(Self {
            id: 0,
            socket,
            received: Vec::new(),
            unsent: VecDeque::new(),
            watching: false,
            watches_network: false,
            outdated: false,
            closed: false,
        })
    }

    /// Creates the connection to the process that started the shim, from stdin. It receives events without a request.
    ///
    /// # Errors
    /// The descriptor cannot be duplicated or configured.
    pub(crate) fn from_stdin(stdin: impl AsFd) -> io::Result<Self> {
        let socket = rustix::io::fcntl_dupfd_cloexec(stdin, 3)?;
        let mut connection = Self::new(socket.into())?;
        connection.watching = true;
        connection.watches_network = true;
        Ok(connection)
    }

    /// Accepts a pending connection.
    ///
    /// # Errors
    /// No connection is pending, or accept(2) failed, for example because no descriptors are left; a pending connection
    /// stays pending.
    pub(crate) fn accept(listener: &UnixListener) -> io::Result<Self> {
        Self::new(listener.accept()?.0)
    }

    pub(crate) fn has_unsent(&self) -> bool {
        !self.unsent.is_empty()
    }

    /// Returns whether a status event is needed and the previous messages have been sent.
    pub(crate) fn needs_status(&self) -> bool {
        self.watching && self.outdated && !self.has_unsent()
    }

    /// Returns whether the client gets reports of the agent's proxy, and reads its messages.
    pub(crate) fn takes_network_events(&self) -> bool {
        self.watches_network && self.unsent.len() < MAX_UNSENT_EVENTS
    }

    /// Reads the socket and returns the complete requests. Refuses an invalid request and closes the connection.
    pub(crate) fn receive(&mut self) -> Vec<Received> {
        let mut buffer = [0; 16 * 1024];
        while self.received.len() <= MAX_REQUEST + MAX_INPUT {
            match rustix::io::read(&self.socket, &mut buffer) {
                Ok(count @ 1..) => self.received.extend(buffer.iter().take(count)),
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => break,
                Ok(0) | Err(_) => {
                    self.closed = true;
                    break;
                }
            }
        }
        let mut requests = Vec::new();
        loop {
            match take_request(&mut self.received) {
                Some(Ok(request)) => requests.push(request),
                Some(Err(reason)) => {
                    self.closed = true;
                    self.reply(0, ShimReply::Refused(reason));
                    return requests;
                }
                None => return requests,
            }
        }
    }

    pub(crate) fn reply(&mut self, seq: u64, reply: ShimReply) {
        self.send(&ShimMessage::Reply { seq, reply });
    }

    /// Queues a message and writes as much as the socket accepts.
    pub(crate) fn send(&mut self, message: &ShimMessage) {
        if let Ok(text) = serde_json::to_vec(message) {
            self.unsent.extend(text);
            self.unsent.push_back(b'\n');
            self.flush();
        }
    }

    pub(crate) fn flush(&mut self) {
        while !self.unsent.is_empty() {
            match rustix::io::write(&self.socket, self.unsent.as_slices().0) {
                Ok(count) => drop(self.unsent.drain(..count)),
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => return,
                Err(_) => {
                    self.closed = true;
                    self.unsent.clear();
                }
            }
        }
    }
}

/// Removes the first complete request from the buffer. After an error the position of the next request is unknown.
fn take_request(received: &mut Vec<u8>) -> Option<Result<Received, String>> {
    let Some(end) = received.iter().position(|byte| *byte == b'\n') else {
        return (received.len() > MAX_REQUEST)
            .then(|| Err(format!("request line longer than {MAX_REQUEST} bytes")));
    };
    let request: ShimRequest = match serde_json::from_slice(received.get(..end)?) {
        Ok(request) => request,
        Err(error) => return Some(Err(format!("invalid request: {error}"))),
    };
    let len = match request.op {
        ShimOp::Input { len } if len > MAX_INPUT => {
            return Some(Err(format!(
                "input of {len} bytes is too long; send at most {MAX_INPUT} bytes in one request"
            )));
        }
        ShimOp::Input { len } => len,
        _ => 0,
    };
    let payload = received.get(end + 1..end + 1 + len)?.to_vec();
    received.drain(..end + 1 + len);
    Some(Ok(Received { request, payload }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn split_stream_yields_the_same_requests() {
        let stream = b"{\"seq\":1,\"op\":\"watch\"}\n{\"seq\":2,\"op\":\"input\",\"len\":3}\na\nb{\"seq\":3,\"op\":\"close-input\"}\n";
        for split in 0..=stream.len() {
            let mut received = stream[..split].to_vec();
            let mut requests = Vec::new();
            while let Some(request) = take_request(&mut received) {
                requests.push(request.unwrap());
            }
            received.extend(&stream[split..]);
            while let Some(request) = take_request(&mut received) {
                requests.push(request.unwrap());
            }
            assert_eq!(requests.len(), 3, "split at {split}");
            assert_eq!(requests[1].payload, b"a\nb");
            assert!(received.is_empty());
        }
    }

    #[test]
    fn invalid_request_is_an_error() {
        for invalid in [
            b"{\"seq\":1,\"op\":\"fly\"}\n".to_vec(),
            b"{\"seq\":1,\"op\":\"input\",\"len\":65537}\n".to_vec(),
            b"\xff\n".to_vec(),
            vec![b'x'; MAX_REQUEST + 1],
        ] {
            assert!(take_request(&mut invalid.clone()).unwrap().is_err());
        }
        assert!(take_request(&mut vec![b'x'; MAX_REQUEST]).is_none());
    }
}
