//! The agent's process: its standard input and output, signals and end.

use std::os::unix::process::ExitStatusExt;
use std::process::{ExitStatus, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::timeout;

use crate::AdapterError;

/// Number of lines or chunks that wait for a slow reader.
const CAPACITY: usize = 64;
/// Size of a read of the agent's output, in bytes.
const READ_BYTES: usize = 64 << 10;
/// Maximum length of a line that is interpreted, in bytes; a longer one is only passed on.
pub(crate) const MAX_LINE: usize = 8 << 20;
/// Maximum time from the end of the agent's input to its exit, before it is ended by a signal.
const EXIT_TIMEOUT: Duration = Duration::from_secs(10);
/// Maximum time from SIGTERM to the agent's exit.
const TERM_TIMEOUT: Duration = Duration::from_secs(5);
/// Maximum number of lines that wait for the end of a line of the agent.
const MAX_HELD_LINES: usize = 1000;
/// Maximum time to write the output of an agent that has ended; its children may keep the pipe open.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(2);

/// A started agent.
pub(crate) struct Agent {
    pub(crate) process: AgentProcess,
    pub(crate) input: AgentInput,
    /// Complete lines of its output, without LF.
    pub(crate) lines: mpsc::Receiver<String>,
    pub(crate) output: AgentOutput,
}

/// Something to write to standard output.
enum Output {
    /// Bytes of the agent.
    Agent(Vec<u8>),
    /// A line of the adapter, without LF. Waits for the end of the agent's line.
    Line(String),
}

impl Agent {
    /// Starts the agent.
    pub(crate) fn start(command: &[String]) -> Result<Self, AdapterError> {
        let (program, args) = command.split_first().ok_or(AdapterError::NoProgram)?;
        let mut child = Command::new(program)
            .args(args)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .map_err(AdapterError::io(format!("start {program}")))?;
        let (line_sender, lines) = mpsc::channel(CAPACITY);
        let (sender, outputs) = mpsc::channel(CAPACITY);
        let reader = child
            .stdout
            .take()
            .map(|stdout| tokio::spawn(read_output(stdout, sender.clone(), line_sender)));
        Ok(Self {
            input: AgentInput::new(child.stdin.take()),
            process: AgentProcess(child),
            lines,
            output: AgentOutput {
                sender,
                reader,
                writer: tokio::spawn(write_output(outputs)),
            },
        })
    }
}

/// The agent's standard input.
pub(crate) struct AgentInput {
    /// Absent after the end of the input.
    lines: Option<mpsc::UnboundedSender<String>>,
    /// Number of bytes that the agent has not read.
    backlog: Arc<AtomicUsize>,
}

impl AgentInput {
    fn new(stdin: Option<ChildStdin>) -> Self {
        let (lines, receiver) = mpsc::unbounded_channel();
        let backlog = Arc::new(AtomicUsize::new(0));
        if let Some(stdin) = stdin {
            tokio::spawn(write_input(stdin, receiver, backlog.clone()));
        }
        Self {
            lines: Some(lines),
            backlog,
        }
    }

    /// Sends a line without LF. Ignored after the end of the input.
    pub(crate) fn send(&self, line: String) {
        if let Some(lines) = &self.lines {
            self.backlog.fetch_add(line.len(), Ordering::Relaxed);
            let _ = lines.send(line);
        }
    }

    /// Returns the number of bytes that the agent has not read.
    pub(crate) fn backlog(&self) -> usize {
        self.backlog.load(Ordering::Relaxed)
    }

    /// Ends the input.
    pub(crate) fn close(&mut self) {
        self.lines = None;
    }
}

/// The agent's process.
pub(crate) struct AgentProcess(Child);

impl AgentProcess {
    /// Sends a signal to the agent.
    pub(crate) fn signal(&self, signal: Signal) {
        let id = self.0.id().and_then(|id| i32::try_from(id).ok());
        if let Some(pid) = id.and_then(Pid::from_raw) {
            // It fails only if the process has ended.
            let _ = kill_process(pid, signal);
        }
    }

    /// Waits for the agent's exit.
    pub(crate) async fn exited(&mut self) -> std::io::Result<ExitStatus> {
        self.0.wait().await
    }

    /// Waits for the exit of an agent whose input has ended, and sends signals if that does not end it.
    pub(crate) async fn end(&mut self) -> std::io::Result<ExitStatus> {
        for (limit, signal) in [(EXIT_TIMEOUT, Signal::TERM), (TERM_TIMEOUT, Signal::KILL)] {
            if let Ok(status) = timeout(limit, self.0.wait()).await {
                return status;
            }
            self.signal(signal);
        }
        self.0.wait().await
    }
}

/// The adapter's standard output: that of the agent, and lines between its lines.
pub(crate) struct AgentOutput {
    sender: mpsc::Sender<Output>,
    reader: Option<JoinHandle<()>>,
    writer: JoinHandle<std::io::Result<()>>,
}

impl AgentOutput {
    /// Writes a line without LF.
    pub(crate) async fn print(&self, line: String) {
        let _ = self.sender.send(Output::Line(line)).await;
    }

    /// Writes the rest of the output of an agent that has ended.
    pub(crate) async fn drain(self) -> std::io::Result<()> {
        if let Some(reader) = self.reader
            && timeout(DRAIN_TIMEOUT, reader).await.is_err()
        {
            return Ok(());
        }
        drop(self.sender);
        self.writer.await.unwrap_or(Ok(()))
    }
}

/// Returns the exit code of a shell for a status: 128+N after signal N.
pub(crate) fn exit_code(status: ExitStatus) -> u8 {
    let code = status
        .code()
        .or_else(|| Some(128 + status.signal()?))
        .unwrap_or(1);
    u8::try_from(code).unwrap_or(1)
}

async fn write_input(
    mut stdin: ChildStdin,
    mut lines: mpsc::UnboundedReceiver<String>,
    backlog: Arc<AtomicUsize>,
) {
    while let Some(mut line) = lines.recv().await {
        let length = line.len();
        line.push('\n');
        let written = stdin.write_all(line.as_bytes()).await;
        if written.is_err() || stdin.flush().await.is_err() {
            // The agent has closed its input.
            return;
        }
        backlog.fetch_sub(length, Ordering::Relaxed);
    }
}

async fn read_output(
    mut stdout: ChildStdout,
    output: mpsc::Sender<Output>,
    lines: mpsc::Sender<String>,
) {
    let mut buffer = vec![0; READ_BYTES];
    let mut partial = Vec::new();
    let mut is_too_long = false;
    while let Ok(count @ 1..) = stdout.read(&mut buffer).await {
        let bytes = buffer.get(..count).unwrap_or_default();
        let _ = output.send(Output::Agent(bytes.to_vec())).await;
        for piece in bytes.split_inclusive(|byte| *byte == b'\n') {
            is_too_long |= partial.len() + piece.len() > MAX_LINE;
            if !is_too_long {
                partial.extend_from_slice(piece);
            }
            if piece.ends_with(b"\n") {
                let line = std::mem::take(&mut partial);
                let text = String::from_utf8_lossy(line.trim_ascii_end());
                if !std::mem::take(&mut is_too_long) {
                    let _ = lines.send(text.into_owned()).await;
                }
            }
        }
    }
}

async fn write_output(mut outputs: mpsc::Receiver<Output>) -> std::io::Result<()> {
    let mut stdout = tokio::io::stdout();
    let mut is_line_start = true;
    let mut held: Vec<String> = Vec::new();
    while let Some(output) = outputs.recv().await {
        match output {
            Output::Agent(bytes) => {
                let line_end = bytes.iter().position(|byte| *byte == b'\n');
                let (head, tail) = bytes.split_at(line_end.map_or(bytes.len(), |end| end + 1));
                stdout.write_all(head).await?;
                if line_end.is_some() {
                    for line in held.drain(..) {
                        stdout.write_all(line.as_bytes()).await?;
                    }
                }
                stdout.write_all(tail).await?;
                is_line_start = bytes.ends_with(b"\n");
            }
            Output::Line(line) if is_line_start => {
                stdout.write_all(format!("{line}\n").as_bytes()).await?;
            }
            Output::Line(line) => {
                held.push(format!("{line}\n"));
                if held.len() == MAX_HELD_LINES {
                    // The agent does not finish its line, which becomes two.
                    stdout.write_all(b"\n").await?;
                    for line in held.drain(..) {
                        stdout.write_all(line.as_bytes()).await?;
                    }
                    is_line_start = true;
                }
            }
        }
        stdout.flush().await?;
    }
    if !is_line_start && !held.is_empty() {
        stdout.write_all(b"\n").await?;
    }
    for line in held {
        stdout.write_all(line.as_bytes()).await?;
    }
    stdout.flush().await
}
