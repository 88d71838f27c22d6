//! Requests of an agent for terminals: commands that run in its sandbox, and whose output it reads.

use std::collections::HashMap;
use std::io::{self, ErrorKind};
use std::path::PathBuf;
use std::process::{ExitStatus, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process_group};
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::process::Command;
use tokio::sync::watch;
use tokio::time::timeout;

/// Maximum number of terminals that are not released.
const MAX_TERMINALS: usize = 64;
/// Maximum size of the output that is kept, in bytes.
const MAX_OUTPUT: usize = 1 << 20;

/// Timeout for the rest of the output of a command that has ended.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(1);

/// A command to run.
#[derive(Debug)]
pub(crate) struct TerminalCommand {
    pub(crate) program: String,
    pub(crate) args: Vec<String>,
    pub(crate) env: Vec<(String, String)>,
    pub(crate) cwd: Option<PathBuf>,
    /// Maximum size of the output to keep, in bytes.
    pub(crate) output_limit: Option<u64>,
}

/// The kept end of a command's output.
#[derive(Debug, Default)]
struct Buffer {
    bytes: Vec<u8>,
    is_truncated: bool,
}

struct Terminal {
    output: Arc<Mutex<Buffer>>,
    process_group: Option<Pid>,
    exit: watch::Receiver<Option<ExitStatus>>,
}

/// The output of a command so far.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct TerminalOutput {
    pub(crate) text: String,
    pub(crate) is_truncated: bool,
    pub(crate) exit: Option<ExitStatus>,
}

/// The terminals of one agent.
#[derive(Clone, Default)]
pub(crate) struct Terminals(Arc<Mutex<Registry>>);

#[derive(Default)]
struct Registry {
    terminals: HashMap<String, Terminal>,
    created: u64,
}

impl Terminals {
    /// Starts a command, and returns the id of its terminal.
    ///
    /// # Errors
    /// The command cannot be started, or too many are open.
    pub(crate) fn create(&self, command: TerminalCommand) -> io::Result<String> {
        let mut registry = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if registry.terminals.len() >= MAX_TERMINALS {
            let message = format!("{MAX_TERMINALS} terminals are open; release one");
            return Err(io::Error::new(ErrorKind::QuotaExceeded, message));
        }
        let terminal = Terminal::start(command)?;
        registry.created += 1;
        let id = format!("terminal-{}", registry.created);
        registry.terminals.insert(id.clone(), terminal);
        Ok(id)
    }

    /// Returns the output of a command.
    ///
    /// # Errors
    /// The terminal does not exist.
    pub(crate) fn output(&self, id: &str) -> io::Result<TerminalOutput> {
        self.with(id, |terminal| {
            let buffer = terminal
                .output
                .lock()
                .unwrap_or_else(PoisonError::into_inner);
            TerminalOutput {
                text: String::from_utf8_lossy(&buffer.bytes).into_owned(),
                is_truncated: buffer.is_truncated,
                exit: *terminal.exit.borrow(),
            }
        })
    }

    /// Waits for the end of a command.
    ///
    /// # Errors
    /// The terminal does not exist, or the status is unknown.
    pub(crate) async fn wait(&self, id: &str) -> io::Result<ExitStatus> {
        let mut exit = self.with(id, |terminal| terminal.exit.clone())?;
        let status = exit.wait_for(Option::is_some).await;
        let status = status.ok().and_then(|status| *status);
        status.ok_or_else(|| io::Error::other("the exit status is unknown"))
    }

    /// Kills a command and its children.
    ///
    /// # Errors
    /// The terminal does not exist.
    pub(crate) fn kill(&self, id: &str) -> io::Result<()> {
        self.with(id, Terminal::kill)
    }

    /// Kills a command and forgets its terminal.
    ///
    /// # Errors
    /// The terminal does not exist.
    pub(crate) fn release(&self, id: &str) -> io::Result<()> {
        let mut registry = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let terminal = registry.terminals.remove(id);
        terminal
            .ok_or_else(|| unknown(id))
            .map(|terminal| terminal.kill())
    }

    /// Kills all commands.
    pub(crate) fn kill_all(&self) {
        let registry = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        registry.terminals.values().for_each(Terminal::kill);
    }

    fn with<T>(&self, id: &str, operation: impl FnOnce(&Terminal) -> T) -> io::Result<T> {
        let registry = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let terminal = registry.terminals.get(id).ok_or_else(|| unknown(id))?;
        Ok(operation(terminal))
    }
}

fn unknown(id: &str) -> io::Error {
    io::Error::new(ErrorKind::NotFound, format!("no terminal {id}"))
}

impl Terminal {
    fn start(command: TerminalCommand) -> io::Result<Self> {
        let mut process = Command::new(&command.program);
        process
            .args(&command.args)
            .envs(command.env)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .process_group(0);
        if let Some(cwd) = command.cwd {
            process.current_dir(cwd);
        }
        let mut child = process.spawn()?;
        let output = Arc::new(Mutex::new(Buffer::default()));
        let limit = command
            .output_limit
            .and_then(|limit| usize::try_from(limit).ok());
        let limit = limit.unwrap_or(MAX_OUTPUT).min(MAX_OUTPUT);
        let readers = [
            child
                .stdout
                .take()
                .map(|pipe| tokio::spawn(copy(pipe, output.clone(), limit))),
            child
                .stderr
                .take()
                .map(|pipe| tokio::spawn(copy(pipe, output.clone(), limit))),
        ];
        let id = child.id().and_then(|id| i32::try_from(id).ok());
        let (sender, exit) = watch::channel(None);
        tokio::spawn(async move {
            let status = child.wait().await;
            // A background process may keep the pipes.
            let _ = timeout(DRAIN_TIMEOUT, async {
                for reader in readers.into_iter().flatten() {
                    let _ = reader.await;
                }
            })
            .await;
            if let Ok(status) = status {
                sender.send_replace(Some(status));
            }
        });
        Ok(Self {
            output,
            process_group: id.and_then(Pid::from_raw),
            exit,
        })
    }

    /// Kills the command and its children, unless its end is recorded: the id of its process group may be reused then.
    fn kill(&self) {
        if let Some(group) = self.process_group
            && self.exit.borrow().is_none()
        {
            let _ = kill_process_group(group, Signal::KILL);
        }
    }
}

async fn copy(mut pipe: impl AsyncRead + Unpin, output: Arc<Mutex<Buffer>>, limit: usize) {
    let mut bytes = vec![0; 16 << 10];
    while let Ok(count @ 1..) = pipe.read(&mut bytes).await {
        let mut buffer = output.lock().unwrap_or_else(PoisonError::into_inner);
        buffer.push(bytes.get(..count).unwrap_or_default(), limit);
    }
}

impl Buffer {
    /// Appends output, and drops its start beyond the limit.
    fn push(&mut self, bytes: &[u8], limit: usize) {
        self.bytes.extend_from_slice(bytes);
        let mut surplus = self.bytes.len().saturating_sub(limit);
        if surplus > 0 {
            // Not within a UTF-8 sequence.
            while self
                .bytes
                .get(surplus)
                .is_some_and(|byte| byte & 0xc0 == 0x80)
            {
                surplus += 1;
            }
            self.bytes.drain(..surplus);
            self.is_truncated = true;
        }
    }
}
