//! One connection to the control socket: bytes in, requests out, and replies that wait for room.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};

use colibri_shim::control::{MAX_INPUT, MAX_REQUEST, Message, Op, Request};
use rustix::io::Errno;
use std::os::fd::OwnedFd;

/// A request, and the raw bytes that followed it.
pub(crate) type Incoming = (Request, Vec<u8>);

pub(crate) struct Peer {
    socket: OwnedFd,
    received: Vec<u8>,
    unsent: VecDeque<u8>,
    /// It asked for events.
    pub(crate) watching: bool,
    /// Something changed since the last status that it was sent.
    pub(crate) outdated: bool,
    /// It hung up, or broke the protocol.
    pub(crate) gone: bool,
}

impl Peer {
    /// Takes over a connected, non-blocking socket.
    pub(crate) fn new(socket: OwnedFd) -> Self {
        Self {
            socket,
            received: Vec::new(),
            unsent: VecDeque::new(),
            watching: false,
            outdated: false,
            gone: false,
        }
    }

    /// The connection of whoever started the shim, which is watched from the start.
    ///
    /// # Errors
    /// The system refuses a descriptor.
    pub(crate) fn of_starter(stdin: impl AsFd) -> io::Result<Self> {
        let socket = rustix::io::fcntl_dupfd_cloexec(stdin, 3)?;
        rustix::io::ioctl_fionbio(&socket, true)?;
        Ok(Self {
            watching: true,
            ..Self::new(socket)
        })
    }

    pub(crate) fn fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    pub(crate) fn has_unsent(&self) -> bool {
        !self.unsent.is_empty()
    }

    /// Reads what has come and returns the requests that are complete.
    pub(crate) fn receive(&mut self) -> Vec<Result<Incoming, String>> {
        let mut buffer = [0; 16 * 1024];
        loop {
            match rustix::io::read(&self.socket, &mut buffer) {
                Ok(0) => {
                    self.gone = true;
                    break;
                }
                Ok(count) => self.received.extend(buffer.iter().take(count)),
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => break,
                Err(_) => {
                    self.gone = true;
                    break;
                }
            }
            if self.received.len() > MAX_REQUEST + MAX_INPUT {
                break;
            }
        }
        let mut requests = Vec::new();
        while let Some(request) = take_request(&mut self.received) {
            let broken = request.is_err();
            requests.push(request);
            if broken {
                self.gone = true;
                break;
            }
        }
        requests
    }

    /// Queues a message and sends what the socket takes.
    pub(crate) fn send(&mut self, message: &Message) {
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
                    self.gone = true;
                    self.unsent.clear();
                }
            }
        }
    }
}

/// Takes the first whole request off the buffer; an error means that the stream cannot be read on.
fn take_request(received: &mut Vec<u8>) -> Option<Result<Incoming, String>> {
    let Some(end) = received.iter().position(|byte| *byte == b'\n') else {
        return (received.len() > MAX_REQUEST)
            .then(|| Err(format!("request line longer than {MAX_REQUEST} bytes")));
    };
    let request: Request = match serde_json::from_slice(received.get(..end)?) {
        Ok(request) => request,
        Err(error) => return Some(Err(format!("request not understood: {error}"))),
    };
    let len = match request.op {
        Op::Input { len } if len > MAX_INPUT => {
            return Some(Err(format!(
                "input of {len} bytes; at most {MAX_INPUT} are taken at once"
            )));
        }
        Op::Input { len } => len,
        _ => 0,
    };
    let payload = received.get(end + 1..end + 1 + len)?.to_vec();
    received.drain(..end + 1 + len);
    Some(Ok((request, payload)))
}

/// Accepts one waiting connection, if there is one.
///
/// # Errors
/// The system refuses (no descriptors left); the connection keeps waiting.
pub(crate) fn accept(listener: &OwnedFd) -> io::Result<Option<Peer>> {
    match rustix::net::accept(listener) {
        Ok(socket) => {
            rustix::io::fcntl_setfd(&socket, rustix::io::FdFlags::CLOEXEC)?;
            rustix::io::ioctl_fionbio(&socket, true)?;
            Ok(Some(Peer::new(socket)))
        }
        Err(Errno::AGAIN | Errno::INTR | Errno::CONNABORTED) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_are_taken_whole_or_not_at_all() {
        let stream = b"{\"seq\":1,\"op\":\"watch\"}\n{\"seq\":2,\"op\":\"input\",\"len\":3}\na\nb{\"seq\":3,\"op\":\"close-input\"}\n";
        // However the bytes are cut, the same three requests come out.
        for cut in 0..=stream.len() {
            let mut received = stream[..cut].to_vec();
            let mut requests = Vec::new();
            while let Some(request) = take_request(&mut received) {
                requests.push(request.unwrap());
            }
            received.extend(&stream[cut..]);
            while let Some(request) = take_request(&mut received) {
                requests.push(request.unwrap());
            }
            assert_eq!(requests.len(), 3, "cut at {cut}");
            assert_eq!(requests[1].1, b"a\nb");
            assert!(received.is_empty());
        }
    }

    #[test]
    fn what_cannot_be_read_on_is_an_error() {
        for bad in [
            b"{\"seq\":1,\"op\":\"fly\"}\n".to_vec(),
            b"{\"seq\":1,\"op\":\"input\",\"len\":65537}\n".to_vec(),
            b"\xff\n".to_vec(),
            vec![b'x'; MAX_REQUEST + 1],
        ] {
            assert!(take_request(&mut bad.clone()).unwrap().is_err());
        }
        assert!(take_request(&mut vec![b'x'; MAX_REQUEST]).is_none());
    }
}
