//! supervisord(1): `startProcess` by XML-RPC on an open connection. The measured time is from the request until the log
//! has the bytes.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use tempfile::TempDir;

use super::super::log::Log;
use super::super::{Peer, SpawnPeer, StorePeer};

use super::{create_directory, path_text};
use crate::colibri::TIMEOUT;

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
        let directory = create_directory()?;
        let log = Log::new(&directory.path().join("log"), "log")?;
        Ok(Self {
            directory,
            log,
            running: None,
        })
    }

    /// Starts a supervisord for a command, unless one runs. Its configuration contains the command, so each command needs
    /// another supervisord.
    fn ensure_running(&mut self, command: &[&str]) -> Result<()> {
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

    /// Runs a command and returns the time until the log has this many bytes.
    fn run(&mut self, command: &[&str], bytes: u64) -> Result<Duration> {
        self.ensure_running(command)?;
        let running = self.running.as_mut().context("no supervisord runs")?;
        let requested_at = Instant::now();
        running.send(
            "startProcess",
            "<param><value><boolean>0</boolean></value></param>",
        )?;
        let stored_at = self.log.wait_for(bytes);
        running.read_success("startProcess")?;
        Ok(stored_at? - requested_at)
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
        let (directory_path, socket_path, log) =
            (path_text(directory)?, path_text(&socket)?, path_text(log)?);
        let configuration = format!(
            "[unix_http_server]\nfile={socket_path}\n\
             [supervisord]\nnodaemon=true\nlogfile={directory_path}/supervisord.log\npidfile={directory_path}/pid\n\
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
        let deadline = Instant::now() + TIMEOUT;
        let connection = loop {
            match UnixStream::connect(&socket) {
                Ok(connection) => break connection,
                Err(error) => {
                    if let Some(status) = supervisord.try_wait()? {
                        let stderr =
                            fs::read_to_string(directory.join("stderr")).unwrap_or_default();
                        bail!("supervisord ended ({status}): {}", stderr.trim());
                    }
                    if Instant::now() > deadline {
                        let _ = supervisord.kill();
                        let _ = supervisord.wait();
                        return Err(error).context("supervisord does not listen");
                    }
                    std::thread::sleep(Duration::from_millis(5));
                }
            }
        };
        connection.set_read_timeout(Some(TIMEOUT))?;
        Ok(Self {
            command: command.iter().map(ToString::to_string).collect(),
            supervisord,
            connection: BufReader::new(connection),
        })
    }

    /// Sends a call of a method for the configured program.
    fn send(&mut self, method: &str, parameters: &str) -> Result<()> {
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

    /// Reads the answer to a call, and fails unless it is `true`.
    fn read_success(&mut self, method: &str) -> Result<()> {
        let answer = self.read_answer()?;
        ensure!(
            answer.contains("<boolean>1</boolean>"),
            "supervisord refuses {method}: {answer}"
        );
        Ok(())
    }

    fn read_answer(&mut self) -> Result<String> {
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
        self.send("stopProcess", "")?;
        self.read_success("stopProcess")
    }

    /// Waits until supervisord has registered the end of a program that ends by itself.
    fn wait_until_ended(&mut self) -> Result<()> {
        self.send("stopProcess", "")?;
        let answer = self.read_answer()?;
        let ended = answer.contains("NOT_RUNNING") || answer.contains("<boolean>1</boolean>");
        ensure!(ended, "supervisord refuses stopProcess: {answer}");
        Ok(())
    }
}

impl Drop for Running {
    /// Ends supervisord and the program.
    fn drop(&mut self) {
        let _ = self.stop();
        let _ = self.supervisord.kill();
        let _ = self.supervisord.wait();
    }
}

impl Peer for Supervisord {
    fn name(&self) -> String {
        NAME.to_owned()
    }
}

impl SpawnPeer for Supervisord {
    fn first_byte(&mut self, command: &[&str]) -> Result<Duration> {
        let duration = self.run(command, 1)?;
        self.running
            .as_mut()
            .context("no supervisord runs")?
            .stop()?;
        self.log.check_line_feed()?;
        Ok(duration)
    }
}

impl StorePeer for Supervisord {
    fn store(&mut self, file: &Path, bytes: u64) -> Result<Duration> {
        let duration = self.run(&["cat", path_text(file)?], bytes)?;
        let running = self.running.as_mut();
        running.context("no supervisord runs")?.wait_until_ended()?;
        self.log.check(file)?;
        Ok(duration)
    }
}
