//! supervisord(1): `startProcess` over XML-RPC on an open connection. Measured until its log has the bytes.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use tempfile::TempDir;

use super::super::log::Log;
use super::super::{Copies, Named, Spawns};

use super::{directory, text};
use crate::colibri::PATIENCE;

pub(super) const NAME: &str = "supervisord";

pub(super) struct Supervisord {
    directory: TempDir,
    log: Log,
    /// The supervisord of the latest command.
    running: Option<Running>,
}

struct Running {
    command: Vec<String>,
    supervisord: Child,
    connection: BufReader<UnixStream>,
}

impl Supervisord {
    pub(super) fn new() -> Result<Self> {
        let directory = directory()?;
        let log = Log::new(&directory.path().join("log"), "log")?;
        Ok(Self {
            directory,
            log,
            running: None,
        })
    }

    /// A supervisord for one command: its configuration contains the command, so another command needs another
    /// supervisord.
    fn running(&mut self, command: &[&str]) -> Result<()> {
        if self
            .running
            .as_ref()
            .is_some_and(|running| running.command != command)
        {
            self.running = None;
        }
        if self.running.is_none() {
            self.running = Some(Running::start(
                self.directory.path(),
                self.log.path(),
                command,
            )?);
        }
        Ok(())
    }

    /// Runs a command until the log has this many bytes, and reads the answer afterwards.
    fn run(&mut self, command: &[&str], bytes: u64) -> Result<Duration> {
        self.running(command)?;
        let running = self.running.as_mut().context("no supervisord runs")?;
        let asked = Instant::now();
        running.ask(
            "startProcess",
            "<param><value><boolean>0</boolean></value></param>",
        )?;
        let seen = self.log.wait_for(bytes);
        running.answer("startProcess")?;
        Ok(seen? - asked)
    }
}

impl Running {
    fn start(directory: &Path, log: &Path, command: &[&str]) -> Result<Self> {
        let (socket, file) = (directory.join("socket"), directory.join("supervisord.conf"));
        let mut words = Vec::new();
        for word in command {
            ensure!(
                !word.contains(['"', '\\', '\n']),
                "an argument that needs quoting: {word}"
            );
            words.push(format!("\"{}\"", word.replace('%', "%%")));
        }
        let (directory_text, socket_text, log) = (text(directory)?, text(&socket)?, text(log)?);
        let configuration = format!(
            "[unix_http_server]\nfile={socket_text}\n\
             [supervisord]\nnodaemon=true\nlogfile={directory_text}/supervisord.log\npidfile={directory_text}/pid\n\
             [rpcinterface:supervisor]\n\
             supervisor.rpcinterface_factory=supervisor.rpcinterface:make_main_rpcinterface\n\
             [program:bench]\ncommand={}\nautostart=false\nautorestart=false\nstartsecs=0\nexitcodes=0\n\
             stopsignal=KILL\nstdout_logfile={log}\nstdout_logfile_maxbytes=0\nstdout_logfile_backups=0\n",
            words.join(" ")
        );
        fs::write(&file, configuration)?;
        let _ = fs::remove_file(&socket);
        let mut supervisord = Command::new("/usr/bin/supervisord")
            .arg("--configuration")
            .arg(&file)
            .current_dir(directory)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(fs::File::create(directory.join("stderr"))?)
            .spawn()
            .context("cannot start supervisord")?;
        let until = Instant::now() + PATIENCE;
        let connection = loop {
            match UnixStream::connect(&socket) {
                Ok(connection) => break connection,
                Err(error) => {
                    if let Some(status) = supervisord.try_wait()? {
                        let stderr =
                            fs::read_to_string(directory.join("stderr")).unwrap_or_default();
                        bail!("supervisord ended ({status}): {}", stderr.trim());
                    }
                    if Instant::now() > until {
                        let _ = supervisord.kill();
                        let _ = supervisord.wait();
                        return Err(error).context("supervisord does not listen");
                    }
                    std::thread::sleep(Duration::from_millis(5));
                }
            }
        };
        connection.set_read_timeout(Some(PATIENCE))?;
        Ok(Self {
            command: command.iter().map(ToString::to_string).collect(),
            supervisord,
            connection: BufReader::new(connection),
        })
    }

    /// Calls a method for the configured program.
    fn ask(&mut self, method: &str, parameters: &str) -> Result<()> {
        let body = format!(
            "<?xml version=\"1.0\"?><methodCall><methodName>supervisor.{method}</methodName>\
             <params><param><value><string>bench</string></value></param>{parameters}</params></methodCall>"
        );
        let request = format!(
            "POST /RPC2 HTTP/1.1\r\nHost: localhost\r\nContent-Type: text/xml\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        );
        self.connection.get_mut().write_all(request.as_bytes())?;
        Ok(())
    }

    fn answer(&mut self, method: &str) -> Result<()> {
        let answer = self.reply()?;
        ensure!(
            answer.contains("<boolean>1</boolean>"),
            "supervisord refuses {method}: {answer}"
        );
        Ok(())
    }

    fn reply(&mut self) -> Result<String> {
        let mut length = None;
        loop {
            let mut line = String::new();
            self.connection.read_line(&mut line)?;
            if line.trim().is_empty() {
                break;
            }
            if let Some((name, value)) = line.split_once(':')
                && name.eq_ignore_ascii_case("content-length")
            {
                length = Some(value.trim().parse()?);
            }
        }
        let mut answer = vec![0; length.context("supervisord answered without a length")?];
        self.connection.read_exact(&mut answer)?;
        Ok(String::from_utf8_lossy(&answer).into_owned())
    }
}

impl Running {
    fn stop(&mut self) -> Result<()> {
        self.ask("stopProcess", "")?;
        self.answer("stopProcess")
    }

    /// Waits until it has noticed the end of a program that has ended or is about to.
    fn settle(&mut self) -> Result<()> {
        self.ask("stopProcess", "")?;
        let answer = self.reply()?;
        let ended = answer.contains("NOT_RUNNING") || answer.contains("<boolean>1</boolean>");
        ensure!(ended, "supervisord refuses stopProcess: {answer}");
        Ok(())
    }
}

impl Drop for Running {
    /// Ends the running program, too.
    fn drop(&mut self) {
        let _ = self.stop();
        let _ = self.supervisord.kill();
        let _ = self.supervisord.wait();
    }
}

impl Named for Supervisord {
    fn name(&self) -> String {
        NAME.to_owned()
    }
}

impl Spawns for Supervisord {
    fn first_byte(&mut self, command: &[&str]) -> Result<Duration> {
        let took = self.run(command, 1)?;
        self.running
            .as_mut()
            .context("no supervisord runs")?
            .stop()?;
        self.log.check_line_feed()?;
        Ok(took)
    }
}

impl Copies for Supervisord {
    fn copy(&mut self, file: &Path, bytes: u64) -> Result<Duration> {
        let took = self.run(&["cat", text(file)?], bytes)?;
        let running = self.running.as_mut();
        running.context("no supervisord runs")?.settle()?;
        self.log.check(file)?;
        Ok(took)
    }
}
