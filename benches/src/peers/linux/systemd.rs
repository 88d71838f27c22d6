//! systemd-run(1) with `--pipe`: systemd starts the program with a pipe of the benchmark as output. It stores output
//! only in the system's journal, so its throughput is not measured.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Result, ensure};
use rustix::process::geteuid;

use super::super::plain::first_byte_of;
use super::super::{Named, SYSTEMD_RUN, Spawns};
use super::quietly;

pub(super) struct SystemdRun {
    count: usize,
}

impl SystemdRun {
    /// Implements sd_booted(3).
    pub(super) fn new() -> Result<Self> {
        ensure!(
            Path::new("/run/systemd/system").is_dir(),
            "systemd is not the init system"
        );
        Ok(Self { count: 0 })
    }
}

impl Named for SystemdRun {
    fn name(&self) -> String {
        SYSTEMD_RUN.to_owned()
    }
}

impl Spawns for SystemdRun {
    fn first_byte(&mut self, command: &[&str]) -> Result<Duration> {
        self.count += 1;
        let unit = format!(
            "colibri-bench-{}-{}.service",
            std::process::id(),
            self.count
        );
        let whose = match geteuid().is_root() {
            true => "--system",
            false => "--user",
        };
        let mut run = Command::new("systemd-run");
        run.args([
            whose,
            "--quiet",
            "--pipe",
            "--collect",
            "--unit",
            &unit,
            "--",
        ])
        .args(command);
        first_byte_of(&mut run, |_| {
            quietly(Command::new("systemctl").args([whose, "kill", "--signal=KILL", &unit]))
        })
    }
}
