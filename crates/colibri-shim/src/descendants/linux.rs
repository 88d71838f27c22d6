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
    set_child_subreaper, test_kill_process,
};

/// Makes orphaned descendants children of this process (`PR_SET_CHILD_SUBREAPER`, prctl(2)).
pub(crate) fn become_reaper() -> io::Result<()> {
    Ok(set_child_subreaper(Some(getpid()))?)
}

/// Returns the pids of all descendants, zombies included, in no particular order, without the child `except` and its
/// descendants.
///
/// The list can miss a process whose sibling ends at the same time (proc_tid_children(5)). A kill therefore repeats its
/// rounds until wait(2) reports that no descendant is left.
pub(crate) fn list(except: Option<Pid>) -> io::Result<Vec<i32>> {
    let shim = raw(getpid());
    let except = except.map(raw);
    let mut found = Vec::new();
    let mut parents = vec![shim];
    while let Some(parent) = parents.pop() {
        let mut children = match children(parent) {
            Ok(children) => children,
            // A kernel without CONFIG_PROC_CHILDREN (proc_tid_children(5)).
            Err(error) if error.kind() == io::ErrorKind::NotFound && parent == shim => {
                return list_by_parents(shim, except);
            }
            // The process has ended. Its children are now children of the shim, and the next call finds them.
            Err(_) => continue,
        };
        children.retain(|pid| Some(*pid) != except);
        found.extend_from_slice(&children);
        parents.extend(children);
    }
    Ok(found)
}

/// Returns the same as [`list`], from the parents of all processes of the host.
fn list_by_parents(shim: i32, except: Option<i32>) -> io::Result<Vec<i32>> {
    let mut found = process::descendants(shim)?;
    if let Some(except) = except {
        let excluded = process::descendants(except)?;
        found.retain(|pid| *pid != except && !excluded.contains(pid));
    }
    Ok(found)
}

fn raw(pid: Pid) -> i32 {
    pid.as_raw_nonzero().get()
}

/// Returns those of `pids` that are descendants and have not ended.
pub(crate) fn running(pids: &[i32]) -> io::Result<Vec<i32>> {
    let mut found = list(None)?;
    found.retain(|pid| pids.contains(pid) && !has_ended(*pid));
    Ok(found)
}

/// Returns whether a process has ended, also if it is a zombie.
fn has_ended(pid: i32) -> bool {
    matches!(process::find(pid), Ok(None))
}

/// Returns those of `pids` that are stopped: state `T` in `/proc/PID/stat` (proc_pid_stat(5)), after the last `)`.
pub(crate) fn stopped(pids: &[i32]) -> io::Result<Vec<i32>> {
    let is_stopped = |pid: &&i32| {
        let stat = fs::read(format!("/proc/{pid}/stat")).unwrap_or_default();
        let state = stat.rsplit(|byte| *byte == b')').next();
        state.is_some_and(|fields| fields.starts_with(b" T"))
    };
    Ok(pids.iter().filter(is_stopped).copied().collect())
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
/// signalled separately, and no group. The child `except` and its descendants get no signal.
pub(crate) fn signal_all(
    signal: Signal,
    group: Option<Pid>,
    spared: Option<Pid>,
    except: Option<Pid>,
) -> io::Result<SignalDelivery> {
    let group = group.filter(|_| spared.is_none());
    let mut delivery = SignalDelivery::default();
    let mut descendants = open_all(list(except)?, except)?;
    if let Some(group) = group {
        let is_member = |(pid, _): &(Pid, OwnedFd)| getpgid(Some(*pid)) == Ok(group);
        let (members, others) = descendants.into_iter().partition(is_member);
        let members: Vec<(Pid, OwnedFd)> = members;
        delivery.sent += usize::from(kill_process_group(group, signal).is_ok());
        delivery.denied = denied(members.into_iter().map(|(pid, _)| pid));
        descendants = others;
    }
    descendants.retain(|(pid, _)| Some(*pid) != spared);
    for (pid, pidfd) in &descendants {
        match pidfd_send_signal(pidfd, signal) {
            Ok(()) => delivery.sent += 1,
            // The kernel also denies signals to zombies of other users.
            Err(Errno::PERM) if !has_ended(raw(*pid)) => delivery.denied.push(raw(*pid)),
            Err(_) => {}
        }
    }
    Ok(delivery)
}

/// Signals the process group of a leader that has not been reaped.
pub(crate) fn signal_group(signal: Signal, leader: Pid) -> io::Result<SignalDelivery> {
    let sent = kill_process_group(leader, signal).is_ok();
    let members = list(None)?.into_iter().filter_map(Pid::from_raw);
    let members = members.filter(|pid| getpgid(Some(*pid)) == Ok(leader));
    Ok(SignalDelivery {
        sent: usize::from(sent),
        denied: denied(members),
        ..SignalDelivery::default()
    })
}

/// Returns the processes that run and that this user may not signal. A signal to a group succeeds if one member gets it
/// (kill(2)).
fn denied(pids: impl Iterator<Item = Pid>) -> Vec<i32> {
    pids.filter(|pid| test_kill_process(*pid) == Err(Errno::PERM))
        .map(raw)
        .filter(|pid| !has_ended(*pid))
        .collect()
}

/// Opens pidfds of descendants. `pids` is a list that [`list`] returned.
///
/// A pid is listed, opened and listed again. A pid in the second list belongs to a descendant, so the pidfd refers to
/// this descendant or to a process that has ended (pidfd_open(2)), and never to an unrelated process.
fn open_all(pids: Vec<i32>, except: Option<Pid>) -> io::Result<Vec<(Pid, OwnedFd)>> {
    let open = |pid| {
        let pid = Pid::from_raw(pid)?;
        Some((pid, pidfd_open(pid, PidfdFlags::empty()).ok()?))
    };
    let mut opened: Vec<_> = pids.into_iter().filter_map(open).collect();
    let listed_again: HashSet<i32> = list(except)?.into_iter().collect();
    opened.retain(|(pid, _)| listed_again.contains(&raw(*pid)));
    Ok(opened)
}

/// Sends STOP to every descendant that is not in `stopped`, and adds it. Returns whether a signal was sent. The child
/// `except` and its descendants get no signal.
///
/// A stopped process cannot fork. When a sweep finds no new process, no descendant runs any more, and one round of KILL
/// ends all of them, even a fork bomb.
pub(crate) fn stop_running(stopped: &mut HashSet<i32>, except: Option<Pid>) -> io::Result<bool> {
    let mut any = false;
    let mut running = list(except)?;
    running.retain(|pid| !stopped.contains(pid));
    for (pid, pidfd) in open_all(running, except)? {
        any |= pidfd_send_signal(&pidfd, Signal::STOP).is_ok();
        stopped.insert(raw(pid));
    }
    Ok(any)
}

/// Returns whether the sandbox of a descendant contains a process besides its init. bwrap forks that process, which
/// becomes the agent's program, when the sandbox is ready. Before that a signal is lost: the kernel discards signals
/// for which an init has no handler (pid_namespaces(7)).
pub(crate) fn has_sandboxed_program(except: Option<Pid>) -> bool {
    let depth = process::namespace_pids(None).map_or(1, |own| own.pids.len());
    list(except).unwrap_or_default().iter().any(|pid| {
        process::namespace_pids(Some(*pid)).is_some_and(|process| {
            !process.is_zombie
                && process.pids.len() > depth
                && process.pids.last().is_some_and(|pid| *pid != 1)
        })
    })
}

/// Returns the processes in a separate pid namespace, or all if none is in one. A signal to a wrapper outside the sandbox
/// (bwrap, sudo) would kill the agent before the agent can handle the signal.
pub(crate) fn sandboxed(pids: Vec<i32>) -> Vec<i32> {
    let depth = |pid| process::namespace_pids(pid).map(|process| process.pids.len());
    let own_depth = depth(None);
    let is_sandboxed = |pid: &i32| depth(Some(*pid)) > own_depth;
    match pids.iter().any(is_sandboxed) {
        true => pids.into_iter().filter(is_sandboxed).collect(),
        false => pids,
    }
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
        let shim = raw(getpid());
        let grandchild = loop {
            let grandchildren = children(child.id() as i32).unwrap();
            if let Some(pid) = grandchildren.first() {
                break *pid;
            }
        };
        assert!(list(None).unwrap().contains(&grandchild));
        let except = Some(Pid::from_child(&child));
        for listed in [list(except), list_by_parents(shim, except.map(raw))] {
            let listed = listed.unwrap();
            assert!(!listed.contains(&grandchild), "{listed:?}");
            assert!(!listed.contains(&(child.id() as i32)), "{listed:?}");
        }
        assert!(process::descendants(shim).unwrap().contains(&grandchild));
        let _ = pidfd_send_signal(
            pidfd_open(Pid::from_raw(grandchild).unwrap(), PidfdFlags::empty()).unwrap(),
            Signal::KILL,
        );
        let _ = child.kill();
        child.wait().unwrap();
    }
}
