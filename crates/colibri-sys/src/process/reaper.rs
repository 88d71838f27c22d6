//! Signals to all descendants of this process (FreeBSD). rustix converts the pid -1 of the kernel's answer and panics in
//! debug builds.
#![allow(unsafe_code)]

use std::io;

use rustix::io::Errno;
use rustix::process::{Pid, Signal};

/// `struct procctl_reaper_kill` of sys/procctl.h.
#[repr(C)]
#[derive(Default)]
struct ReaperKill {
    signal: libc::c_int,
    flags: libc::c_uint,
    subtree: libc::pid_t,
    killed: libc::c_uint,
    first_failed: libc::pid_t,
    pad: [libc::c_uint; 15],
}

/// `REAPER_KILL_SUBTREE` of sys/procctl.h.
const SUBTREE: libc::c_uint = 2;

/// Signals all descendants of this reaper, or those that one child of it started, in one system call (procctl(2),
/// `PROC_REAP_KILL`). Returns the number of processes that were signalled. The kernel names none that it denied.
///
/// # Errors
/// The kernel refuses the request; no descendant, and none that this user may signal, is not an error.
pub fn signal_descendants(signal: Signal, subtree: Option<Pid>) -> io::Result<usize> {
    let mut request = ReaperKill {
        signal: signal.as_raw(),
        ..ReaperKill::default()
    };
    if let Some(child) = subtree {
        request.flags = SUBTREE;
        request.subtree = child.as_raw_nonzero().get();
    }
    // SAFETY: the command takes a procctl_reaper_kill, which lives through the call; id 0 is this process.
    let result = unsafe {
        libc::procctl(
            libc::P_PID,
            0,
            libc::PROC_REAP_KILL,
            (&raw mut request).cast(),
        )
    };
    let killed = usize::try_from(request.killed).unwrap_or(usize::MAX);
    if result >= 0 {
        return Ok(killed);
    }
    let error = io::Error::last_os_error();
    match Errno::from_io_error(&error) {
        Some(Errno::SRCH | Errno::PERM) => Ok(killed),
        _ => Err(error),
    }
}
