//! Linux: the shim is a subreaper, finds its descendants in /proc, and signals them through pidfds, so that no reused
//! pid is hit.

use std::collections::HashSet;
use std::fs;
use std::io;
use std::os::fd::OwnedFd;

use colibri_shim::control::SignalDelivery;
use colibri_sys::process;
use rustix::io::Errno;
use rustix::process::{
    Pid, PidfdFlags, Signal, getpgid, getpid, kill_process_group, pidfd_open, pidfd_send_signal,
    set_child_subreaper,
};

/// Makes orphaned descendants children of this process (`PR_SET_CHILD_SUBREAPER`, prctl(2)).
pub(crate) fn become_reaper() -> io::Result<()> {
    Ok(set_child_subreaper(Some(getpid()))?)
}

/// Returns the pids of all descendants, zombies included, in no particular order.
///
/// The list can miss a process whose sibling ends at the same time (proc_tid_children(5)). A kill therefore repeats its
/// rounds until wait(2) reports that no descendant is left.
pub(crate) fn list() -> io::Result<Vec<i32>> {
    let shim = getpid().as_raw_nonzero().get();
    let mut found = Vec::new();
    let mut parents = vec![shim];
    while let Some(parent) = parents.pop() {
        let children = match children(parent) {
            Ok(children) => children,
            // A kernel without CONFIG_PROC_CHILDREN (proc_tid_children(5)).
            Err(error) if error.kind() == io::ErrorKind::NotFound && parent == shim => {
                return process::descendants(shim);
            }
            // The process has ended. Its children are now children of the shim, and the next call finds them.
            Err(_) => continue,
        };
        found.extend_from_slice(&children);
        parents.extend(children);
    }
    Ok(found)
}

/// Returns the children of all threads of a process (`/proc/PID/task/TID/children`, proc_tid_children(5)).
fn children(pid: i32) -> io::Result<Vec<i32>> {
    let mut pids = Vec::new();
    for task in fs::read_dir(format!("/proc/{pid}/task"))? {
        let text = fs::read_to_string(task?.path().join("children"))?;
        pids.extend(
            text.split_whitespace()
                .filter_map(|word| word.parse::<i32>().ok()),
        );
    }
    Ok(pids)
}

/// Signals the process group `group` and every descendant outside of it. `group` must have a leader that has not been
/// reaped, because the number could be reused after that. If `spared` is given, every descendant but that process is
/// signalled separately, and no group.
pub(crate) fn signal_all(
    signal: Signal,
    group: Option<Pid>,
    spared: Option<Pid>,
) -> io::Result<SignalDelivery> {
    let group = group.filter(|_| spared.is_none());
    let mut delivery = SignalDelivery::default();
    let mut count = |pid: Pid, sent: Result<(), Errno>| match sent {
        Ok(()) => delivery.sent += 1,
        Err(Errno::PERM) => delivery.denied.push(pid.as_raw_nonzero().get()),
        Err(_) => {}
    };
    let mut descendants = open_all(list()?)?;
    descendants.retain(|(pid, _)| match group {
        Some(_) => getpgid(Some(*pid)).ok() != group,
        None => Some(*pid) != spared,
    });
    if let Some(group) = group {
        count(group, kill_process_group(group, signal));
    }
    for (pid, pidfd) in &descendants {
        count(*pid, pidfd_send_signal(pidfd, signal));
    }
    Ok(delivery)
}

/// Opens pidfds of descendants. `pids` is a list that [`list`] returned.
///
/// A pid is listed, opened and listed again. A pid in the second list belongs to a descendant, so the pidfd refers to
/// this descendant or to a process that has ended (pidfd_open(2)), and never to an unrelated process.
fn open_all(pids: Vec<i32>) -> io::Result<Vec<(Pid, OwnedFd)>> {
    let open = |pid| {
        let pid = Pid::from_raw(pid)?;
        Some((pid, pidfd_open(pid, PidfdFlags::empty()).ok()?))
    };
    let mut opened: Vec<_> = pids.into_iter().filter_map(open).collect();
    let listed_again: HashSet<i32> = list()?.into_iter().collect();
    opened.retain(|(pid, _)| listed_again.contains(&pid.as_raw_nonzero().get()));
    Ok(opened)
}

/// Sends STOP to every descendant that is not in `stopped`, and adds it. Returns whether a signal was sent.
///
/// A stopped process cannot fork. When a sweep finds no new process, no descendant runs any more, and one round of KILL
/// ends all of them, even a fork bomb.
pub(crate) fn stop_running(stopped: &mut HashSet<i32>) -> io::Result<bool> {
    let mut any = false;
    let mut running = list()?;
    running.retain(|pid| !stopped.contains(pid));
    for (pid, pidfd) in open_all(running)? {
        any |= pidfd_send_signal(&pidfd, Signal::STOP).is_ok();
        stopped.insert(pid.as_raw_nonzero().get());
    }
    Ok(any)
}

/// Returns whether the sandbox of a descendant contains a process besides its init. bwrap forks that process, which
/// becomes the agent's program, when the sandbox is ready. Before that a signal is lost: the kernel discards signals
/// for which an init has no handler (pid_namespaces(7)).
pub(crate) fn has_sandboxed_program() -> bool {
    let depth = process::namespace_pids(None).map_or(1, |own| own.pids.len());
    list().unwrap_or_default().iter().any(|pid| {
        process::namespace_pids(Some(*pid)).is_some_and(|process| {
            !process.is_zombie
                && process.pids.len() > depth
                && process.pids.last().is_some_and(|pid| *pid != 1)
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::{Command, Stdio};

    #[test]
    fn both_lists_contain_a_grandchild() {
        let mut child = Command::new("sh")
            .args(["-c", "sleep 1000 & wait"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let shim = getpid().as_raw_nonzero().get();
        let grandchild = loop {
            let grandchildren = children(child.id() as i32).unwrap();
            if let Some(pid) = grandchildren.first() {
                break *pid;
            }
        };
        assert!(list().unwrap().contains(&grandchild));
        assert!(process::descendants(shim).unwrap().contains(&grandchild));
        let _ = pidfd_send_signal(
            pidfd_open(Pid::from_raw(grandchild).unwrap(), PidfdFlags::empty()).unwrap(),
            Signal::KILL,
        );
        let _ = child.kill();
        child.wait().unwrap();
    }
}
