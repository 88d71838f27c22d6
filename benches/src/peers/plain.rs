//! Programs with a pipe and without a supervisor, and the same in a sandbox.

use std::fs::File;
use std::io::{Read, Seek};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use rustix::process::{Pid, Signal, kill_process};

use super::{Peer, SpawnPeer, StorePeer, check_stored};

/// posix_spawn(3), which the standard library uses where possible, and a pipe.
pub(super) struct PosixSpawn;

impl Peer for PosixSpawn {
    fn name(&self) -> String {
        "posix_spawn and a pipe".to_owned()
    }
}

impl SpawnPeer for PosixSpawn {
    fn first_byte(&mut self, command: &[&str]) -> Result<Duration> {
        first_byte_of(
            &mut command_without_env(command)?,
            |child| Ok(child.kill()?),
        )
    }
}

/// The upper bound of storing output: `cat FILE | cat > OUT`.
pub(super) struct Cat;

impl Peer for Cat {
    fn name(&self) -> String {
        "cat and a pipe to cat > file".to_owned()
    }
}

impl StorePeer for Cat {
    fn store(&mut self, file: &Path, _bytes: u64) -> Result<Duration> {
        time_copy(&["cat"], file)
    }
}

/// bwrap(1) and a pipe.
pub(super) struct Bubblewrap;

pub(super) const BWRAP: &str = "bwrap and a pipe";
pub(super) const BWRAP_CAT: &str = "bwrap cat and a pipe to cat > file";

/// A sandbox with the namespaces of Colibri's, which shows the whole root and has no filter of system calls.
const BWRAP_COMMAND: &[&str] = &[
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
    fn name(&self) -> String {
        BWRAP.to_owned()
    }
}

impl SpawnPeer for Bubblewrap {
    fn first_byte(&mut self, command: &[&str]) -> Result<Duration> {
        first_byte_of(
            &mut command_without_env(&[BWRAP_COMMAND, command].concat())?,
            |bwrap| kill_inside(bwrap),
        )
    }
}

/// `bwrap … cat FILE | cat > OUT`.
pub(super) struct BubblewrapCat;

impl Peer for BubblewrapCat {
    fn name(&self) -> String {
        BWRAP_CAT.to_owned()
    }
}

impl StorePeer for BubblewrapCat {
    fn store(&mut self, file: &Path, _bytes: u64) -> Result<Duration> {
        time_copy(&[BWRAP_COMMAND, &["cat"]].concat(), file)
    }
}

/// Returns a command with an empty environment.
fn command_without_env(command: &[&str]) -> Result<Command> {
    let (program, arguments) = command.split_first().context("no program")?;
    let mut command = Command::new(program);
    command.args(arguments).env_clear();
    Ok(command)
}

/// Kills the first process of a sandbox, which ends bwrap(1). If bwrap is killed while it starts, that process remains.
fn kill_inside(bwrap: &Child) -> Result<()> {
    let id = bwrap.id();
    let children = std::fs::read_to_string(format!("/proc/{id}/task/{id}/children"))?;
    let child = children.split_whitespace().next().context("no child")?;
    let child = Pid::from_raw(child.parse()?).context("no child")?;
    Ok(kill_process(child, Signal::KILL)?)
}

/// Runs a program and returns the time until its first byte. Ends the program by `end`, or by SIGKILL if that fails.
pub(super) fn first_byte_of(
    command: &mut Command,
    end: impl FnOnce(&mut Child) -> Result<()>,
) -> Result<Duration> {
    // Not a pipe, because a process that survives would keep it open.
    let mut stderr = tempfile::tempfile()?;
    command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(stderr.try_clone()?);
    let program = command.get_program().to_string_lossy().into_owned();
    let requested_at = Instant::now();
    let mut child = command
        .spawn()
        .with_context(|| format!("cannot start {program}"))?;
    let mut byte = [0];
    let read = child.stdout.take().context("no stdout")?.read(&mut byte);
    let duration = requested_at.elapsed();
    let ended = end(&mut child);
    if ended.is_err() {
        child.kill()?;
    }
    child.wait()?;
    let mut message = String::new();
    stderr.rewind()?;
    stderr.read_to_string(&mut message)?;
    ensure!(
        read? == 1 && byte == *b"\n",
        "{program} wrote no line feed: {}",
        message.trim()
    );
    ended?;
    Ok(duration)
}

/// Runs `cat FILE | cat > OUT` with this command as the first program.
fn time_copy(cat: &[&str], file: &Path) -> Result<Duration> {
    let (program, arguments) = cat.split_first().context("no program")?;
    let output = tempfile::Builder::new()
        .prefix("colibri-bench-")
        .tempfile_in("/var/tmp")?;
    let stored: File = output.as_file().try_clone()?;
    let requested_at = Instant::now();
    let mut writer = Command::new(program)
        .args(arguments)
        .arg(file)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .with_context(|| format!("cannot start {program}"))?;
    let pipe = writer.stdout.take().context("no stdout")?;
    let copied = Command::new("cat").stdin(pipe).stdout(stored).status()?;
    let duration = requested_at.elapsed();
    let written = writer.wait()?;
    ensure!(copied.success() && written.success(), "cat failed");
    check_stored(file, &[output.path().to_owned()])?;
    Ok(duration)
}
