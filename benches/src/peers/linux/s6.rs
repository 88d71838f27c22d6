//! s6-supervise(8) with s6-log(8) at the other end of a pipe, as s6-svscan(8) connects them. Measured from the write
//! of `u` to the control FIFO, which is all that s6-svc(8) does, until the log has the bytes.

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
use super::super::{Copies, Named, Spawns};

use super::{directory, text};
use crate::colibri::PATIENCE;

pub(super) const NAME: &str = "s6-supervise and s6-log";

pub(super) struct S6 {
    directory: TempDir,
    log: Log,
    /// Read end of the pipe for loggers.
    logged: File,
    supervise: Child,
    logger: Option<Child>,
    control: File,
}

impl S6 {
    pub(super) fn new() -> Result<Self> {
        let directory = directory()?;
        let service = directory.path();
        let log = Log::new(&service.join("log"), "current")?;
        fs::write(service.join("down"), "")?;
        write_run(service, &["true"])?;
        let (logged, output) = pipe_with(PipeFlags::CLOEXEC)?;
        let mut supervise = Command::new("/usr/bin/s6-supervise")
            .arg(service)
            .stdin(Stdio::null())
            .stdout(output)
            .stderr(File::create(service.join("stderr"))?)
            .spawn()
            .context("cannot start s6-supervise")?;
        // open(2) for writing without waiting succeeds once the FIFO has a reader.
        let until = Instant::now() + PATIENCE;
        let control = loop {
            match open_control(&service.join("supervise/control")) {
                Ok(control) => break control,
                Err(error) if Instant::now() > until => {
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
            logged: File::from(logged),
            supervise,
            logger: None,
            control,
        })
    }

    /// Starts it with an empty log and a new logger: s6-log starts another file after 256 MiB.
    fn start(&mut self, command: &[&str]) -> Result<Instant> {
        self.end_logger()?;
        let logs = self.log.path().parent().context("no directory")?;
        write_run(self.directory.path(), command)?;
        let logger = Command::new("/usr/bin/s6-log")
            .args(["-b", "n1", "s268435455", text(logs)?])
            .stdin(self.logged.try_clone()?)
            .stdout(Stdio::null())
            .spawn()
            .context("cannot start s6-log")?;
        self.logger = Some(logger);
        let until = Instant::now() + PATIENCE;
        while !self.log.path().exists() {
            ensure!(Instant::now() < until, "s6-log does not create its log");
            std::thread::sleep(Duration::from_millis(1));
        }
        let asked = Instant::now();
        self.control.write_all(b"u")?;
        Ok(asked)
    }

    fn stop(&mut self) -> Result<()> {
        self.control.write_all(b"d")?;
        // s6-svc can wait for the end, but leaves processes for init to reap.
        let until = Instant::now() + PATIENCE;
        loop {
            let state = Command::new("/usr/bin/s6-svstat")
                .args(["-o", "pid"])
                .arg(self.directory.path())
                .output()
                .context("cannot start s6-svstat")?;
            match state.stdout.as_slice() {
                b"-1\n" => return Ok(()),
                _ if Instant::now() > until => bail!("s6-supervise does not stop the program"),
                _ => std::thread::sleep(Duration::from_millis(2)),
            }
        }
    }

    fn end_logger(&mut self) -> Result<()> {
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

/// Returns the script `run`: a shell command is used directly, so that only one shell runs.
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
        let _ = self.end_logger();
    }
}

impl Named for S6 {
    fn name(&self) -> String {
        NAME.to_owned()
    }
}

impl Spawns for S6 {
    fn first_byte(&mut self, command: &[&str]) -> Result<Duration> {
        let asked = self.start(command)?;
        let seen = self.log.wait_for(1)?;
        self.stop()?;
        self.log.check_line_feed()?;
        Ok(seen - asked)
    }
}

impl Copies for S6 {
    fn copy(&mut self, file: &Path, bytes: u64) -> Result<Duration> {
        // The supervisor would restart an ended program. So the program waits to be stopped.
        let script = format!("cat '{}'; exec sleep 100000", text(file)?);
        let asked = self.start(&["/bin/sh", "-c", &script])?;
        let seen = self.log.wait_for(bytes)?;
        self.stop()?;
        self.log.check(file)?;
        Ok(seen - asked)
    }
}
