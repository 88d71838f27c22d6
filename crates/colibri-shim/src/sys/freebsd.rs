//! FreeBSD: the kernel's reaper facility knows every descendant, also in jails, and signals them itself.

use std::io;

use colibri_shim::control::Delivery;
use rustix::io::Errno;
use rustix::process::{
    Pid, PidInfoFlags, Resource, Signal, get_reaper_pids, getrlimit, reaper_kill, set_reaper_status,
};

/// All numbers that a descriptor above stdio can have: /dev/fd does not list them without fdescfs(5).
pub(crate) fn open_descriptors() -> impl Iterator<Item = i32> {
    let limit = getrlimit(Resource::Nofile).current;
    3..limit
        .and_then(|limit| i32::try_from(limit).ok())
        .unwrap_or(65_536)
}

/// Orphaned descendants become children of this process (procctl(2) `PROC_REAP_ACQUIRE`).
pub(crate) fn become_reaper() -> io::Result<()> {
    Ok(set_reaper_status(true)?)
}

/// Every descendant of this process, jailed ones included (procctl(2) `PROC_REAP_GETPIDS`).
pub(crate) fn descendants() -> io::Result<Vec<i32>> {
    let infos = get_reaper_pids(None)?;
    Ok(infos
        .iter()
        .filter(|info| !info.flags.contains(PidInfoFlags::ZOMBIE))
        .map(|info| info.pid.as_raw_nonzero().get())
        .collect())
}

/// Signals every descendant in one system call, so that no reused pid can be hit (procctl(2)
/// `PROC_REAP_KILL`). That includes the process group, and wrappers to be spared exist on Linux only.
pub(crate) fn signal_all(
    signal: Signal,
    _group: Option<Pid>,
    _wrapper: Option<i32>,
) -> io::Result<Delivery> {
    match reaper_kill(None, signal, false, None) {
        Ok(result) => Ok(Delivery {
            sent: result.killed,
            denied: result
                .first_failed
                .map(|pid| pid.as_raw_nonzero().get())
                .into_iter()
                .collect(),
        }),
        Err(Errno::SRCH) => Ok(Delivery::default()),
        // Nobody could be signalled: all of them run as another user.
        Err(Errno::PERM) => Ok(Delivery {
            sent: 0,
            denied: descendants()?,
        }),
        Err(error) => Err(error.into()),
    }
}
