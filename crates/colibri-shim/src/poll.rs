//! poll(2) with a deadline.

use std::io;
use std::time::Instant;

use rustix::event::{PollFd, Timespec, poll};
use rustix::io::Errno;

/// Longest wait of one call, for deadlines that a timespec cannot represent.
const MAX_WAIT: Timespec = Timespec {
    tv_sec: 3600,
    tv_nsec: 0,
};

/// Waits until a descriptor is ready, the deadline has passed or a signal is received. May return earlier; call it in a
/// loop.
///
/// # Errors
/// poll(2) failed.
pub(crate) fn poll_until(fds: &mut [PollFd<'_>], deadline: Option<Instant>) -> io::Result<()> {
    let timeout = deadline.map(|at| {
        let left = at.saturating_duration_since(Instant::now());
        Timespec::try_from(left).unwrap_or(MAX_WAIT)
    });
    match poll(fds, timeout.as_ref()) {
        Ok(_) | Err(Errno::INTR) => Ok(()),
        Err(error) => Err(error.into()),
    }
}
