//! Descriptors: which stay open, and messages without waiting.

use std::ffi::c_int;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, IntoRawFd, OwnedFd};

use super::{SysError, check};

/// Closes every descriptor from `first` up (closefrom(2)).
pub(crate) fn close_from(first: c_int) -> Result<(), SysError> {
    // SAFETY: a number only; callers use no descriptor from `first` up afterwards.
    unsafe { libc::closefrom(first) };
    Ok(())
}

/// Changes the working directory to an open one (fchdir(2)).
pub(crate) fn change_directory(directory: &impl AsRawFd) -> io::Result<()> {
    // SAFETY: an open descriptor.
    check(unsafe { libc::fchdir(directory.as_raw_fd()) }).map(drop)
}

pub(super) fn close_on_exec(fd: &impl AsRawFd) -> io::Result<()> {
    // SAFETY: an open descriptor and a number.
    check(unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_SETFD, libc::FD_CLOEXEC) }).map(drop)
}

/// Returns a pipe, the reading end first. Both ends are closed by execve(2).
pub(crate) fn pipe() -> io::Result<(OwnedFd, OwnedFd)> {
    let mut ends = [-1; 2];
    // SAFETY: room for two descriptors; the new descriptors have no other owner.
    unsafe {
        check(libc::pipe2(ends.as_mut_ptr(), libc::O_CLOEXEC))?;
        Ok((OwnedFd::from_raw_fd(ends[0]), OwnedFd::from_raw_fd(ends[1])))
    }
}

/// Takes descriptor `fd` if it is a Unix stream socket, and closes it on execve(2).
pub(crate) fn take_socket(fd: c_int) -> Option<OwnedFd> {
    let mut size = size_of::<libc::sockaddr_un>() as libc::socklen_t;
    // SAFETY: all bytes zero is a valid address.
    let mut address: libc::sockaddr_un = unsafe { std::mem::zeroed() };
    // SAFETY: a buffer of `size` bytes, and the size; both live through the call.
    let named = unsafe { libc::getsockname(fd, (&raw mut address).cast(), &raw mut size) };
    let mut kind: c_int = 0;
    let mut size = size_of::<c_int>() as libc::socklen_t;
    let value = (&raw mut kind).cast();
    // SAFETY: as above.
    let typed =
        unsafe { libc::getsockopt(fd, libc::SOL_SOCKET, libc::SO_TYPE, value, &raw mut size) };
    let is_unix_stream = named == 0
        && typed == 0
        && c_int::from(address.sun_family) == libc::AF_UNIX
        && kind == libc::SOCK_STREAM;
    // SAFETY: an open descriptor. Those from 3 up have no other owner at the start of the program.
    let socket = is_unix_stream.then(|| unsafe { OwnedFd::from_raw_fd(fd) })?;
    close_on_exec(&socket).ok().map(|()| socket)
}

/// Sends bytes, as many as the socket has room for. `O_NONBLOCK` does not suffice: the flag belongs to all copies of the
/// descriptor, and the caller may have one (fcntl(2)).
pub(crate) fn send_now(socket: &OwnedFd, bytes: &[u8]) -> io::Result<usize> {
    let flags = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;
    let (start, size) = (bytes.as_ptr().cast(), bytes.len());
    // SAFETY: the bytes live through the call.
    let count = unsafe { libc::send(socket.as_raw_fd(), start, size, flags) };
    usize::try_from(count).map_err(|_| io::Error::last_os_error())
}

/// Receives bytes, 0 if the other end is closed, without waiting. Descriptors that were sent with them are dropped
/// (unix(4)).
///
/// # Errors
/// There are none now (`EAGAIN`).
pub(crate) fn receive_now(socket: &OwnedFd, buffer: &mut [u8]) -> io::Result<usize> {
    let (start, size) = (buffer.as_mut_ptr().cast(), buffer.len());
    // SAFETY: room for `size` bytes, which live through the call.
    let count = unsafe { libc::recv(socket.as_raw_fd(), start, size, libc::MSG_DONTWAIT) };
    usize::try_from(count).map_err(|_| io::Error::last_os_error())
}

/// Moves descriptors to 3 and the following numbers, closes every other one from there up, and returns them.
pub(crate) fn keep_only<const N: usize>(
    kept: [Option<OwnedFd>; N],
) -> io::Result<[Option<OwnedFd>; N]> {
    let free = c_int::try_from(N).map_err(io::Error::other)? + 3;
    let mut next = 3;
    let mut moved = [const { None }; N];
    // Above their new numbers, so that none replaces another.
    let mut above = [const { None }; N];
    for (above, fd) in above.iter_mut().zip(kept) {
        if let Some(fd) = fd {
            // SAFETY: an open descriptor and a number; the new descriptor has no other owner.
            *above = Some(unsafe {
                let new = check(libc::fcntl(fd.into_raw_fd(), libc::F_DUPFD_CLOEXEC, free))?;
                OwnedFd::from_raw_fd(new)
            });
        }
    }
    for (moved, above) in moved.iter_mut().zip(above) {
        if let Some(fd) = above {
            // SAFETY: open descriptors and numbers. No value owns a descriptor from 3 to `free`; the caller's are moved.
            *moved = Some(unsafe {
                check(libc::dup2(fd.into_raw_fd(), next))?;
                OwnedFd::from_raw_fd(next)
            });
            close_on_exec(moved.as_ref().ok_or(io::ErrorKind::NotFound)?)?;
            next += 1;
        }
    }
    // SAFETY: a number only. Callers use no other descriptor from there up afterwards.
    unsafe { libc::closefrom(next) };
    Ok(moved)
}

/// Moves a descriptor to 3, closes every other one from 3 up, and returns it.
pub(crate) fn keep_one(kept: OwnedFd) -> io::Result<OwnedFd> {
    let [kept] = keep_only([Some(kept)])?;
    kept.ok_or(io::ErrorKind::NotFound.into())
}
