//! Processes of the host, identified by pid and start time, because pids are reused; and their resource usage.
//!
//! A process that has ended cannot report its descendants; [`find_marked`] finds them by a variable in their environment.

#[cfg(any(target_os = "freebsd", test))]
mod freebsd;
#[cfg(target_os = "freebsd")]
mod kinfo;
#[cfg(target_os = "linux")]
mod linux;
mod parent;
#[cfg(target_os = "freebsd")]
mod reaper;
#[cfg(target_os = "freebsd")]
mod tracing;
mod usage;

pub use host::{find, kill, namespace_pids};
#[cfg(target_os = "linux")]
pub use linux::descendants;
pub use parent::die_with_parent;
#[cfg(target_os = "freebsd")]
pub use reaper::signal_descendants;
#[cfg(target_os = "freebsd")]
pub use tracing::deny_tracing;
pub use usage::{ProcessUsage, usage};

#[cfg(target_os = "freebsd")]
use freebsd as host;
#[cfg(target_os = "linux")]
use linux as host;

use std::collections::{HashMap, HashSet};
use std::io;

/// A process that is not a zombie.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Process {
    /// The pid.
    pub pid: i32,
    /// Pid of the parent.
    pub parent: i32,
    /// Session id: the pid of the process that created the session.
    pub session: i32,
    /// Start time in a unit of the host (Linux: clock ticks since boot, proc_pid_stat(5); FreeBSD: seconds since
    /// 1970, ps(1) `lstart`). Compare it only for equality.
    pub start: u64,
}

/// The pids of one process in nested pid namespaces.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NamespacePids {
    /// The pid in each namespace, from that of /proc inwards.
    pub pids: Vec<i32>,
    /// The process has ended and was not waited for.
    pub is_zombie: bool,
}

/// Returns the processes whose initial environment contains `variable` (`NAME=VALUE`), those in `sessions`, and all their
/// descendants; never the calling process.
///
/// Pass a session only directly after the end of its first process. The session id is not reused while the session has a
/// process, but it may be reused later.
///
/// # Errors
/// The system cannot list its processes.
pub fn find_marked(variable: &str, sessions: &[i32]) -> io::Result<Vec<Process>> {
    let listed = host::list(variable)?;
    Ok(select(&listed, sessions, std::process::id()))
}

/// A process of the host's list.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct ListedProcess {
    process: Process,
    /// Its initial environment contains the searched variable.
    is_marked: bool,
}

/// Selects the marked processes, those in `sessions` and their descendants from all processes. Pure.
fn select(listed: &[ListedProcess], sessions: &[i32], own: u32) -> Vec<Process> {
    let all = listed.iter().map(|listed| listed.process);
    let marked = listed
        .iter()
        .filter(|listed| listed.is_marked || sessions.contains(&listed.process.session))
        .map(|listed| listed.process.pid);
    let processes = all.clone().map(|process| (process.pid, process.parent));
    let own = i32::try_from(own).unwrap_or_default();
    let found = with_descendants(processes, marked, own);
    all.filter(|process| found.contains(&process.pid)).collect()
}

/// Returns the pids in `roots` and those of all their descendants, without `excluded` and its descendants. `processes`
/// are pids with those of the parents.
fn with_descendants(
    processes: impl Iterator<Item = (i32, i32)>,
    roots: impl Iterator<Item = i32>,
    excluded: i32,
) -> HashSet<i32> {
    let mut children: HashMap<i32, Vec<i32>> = HashMap::new();
    for (pid, parent) in processes {
        children.entry(parent).or_default().push(pid);
    }
    let mut todo: Vec<i32> = roots.collect();
    let mut found = HashSet::new();
    while let Some(pid) = todo.pop() {
        if pid != excluded && found.insert(pid) {
            todo.extend(children.get(&pid).into_iter().flatten());
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::{Command, Stdio};

    #[test]
    fn agent_has_marked_processes_its_session_and_descendants() {
        // pid, parent, session, has the id
        let table = [
            (10, 1, 10, false),
            (11, 10, 10, false),
            (20, 1, 20, true),
            (21, 20, 21, false),
            (22, 21, 21, false),
            (30, 1, 7, false),
            (31, 30, 31, false),
            (40, 22, 40, false),
            (99, 20, 20, true),
            (50, 99, 50, false),
        ]
        .map(|(pid, parent, session, is_marked)| ListedProcess {
            process: Process {
                pid,
                parent,
                session,
                start: 0,
            },
            is_marked,
        });
        for (sessions, expected) in [
            (&[][..], &[20, 21, 22, 40][..]),
            (&[7], &[20, 21, 22, 30, 31, 40]),
            (&[8, 50], &[20, 21, 22, 40, 50]),
            (&[8], &[20, 21, 22, 40]),
        ] {
            let mut pids: Vec<i32> = select(&table, sessions, 99)
                .iter()
                .map(|process| process.pid)
                .collect();
            pids.sort_unstable();
            assert_eq!(pids, expected, "sessions {sessions:?}; 99 is the caller");
        }
    }

    #[test]
    fn process_with_a_reused_pid_is_not_killed() {
        let id = "mark4test7f3a";
        let mut child = Command::new("sleep")
            .arg("1000")
            .env("TEST_MARK", id)
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        let found = loop {
            // Between fork and exec the child has the environment of this test.
            if let [found] = find_marked(&format!("TEST_MARK={id}"), &[]).unwrap()[..] {
                break found;
            }
        };
        assert_eq!(found.pid, child.id() as i32);
        assert_eq!(find(found.pid).unwrap(), Some(found));
        assert_eq!(
            find_marked("TEST_MARK=mark4test", &[]).unwrap(),
            [],
            "a prefix of an id"
        );
        // A process that had the same pid earlier.
        let earlier = Process {
            start: found.start - 1,
            ..found
        };
        assert!(!kill(&earlier).unwrap());
        assert_eq!(find(found.pid).unwrap(), Some(found), "not killed");
        assert!(kill(&found).unwrap());
        child.wait().unwrap();
        assert!(!kill(&found).unwrap());
        assert_eq!(find(found.pid).unwrap(), None);
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn process_with_an_invalid_utf8_name_is_found() {
        let id = "mark4test9c2b";
        // The name of the first thread is the name of the process (proc_pid_comm(5)).
        let mut child = Command::new("sh")
            .args(["-c", r"printf '\377' >/proc/$$/comm; read line"])
            .env("TEST_MARK", id)
            .stdin(Stdio::piped())
            .spawn()
            .unwrap();
        let comm = format!("/proc/{}/comm", child.id());
        while std::fs::read(&comm).unwrap() != b"\xff\n" {}
        let pid = child.id() as i32;
        let namespaces = namespace_pids(Some(pid)).unwrap();
        assert_eq!(namespaces.pids.first(), Some(&pid));
        assert!(!namespaces.is_zombie);
        assert_eq!(
            find_marked(&format!("TEST_MARK={id}"), &[]).unwrap().len(),
            1
        );
        let own = std::process::id() as i32;
        assert!(usage(&[own]).unwrap()[&own].processes > 0);
        drop(child.stdin.take());
        child.wait().unwrap();
    }
}
