//! pm2: a script that is connected to the daemon of pm2 (benches/peers/pm2.js) starts a program. The measured time is
//! from the request to the script until the log has the bytes.

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
use super::super::{Peer, SpawnPeer, StorePeer};

use super::{create_directory, path_text};

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
        let directory = create_directory()?;
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
        pm2.read_answer()?;
        Ok(pm2)
    }

    /// Sends a request to the script.
    fn send(&mut self, request: &Value) -> Result<()> {
        // One write per line, because ChildStdin is not buffered.
        self.stdin.write_all(format!("{request}\n").as_bytes())?;
        Ok(())
    }

    /// Reads the answer of the script, and fails if it is an error.
    fn read_answer(&mut self) -> Result<()> {
        let mut line = String::new();
        // pm2 may print other messages before the answer.
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
        let log = path_text(self.log.path())?.to_owned();
        let requested_at = Instant::now();
        self.send(&json!({"start": command, "log": log}))?;
        let stored_at = self.log.wait_for(bytes);
        self.read_answer()?;
        self.send(&json!({"delete": true}))?;
        self.read_answer()?;
        Ok(stored_at? - requested_at)
    }
}

impl Drop for Pm2 {
    fn drop(&mut self) {
        let daemon = fs::read_to_string(self.directory.path().join("home/pm2.pid"));
        let stopped = self.send(&json!({"delete": true})).and_then(|()| {
            let _ = self.read_answer();
            self.send(&json!({"kill": true}))?;
            self.read_answer()
        });
        if stopped.is_err() {
            let daemon = daemon.ok().and_then(|pid| pid.trim().parse().ok());
            if let Some(daemon) = daemon.and_then(Pid::from_raw) {
                let _ = kill_process(daemon, Signal::KILL);
            }
            let _ = self.node.kill();
        }
        let _ = self.node.wait();
    }
}

impl Peer for Pm2 {
    fn name(&self) -> String {
        NAME.to_owned()
    }
}

impl SpawnPeer for Pm2 {
    fn first_byte(&mut self, command: &[&str]) -> Result<Duration> {
        let duration = self.run(command, 1)?;
        self.log.check_line_feed()?;
        Ok(duration)
    }
}

impl StorePeer for Pm2 {
    fn store(&mut self, file: &Path, bytes: u64) -> Result<Duration> {
        // pm2 closes the log when the program ends, even before it has read all output. So the program does not end.
        let script = format!("cat '{}'; exec sleep 100000", path_text(file)?);
        let duration = self.run(&["/bin/sh", "-c", &script], bytes)?;
        self.log.check(file)?;
        Ok(duration)
    }
}
