//! The relation of a process to its parent.

use std::io;

use rustix::process::{Pid, Signal, getppid, set_parent_process_death_signal};

/// Makes the kernel send KILL to the calling process when its parent ends (`PR_SET_PDEATHSIG`, prctl(2);
/// `PROC_PDEATHSIG_CTL`, procctl(2)). `parent` is the parent as it was before fork(2).
///
/// # Errors
/// The kernel refuses, or the parent has already ended, so that the signal would never be sent.
pub fn die_with_parent(parent: Pid) -> io::Result<()> {
    set_parent_process_death_signal(Some(Signal::KILL))?;
    // The parent may have ended between fork(2) and the call above.
    match getppid() {
        Some(now) if now == parent => Ok(()),
        _ => Err(io::Error::from(rustix::io::Errno::SRCH)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parent_that_ended_before_the_call_is_an_error() {
        let parent = getppid().unwrap();
        die_with_parent(parent).unwrap();
        let other = Pid::from_raw(i32::MAX).unwrap();
        let error = die_with_parent(other).unwrap_err();
        assert_eq!(
            error.raw_os_error(),
            Some(rustix::io::Errno::SRCH.raw_os_error())
        );
    }
}
