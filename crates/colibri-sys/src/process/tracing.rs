//! Protection of this process's memory (FreeBSD). rustix passes the value in place of its address, and the call fails.
#![allow(unsafe_code)]

use std::io;

/// `PROC_TRACE_CTL` and `PROC_TRACE_CTL_DISABLE` of sys/procctl.h.
const TRACE_CTL: libc::c_int = 7;
const DISABLE: libc::c_int = 2;

/// Prevents other processes of the user from tracing this one and reading its memory, and core dumps, until an execve(2)
/// (procctl(2), `PROC_TRACE_CTL`).
///
/// # Errors
/// The kernel refuses it, for example because a debugger traces this process.
pub fn deny_tracing() -> io::Result<()> {
    let mut value = DISABLE;
    // SAFETY: the command reads an int, which lives through the call; id 0 is this process.
    let result = unsafe { libc::procctl(libc::P_PID, 0, TRACE_CTL, (&raw mut value).cast()) };
    match result {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}
