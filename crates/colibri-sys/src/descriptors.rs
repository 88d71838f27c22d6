//! Inherited file descriptors.

#![allow(unsafe_code)]

use std::io;

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
