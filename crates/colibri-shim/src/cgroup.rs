//! The cgroup that the spawner made for the agent: entered by each run, asked about its end, removed with the last.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::path::PathBuf;

pub(crate) struct Cgroup {
    directory: PathBuf,
    /// How often the kernel had killed for want of memory when it was last looked at.
    killed: u64,
}

impl Cgroup {
    pub(crate) fn new(directory: PathBuf) -> Self {
        Self {
            directory,
            killed: 0,
        }
    }

    /// What a process writes `0` to, to enter (cgroups(7)).
    ///
    /// # Errors
    /// It is not there, or not ours.
    pub(crate) fn door(&self) -> io::Result<File> {
        OpenOptions::new()
            .write(true)
            .open(self.directory.join("cgroup.procs"))
    }

    /// Sends KILL to every process in the cgroup, atomically with respect to fork(2) (`cgroup.kill`, cgroups(7), Linux
    /// 5.14). Does nothing on older kernels.
    pub(crate) fn kill(&self) {
        let _ = OpenOptions::new()
            .write(true)
            .open(self.directory.join("cgroup.kill"))
            .and_then(|mut file| file.write_all(b"1"));
    }

    /// Whether a process was killed since the last look because the memory limit was reached.
    pub(crate) fn out_of_memory(&mut self) -> bool {
        let events = fs::read_to_string(self.directory.join("memory.events")).unwrap_or_default();
        let before = self.killed;
        self.killed = kills(&events);
        self.killed > before
    }

    /// No process is left in it. One that cannot be removed stays empty, and the daemon says so.
    pub(crate) fn remove(&self) {
        let _ = fs::remove_dir(&self.directory);
    }
}

fn kills(events: &str) -> u64 {
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
    fn kills_for_memory_are_counted_and_groups_of_them_not_twice() {
        assert_eq!(
            kills("low 0\nhigh 0\nmax 8\noom 2\noom_kill 3\noom_group_kill 1\n"),
            3
        );
        assert_eq!(kills(""), 0);
        let dir = tempfile::tempdir().unwrap();
        let mut cgroup = Cgroup::new(dir.path().to_owned());
        assert!(
            !cgroup.out_of_memory(),
            "without the controller there is no such file"
        );
        fs::write(dir.path().join("memory.events"), "oom_kill 1\n").unwrap();
        assert!(cgroup.out_of_memory());
        assert!(!cgroup.out_of_memory(), "each kill is told once");
    }
}
