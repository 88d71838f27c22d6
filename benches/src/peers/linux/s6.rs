//! s6-supervise(8) and s6-log(8), connected by a pipe as s6-svscan(8) does. The measured time is from the write of `u`
//! to the control FIFO, as s6-svc(8) does, until the log has the bytes.

use std::fs::{self, File, OpenOptions, Permissions};
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use rustix::pipe::{PipeFlags, pipe_with};
use tempfile::TempDir;

use super::super::log::Log;
use super::super::{Peer, SpawnPeer, StorePeer};

use super::{create_directory, path_text};
use crate::colibri::TIMEOUT;

pub(super) const NAME: &str = "s6-supervise and s6-log";

pub(super) struct S6 {
    directory: TempDir,
    log: Log,
    /// Read end of the pipe, for s6-log.
    pipe: File,
    supervise: Child,
    logger: Option<Child>,
    control: File,
}

impl S6 {
    pub(super) fn new() -> Result<Self> {
        let directory = create_directory()?;
        let service = directory.path();
        let log = Log::new(&service.join("log"), "current")?;
        fs::write(service.join("down"), "")?;
        write_run(service, &["true"])?;
        let (pipe, output) = pipe_with(PipeFlags::CLOEXEC)?;
        let mut supervise = Command::new("/usr/bin/s6-supervise")
            .arg(service)
            .stdin(Stdio::null())
            .stdout(output)
            .stderr(File::create(service.join("stderr"))?)
            .spawn()
            .context("cannot start s6-supervise")?;
        // With O_NONBLOCK, open(2) of a FIFO for writing fails until the FIFO has a reader.
        let deadline = Instant::now() + TIMEOUT;
        let control = loop {
            match open_control(&service.join("supervise/control")) {
                Ok(control) => break control,
                Err(error) if Instant::now() > deadline => {
                    let _ = supervise.kill();
                    let _ = supervise.wait();
                    return Err(error).context("s6-supervise does not listen");
                }
                Err(_) => std::thread::sleep(Duration::from_millis(5)),
            }
        };
        Ok(Self {
            directory,
            log,
            pipe: File::from(pipe),
            supervise,
            logger: None,
            control,
        })
    }

    /// Starts a command with an empty log and a new logger, because s6-log starts another file after 256 MiB. Returns the
    /// time of the request.
    fn start(&mut self, command: &[&str]) -> Result<Instant> {
        self.stop_logger()?;
        let logs = self.log.path().parent().context("no directory")?;
        write_run(self.directory.path(), command)?;
        let logger = Command::new("/usr/bin/s6-log")
            .args(["-b", "n1", "s268435455", path_text(logs)?])
            .stdin(self.pipe.try_clone()?)
            .stdout(Stdio::null())
            .spawn()
            .context("cannot start s6-log")?;
        self.logger = Some(logger);
        let deadline = Instant::now() + TIMEOUT;
        while !self.log.path().exists() {
            ensure!(Instant::now() < deadline, "s6-log does not create its log");
            std::thread::sleep(Duration::from_millis(1));
        }
        let requested_at = Instant::now();
        self.control.write_all(b"u")?;
        Ok(requested_at)
    }

    fn stop(&mut self) -> Result<()> {
        self.control.write_all(b"d")?;
        // s6-svc(8) can wait for the end, but leaves zombies for init.
        let deadline = Instant::now() + TIMEOUT;
        loop {
            let state = Command::new("/usr/bin/s6-svstat")
                .args(["-o", "pid"])
                .arg(self.directory.path())
                .output()
                .context("cannot start s6-svstat")?;
            match state.stdout.as_slice() {
                b"-1\n" => return Ok(()),
                _ if Instant::now() > deadline => bail!("s6-supervise does not stop the program"),
                _ => std::thread::sleep(Duration::from_millis(2)),
            }
        }
    }

    /// Ends the logger, if one runs, and removes its files.
    fn stop_logger(&mut self) -> Result<()> {
        if let Some(mut logger) = self.logger.take() {
            logger.kill()?;
            logger.wait()?;
            let logs = self.log.path().parent().context("no directory")?;
            for entry in fs::read_dir(logs)? {
                let path = entry?.path();
                if path.is_file() {
                    fs::remove_file(path)?;
                }
            }
        }
        Ok(())
    }
}

fn open_control(path: &Path) -> std::io::Result<File> {
    use std::os::unix::fs::OpenOptionsExt;
    OpenOptions::new()
        .write(true)
        .custom_flags(rustix::fs::OFlags::NONBLOCK.bits().cast_signed())
        .open(path)
}

/// Writes the script `run` for a command. A shell command becomes the script itself, so that only one shell runs.
fn write_run(service: &Path, command: &[&str]) -> Result<()> {
    let script = match command {
        ["/bin/sh", "-c", text] => (*text).to_owned(),
        words => {
            let words: Vec<String> = words
                .iter()
                .map(|word| format!("'{}'", word.replace('\'', r"'\''")))
                .collect();
            format!("exec {}", words.join(" "))
        }
    };
    let (path, new) = (service.join("run"), service.join("run.new"));
    fs::write(&new, format!("#!/bin/sh\n{script}\n"))?;
    fs::set_permissions(&new, Permissions::from_mode(0o755))?;
    fs::rename(new, path)?;
    Ok(())
}

impl Drop for S6 {
    fn drop(&mut self) {
        let _ = self.stop();
        let _ = self.control.write_all(b"x");
        let _ = self.supervise.wait();
        let _ = self.stop_logger();
    }
}

impl Peer for S6 {
    fn name(&self) -> String {
        NAME.to_owned()
    }
}

impl SpawnPeer for S6 {
    fn first_byte(&mut self, command: &[&str]) -> Result<Duration> {
        let requested_at = self.start(command)?;
        let stored_at = self.log.wait_for(1)?;
        self.stop()?;
        self.log.check_line_feed()?;
        Ok(stored_at - requested_at)
    }
}

impl StorePeer for S6 {
    fn store(&mut self, file: &Path, bytes: u64) -> Result<Duration> {
        // s6-supervise would restart an ended program. So the program does not end.
        let script = format!("cat '{}'; exec sleep 100000", path_text(file)?);
        let requested_at = self.start(&["/bin/sh", "-c", &script])?;
        let stored_at = self.log.wait_for(bytes)?;
        self.stop()?;
        self.log.check(file)?;
        Ok(stored_at - requested_at)
    }
}
