//! conmon(8), which supervises each container of podman and CRI-O and stores its output. It is started as podman does
//! it: conmon, then the runtime's `start` once conmon reports the container. Measured from the start of conmon until
//! its log has a line; for throughput until conmon exits, which it does when it has stored everything. The length of
//! the log does not count: each line, and each part of a line from separate reads, has a prefix.

use std::fs::{self, File};
use std::io::{BufRead, BufReader, BufWriter, Write};
use std::os::fd::AsRawFd;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use rustix::io::{FdFlags, fcntl_setfd};
use rustix::pipe::{PipeFlags, pipe_with};
use serde::Deserialize;

use super::super::log::Log;
use super::super::{Copies, Named, Spawns, check};

use super::oci::{Bundle, Runtime};
use super::{quietly, text};

pub(super) struct Conmon {
    bundle: Bundle,
    log: Log,
    /// The running container and its conmon.
    running: Option<(String, Child)>,
}

/// Message of conmon when the container exists.
#[derive(Deserialize)]
struct Said {
    data: i32,
    #[serde(default)]
    status: String,
}

impl Conmon {
    pub(super) fn new(runtime: Runtime) -> Result<Self> {
        let bundle = Bundle::new(runtime)?;
        let log = Log::new(&bundle.directory.path().join("log"), "log")?;
        Ok(Self {
            bundle,
            log,
            running: None,
        })
    }

    /// Starts a container and returns the time of the request.
    fn start(&mut self, command: &[&str]) -> Result<Instant> {
        let name = self.bundle.prepare(command)?;
        let directory = self.bundle.directory.path();
        let mut conmon = Command::new("/usr/bin/conmon");
        conmon
            .args([
                "--api-version=1",
                "--sync",
                "--no-sync-log",
                "--cid",
                &name,
                "--cuuid",
                &name,
                "--name",
                &name,
            ])
            .args(["--runtime", self.bundle.runtime.program()])
            .args(["--bundle", text(directory)?])
            .args(["--container-pidfile", text(&directory.join("pid"))?])
            .args(["--exit-dir", text(directory)?])
            .args(["--socket-dir-path", text(directory)?])
            .args([
                "--log-path",
                &format!("k8s-file:{}", text(self.log.path())?),
            ])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(File::create(directory.join("stderr"))?);
        for argument in self.bundle.arguments() {
            conmon.arg(format!("--runtime-arg={argument}"));
        }
        let asked = Instant::now();
        let (status, says) = pipe_with(PipeFlags::CLOEXEC)?;
        conmon.env("_OCI_SYNCPIPE", says.as_raw_fd().to_string());
        fcntl_setfd(&says, FdFlags::empty())?;
        let child = conmon.spawn().context("cannot start conmon");
        drop(says);
        self.running = Some((name.clone(), child?));
        let mut line = String::new();
        BufReader::new(File::from(status)).read_line(&mut line)?;
        let status: Said = serde_json::from_str(&line).with_context(|| {
            let stderr = fs::read_to_string(directory.join("stderr")).unwrap_or_default();
            format!("conmon said {line:?}; {}", stderr.trim())
        })?;
        ensure!(status.data > 0, "conmon failed: {}", status.status.trim());
        quietly(&mut self.bundle.command(&["start", &name]))?;
        Ok(asked)
    }

    fn end(&mut self) -> Result<()> {
        if let Some((name, mut conmon)) = self.running.take() {
            let deleted = self.bundle.delete(&name);
            if deleted.is_err() {
                conmon.kill()?;
            }
            conmon.wait()?;
            deleted?;
        }
        Ok(())
    }
}

impl Drop for Conmon {
    fn drop(&mut self) {
        let _ = self.end();
    }
}

impl Named for Conmon {
    fn name(&self) -> String {
        self.bundle.runtime.name_with_conmon().to_owned()
    }
}

impl Spawns for Conmon {
    fn first_byte(&mut self, command: &[&str]) -> Result<Duration> {
        let asked = self.start(command)?;
        let seen = self.log.wait_for(1)?;
        self.end()?;
        let content = self.log.read()?;
        ensure!(
            content.ends_with(b" stdout F \n")
                && content.iter().filter(|byte| **byte == b'\n').count() == 1,
            "the log is not a line feed: {:?}",
            String::from_utf8_lossy(&content)
        );
        fs::remove_file(self.log.path())?;
        Ok(seen - asked)
    }
}

impl Copies for Conmon {
    fn copy(&mut self, file: &Path, _bytes: u64) -> Result<Duration> {
        let asked = self.start(&["cat", text(file)?])?;
        if let Some((_, conmon)) = &mut self.running {
            conmon.wait()?;
        }
        let took = asked.elapsed();
        self.end()?;
        let bare = self.bundle.directory.path().join("bare");
        strip(self.log.path(), &bare)?;
        check(file, std::slice::from_ref(&bare))?;
        fs::remove_file(bare)?;
        fs::remove_file(self.log.path())?;
        Ok(took)
    }
}

/// Writes a log without its prefixes: time, stream, and end-of-line flag.
fn strip(log: &Path, bare: &Path) -> Result<()> {
    let mut log = BufReader::with_capacity(1 << 18, File::open(log)?);
    let mut bare = BufWriter::with_capacity(1 << 18, File::create(bare)?);
    let mut line = Vec::new();
    while log.read_until(b'\n', &mut line)? > 0 {
        let mut words = line.splitn(4, |byte| *byte == b' ');
        let (_time, output) = (words.next(), words.next());
        let (whole, mut rest) = (words.next(), words.next().unwrap_or_default());
        ensure!(
            output == Some(b"stdout") && rest.ends_with(b"\n"),
            "malformed line in conmon's log: {:?}",
            String::from_utf8_lossy(&line)
        );
        if whole == Some(b"P") {
            rest = rest.strip_suffix(b"\n").unwrap_or(rest);
        }
        bare.write_all(rest)?;
        line.clear();
    }
    bare.flush()?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn log_without_prefixes_equals_written_bytes() {
        let directory = tempfile::tempdir().unwrap();
        let (log, bare) = (directory.path().join("log"), directory.path().join("bare"));
        for (text, expected) in [
            ("", Some("")),
            ("T stdout F one two\nT stdout F \n", Some("one two\n\n")),
            (
                "T stdout P o\nT stdout F ne\nT stdout P two\n",
                Some("one\ntwo"),
            ),
            ("T stdout F one", None),
            ("T stderr F one\n", None),
            ("one\n", None),
        ] {
            fs::write(&log, text).unwrap();
            let outcome = strip(&log, &bare);
            let outcome = outcome.ok().map(|()| fs::read_to_string(&bare).unwrap());
            assert_eq!(outcome.as_deref(), expected, "{text:?}");
        }
    }
}
