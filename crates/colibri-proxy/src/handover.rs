//! A listening socket goes from inside the sandbox to the proxy outside (unix(7), `SCM_RIGHTS`).

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::net::TcpListener;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use rustix::io::{FdFlags, fcntl_setfd};
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketFlags, SocketType, recvmsg, sendmsg, socketpair,
};

/// The two ends, both closed in programs that are executed.
pub(crate) fn pair() -> io::Result<(OwnedFd, OwnedFd)> {
    Ok(socketpair(
        AddressFamily::UNIX,
        SocketType::STREAM,
        SocketFlags::CLOEXEC,
        None,
    )?)
}

/// Leaves an end open in the program that this one becomes; returns its number.
pub(crate) fn leave_open(end: &OwnedFd) -> io::Result<i32> {
    fcntl_setfd(end, FdFlags::empty())?;
    Ok(end.as_raw_fd())
}

/// Hands the socket over, and waits until it has been taken.
pub(crate) fn give(outside: &OwnedFd, listener: &TcpListener) -> io::Result<()> {
    let rights = [listener.as_fd()];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    ancillary.push(SendAncillaryMessage::ScmRights(&rights));
    sendmsg(
        outside,
        &[IoSlice::new(b"L")],
        &mut ancillary,
        SendFlags::NOSIGNAL,
    )?;
    match rustix::io::read(outside, &mut [0; 1])? {
        0 => Err(io::Error::other("the proxy has gone")),
        _ => Ok(()),
    }
}

/// Takes the socket, and says so.
pub(crate) fn take(inside: impl AsFd) -> io::Result<TcpListener> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let mut byte = [0; 1];
    recvmsg(
        &inside,
        &mut [IoSliceMut::new(&mut byte)],
        &mut ancillary,
        RecvFlags::CMSG_CLOEXEC,
    )?;
    let socket = ancillary
        .drain()
        .find_map(|message| match message {
            RecvAncillaryMessage::ScmRights(mut sockets) => sockets.next(),
            _ => None,
        })
        .ok_or_else(|| io::Error::other("the sandbox ended before it opened the port"))?;
    let listener = TcpListener::from(socket);
    listener.set_nonblocking(true)?;
    rustix::io::write(inside, b"T")?;
    Ok(listener)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;
    use std::net::{Ipv4Addr, TcpStream};

    #[test]
    #[allow(clippy::disallowed_methods)]
    fn a_socket_that_was_handed_over_is_the_same_one() {
        let (outside, inside) = pair().unwrap();
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let address = listener.local_addr().unwrap();
        let taker = std::thread::spawn(move || take(outside).unwrap());
        give(&inside, &listener).unwrap();
        drop(listener);
        let taken = taker.join().unwrap();
        let mut client = TcpStream::connect(address).unwrap();
        taken.set_nonblocking(false).unwrap();
        drop(taken.accept().unwrap());
        assert_eq!(client.read(&mut [0]).unwrap(), 0);
    }

    #[test]
    fn whoever_is_left_alone_is_told() {
        let (outside, inside) = pair().unwrap();
        drop(outside);
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        assert!(give(&inside, &listener).is_err());
        let (outside, inside) = pair().unwrap();
        drop(inside);
        assert!(
            take(outside)
                .unwrap_err()
                .to_string()
                .contains("ended before")
        );
    }
}
