//! systemd-run(1) with `--pipe`: systemd starts the program with a pipe of the benchmark as output. The throughput is
//! not measured, because systemd stores output only in the journal of the system.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Result, ensure};
use rustix::process::geteuid;

use super::super::plain::first_byte_of;
use super::super::{Peer, SYSTEMD_RUN, SpawnPeer};
use super::run_checked;

pub(super) struct SystemdRun {
    count: usize,
}

impl SystemdRun {
    /// Fails if systemd is not the init system; the check is that of sd_booted(3).
    pub(super) fn new() -> Result<Self> {
        ensure!(
            Path::new("/run/systemd/system").is_dir(),
            "systemd is not the init system"
        );
        Ok(Self { count: 0 })
    }
}

impl Peer for SystemdRun {
    fn name(&self) -> String {
        SYSTEMD_RUN.to_owned()
    }
}

impl SpawnPeer for SystemdRun {
    fn first_byte(&mut self, command: &[&str]) -> Result<Duration> {
        self.count += 1;
        let unit = format!(
            "colibri-bench-{}-{}.service",
            std::process::id(),
            self.count
        );
        let manager = match geteuid().is_root() {
            true => "--system",
            false => "--user",
        };
        let mut run = Command::new("systemd-run");
        run.args([
            manager,
            "--quiet",
            "--pipe",
            "--collect",
            "--unit",
            &unit,
            "--",
        ])
        .args(command);
        first_byte_of(&mut run, |_| {
            run_checked(Command::new("systemctl").args([manager, "kill", "--signal=KILL", &unit]))
        })
    }
}
