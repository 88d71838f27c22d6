//! FreeBSD: the kernel's reaper facility lists and signals every descendant, also in jails.

use std::collections::HashSet;
use std::io;

use colibri_shim::control::SignalDelivery;
use colibri_sys::process::signal_descendants;
use rustix::io::Errno;
use rustix::process::{
    IdType, Pid, PidInfo, PidInfoFlags, Signal, get_reaper_pids, getpgid, kill_process_group,
    set_reaper_status, test_kill_process,
};

/// Maximum number of reapers among the descendants whose own descendants are listed.
const MAX_REAPERS: usize = 64;

/// Makes orphaned descendants children of this process (procctl(2) `PROC_REAP_ACQUIRE`).
pub(crate) fn become_reaper() -> io::Result<()> {
    Ok(set_reaper_status(true)?)
}

/// Returns all descendants except zombies, jailed ones included, without the child `except` and its descendants
/// (procctl(2) `PROC_REAP_GETPIDS`). The kernel lists the descendants of a reaper such as timeout(1) separately.
fn infos(except: Option<Pid>) -> io::Result<Vec<PidInfo>> {
    let mut found = get_reaper_pids(None)?;
    found.retain(|info| Some(info.subtree) != except);
    let mut reapers = 0;
    let mut next = 0;
    while let Some(info) = found.get(next) {
        next += 1;
        let is_reaper = info.flags.contains(PidInfoFlags::REAPER);
        if is_reaper && !info.flags.contains(PidInfoFlags::ZOMBIE) && reapers < MAX_REAPERS {
            reapers += 1;
            // Fails if the reaper has ended; its descendants are then those of this process, and the next call lists them.
            let below = get_reaper_pids(Some((IdType::Pid, info.pid))).unwrap_or_default();
            let known: HashSet<Pid> = found.iter().map(|info| info.pid).collect();
            let is_new =
                |info: &PidInfo| !known.contains(&info.pid) && Some(info.subtree) != except;
            found.extend(below.into_iter().filter(is_new));
        }
    }
    found.retain(|info| !info.flags.contains(PidInfoFlags::ZOMBIE));
    Ok(found)
}

/// Returns the pids of all descendants except zombies, jailed ones included, without the child `except` and its
/// descendants.
pub(crate) fn list(except: Option<Pid>) -> io::Result<Vec<i32>> {
    Ok(infos(except)?.iter().map(|info| raw(info.pid)).collect())
}

/// Returns those of `pids` that are descendants and have not ended.
pub(crate) fn running(pids: &[i32]) -> io::Result<Vec<i32>> {
    let mut found = list(None)?;
    found.retain(|pid| pids.contains(pid));
    Ok(found)
}

/// Returns those of `pids` that are stopped descendants.
pub(crate) fn stopped(pids: &[i32]) -> io::Result<Vec<i32>> {
    let mut found = infos(None)?;
    found.retain(|info| info.flags.contains(PidInfoFlags::STOPPED));
    let found = found.iter().map(|info| raw(info.pid));
    Ok(found.filter(|pid| pids.contains(pid)).collect())
}

/// Signals every descendant in one system call, so that no reused pid is hit (procctl(2) `PROC_REAP_KILL`). That
/// includes the process group; wrappers to spare exist on Linux only. The child `except` and its descendants get no
/// signal.
pub(crate) fn signal_all(
    signal: Signal,
    _group: Option<Pid>,
    _spared: Option<Pid>,
    except: Option<Pid>,
) -> io::Result<SignalDelivery> {
    let mut delivery = SignalDelivery::default();
    let mut send = |subtree| -> io::Result<()> {
        delivery.sent += signal_descendants(signal, subtree)?;
        Ok(())
    };
    match except {
        None => send(None)?,
        Some(except) => {
            let infos = get_reaper_pids(None)?;
            let subtrees: HashSet<Pid> = infos.iter().map(|info| info.subtree).collect();
            for subtree in subtrees.into_iter().filter(|subtree| *subtree != except) {
                send(Some(subtree))?;
            }
        }
    }
    delivery.denied = denied(&infos(except)?);
    Ok(delivery)
}

/// Signals the process group of a leader that has not been reaped.
pub(crate) fn signal_group(signal: Signal, leader: Pid) -> io::Result<SignalDelivery> {
    let sent = kill_process_group(leader, signal).is_ok();
    let mut members = infos(None)?;
    members.retain(|info| getpgid(Some(info.pid)) == Ok(leader));
    Ok(SignalDelivery {
        sent: usize::from(sent),
        denied: denied(&members),
        ..SignalDelivery::default()
    })
}

/// Returns the processes that this user may not signal. `PROC_REAP_KILL` does not name them: it returns ESRCH if all
/// targets were denied, and success without a pid if some were.
fn denied(infos: &[PidInfo]) -> Vec<i32> {
    let is_denied = |info: &&PidInfo| test_kill_process(info.pid) == Err(Errno::PERM);
    infos
        .iter()
        .filter(is_denied)
        .map(|info| raw(info.pid))
        .collect()
}

fn raw(pid: Pid) -> i32 {
    pid.as_raw_nonzero().get()
}

/// Returns `true`: jail(8) and jexec(8) execute the program in their own process, so that no signal is lost.
pub(crate) fn has_sandboxed_program(_except: Option<Pid>) -> bool {
    true
}

/// Returns `pids`: no engine of this system has a separate pid namespace.
pub(crate) fn sandboxed(pids: Vec<i32>) -> Vec<i32> {
    pids
}

/// Does nothing: `PROC_REAP_KILL` signals every descendant in one system call, including those being forked.
pub(crate) fn stop_running(_stopped: &mut HashSet<i32>, _except: Option<Pid>) -> io::Result<bool> {
    Ok(false)
}
