//! Inherited file descriptors.

#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};

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

/// Closes every descriptor from `first` up on execve(2) (close_range(2), `CLOSE_RANGE_CLOEXEC`, Linux 5.11 and FreeBSD 13).
///
/// # Errors
/// The kernel lacks the call or the flag.
pub fn close_on_exec_from(first: u32) -> io::Result<()> {
    const CLOSE_ON_EXEC: libc::c_int = 4;
    // SAFETY: the call takes only integers, and closes nothing now.
    let marked = unsafe { close_range(first, u32::MAX, CLOSE_ON_EXEC) };
    match marked {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Duplicates a descriptor to this number, which stays open in an executed program, and closes what has the number before
/// (dup2(2)).
///
/// The caller ensures that no value owns the number.
///
/// # Errors
/// The number exceeds the limit of open files (`EBADF`).
pub fn duplicate_to(descriptor: &impl AsFd, number: i32) -> io::Result<()> {
    // SAFETY: the call takes only integers. The caller ensures that no value owns the number.
    match unsafe { libc::dup2(descriptor.as_fd().as_raw_fd(), number) } {
        -1 => Err(io::Error::last_os_error()),
        _ => Ok(()),
    }
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

/// Takes ownership of a descriptor that a parent left open under this number, of any type. Returns `None` if the number is
/// one of the standard streams or not open.
///
/// Call it before any descriptor is opened, and once per number: no value may own the descriptor.
#[must_use]
pub fn take_inherited(number: i32) -> Option<OwnedFd> {
    if !is_open(number) || number < 3 {
        return None;
    }
    // SAFETY: the number is open, and the caller ensures that no value owns it.
    Some(unsafe { OwnedFd::from_raw_fd(number) })
}

/// Gives a descriptor this number and keeps it open across execve(2). The descriptor stays open until the process ends.
///
/// # Errors
/// The number is one of the standard streams, in use, or above the limit of open files.
pub fn place_at(descriptor: OwnedFd, number: i32) -> io::Result<()> {
    if number < 3 || (is_open(number) && number != descriptor.as_raw_fd()) {
        return Err(io::Error::other(format!("descriptor {number} is in use")));
    }
    if number == descriptor.as_raw_fd() {
        rustix::io::fcntl_setfd(&descriptor, rustix::io::FdFlags::empty())?;
        std::mem::forget(descriptor);
        return Ok(());
    }
    duplicate_to(&descriptor, number)
}

fn is_open(number: i32) -> bool {
    // SAFETY: the call takes only integers and changes nothing.
    unsafe { libc::fcntl(number, libc::F_GETFD) != -1 }
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

    #[test]
    fn descriptor_is_placed_at_a_free_number_only() {
        use std::io::{Read, Write};
        let (mut writer, reader) = std::os::unix::net::UnixStream::pair().unwrap();
        let taken = writer.as_raw_fd();
        let copy = reader.try_clone().unwrap();
        for number in [0, 2, taken] {
            let error = place_at(copy.try_clone().unwrap().into(), number).unwrap_err();
            assert!(error.to_string().contains("in use"), "{error}");
        }
        assert!(place_at(copy.into(), 500).is_ok());
        drop(reader);
        writer.write_all(b"x").unwrap();
        let mut placed = std::fs::File::from(take_inherited(500).unwrap());
        placed.read_exact(&mut [0]).unwrap();
        for number in [-1, 0, 2, 501] {
            assert!(take_inherited(number).is_none(), "{number}");
        }
    }
}
