//! The boundary to the system: inherited descriptors and the end of a parent. The unsafe block is here.

use std::io;
use std::os::fd::{FromRawFd, OwnedFd};

use rustix::process::Pid;
use signal_hook::consts::{SIGALRM, SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGUSR1, SIGUSR2};

/// Signals that are sent to all processes of an agent.
pub(crate) const IGNORED: &[i32] = &[SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGUSR1, SIGUSR2, SIGALRM];

/// Takes over a socket that was left open for this program.
pub(crate) fn take_socket(number: i32) -> Option<OwnedFd> {
    if number < 3 {
        return None;
    }
    // SAFETY: nothing has been opened in this process yet, and stdio is excluded, so nobody else owns the number;
    // one that is not open is found out below before it is used.
    #[allow(unsafe_code)]
    let socket = unsafe { OwnedFd::from_raw_fd(number) };
    match rustix::net::sockopt::socket_type(&socket) {
        Ok(_) => Some(socket),
        Err(_) => {
            // To close what is not open would end the program in a debug build.
            std::mem::forget(socket);
            None
        }
    }
}

/// Makes the kernel end this process when its parent ends (prctl(2) `PR_SET_PDEATHSIG`, procctl(2)
/// `PROC_PDEATHSIG_CTL`), also where that has happened already.
pub(crate) fn end_with(parent: Option<i32>) -> io::Result<()> {
    let parent = parent.and_then(Pid::from_raw);
    colibri_sys::process::die_with_parent(parent.ok_or(rustix::io::Errno::SRCH)?)
}
