//! Linux: subreaper, descendants from /proc, signals through pidfd so that a reused pid is never hit.

use std::collections::{HashMap, HashSet};
use std::fs;
use std::io;
use std::os::fd::OwnedFd;

use colibri_shim::control::Delivery;
use colibri_shim::process;
use rustix::io::Errno;
use rustix::process::{
    Pid, PidfdFlags, Signal, getpgid, getpid, kill_process_group, pidfd_open, pidfd_send_signal,
    set_child_subreaper,
};

/// Orphaned descendants become children of this process (`PR_SET_CHILD_SUBREAPER`, prctl(2)).
pub(crate) fn become_reaper() -> io::Result<()> {
    Ok(set_child_subreaper(Some(getpid()))?)
}

/// Every descendant of this process, zombies included, in no particular order.
pub(crate) fn descendants() -> io::Result<Vec<i32>> {
    let own = getpid().as_raw_nonzero().get();
    let mut found = Vec::new();
    let mut parents = vec![own];
    while let Some(parent) = parents.pop() {
        let children = match children(parent) {
            Ok(children) => children,
            // A kernel without CONFIG_PROC_CHILDREN, which proc_pid_children(5) allows.
            Err(error) if error.kind() == io::ErrorKind::NotFound && parent == own => {
                return descendants_by_scan(own);
            }
            // It ended meanwhile: its children have moved up to this process and are seen next time.
            Err(_) => continue,
        };
        found.extend_from_slice(&children);
        parents.extend(children);
    }
    Ok(found)
}

/// Children of all threads of a process: `/proc/PID/task/TID/children`, proc_pid_children(5).
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

fn descendants_by_scan(root: i32) -> io::Result<Vec<i32>> {
    let mut by_parent: HashMap<i32, Vec<i32>> = HashMap::new();
    for entry in fs::read_dir("/proc")? {
        let name = entry?.file_name();
        let Some(pid) = name.to_str().and_then(|name| name.parse::<i32>().ok()) else {
            continue;
        };
        if let Ok(Some(process)) = process::find(pid) {
            by_parent.entry(process.parent).or_default().push(pid);
        }
    }
    let mut found = Vec::new();
    let mut parents = vec![root];
    while let Some(parent) = parents.pop() {
        if let Some(children) = by_parent.remove(&parent) {
            found.extend_from_slice(&children);
            parents.extend(children);
        }
    }
    Ok(found)
}

/// Signals the process group, if its leader has not been reaped (only then can the number not be
/// another's by now), and every descendant outside of it. A wrapper is spared, and with it the group.
///
/// A pid found in a first look is opened as a pidfd and signalled only if a second look still finds it:
/// then the descriptor is that of a descendant, or of a process that has ended (pidfd_open(2)).
pub(crate) fn signal_all(
    signal: Signal,
    group: Option<Pid>,
    wrapper: Option<i32>,
) -> io::Result<Delivery> {
    let group = group.filter(|_| wrapper.is_none());
    let outside = |pid: &i32| match group {
        Some(_) => Pid::from_raw(*pid).and_then(|pid| getpgid(Some(pid)).ok()) != group,
        None => Some(*pid) != wrapper,
    };
    let opened = open(descendants()?);
    let still: HashSet<i32> = descendants()?.into_iter().filter(outside).collect();
    let mut delivery = Delivery::default();
    if let Some(group) = group {
        match kill_process_group(group, signal) {
            Ok(()) => delivery.sent += 1,
            Err(Errno::PERM) => delivery.denied.push(group.as_raw_nonzero().get()),
            Err(_) => {}
        }
    }
    for (pid, fd) in opened.iter().filter(|(pid, _)| still.contains(pid)) {
        match pidfd_send_signal(fd, signal) {
            Ok(()) => delivery.sent += 1,
            Err(Errno::PERM) => delivery.denied.push(*pid),
            Err(_) => {}
        }
    }
    Ok(delivery)
}

fn open(pids: Vec<i32>) -> Vec<(i32, OwnedFd)> {
    let open = |pid| {
        let descriptor = pidfd_open(Pid::from_raw(pid)?, PidfdFlags::empty()).ok()?;
        Some((pid, descriptor))
    };
    pids.into_iter().filter_map(open).collect()
}

/// Sends STOP to every descendant that is not in `stopped`, and adds it. Returns whether there was one.
///
/// A stopped process cannot fork: when a sweep finds no new one, no descendant runs any more, and one round of KILL
/// ends all of them, even a fork bomb.
pub(crate) fn stop_running(stopped: &mut HashSet<i32>) -> io::Result<bool> {
    let running = descendants()?
        .into_iter()
        .filter(|pid| !stopped.contains(pid))
        .collect();
    let opened = open(running);
    let still: HashSet<i32> = descendants()?.into_iter().collect();
    let mut any = false;
    for (pid, descriptor) in opened.iter().filter(|(pid, _)| still.contains(pid)) {
        any |= pidfd_send_signal(descriptor, Signal::STOP).is_ok();
        stopped.insert(*pid);
    }
    Ok(any)
}

/// Returns whether the sandbox of a descendant contains a process besides its init. bwrap forks that process, which
/// becomes the agent's program, when the sandbox is ready. Before that a signal is lost: the kernel discards signals
/// for which an init has no handler (pid_namespaces(7)).
pub(crate) fn sandbox_has_program() -> bool {
    let own = numbers("self").map_or(1, |numbers| numbers.len());
    descendants().unwrap_or_default().iter().any(|pid| {
        numbers(&pid.to_string()).is_some_and(|numbers| {
            numbers.len() > own && numbers.last().is_some_and(|pid| pid != "1")
        })
    })
}

/// Returns the pids of a process in each pid namespace, outermost first (`NSpid`, proc_pid_status(5)); `None` for a
/// zombie.
fn numbers(process: &str) -> Option<Vec<String>> {
    let status = fs::read(format!("/proc/{process}/status")).ok()?;
    let status = String::from_utf8_lossy(&status);
    let field = |name: &str| status.lines().find_map(|line| line.strip_prefix(name));
    if field("State:")?.trim_start().starts_with(['Z', 'X']) {
        return None;
    }
    let numbers = field("NSpid:")?.split_whitespace();
    Some(numbers.map(str::to_owned).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::{Command, Stdio};

    #[test]
    fn both_ways_to_look_find_a_grandchild() {
        let mut child = Command::new("sh")
            .args(["-c", "sleep 1000 & wait"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let own = getpid().as_raw_nonzero().get();
        let wanted = loop {
            let grandchildren = children(child.id() as i32).unwrap();
            if let Some(pid) = grandchildren.first() {
                break *pid;
            }
        };
        assert!(descendants().unwrap().contains(&wanted));
        assert!(descendants_by_scan(own).unwrap().contains(&wanted));
        let _ = pidfd_send_signal(
            pidfd_open(Pid::from_raw(wanted).unwrap(), PidfdFlags::empty()).unwrap(),
            Signal::KILL,
        );
        let _ = child.kill();
        child.wait().unwrap();
    }
}
