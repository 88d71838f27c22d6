//! Nothing around the program but a pipe, or a sandbox and a pipe.

use std::fs::File;
use std::io::Read;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use super::{Copies, Named, Spawns, check};

/// posix_spawn(3), which the standard library uses where it can, and a pipe.
pub(super) struct PosixSpawn;

impl Named for PosixSpawn {
    fn name(&self) -> String {
        "posix_spawn and a pipe".to_owned()
    }
}

impl Spawns for PosixSpawn {
    fn first_byte(&mut self, command: &[&str]) -> Result<Duration> {
        first_byte(command)
    }
}

/// What nothing that keeps output can be much faster than: `cat FILE | cat > OUT`.
pub(super) struct Cat;

impl Named for Cat {
    fn name(&self) -> String {
        "cat and a pipe to cat > file".to_owned()
    }
}

impl Copies for Cat {
    fn copy(&mut self, file: &Path, _bytes: u64) -> Result<Duration> {
        copy(&["cat"], file)
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

impl Named for Bubblewrap {
    fn name(&self) -> String {
        "bwrap and a pipe".to_owned()
    }
}

impl Spawns for Bubblewrap {
    fn first_byte(&mut self, command: &[&str]) -> Result<Duration> {
        first_byte(&[BWRAP, command].concat())
    }
}

/// `bwrap … cat FILE | cat > OUT`.
pub(super) struct BubblewrapCat;

impl Named for BubblewrapCat {
    fn name(&self) -> String {
        "bwrap cat and a pipe to cat > file".to_owned()
    }
}

impl Copies for BubblewrapCat {
    fn copy(&mut self, file: &Path, _bytes: u64) -> Result<Duration> {
        copy(&[BWRAP, &["cat"]].concat(), file)
    }
}

pub(super) fn first_byte(command: &[&str]) -> Result<Duration> {
    let (program, arguments) = command.split_first().context("no program")?;
    let mut command = Command::new(program);
    command.args(arguments).env_clear();
    first_byte_of(&mut command, || Ok(()))
}

/// Ends the program with `end` and a SIGKILL.
pub(super) fn first_byte_of(
    command: &mut Command,
    end: impl FnOnce() -> Result<()>,
) -> Result<Duration> {
    command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let program = command.get_program().to_string_lossy().into_owned();
    let asked = Instant::now();
    let mut child = command
        .spawn()
        .with_context(|| format!("{program} does not start"))?;
    let mut byte = [0];
    let read = child.stdout.take().context("no stdout")?.read(&mut byte);
    let took = asked.elapsed();
    let ended = end();
    child.kill()?;
    let said = child.wait_with_output()?.stderr;
    let said = String::from_utf8_lossy(&said);
    ensure!(
        read? == 1 && byte == *b"\n",
        "{program} wrote no line feed: {}",
        said.trim()
    );
    ended?;
    Ok(took)
}

fn copy(cat: &[&str], file: &Path) -> Result<Duration> {
    let (program, arguments) = cat.split_first().context("no program")?;
    let out = tempfile::Builder::new()
        .prefix("colibri-bench-")
        .tempfile_in("/var/tmp")?;
    let kept: File = out.as_file().try_clone()?;
    let asked = Instant::now();
    let mut writer = Command::new(program)
        .args(arguments)
        .arg(file)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .with_context(|| format!("{program} does not start"))?;
    let pipe = writer.stdout.take().context("no stdout")?;
    let kept = Command::new("cat").stdin(pipe).stdout(kept).status()?;
    let took = asked.elapsed();
    let written = writer.wait()?;
    ensure!(kept.success() && written.success(), "cat failed");
    check(file, &[out.path().to_owned()])?;
    Ok(took)
}
