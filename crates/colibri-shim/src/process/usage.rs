//! What an agent's processes use: one look at all processes of the host, then a sum under each shim.

use std::collections::HashMap;
use std::io;

use super::host;

/// What the processes below one use at this moment, and have used.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Usage {
    /// CPU time, user and system, in milliseconds: of the descendants that live, and of every one that has ended
    /// and was waited for. Lost is only that of a child whose parent ignores SIGCHLD. The process itself is
    /// not counted.
    pub cpu_ms: u64,
    /// Resident memory in bytes (RSS): pages that processes share count once for each of them.
    pub memory_bytes: u64,
    /// How many there are, without zombies.
    pub processes: u32,
}

/// A process as the host's list has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Measured {
    pub(super) pid: i32,
    pub(super) parent: i32,
    /// Its own CPU time, in milliseconds.
    pub(super) own_ms: u64,
    /// That of its children that it has waited for, and of theirs.
    pub(super) waited_ms: u64,
    /// Its resident memory, in bytes.
    pub(super) rss: u64,
    /// It has ended and was not waited for.
    pub(super) zombie: bool,
}

/// What the descendants of each of these processes use. A process that is not there has no entry.
///
/// # Errors
/// The system does not list its processes.
pub fn usage(roots: &[i32]) -> io::Result<HashMap<i32, Usage>> {
    if roots.is_empty() {
        return Ok(HashMap::new());
    }
    Ok(sum(&host::measure()?, roots))
}

/// The pure part.
fn sum(listed: &[Measured], roots: &[i32]) -> HashMap<i32, Usage> {
    let mut by_pid = HashMap::new();
    let mut children: HashMap<i32, Vec<&Measured>> = HashMap::new();
    for process in listed {
        by_pid.insert(process.pid, process);
        children.entry(process.parent).or_default().push(process);
    }
    let mut sums = HashMap::new();
    for root in roots {
        let Some(process) = by_pid.get(root) else {
            continue;
        };
        let mut sum = Usage {
            cpu_ms: process.waited_ms,
            ..Usage::default()
        };
        let mut todo = vec![*root];
        // The list is no snapshot: a number that was given anew while it was read could close a circle.
        let mut left = listed.len();
        while let Some(pid) = todo.pop() {
            for child in children.get(&pid).into_iter().flatten() {
                if left == 0 {
                    break;
                }
                left -= 1;
                sum.cpu_ms += child.own_ms + child.waited_ms;
                if !child.zombie {
                    sum.memory_bytes += child.rss;
                    sum.processes += 1;
                }
                todo.push(child.pid);
            }
        }
        sums.insert(*root, sum);
    }
    sums
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::{Command, Stdio};

    fn process(pid: i32, parent: i32, own_ms: u64, waited_ms: u64, rss: u64) -> Measured {
        Measured {
            pid,
            parent,
            own_ms,
            waited_ms,
            rss,
            zombie: false,
        }
    }

    #[test]
    fn descendants_are_summed_and_what_was_waited_for_is_not_lost() {
        let zombie = Measured {
            zombie: true,
            ..process(13, 12, 5, 0, 999)
        };
        let table = [
            process(1, 0, 1_000_000, 1_000_000, 1),
            // A shim, whose own time is not the agent's.
            process(10, 1, 500, 7, 4096),
            process(11, 10, 20, 0, 100),
            process(12, 11, 30, 300, 200),
            zombie,
            process(20, 1, 9, 0, 1),
            // A circle, which no host has.
            process(30, 31, 1, 0, 1),
            process(31, 30, 1, 0, 1),
        ];
        let sums = sum(&table, &[10, 20, 30, 99]);
        let usage = |cpu_ms, memory_bytes, processes| {
            Some(Usage {
                cpu_ms,
                memory_bytes,
                processes,
            })
        };
        for (root, expected) in [
            (10, usage(7 + 20 + 330 + 5, 300, 2)),
            (20, usage(0, 0, 0)),
            (99, None),
        ] {
            assert_eq!(sums.get(&root).copied(), expected, "{root}");
        }
    }

    #[test]
    fn a_real_child_is_measured_and_its_time_stays_when_it_has_ended() {
        let own = std::process::id() as i32;
        let before = usage(&[own]).unwrap()[&own];
        let burn = "i=0; while [ $i -lt 200000 ]; do i=$((i+1)); done";
        let mut child = Command::new("sh")
            .args(["-c", &format!("{burn}; read line")])
            .stdin(Stdio::piped())
            .spawn()
            .unwrap();
        let running = loop {
            let now = usage(&[own]).unwrap()[&own];
            if now.cpu_ms > before.cpu_ms && now.processes > before.processes {
                break now;
            }
        };
        assert!(running.memory_bytes > before.memory_bytes + 64 * 1024);
        drop(child.stdin.take());
        child.wait().unwrap();
        let after = usage(&[own]).unwrap()[&own];
        assert!(after.cpu_ms >= running.cpu_ms, "{after:?} {running:?}");
    }
}
