//! Passes the listening socket from the sandbox to the server outside (unix(7), `SCM_RIGHTS`).

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::net::TcpListener;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::net::UnixStream;

use rustix::io::{FdFlags, fcntl_setfd};
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};

/// Keeps a socket open across execve(2) and returns its number.
pub(crate) fn keep_open(socket: &(impl AsFd + AsRawFd)) -> io::Result<i32> {
    fcntl_setfd(socket, FdFlags::empty())?;
    Ok(socket.as_raw_fd())
}

/// Sends the listener and waits until it is received.
pub(crate) fn send(socket: &impl AsFd, listener: &TcpListener) -> io::Result<()> {
    let descriptors = [listener.as_fd()];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    ancillary.push(SendAncillaryMessage::ScmRights(&descriptors));
    sendmsg(
        socket,
        &[IoSlice::new(b"L")],
        &mut ancillary,
        SendFlags::NOSIGNAL,
    )?;
    match rustix::io::read(socket, &mut [0; 1])? {
        0 => Err(io::Error::other("the server ended")),
        _ => Ok(()),
    }
}

/// Maximum number of connections that wait for accept(2).
const BACKLOG: i32 = 128;
/// Message of colibri-jail-helper, which holds the connection as long as the sandbox exists. `enter` sends another one and
/// ends the connection.
const HELD: u8 = b'H';

/// A received listener.
pub(crate) struct Received {
    pub(crate) listener: TcpListener,
    /// The connection whose end is the end of the sandbox.
    pub(crate) sandbox_link: Option<UnixStream>,
}

/// Receives the listener, lets it listen, and confirms it.
pub(crate) fn receive(socket: impl AsFd) -> io::Result<Received> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let mut byte = [0; 1];
    recvmsg(
        &socket,
        &mut [IoSliceMut::new(&mut byte)],
        &mut ancillary,
        RecvFlags::CMSG_CLOEXEC,
    )?;
    let listener = ancillary
        .drain()
        .find_map(|message| match message {
            RecvAncillaryMessage::ScmRights(mut descriptors) => descriptors.next(),
            _ => None,
        })
        .ok_or_else(|| io::Error::other("the sandbox ended before it opened the port"))?;
    rustix::net::listen(&listener, BACKLOG)?;
    let listener = TcpListener::from(listener);
    listener.set_nonblocking(true)?;
    rustix::io::write(&socket, b"R")?;
    let sandbox_link = match byte {
        [HELD] => Some(UnixStream::from(socket.as_fd().try_clone_to_owned()?)),
        _ => None,
    };
    Ok(Received {
        listener,
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
    fn received_listener_is_the_sent_one() {
        let (server_end, sandbox_end) = UnixStream::pair().unwrap();
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let address = listener.local_addr().unwrap();
        let receiver = std::thread::spawn(move || receive(server_end).unwrap());
        send(&sandbox_end, &listener).unwrap();
        drop(listener);
        let received = receiver.join().unwrap();
        assert!(received.sandbox_link.is_none());
        let received = received.listener;
        let mut client = TcpStream::connect(address).unwrap();
        received.set_nonblocking(false).unwrap();
        drop(received.accept().unwrap());
        assert_eq!(client.read(&mut [0]).unwrap(), 0);
    }

    #[test]
    fn closed_peer_is_an_error_on_both_sides() {
        let (server_end, sandbox_end) = UnixStream::pair().unwrap();
        drop(server_end);
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        assert!(send(&sandbox_end, &listener).is_err());
        let (server_end, sandbox_end) = UnixStream::pair().unwrap();
        drop(sandbox_end);
        let error = receive(server_end).err().unwrap();
        assert!(error.to_string().contains("ended before"));
    }
}
