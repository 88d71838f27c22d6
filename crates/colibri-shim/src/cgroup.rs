//! The agent's cgroup (Linux), created by the spawner. Each run enters it; the shim removes it after the last run.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::path::PathBuf;

pub(crate) struct Cgroup {
    directory: PathBuf,
    /// Number of processes that the kernel had killed for memory at the last check.
    oom_kills: u64,
}

impl Cgroup {
    pub(crate) fn new(directory: PathBuf) -> Self {
        Self {
            directory,
            oom_kills: 0,
        }
    }

    /// Opens `cgroup.procs`, to which a process writes `0` to enter the cgroup (cgroups(7)).
    ///
    /// # Errors
    /// The cgroup does not exist or belongs to another user.
    pub(crate) fn open_procs(&self) -> io::Result<File> {
        OpenOptions::new()
            .write(true)
            .open(self.directory.join("cgroup.procs"))
    }

    /// Sends KILL to every process in the cgroup, atomically with respect to fork(2) (`cgroup.kill`, cgroups(7), Linux
    /// 5.14). Does nothing on older kernels.
    pub(crate) fn kill(&self) {
        let _ = fs::write(self.directory.join("cgroup.kill"), "1");
    }

    /// Returns whether the kernel has killed a process since the last call because the memory limit was reached.
    pub(crate) fn check_memory_limit(&mut self) -> bool {
        let events = fs::read_to_string(self.directory.join("memory.events")).unwrap_or_default();
        let before = self.oom_kills;
        self.oom_kills = parse_oom_kills(&events);
        self.oom_kills > before
    }

    /// Removes the empty cgroup. The daemon reports one that cannot be removed.
    pub(crate) fn remove(&self) {
        let _ = fs::remove_dir(&self.directory);
    }
}

fn parse_oom_kills(events: &str) -> u64 {
    events
        .lines()
        .find_map(|line| line.strip_prefix("oom_kill "))
        .and_then(|count| count.trim().parse().ok())
        .unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_kills_are_parsed_and_reported_once() {
        assert_eq!(
            parse_oom_kills("low 0\nhigh 0\nmax 8\noom 2\noom_kill 3\noom_group_kill 1\n"),
            3
        );
        assert_eq!(parse_oom_kills(""), 0);
        let dir = tempfile::tempdir().unwrap();
        let mut cgroup = Cgroup::new(dir.path().to_owned());
        assert!(
            !cgroup.check_memory_limit(),
            "the file is missing without the memory controller"
        );
        fs::write(dir.path().join("memory.events"), "oom_kill 1\n").unwrap();
        assert!(cgroup.check_memory_limit());
        assert!(!cgroup.check_memory_limit(), "each kill is reported once");
    }
}
