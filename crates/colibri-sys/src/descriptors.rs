//! Inherited file descriptors.

#![allow(unsafe_code)]

use std::io;
use std::os::fd::{FromRawFd, OwnedFd};

/// Closes every descriptor from `first` up, in one system call: close_range(2) of Linux 5.9 and FreeBSD 13.
///
/// Call it before any descriptor is opened: it also closes descriptors that a Rust value owns.
///
/// # Errors
/// The kernel lacks the call (ENOSYS) or a seccomp filter refuses it; descriptors may still be open then.
pub fn close_from(first: u32) -> io::Result<()> {
    // SAFETY: the call takes only integers. The caller ensures that no value owns one of these descriptors; a violation
    // breaks I/O on those descriptors, but not memory safety.
    let closed = unsafe { close_range(first, u32::MAX, 0) };
    match closed {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

#[cfg(target_os = "freebsd")]
use libc::close_range;

/// Calls close_range(2) by its number, because not every C library on Linux has the function.
#[cfg(target_os = "linux")]
unsafe fn close_range(first: libc::c_uint, last: libc::c_uint, flags: libc::c_int) -> libc::c_long {
    // SAFETY: the arguments have the types that close_range(2) has.
    unsafe { libc::syscall(libc::SYS_close_range, first, last, flags) }
}

/// Takes ownership of a socket that a parent left open under this number. Returns `None` if the number is one of the
/// standard streams or not an open socket.
///
/// Call it before any descriptor is opened, and once per number: no value may own the descriptor.
#[must_use]
pub fn take_inherited_socket(number: i32) -> Option<OwnedFd> {
    if number < 3 {
        return None;
    }
    // SAFETY: the caller ensures that no value owns the number. A number that is not open is only passed to
    // getsockopt(2), which reports EBADF.
    let socket = unsafe { OwnedFd::from_raw_fd(number) };
    match rustix::net::sockopt::socket_type(&socket) {
        Ok(_) => Some(socket),
        Err(_) => {
            // Dropping it would close a descriptor of another type, and abort a debug build on one that is not open.
            std::mem::forget(socket);
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_open_sockets_are_taken() {
        use std::os::fd::IntoRawFd;
        let (socket, _peer) = std::os::unix::net::UnixStream::pair().unwrap();
        let number = socket.into_raw_fd();
        assert!(take_inherited_socket(number).is_some());
        let file = tempfile::tempfile().unwrap();
        assert!(take_inherited_socket(std::os::fd::AsRawFd::as_raw_fd(&file)).is_none());
        for number in [-1, 0, 2, i32::MAX] {
            assert!(take_inherited_socket(number).is_none(), "{number}");
        }
    }
}
