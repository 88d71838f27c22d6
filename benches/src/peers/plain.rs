//! Nothing around the program but a pipe, or a sandbox and a pipe.

use std::io::Read;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use super::Peer;

/// posix_spawn(3), which the standard library uses where it can, and a pipe.
pub(super) struct PosixSpawn;

impl Peer for PosixSpawn {
    fn name(&self) -> &str {
        "posix_spawn and a pipe"
    }

    fn first_byte(&mut self, command: &[&str]) -> Result<Duration> {
        first_byte(command)
    }
}

/// bwrap(1) with the words that Colibri gives it, and a pipe.
pub(super) struct Bubblewrap;

/// As `colibri explain --jail-path /` has it.
const BWRAP: &[&str] = &[
    "/usr/bin/bwrap",
    "--unshare-user",
    "--unshare-pid",
    "--unshare-ipc",
    "--unshare-uts",
    "--unshare-cgroup",
    "--die-with-parent",
    "--new-session",
    "--ro-bind",
    "/",
    "/",
    "--proc",
    "/proc",
    "--dev",
    "/dev",
    "--tmpfs",
    "/tmp",
    "--",
];

impl Peer for Bubblewrap {
    fn name(&self) -> &str {
        "bwrap and a pipe"
    }

    fn first_byte(&mut self, command: &[&str]) -> Result<Duration> {
        first_byte(&[BWRAP, command].concat())
    }
}

fn first_byte(command: &[&str]) -> Result<Duration> {
    let (program, arguments) = command.split_first().context("no program")?;
    let asked = Instant::now();
    let mut child = Command::new(program)
        .args(arguments)
        .env_clear()
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .with_context(|| format!("{program} does not start"))?;
    let mut byte = [0];
    let read = child.stdout.take().context("no stdout")?.read(&mut byte)?;
    let took = asked.elapsed();
    child.kill()?;
    child.wait()?;
    ensure!(read == 1, "{program} wrote nothing");
    Ok(took)
}
