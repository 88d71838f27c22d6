//! Passes listening sockets from a sandbox to a server outside, over a Unix stream socket (unix(7), `SCM_RIGHTS`).
//!
//! The sandbox sends one byte with the sockets. The server lets them listen and answers with one byte.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::net::TcpListener;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::net::UnixStream;

use rustix::io::{FdFlags, fcntl_setfd};
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};

/// Maximum number of sockets in one message.
pub const MAX_LISTENERS: usize = 128;
/// Maximum number of connections that wait for accept(2) at one socket.
const BACKLOG: i32 = 128;
/// Message of a sandbox that ends the connection after it has passed its sockets.
const PASSED: u8 = b'L';
/// Message of a sender that holds the connection as long as the sandbox exists: colibri-sandbox and colibri-jail-helper.
const HELD: u8 = b'H';

/// Keeps a socket open across execve(2) and returns its number.
///
/// # Errors
/// The system refuses to change the flags of the descriptor.
pub fn keep_open(socket: &(impl AsFd + AsRawFd)) -> io::Result<i32> {
    fcntl_setfd(socket, FdFlags::empty())?;
    Ok(socket.as_raw_fd())
}

/// Sends the listeners in one message and waits until they are received.
///
/// # Errors
/// There are more than [`MAX_LISTENERS`] listeners, or the server has ended.
pub fn send(socket: &impl AsFd, listeners: &[TcpListener]) -> io::Result<()> {
    send_as(PASSED, socket, listeners)
}

/// As [`send`]; the server serves them until `socket` is closed.
///
/// # Errors
/// See [`send`].
pub fn send_held(socket: &impl AsFd, listeners: &[TcpListener]) -> io::Result<()> {
    send_as(HELD, socket, listeners)
}

fn send_as(message: u8, socket: &impl AsFd, listeners: &[TcpListener]) -> io::Result<()> {
    let descriptors: Vec<BorrowedFd> = listeners.iter().map(AsFd::as_fd).collect();
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_LISTENERS))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    if !ancillary.push(SendAncillaryMessage::ScmRights(&descriptors)) {
        return Err(io::Error::other(format!(
            "more than {MAX_LISTENERS} sockets"
        )));
    }
    sendmsg(
        socket,
        &[IoSlice::new(&[message])],
        &mut ancillary,
        SendFlags::NOSIGNAL,
    )?;
    match rustix::io::read(socket, &mut [0; 1])? {
        0 => Err(io::Error::other("the server ended")),
        _ => Ok(()),
    }
}

/// Received listeners.
#[derive(Debug)]
pub struct Received {
    /// The listeners in the order in which they were sent, at least one. They listen and do not block.
    pub listeners: Vec<TcpListener>,
    /// The connection whose end is the end of the sandbox, if the sender holds it.
    pub sandbox_link: Option<UnixStream>,
}

/// Receives listeners, lets them listen, and confirms them.
///
/// # Errors
/// The other end was closed before it sent a listener.
pub fn receive(socket: impl AsFd) -> io::Result<Received> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_LISTENERS))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let mut byte = [0; 1];
    recvmsg(
        &socket,
        &mut [IoSliceMut::new(&mut byte)],
        &mut ancillary,
        RecvFlags::CMSG_CLOEXEC,
    )?;
    let mut listeners = Vec::new();
    for message in ancillary.drain() {
        if let RecvAncillaryMessage::ScmRights(descriptors) = message {
            for listener in descriptors {
                rustix::net::listen(&listener, BACKLOG)?;
                let listener = TcpListener::from(listener);
                listener.set_nonblocking(true)?;
                listeners.push(listener);
            }
        }
    }
    if listeners.is_empty() {
        return Err(io::Error::other(
            "the sandbox ended before it opened the port",
        ));
    }
    rustix::io::write(&socket, b"R")?;
    let sandbox_link = match byte {
        [HELD] => Some(UnixStream::from(socket.as_fd().try_clone_to_owned()?)),
        _ => None,
    };
    Ok(Received {
        listeners,
        sandbox_link,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;
    use std::net::{Ipv4Addr, TcpStream};

    #[test]
    #[allow(clippy::disallowed_methods)]
    fn received_listeners_are_the_sent_ones() {
        let (server_end, sandbox_end) = UnixStream::pair().unwrap();
        let bind = |_| TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let listeners: Vec<_> = (0..3).map(bind).collect();
        let addresses: Vec<_> = listeners.iter().map(|l| l.local_addr().unwrap()).collect();
        let receiver = std::thread::spawn(move || receive(server_end).unwrap());
        send(&sandbox_end, &listeners).unwrap();
        drop(listeners);
        let received = receiver.join().unwrap();
        assert!(received.sandbox_link.is_none());
        assert_eq!(received.listeners.len(), addresses.len());
        for (received, address) in received.listeners.iter().zip(addresses) {
            let mut client = TcpStream::connect(address).unwrap();
            received.set_nonblocking(false).unwrap();
            drop(received.accept().unwrap());
            assert_eq!(client.read(&mut [0]).unwrap(), 0);
        }
    }

    /// colibri-jail-helper sends this message.
    #[test]
    #[allow(clippy::disallowed_methods)]
    fn held_connection_is_returned_with_one_listener() {
        let (server_end, sandbox_end) = UnixStream::pair().unwrap();
        let receiver = std::thread::spawn(move || receive(server_end).unwrap());
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let descriptors = [listener.as_fd()];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut ancillary = SendAncillaryBuffer::new(&mut space);
        ancillary.push(SendAncillaryMessage::ScmRights(&descriptors));
        let message = [IoSlice::new(b"H")];
        sendmsg(&sandbox_end, &message, &mut ancillary, SendFlags::empty()).unwrap();
        (&sandbox_end).read_exact(&mut [0]).unwrap();
        let received = receiver.join().unwrap();
        assert_eq!(received.listeners.len(), 1);
        drop(sandbox_end);
        let mut link = received.sandbox_link.unwrap();
        assert_eq!(link.read(&mut [0]).unwrap(), 0);
    }

    #[test]
    fn closed_peer_is_an_error_on_both_sides() {
        let (server_end, sandbox_end) = UnixStream::pair().unwrap();
        drop(server_end);
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        assert!(send(&sandbox_end, &[listener]).is_err());
        let (server_end, sandbox_end) = UnixStream::pair().unwrap();
        drop(sandbox_end);
        let error = receive(server_end).err().unwrap();
        assert!(error.to_string().contains("ended before"));
    }
}
