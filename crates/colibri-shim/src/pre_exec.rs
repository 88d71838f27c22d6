//! What the agent's process does between fork(2) and execve(2). The only unsafe code of the shim.

#![allow(unsafe_code)]

use std::fs::File;
use std::io;
use std::os::fd::{BorrowedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::process::Command;

use colibri_shim::launch::Launch;
use colibri_sys::descriptors::duplicate_to;
use rustix::fs::Mode;
use rustix::io::{FdFlags, fcntl_setfd};
use rustix::process::{
    Resource, Rlimit, getpid, getrlimit, ioctl_tiocsctty, setrlimit, setsid, umask,
};
use rustix::stdio::stdin;

/// Makes the process of `command` enter the cgroup of `cgroup_procs`, get the limits and the umask of the launch, reset
/// its signal mask and signal actions, and receive KILL when the shim ends, so that a killed shim leaves no unsupervised
/// agent.
///
/// If the launch says so, it leads a session with its standard input as the controlling terminal.
///
/// `inherited` stays open in the new program, and each descriptor of `held` under its second number.
pub(crate) fn set_up(
    command: &mut Command,
    launch: &Launch,
    cgroup_procs: Option<File>,
    inherited: Option<UnixStream>,
    held: Vec<(RawFd, RawFd)>,
) {
    let shim = getpid();
    let mask = launch.options.umask.unwrap_or_default().bits();
    // The type is 16 bits wide on FreeBSD.
    let mask = Mode::from_bits_truncate(mask as _);
    let limits = launch.limits;
    let leads_session = launch.leads_session();
    // A pre-started shim may have inherited a lower soft limit from its parent.
    let Rlimit { maximum, .. } = getrlimit(Resource::Nofile);
    let _ = set_both(Resource::Nofile, maximum);
    // SAFETY: the closure runs between fork(2) and execve(2) of a single-threaded process and makes a few system calls.
    // It neither allocates nor takes a lock.
    unsafe {
        command.pre_exec(move || {
            if leads_session {
                setsid()?;
                ioctl_tiocsctty(stdin())?;
            }
            if let Some(procs) = &cgroup_procs {
                // The kernel reads 0 as the writing process (cgroups(7)).
                rustix::io::write(procs, b"0")?;
            }
            for (descriptor, number) in &held {
                // SAFETY: the descriptor is open as long as the shim lives, and no value owns the number in this process.
                let descriptor = BorrowedFd::borrow_raw(*descriptor);
                duplicate_to(&descriptor, *number)?;
            }
            match limits.open_files {
                Some(_) => set_both(Resource::Nofile, limits.open_files)?,
                None => {
                    lower_soft(Resource::Nofile, limits.soft_files)?;
                    lower_hard(Resource::Nofile, limits.hard_files)?;
                }
            }
            if limits.data.is_some() {
                set_both(Resource::Data, limits.data)?;
            }
            if let Some(inherited) = &inherited {
                fcntl_setfd(inherited, FdFlags::empty())?;
            }
            umask(mask);
            colibri_sys::signals::reset_for_exec();
            colibri_sys::process::die_with_parent(shim)
        });
    }
}

fn set_both(resource: Resource, limit: Option<u64>) -> io::Result<()> {
    let limits = Rlimit {
        current: limit,
        maximum: limit,
    };
    Ok(setrlimit(resource, limits)?)
}

/// Lowers the hard limit, and with it the soft limit; never raises them.
fn lower_hard(resource: Resource, hard: Option<u64>) -> io::Result<()> {
    let Rlimit { current, maximum } = getrlimit(resource);
    if let Some(hard) = hard.filter(|hard| maximum.is_none_or(|maximum| *hard < maximum)) {
        let limits = Rlimit {
            current: Some(current.map_or(hard, |current| current.min(hard))),
            maximum: Some(hard),
        };
        setrlimit(resource, limits)?;
    }
    Ok(())
}

/// Lowers the soft limit; never raises it.
fn lower_soft(resource: Resource, soft: Option<u64>) -> io::Result<()> {
    let Rlimit { current, maximum } = getrlimit(resource);
    if soft.is_some_and(|soft| current.is_none_or(|current| soft < current)) {
        let current = soft;
        setrlimit(resource, Rlimit { current, maximum })?;
    }
    Ok(())
}
