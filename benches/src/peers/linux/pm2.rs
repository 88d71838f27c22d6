//! pm2: a script that is connected to pm2's daemon by its API (benches/peers/pm2.js) starts a program. Measured until
//! its log has the bytes.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use tempfile::TempDir;

use super::super::log::Log;
use super::super::{Copies, Named, Spawns};

use super::{directory, text};

pub(super) const NAME: &str = "pm2";

pub(super) struct Pm2 {
    directory: TempDir,
    log: Log,
    node: Child,
    stdin: ChildStdin,
    stdout: BufReader<ChildStdout>,
}

impl Pm2 {
    pub(super) fn new(tools: &Path) -> Result<Self> {
        let modules: PathBuf =
            fs::canonicalize(tools.join("pm2/node_modules")).with_context(|| {
                format!(
                    "no pm2 in {}; scripts/bench.sh installs it",
                    tools.display()
                )
            })?;
        let directory = directory()?;
        let log = Log::new(&directory.path().join("log"), "log")?;
        let script = directory.path().join("pm2.js");
        fs::write(&script, include_str!("../../../peers/pm2.js"))?;
        let mut node = Command::new("node")
            .arg(script)
            .env("NODE_PATH", modules)
            .env("PM2_HOME", directory.path().join("home"))
            .env("HOME", directory.path())
            .current_dir(directory.path())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(fs::File::create(directory.path().join("stderr"))?)
            .spawn()
            .context("cannot start node")?;
        let stdin = node.stdin.take().context("no stdin")?;
        let stdout = BufReader::new(node.stdout.take().context("no stdout")?);
        let mut pm2 = Self {
            directory,
            log,
            node,
            stdin,
            stdout,
        };
        pm2.answer()?;
        Ok(pm2)
    }

    fn ask(&mut self, what: &Value) -> Result<()> {
        // One write: a partial line would be buffered.
        self.stdin.write_all(format!("{what}\n").as_bytes())?;
        Ok(())
    }

    fn answer(&mut self) -> Result<()> {
        let mut line = String::new();
        // pm2 may print messages to the user first.
        loop {
            line.clear();
            let read = self.stdout.read_line(&mut line)?;
            let stderr = || {
                let stderr = fs::read_to_string(self.directory.path().join("stderr"));
                stderr.unwrap_or_default()
            };
            ensure!(read > 0, "pm2's script ended: {}", stderr().trim());
            if !line.starts_with("[PM2]") {
                break;
            }
        }
        ensure!(line.trim() == "ok", "pm2 refuses: {}", line.trim());
        Ok(())
    }

    /// Runs a command until the log has this many bytes.
    fn run(&mut self, command: &[&str], bytes: u64) -> Result<Duration> {
        let log = text(self.log.path())?.to_owned();
        let asked = Instant::now();
        self.ask(&json!({"start": command, "log": log}))?;
        let seen = self.log.wait_for(bytes);
        self.answer()?;
        self.ask(&json!({"delete": true}))?;
        self.answer()?;
        Ok(seen? - asked)
    }
}

impl Drop for Pm2 {
    fn drop(&mut self) {
        let daemon = fs::read_to_string(self.directory.path().join("home/pm2.pid"));
        let gone = self.ask(&json!({"delete": true})).and_then(|()| {
            let _ = self.answer();
            self.ask(&json!({"kill": true}))?;
            self.answer()
        });
        if gone.is_err() {
            let daemon = daemon.ok().and_then(|pid| pid.trim().parse().ok());
            if let Some(daemon) = daemon.and_then(Pid::from_raw) {
                let _ = kill_process(daemon, Signal::KILL);
            }
            let _ = self.node.kill();
        }
        let _ = self.node.wait();
    }
}

impl Named for Pm2 {
    fn name(&self) -> String {
        NAME.to_owned()
    }
}

impl Spawns for Pm2 {
    fn first_byte(&mut self, command: &[&str]) -> Result<Duration> {
        let took = self.run(command, 1)?;
        self.log.check_line_feed()?;
        Ok(took)
    }
}

impl Copies for Pm2 {
    fn copy(&mut self, file: &Path, bytes: u64) -> Result<Duration> {
        // pm2 closes the log when the program ends, even before it has read all output. So the program waits to be
        // killed.
        let script = format!("cat '{}'; exec sleep 100000", text(file)?);
        let took = self.run(&["/bin/sh", "-c", &script], bytes)?;
        self.log.check(file)?;
        Ok(took)
    }
}
