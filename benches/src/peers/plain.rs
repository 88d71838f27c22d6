//! A pipe without a supervisor, or a sandbox and a pipe.

use std::fs::File;
use std::io::{Read, Seek};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use rustix::process::{Pid, Signal, kill_process};

use super::{Copies, Named, Spawns, check};

/// posix_spawn(3), which the standard library uses where possible, and a pipe.
pub(super) struct PosixSpawn;

impl Named for PosixSpawn {
    fn name(&self) -> String {
        "posix_spawn and a pipe".to_owned()
    }
}

impl Spawns for PosixSpawn {
    fn first_byte(&mut self, command: &[&str]) -> Result<Duration> {
        first_byte_of(&mut bare(command)?, |child| Ok(child.kill()?))
    }
}

/// The upper bound of storing output: `cat FILE | cat > OUT`.
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

/// bwrap(1) with the arguments that Colibri passes, and a pipe.
pub(super) struct Bubblewrap;

pub(super) const BWRAP: &str = "bwrap and a pipe";
pub(super) const BWRAP_CAT: &str = "bwrap cat and a pipe to cat > file";

/// Arguments as printed by `colibri explain --jail-path /`.
const WORDS: &[&str] = &[
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
        BWRAP.to_owned()
    }
}

impl Spawns for Bubblewrap {
    fn first_byte(&mut self, command: &[&str]) -> Result<Duration> {
        first_byte_of(&mut bare(&[WORDS, command].concat())?, |bwrap| {
            kill_inside(bwrap)
        })
    }
}

/// `bwrap … cat FILE | cat > OUT`.
pub(super) struct BubblewrapCat;

impl Named for BubblewrapCat {
    fn name(&self) -> String {
        BWRAP_CAT.to_owned()
    }
}

impl Copies for BubblewrapCat {
    fn copy(&mut self, file: &Path, _bytes: u64) -> Result<Duration> {
        copy(&[WORDS, &["cat"]].concat(), file)
    }
}

fn bare(command: &[&str]) -> Result<Command> {
    let (program, arguments) = command.split_first().context("no program")?;
    let mut bare = Command::new(program);
    bare.args(arguments).env_clear();
    Ok(bare)
}

/// Kills the first process of a sandbox, which ends bwrap. Killing bwrap early would leave that process running.
fn kill_inside(bwrap: &Child) -> Result<()> {
    let id = bwrap.id();
    let children = std::fs::read_to_string(format!("/proc/{id}/task/{id}/children"))?;
    let inside = children.split_whitespace().next().context("no child")?;
    let inside = Pid::from_raw(inside.parse()?).context("no child")?;
    Ok(kill_process(inside, Signal::KILL)?)
}

/// Ends the program with `end`, or with SIGKILL if that fails.
pub(super) fn first_byte_of(
    command: &mut Command,
    end: impl FnOnce(&mut Child) -> Result<()>,
) -> Result<Duration> {
    // A file, because a surviving process would hold a pipe open.
    let mut message = tempfile::tempfile()?;
    command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(message.try_clone()?);
    let program = command.get_program().to_string_lossy().into_owned();
    let asked = Instant::now();
    let mut child = command
        .spawn()
        .with_context(|| format!("cannot start {program}"))?;
    let mut byte = [0];
    let read = child.stdout.take().context("no stdout")?.read(&mut byte);
    let took = asked.elapsed();
    let ended = end(&mut child);
    if ended.is_err() {
        child.kill()?;
    }
    child.wait()?;
    let mut text = String::new();
    message.rewind()?;
    message.read_to_string(&mut text)?;
    ensure!(
        read? == 1 && byte == *b"\n",
        "{program} wrote no line feed: {}",
        text.trim()
    );
    ended?;
    Ok(took)
}

fn copy(cat: &[&str], file: &Path) -> Result<Duration> {
    let (program, arguments) = cat.split_first().context("no program")?;
    let out = tempfile::Builder::new()
        .prefix("colibri-bench-")
        .tempfile_in("/var/tmp")?;
    let stored: File = out.as_file().try_clone()?;
    let asked = Instant::now();
    let mut writer = Command::new(program)
        .args(arguments)
        .arg(file)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .with_context(|| format!("cannot start {program}"))?;
    let pipe = writer.stdout.take().context("no stdout")?;
    let copied = Command::new("cat").stdin(pipe).stdout(stored).status()?;
    let took = asked.elapsed();
    let written = writer.wait()?;
    ensure!(copied.success() && written.success(), "cat failed");
    check(file, &[out.path().to_owned()])?;
    Ok(took)
}
