//! conmon(8), which supervises each container of podman and CRI-O and stores its output. As podman does, the benchmark
//! starts conmon, and runs `start` of the container runtime when conmon has reported the container. The measured time
//! is from the start of conmon until its log has a line; for throughput, until conmon exits, because it exits when all
//! output is stored. The length of the log does not show that, because each line, and each part of a line from a
//! separate read, has a prefix.

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
use super::super::{Peer, SpawnPeer, StorePeer, check_stored};

use super::oci::{Bundle, Runtime};
use super::{path_text, run_checked};

pub(super) struct Conmon {
    bundle: Bundle,
    log: Log,
    /// The running container and its conmon.
    running: Option<(String, Child)>,
}

/// Message of conmon about the created container.
#[derive(Deserialize)]
struct StatusMessage {
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
            .args(["--bundle", path_text(directory)?])
            .args(["--container-pidfile", path_text(&directory.join("pid"))?])
            .args(["--exit-dir", path_text(directory)?])
            .args(["--socket-dir-path", path_text(directory)?])
            .args([
                "--log-path",
                &format!("k8s-file:{}", path_text(self.log.path())?),
            ])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(File::create(directory.join("stderr"))?);
        for argument in self.bundle.options() {
            conmon.arg(format!("--runtime-arg={argument}"));
        }
        let requested_at = Instant::now();
        let (status, sync_pipe) = pipe_with(PipeFlags::CLOEXEC)?;
        conmon.env("_OCI_SYNCPIPE", sync_pipe.as_raw_fd().to_string());
        fcntl_setfd(&sync_pipe, FdFlags::empty())?;
        let child = conmon.spawn().context("cannot start conmon");
        drop(sync_pipe);
        self.running = Some((name.clone(), child?));
        let mut line = String::new();
        BufReader::new(File::from(status)).read_line(&mut line)?;
        let status: StatusMessage = serde_json::from_str(&line).with_context(|| {
            let stderr = fs::read_to_string(directory.join("stderr")).unwrap_or_default();
            format!("conmon reported {line:?}; {}", stderr.trim())
        })?;
        ensure!(status.data > 0, "conmon failed: {}", status.status.trim());
        run_checked(&mut self.bundle.command(&["start", &name]))?;
        Ok(requested_at)
    }

    /// Deletes the container, if one runs, and waits for its conmon.
    fn stop(&mut self) -> Result<()> {
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
        let _ = self.stop();
    }
}

impl Peer for Conmon {
    fn name(&self) -> String {
        self.bundle.runtime.name_with_conmon().to_owned()
    }
}

impl SpawnPeer for Conmon {
    fn first_byte(&mut self, command: &[&str]) -> Result<Duration> {
        let requested_at = self.start(command)?;
        let stored_at = self.log.wait_for(1)?;
        self.stop()?;
        let content = self.log.read()?;
        ensure!(
            content.ends_with(b" stdout F \n")
                && content.iter().filter(|byte| **byte == b'\n').count() == 1,
            "the log is not a line feed: {:?}",
            String::from_utf8_lossy(&content)
        );
        fs::remove_file(self.log.path())?;
        Ok(stored_at - requested_at)
    }
}

impl StorePeer for Conmon {
    fn store(&mut self, file: &Path, _bytes: u64) -> Result<Duration> {
        let requested_at = self.start(&["cat", path_text(file)?])?;
        if let Some((_, conmon)) = &mut self.running {
            conmon.wait()?;
        }
        let duration = requested_at.elapsed();
        self.stop()?;
        let output = self.bundle.directory.path().join("output");
        strip_prefixes(self.log.path(), &output)?;
        check_stored(file, std::slice::from_ref(&output))?;
        fs::remove_file(output)?;
        fs::remove_file(self.log.path())?;
        Ok(duration)
    }
}

/// Copies a log without its prefixes: time, stream, and flag for complete lines.
fn strip_prefixes(log: &Path, output: &Path) -> Result<()> {
    let mut log = BufReader::with_capacity(1 << 18, File::open(log)?);
    let mut output = BufWriter::with_capacity(1 << 18, File::create(output)?);
    let mut line = Vec::new();
    while log.read_until(b'\n', &mut line)? > 0 {
        let mut words = line.splitn(4, |byte| *byte == b' ');
        let (_time, stream) = (words.next(), words.next());
        let (flag, mut content) = (words.next(), words.next().unwrap_or_default());
        ensure!(
            stream == Some(b"stdout") && content.ends_with(b"\n"),
            "malformed line in conmon's log: {:?}",
            String::from_utf8_lossy(&line)
        );
        if flag == Some(b"P") {
            content = content.strip_suffix(b"\n").unwrap_or(content);
        }
        output.write_all(content)?;
        line.clear();
    }
    output.flush()?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn log_without_prefixes_equals_written_bytes() {
        let directory = tempfile::tempdir().unwrap();
        let (log, output) = (
            directory.path().join("log"),
            directory.path().join("output"),
        );
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
            let result = strip_prefixes(&log, &output);
            let result = result.ok().map(|()| fs::read_to_string(&output).unwrap());
            assert_eq!(result.as_deref(), expected, "{text:?}");
        }
    }
}
