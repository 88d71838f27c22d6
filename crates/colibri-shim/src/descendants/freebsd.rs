//! FreeBSD: the kernel's reaper facility lists and signals every descendant, also in jails.

use std::collections::HashSet;
use std::io;

use colibri_shim::control::SignalDelivery;
use rustix::io::Errno;
use rustix::process::{Pid, PidInfoFlags, Signal, get_reaper_pids, reaper_kill, set_reaper_status};

/// Makes orphaned descendants children of this process (procctl(2) `PROC_REAP_ACQUIRE`).
pub(crate) fn become_reaper() -> io::Result<()> {
    Ok(set_reaper_status(true)?)
}

/// Returns the pids of all descendants except zombies, jailed ones included (procctl(2) `PROC_REAP_GETPIDS`).
pub(crate) fn list() -> io::Result<Vec<i32>> {
    let infos = get_reaper_pids(None)?;
    Ok(infos
        .iter()
        .filter(|info| !info.flags.contains(PidInfoFlags::ZOMBIE))
        .map(|info| info.pid.as_raw_nonzero().get())
        .collect())
}

/// Signals every descendant in one system call, so that no reused pid is hit (procctl(2) `PROC_REAP_KILL`). That
/// includes the process group; wrappers to spare exist on Linux only.
pub(crate) fn signal_all(
    signal: Signal,
    _group: Option<Pid>,
    _spared: Option<Pid>,
) -> io::Result<SignalDelivery> {
    match reaper_kill(None, signal, false, None) {
        Ok(result) => Ok(SignalDelivery {
            sent: result.killed,
            denied: result
                .first_failed
                .map(|pid| pid.as_raw_nonzero().get())
                .into_iter()
                .collect(),
        }),
        Err(Errno::SRCH) => Ok(SignalDelivery::default()),
        // No process was signalled: all of them run as another user.
        Err(Errno::PERM) => Ok(SignalDelivery {
            sent: 0,
            denied: list()?,
        }),
        Err(error) => Err(error.into()),
    }
}

/// Returns `true`: jail(8) and jexec(8) execute the program in their own process, so that no signal is lost.
pub(crate) fn has_sandboxed_program() -> bool {
    true
}

/// Does nothing: `PROC_REAP_KILL` signals every descendant in one system call, including those being forked.
pub(crate) fn stop_running(_stopped: &mut HashSet<i32>) -> io::Result<bool> {
    Ok(false)
}
