//! Inherited file descriptors.

#![allow(unsafe_code)]

use std::io;

/// Closes every descriptor from `first` up, in one system call: close_range(2) of Linux 5.9 and FreeBSD 13.
///
/// Call it before anything is opened: a descriptor that some value owns would be closed under it.
///
/// # Errors
/// The system has no such call (ENOSYS), or refuses it, for example by a seccomp filter; descriptors may be open then.
pub fn close_from(first: u32) -> io::Result<()> {
    // SAFETY: the call takes numbers only. That no value of this process owns one of these descriptors is the
    // caller's part, as said above; all that a violation breaks is I/O on those descriptors, not memory.
    let closed = unsafe { close_range(first, u32::MAX, 0) };
    match closed {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

#[cfg(target_os = "freebsd")]
use libc::close_range;

/// By its number, because not every C library of Linux has the function.
#[cfg(target_os = "linux")]
unsafe fn close_range(first: libc::c_uint, last: libc::c_uint, flags: libc::c_int) -> libc::c_long {
    // SAFETY: the arguments have the types that close_range(2) has.
    unsafe { libc::syscall(libc::SYS_close_range, first, last, flags) }
}
