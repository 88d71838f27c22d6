//! The kernel's description of a process (FreeBSD, sysctl(3) `KERN_PROC_PID`). ps(1) reports the same and costs a fork, an
//! execve(2) and its libraries for each question.
#![allow(unsafe_code)]

use std::io;

use rustix::io::Errno;

use super::Process;

/// `SZOMB` of sys/proc.h: the process has ended and its parent has not collected it.
const ZOMBIE: i8 = 5;

/// Returns the process with a pid, with the start time in seconds since 1970; `None` if there is none, or a zombie.
///
/// # Errors
/// The kernel refuses the request, or has another layout of `struct kinfo_proc`.
pub(super) fn find(pid: i32) -> io::Result<Option<Process>> {
    let mib = [libc::CTL_KERN, libc::KERN_PROC, libc::KERN_PROC_PID, pid];
    // SAFETY: all bytes zero is a valid kinfo_proc, which consists of numbers, arrays and pointers.
    let mut info: libc::kinfo_proc = unsafe { std::mem::zeroed() };
    let mut size = size_of::<libc::kinfo_proc>();
    // SAFETY: mib has four numbers, info has size bytes, both live through the call, and nothing is set.
    let result = unsafe {
        libc::sysctl(
            mib.as_ptr(),
            4,
            (&raw mut info).cast(),
            &raw mut size,
            std::ptr::null(),
            0,
        )
    };
    if result < 0 {
        let error = io::Error::last_os_error();
        return match Errno::from_io_error(&error) {
            Some(Errno::SRCH) => Ok(None),
            _ => Err(error),
        };
    }
    if size == 0 {
        return Ok(None);
    }
    if size != size_of::<libc::kinfo_proc>() || info.ki_structsize as usize != size {
        return Err(io::Error::other(
            "the kernel has another layout of kinfo_proc; build Colibri for this release of FreeBSD",
        ));
    }
    if info.ki_pid != pid || info.ki_stat as i8 == ZOMBIE {
        return Ok(None);
    }
    let start = u64::try_from(info.ki_start.tv_sec).map_err(io::Error::other)?;
    Ok(Some(Process {
        pid,
        parent: info.ki_ppid,
        session: info.ki_sid,
        start,
    }))
}
