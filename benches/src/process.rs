//! Statistics of processes: memory, CPU time, wake-ups and descriptors (Linux, proc(5)).

use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};

/// Memory of a process, in bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(crate) struct Memory {
    /// Proportional set size: a page that n processes map counts one nth for each.
    pub(crate) pss: f64,
    /// Pages that no other process maps.
    pub(crate) private: f64,
}

/// Reads the memory of a process.
pub(crate) fn memory(pid: u32) -> Result<Memory> {
    let path = format!("/proc/{pid}/smaps_rollup");
    let text = fs::read_to_string(&path).with_context(|| format!("reading {path}"))?;
    Ok(parse_smaps_rollup(&text))
}

/// Parses `smaps_rollup` (proc_pid_smaps(5)).
fn parse_smaps_rollup(text: &str) -> Memory {
    let bytes = |name: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(name));
        let kib = line.and_then(|value| value.trim().strip_suffix(" kB")?.parse::<f64>().ok());
        kib.unwrap_or(f64::NAN) * 1024.0
    };
    Memory {
        pss: bytes("Pss:"),
        private: bytes("Private_Clean:") + bytes("Private_Dirty:"),
    }
}

/// Work of a process since its start.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Work {
    /// CPU time.
    pub(crate) cpu: Duration,
    /// Context switches of all threads, which count wake-ups.
    pub(crate) switches: u64,
}

impl Work {
    /// Returns the work since `before`.
    pub(crate) fn since(self, before: Self) -> Self {
        Self {
            cpu: self.cpu.saturating_sub(before.cpu),
            switches: self.switches.saturating_sub(before.switches),
        }
    }
}

/// Reads the work of a process with all of its threads.
pub(crate) fn work(pid: u32) -> Result<Work> {
    let path = format!("/proc/{pid}/task");
    let mut sum = Work::default();
    for thread in fs::read_dir(&path).with_context(|| format!("reading {path}"))? {
        let thread = thread?.path();
        // The files of a thread that has ended are missing, and it counts as idle.
        let read = |name: &str| fs::read_to_string(thread.join(name)).unwrap_or_default();
        let nanoseconds = read("schedstat");
        let nanoseconds = nanoseconds.split_whitespace().next();
        sum.cpu += Duration::from_nanos(nanoseconds.and_then(|n| n.parse().ok()).unwrap_or(0));
        sum.switches += switches(&read("status"));
    }
    Ok(sum)
}

/// Returns the number of context switches in the text of `/proc/PID/task/TID/status`.
fn switches(status: &str) -> u64 {
    let counts = status.lines().filter_map(|line| {
        let (name, count) = line.split_once(':')?;
        name.ends_with("voluntary_ctxt_switches")
            .then(|| count.trim().parse::<u64>().ok())?
    });
    counts.sum()
}

/// Returns the number of open descriptors of a process.
pub(crate) fn descriptors(pid: u32) -> Result<usize> {
    let path = format!("/proc/{pid}/fd");
    Ok(fs::read_dir(&path)
        .with_context(|| format!("reading {path}"))?
        .count())
}

/// Returns the pids of the shims of all agents in a state directory, without the pooled shim.
pub(crate) fn shim_pids(state: &Path) -> Result<Vec<u32>> {
    let mut pids = Vec::new();
    for agent in fs::read_dir(state.join("agents"))? {
        let agent = agent?.path();
        if agent.join("spec.json").exists() {
            pids.push(shim_pid(&agent)?);
        }
    }
    Ok(pids)
}

/// Returns the pid of the shim of the agent with this directory.
pub(crate) fn shim_pid(agent: &Path) -> Result<u32> {
    let path = agent.join("shim.json");
    let text = fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))?;
    let record: serde_json::Value = serde_json::from_str(&text)?;
    let pid = record["shim_pid"].as_u64().context("no shim_pid")?;
    Ok(u32::try_from(pid)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn smaps_rollup_is_parsed_in_bytes() {
        let text = "55d0-7ffe ---p 00000000 00:00 0    [rollup]\nRss:  900 kB\nPss:  100 kB\nPss_Dirty:  7 kB\nPrivate_Clean:  30 kB\nPrivate_Dirty:  40 kB\n";
        let memory = parse_smaps_rollup(text);
        assert_eq!((memory.pss, memory.private), (102_400.0, 71_680.0));
        assert!(parse_smaps_rollup("").pss.is_nan());
    }

    #[test]
    fn voluntary_and_forced_switches_are_summed() {
        let text = "Name:\tx\nvoluntary_ctxt_switches:\t150\nnonvoluntary_ctxt_switches:\t545\n";
        assert_eq!(switches(text), 695);
    }

    #[test]
    fn running_process_has_memory_switches_and_descriptors() {
        let pid = std::process::id();
        assert!(memory(pid).unwrap().pss > 0.0);
        assert!(work(pid).unwrap().switches > 0);
        assert!(descriptors(pid).unwrap() >= 3);
    }
}
