//! Resource usage of agents: lists all processes of the host once, and adds up the descendants of each shim.

use std::collections::HashMap;
use std::io;

use super::host;

/// Resource usage of the descendants of a process.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ProcessUsage {
    /// User and system CPU time in milliseconds, of running descendants and of ended ones that were waited for. The time
    /// of a child whose parent ignores SIGCHLD is lost. The process itself is not counted.
    pub cpu_ms: u64,
    /// Resident memory in bytes (RSS). Shared pages count once for each process.
    pub memory_bytes: u64,
    /// Number of processes without zombies.
    pub processes: u32,
}

/// Resource usage of one process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Measured {
    pub(super) pid: i32,
    pub(super) parent: i32,
    /// CPU time of the process itself, in milliseconds.
    pub(super) own_ms: u64,
    /// CPU time of the children that it has waited for, and of theirs, in milliseconds.
    pub(super) waited_ms: u64,
    /// Resident memory, in bytes.
    pub(super) rss: u64,
    /// The process has ended and was not waited for.
    pub(super) zombie: bool,
}

/// Returns the usage of the descendants of each process in `roots`. A process that does not exist has no entry.
///
/// # Errors
/// The system cannot list its processes.
pub fn usage(roots: &[i32]) -> io::Result<HashMap<i32, ProcessUsage>> {
    if roots.is_empty() {
        return Ok(HashMap::new());
    }
    Ok(sum(&host::measure()?, roots))
}

/// Adds up the usage of the descendants. Pure.
fn sum(listed: &[Measured], roots: &[i32]) -> HashMap<i32, ProcessUsage> {
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
        let mut sum = ProcessUsage {
            cpu_ms: process.waited_ms,
            ..ProcessUsage::default()
        };
        let mut todo = vec![*root];
        // The list is not a snapshot: a pid that was reused meanwhile could make it cyclic.
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
    fn usage_includes_descendants_and_collected_children() {
        let zombie = Measured {
            zombie: true,
            ..process(13, 12, 5, 0, 999)
        };
        let table = [
            process(1, 0, 1_000_000, 1_000_000, 1),
            // A shim: its own time does not count.
            process(10, 1, 500, 7, 4096),
            process(11, 10, 20, 0, 100),
            process(12, 11, 30, 300, 200),
            zombie,
            process(20, 1, 9, 0, 1),
            // A cycle, which no real host has.
            process(30, 31, 1, 0, 1),
            process(31, 30, 1, 0, 1),
        ];
        let sums = sum(&table, &[10, 20, 30, 99]);
        let usage = |cpu_ms, memory_bytes, processes| {
            Some(ProcessUsage {
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
    fn time_of_a_child_is_kept_after_its_end() {
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
