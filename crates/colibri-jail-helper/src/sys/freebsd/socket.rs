//! Internet sockets of a jail with its own network stack, and how they are passed.

use std::ffi::{c_int, c_long, c_uint};
use std::io;
use std::net::Ipv4Addr;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::time::Duration;

use super::check;
use super::descriptor::receive_now;

/// `SIOCAIFADDR` of sys/sockio.h: `_IOW('i', 43, struct ifaliasreq)`.
const SIOCAIFADDR: libc::c_ulong =
    0x8000_0000 | ((size_of::<libc::ifaliasreq>() as libc::c_ulong) << 16) | 0x692b;

fn internet_address(address: Ipv4Addr, port: u16) -> libc::sockaddr_in {
    let s_addr = u32::from_ne_bytes(address.octets());
    libc::sockaddr_in {
        sin_len: size_of::<libc::sockaddr_in>() as u8,
        sin_family: libc::AF_INET as libc::sa_family_t,
        sin_port: port.to_be(),
        sin_addr: libc::in_addr { s_addr },
        sin_zero: [0; 8],
    }
}

/// Opens a TCP socket (socket(2)).
fn tcp_socket() -> io::Result<OwnedFd> {
    let kind = libc::SOCK_STREAM | libc::SOCK_CLOEXEC;
    // SAFETY: numbers only; the new descriptor has no other owner.
    unsafe { check(libc::socket(libc::AF_INET, kind, 0)).map(|fd| OwnedFd::from_raw_fd(fd)) }
}

/// Gives lo0 of this process's network stack the address 127.0.0.1/8, which also brings it up (netintro(4), lo(4)).
pub(crate) fn configure_loopback() -> io::Result<()> {
    let socket = tcp_socket()?;
    // SAFETY: all bytes zero is a valid ifaliasreq; a sockaddr_in has the size of a sockaddr.
    let request: libc::ifaliasreq = unsafe {
        let mut request: libc::ifaliasreq = std::mem::zeroed();
        for (place, byte) in request.ifra_name.iter_mut().zip(b"lo0") {
            *place = *byte as libc::c_char;
        }
        request.ifra_addr = std::mem::transmute::<libc::sockaddr_in, libc::sockaddr>(
            internet_address(Ipv4Addr::LOCALHOST, 0),
        );
        request.ifra_mask = std::mem::transmute::<libc::sockaddr_in, libc::sockaddr>(
            internet_address(Ipv4Addr::new(255, 0, 0, 0), 0),
        );
        request
    };
    // SAFETY: the argument has the type of the request and lives through the call.
    check(unsafe { libc::ioctl(socket.as_raw_fd(), SIOCAIFADDR, &raw const request) }).map(drop)
}

/// Returns a socket that is bound to a TCP port of 127.0.0.1 and does not listen.
pub(crate) fn bound_socket(port: u16) -> io::Result<OwnedFd> {
    let socket = tcp_socket()?;
    let address = internet_address(Ipv4Addr::LOCALHOST, port);
    let length = size_of::<libc::sockaddr_in>() as libc::socklen_t;
    // SAFETY: an address of that length, which lives through the call.
    check(unsafe { libc::bind(socket.as_raw_fd(), (&raw const address).cast(), length) })?;
    Ok(socket)
}

/// Sends a byte with a descriptor over a Unix socket (unix(4), `SCM_RIGHTS`), and waits for a byte as the answer.
pub(crate) fn send_descriptor(
    socket: &OwnedFd,
    byte: u8,
    sent: BorrowedFd<'_>,
    timeout: Duration,
) -> io::Result<()> {
    // SAFETY: numbers only.
    let space = unsafe { libc::CMSG_SPACE(size_of::<c_int>() as c_uint) } as usize;
    // u64 for the alignment of a cmsghdr.
    let mut control = vec![0_u64; space.div_ceil(size_of::<u64>())];
    let mut text = byte;
    let mut part = libc::iovec {
        iov_base: (&raw mut text).cast(),
        iov_len: 1,
    };
    // SAFETY: all bytes zero is a valid msghdr. Its buffers live through the calls; the control buffer has room for one
    // header with one descriptor, which CMSG_FIRSTHDR and CMSG_DATA point to.
    let count = unsafe {
        let mut message: libc::msghdr = std::mem::zeroed();
        message.msg_iov = &raw mut part;
        message.msg_iovlen = 1;
        message.msg_control = control.as_mut_ptr().cast();
        message.msg_controllen = space as libc::socklen_t;
        let header = libc::CMSG_FIRSTHDR(&raw const message);
        if header.is_null() {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        (*header).cmsg_level = libc::SOL_SOCKET;
        (*header).cmsg_type = libc::SCM_RIGHTS;
        (*header).cmsg_len = libc::CMSG_LEN(size_of::<c_int>() as c_uint);
        let place = libc::CMSG_DATA(header).cast::<c_int>();
        place.write_unaligned(sent.as_raw_fd());
        let flags = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;
        libc::sendmsg(socket.as_raw_fd(), &raw const message, flags)
    };
    check(count as c_long)?;
    let mut poll = libc::pollfd {
        fd: socket.as_raw_fd(),
        events: libc::POLLIN,
        revents: 0,
    };
    let milliseconds = c_int::try_from(timeout.as_millis()).unwrap_or(c_int::MAX);
    // SAFETY: one element that lives through the call.
    if check(unsafe { libc::poll(&raw mut poll, 1, milliseconds) })? == 0 {
        return Err(io::ErrorKind::TimedOut.into());
    }
    match receive_now(socket, &mut [0])? {
        0 => Err(io::Error::other("the proxy has ended")),
        _ => Ok(()),
    }
}
