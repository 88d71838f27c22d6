//! Processes of the host, each told from a later one of the same number by when it started. For whoever
//! looks after agents whose shim is gone; a living shim knows its descendants from the kernel. And what
//! processes use.

#[cfg(any(target_os = "freebsd", test))]
mod freebsd;
#[cfg(target_os = "linux")]
mod linux;
mod usage;

pub use usage::{Usage, usage};

#[cfg(target_os = "freebsd")]
use freebsd as host;
#[cfg(target_os = "linux")]
use linux as host;

use std::collections::{HashMap, HashSet};
use std::io;

/// A process that is not a zombie.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Process {
    /// Its number.
    pub pid: i32,
    /// Its parent.
    pub parent: i32,
    /// Its session: the number of the process that began it.
    pub session: i32,
    /// When it started, in a unit of the host's own (Linux: clock ticks since boot, proc_pid_stat(5);
    /// FreeBSD: seconds, ps(1) `lstart`). To be compared for equality.
    pub start: u64,
}

/// The process of that number; `None` where there is none, or a zombie.
///
/// # Errors
/// The system does not say.
pub fn find(pid: i32) -> io::Result<Option<Process>> {
    host::find(pid)
}

/// Sends KILL to this very process. Returns whether it was there.
///
/// # Errors
/// It is another user's.
pub fn kill(process: &Process) -> io::Result<bool> {
    host::kill(process)
}

/// Every process that carries the agent's id in the environment it was started with, or is in that session,
/// and all their descendants; never the calling process.
///
/// A session may be given only as long as its first process has just gone: its number is not given to another
/// one before the last process of the session has ended, but after that it may be.
///
/// # Errors
/// The system does not list its processes.
pub fn of_agent(id: &str, session: Option<i32>) -> io::Result<Vec<Process>> {
    let listed = host::list(id)?;
    Ok(belonging(&listed, session, std::process::id()))
}

/// The pure part: which of the processes, each with whether it carries the id.
fn belonging(listed: &[(Process, bool)], session: Option<i32>, own: u32) -> Vec<Process> {
    let mut children: HashMap<i32, Vec<i32>> = HashMap::new();
    for (process, _) in listed {
        children
            .entry(process.parent)
            .or_default()
            .push(process.pid);
    }
    let mut todo: Vec<i32> = listed
        .iter()
        .filter(|(process, marked)| *marked || Some(process.session) == session)
        .map(|(process, _)| process.pid)
        .collect();
    let mut found = HashSet::new();
    while let Some(pid) = todo.pop() {
        if u32::try_from(pid) != Ok(own) && found.insert(pid) {
            todo.extend(children.get(&pid).into_iter().flatten());
        }
    }
    listed
        .iter()
        .map(|(process, _)| *process)
        .filter(|process| found.contains(&process.pid))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use colibri_types::AGENT_VARIABLE;
    use std::process::{Command, Stdio};

    #[test]
    fn an_agents_processes_are_the_marked_ones_its_session_and_their_descendants() {
        // pid, parent, session, carries the id
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
        .map(|(pid, parent, session, marked)| {
            let process = Process {
                pid,
                parent,
                session,
                start: 0,
            };
            (process, marked)
        });
        for (session, expected) in [
            (None, &[20, 21, 22, 40][..]),
            (Some(7), &[20, 21, 22, 30, 31, 40]),
            (Some(8), &[20, 21, 22, 40]),
        ] {
            let mut pids: Vec<i32> = belonging(&table, session, 99)
                .iter()
                .map(|process| process.pid)
                .collect();
            pids.sort_unstable();
            assert_eq!(pids, expected, "session {session:?}; 99 is the caller");
        }
    }

    #[test]
    fn a_process_is_found_by_its_mark_and_ended_only_if_it_is_still_the_same() {
        let id = "mark4test7f3a";
        let mut child = Command::new("sleep")
            .arg("1000")
            .env(AGENT_VARIABLE, id)
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        let found = loop {
            // Between fork and exec it has the environment of this test.
            if let [found] = of_agent(id, None).unwrap()[..] {
                break found;
            }
        };
        assert_eq!(found.pid, child.id() as i32);
        assert_eq!(find(found.pid).unwrap(), Some(found));
        assert_eq!(of_agent("mark4test", None).unwrap(), [], "a part of an id");
        // Another process that had its number before.
        let earlier = Process {
            start: found.start - 1,
            ..found
        };
        assert!(!kill(&earlier).unwrap());
        assert_eq!(find(found.pid).unwrap(), Some(found), "spared");
        assert!(kill(&found).unwrap());
        child.wait().unwrap();
        assert!(!kill(&found).unwrap());
        assert_eq!(find(found.pid).unwrap(), None);
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn a_name_that_is_no_text_hides_nobody() {
        let id = "mark4test9c2b";
        // A thread's name is the process's where it is the first (proc_pid_comm(5)).
        let mut child = Command::new("sh")
            .args(["-c", r"printf '\377' >/proc/$$/comm; read line"])
            .env(AGENT_VARIABLE, id)
            .stdin(Stdio::piped())
            .spawn()
            .unwrap();
        let comm = format!("/proc/{}/comm", child.id());
        while std::fs::read(&comm).unwrap() != b"\xff\n" {}
        assert_eq!(of_agent(id, None).unwrap().len(), 1);
        let own = std::process::id() as i32;
        assert!(usage(&[own]).unwrap()[&own].processes > 0);
        drop(child.stdin.take());
        child.wait().unwrap();
    }
}
