//! The main loop: commands from standard input, messages of the agent, and the session between them.

use std::process::ExitStatus;
use std::time::Duration;

use rustix::process::Signal;
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, BufReader};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until};

use crate::acp::AcpDriver;
use crate::agent::{Agent, AgentInput, AgentOutput, MAX_LINE, exit_code};
use crate::codex::CodexDriver;
use crate::input::{self, Delivery, Input, Prompt};
use crate::queue::{Admission, PromptQueue};
use crate::{AdapterError, Options, Protocol};

/// Number of bytes that the agent may leave unread before standard input is not read any more.
const PAUSE_INPUT_BYTES: usize = 1 << 20;
/// Number of unread bytes at which the agent is ended: it sends requests and does not read the answers.
const MAX_UNREAD_BYTES: usize = 64 << 20;
/// Timeout for the agent to open its session. Agents load for some seconds.
const OPEN_TIMEOUT: Duration = Duration::from_secs(120);

/// What a driver wants to happen.
#[derive(Debug)]
pub(crate) enum Step {
    /// Send this message to the agent.
    Send(String),
    /// The session is open.
    Opened,
    /// This prompt was not added to the current turn, which had ended.
    Refused(String),
    /// The prompt ended; the error if it failed.
    Ended(Option<String>),
    /// The session cannot be opened or has ended; the message.
    Lost(String),
}

/// Receives the steps of a driver.
pub(crate) type Steps = mpsc::UnboundedSender<Step>;

/// Speaks the agent's protocol.
enum Driver {
    Acp(AcpDriver),
    Codex(CodexDriver),
}

impl Driver {
    fn new(options: &Options, steps: Steps) -> Self {
        let session = options.session.clone();
        match options.protocol {
            Protocol::Acp => Self::Acp(AcpDriver::open(session, steps)),
            Protocol::Codex => Self::Codex(CodexDriver::open(session, options.ask, steps)),
        }
    }

    fn prompt(&mut self, text: String) {
        match self {
            Self::Acp(driver) => driver.prompt(text),
            Self::Codex(driver) => driver.prompt(text),
        }
    }

    fn steer(&mut self, text: String) {
        if let Self::Codex(driver) = self {
            driver.steer(text);
        }
    }

    fn abort(&mut self) {
        match self {
            Self::Acp(driver) => driver.abort(),
            Self::Codex(driver) => driver.abort(),
        }
    }

    /// Processes a message of the agent.
    fn message(&mut self, line: String) {
        match self {
            Self::Acp(driver) => driver.message(line),
            Self::Codex(driver) => driver.message(&line),
        }
    }

    /// Processes a line of a client that is passed to the agent.
    fn client_message(&mut self, line: &str) {
        if let Self::Acp(driver) = self {
            driver.client_message(line);
        }
    }
}

/// Runs the agent, and returns the exit code.
pub(crate) async fn run(options: Options) -> Result<u8, AdapterError> {
    let mut signals = forwarded_signals().map_err(AdapterError::io("handle signals"))?;
    let Agent {
        mut process,
        input,
        mut lines,
        output,
    } = Agent::start(&options.command)?;
    let (steps, mut next_step) = mpsc::unbounded_channel();
    let mut client_lines = read_lines();
    let is_single = options.prompt.is_some();
    let mut session = Session {
        driver: None,
        queue: PromptQueue::default(),
        input,
        output,
        is_single,
        is_closing: false,
        open_by: None,
        failure: None,
        steps,
        options,
    };
    if let Some(text) = session.options.prompt.take() {
        let prompt = Prompt {
            id: None,
            text,
            delivery: Delivery::Queue,
        };
        session.command(Input::Prompt(prompt)).await;
    }
    let status = loop {
        tokio::select! {
            status = process.exited() => break status,
            Some(line) = lines.recv() => {
                if let Some(driver) = &mut session.driver {
                    driver.message(line);
                }
            }
            Some(step) = next_step.recv() => session.step(step).await,
            line = client_lines.recv(), if !session.is_closing && session.input.backlog() < PAUSE_INPUT_BYTES => match line {
                Some(line) => session.command(input::parse(line)).await,
                None => session.is_closing = true,
            },
            Some(signal) = signals.recv() => process.signal(signal),
            () = sleep_until(session.open_by.unwrap_or_else(Instant::now)), if session.open_by.is_some() => {
                let message = format!("cannot open a session: no answer within {OPEN_TIMEOUT:?}; try the agent's own program, log in, or give a key");
                session.step(Step::Lost(message)).await;
            }
        }
        if session.is_finished() {
            if session.is_unread() {
                let message = format!(
                    "ended: the agent does not read its input, {MAX_UNREAD_BYTES} bytes of which wait"
                );
                session.report_error(&message).await;
                session.failure = Some(message);
            }
            session.input.close();
            // The rest of the output is only passed on.
            lines.close();
            break process.end().await;
        }
    };
    let status = status.map_err(AdapterError::io("wait for the agent"))?;
    session.finish(status).await
}

struct Session {
    /// Absent until the first command.
    driver: Option<Driver>,
    queue: PromptQueue,
    input: AgentInput,
    output: AgentOutput,
    /// Ends with its first prompt.
    is_single: bool,
    /// Standard input has ended.
    is_closing: bool,
    /// When the session must be open; absent before the first prompt and after the opening.
    open_by: Option<Instant>,
    /// Why the last prompt failed.
    failure: Option<String>,
    steps: Steps,
    options: Options,
}

impl Session {
    async fn command(&mut self, command: Input) {
        match command {
            Input::Raw(line) => {
                if let Some(driver) = &mut self.driver {
                    driver.client_message(&line);
                    self.echo(&line).await;
                }
                self.input.send(line);
            }
            Input::Prompt(prompt) => self.prompt(prompt).await,
            Input::Abort(id) => {
                let is_working = self.queue.is_working();
                if let Some(driver) = self.driver.as_mut().filter(|_| is_working) {
                    driver.abort();
                }
                self.respond(id, "abort", None).await;
            }
        }
    }

    async fn prompt(&mut self, prompt: Prompt) {
        let can_steer = matches!(self.options.protocol, Protocol::Codex);
        let id = prompt.id.clone();
        let admission = self.queue.admit(prompt, can_steer);
        let refusal = match &admission {
            Admission::Refused(reason) => Some(*reason),
            _ => None,
        };
        self.respond(id, "prompt", refusal).await;
        let driver = match &mut self.driver {
            Some(driver) => driver,
            none => {
                self.open_by = Some(Instant::now() + OPEN_TIMEOUT);
                none.insert(Driver::new(&self.options, self.steps.clone()))
            }
        };
        match admission {
            Admission::Start(prompt) => driver.prompt(prompt.text),
            Admission::Steer(prompt) => driver.steer(prompt.text),
            Admission::Queued => self.report_queue().await,
            Admission::Refused(_) => {}
        }
    }

    async fn step(&mut self, step: Step) {
        match step {
            Step::Send(line) => {
                self.echo(&line).await;
                self.input.send(line);
            }
            Step::Opened => self.open_by = None,
            Step::Refused(text) => {
                let prompt = Prompt {
                    id: None,
                    text,
                    delivery: Delivery::Queue,
                };
                match self.queue.admit(prompt, false) {
                    Admission::Start(prompt) | Admission::Steer(prompt) => {
                        if let Some(driver) = &mut self.driver {
                            driver.prompt(prompt.text);
                        }
                    }
                    Admission::Queued => self.report_queue().await,
                    Admission::Refused(reason) => self.report_error(reason).await,
                }
            }
            Step::Ended(failure) => {
                self.failure = failure;
                if let Some(next) = self.queue.end() {
                    self.report_queue().await;
                    if let Some(driver) = &mut self.driver {
                        driver.prompt(next.text);
                    }
                }
            }
            Step::Lost(message) => {
                // The next prompt opens another session.
                self.driver = None;
                self.open_by = None;
                while self.queue.end().is_some() {}
                self.report_error(&message).await;
                self.failure = Some(message);
            }
        }
    }

    /// Returns whether the agent's input has to be ended.
    fn is_finished(&self) -> bool {
        let is_idle = !self.queue.is_working();
        is_idle && (self.is_single || self.is_closing) || self.is_unread()
    }

    /// Returns whether the agent leaves too much unread.
    fn is_unread(&self) -> bool {
        self.input.backlog() > MAX_UNREAD_BYTES
    }

    async fn report_error(&self, message: &str) {
        let record = json!({"type": "adapter_error", "message": message});
        self.output.print(record.to_string()).await;
    }

    async fn finish(self, status: ExitStatus) -> Result<u8, AdapterError> {
        let drained = self.output.drain().await;
        drained.map_err(AdapterError::io("write the agent's output"))?;
        Ok(match exit_code(status) {
            _ if self.is_single && !self.queue.is_working() => u8::from(self.failure.is_some()),
            code => code,
        })
    }

    /// Writes what is sent to the agent to standard output, except answers with contents of files or terminals.
    async fn echo(&self, line: &str) {
        let Ok(message) = serde_json::from_str::<Value>(line) else {
            return;
        };
        let result = &message["result"];
        let is_answer = result["outcome"].is_object() || result["decision"].is_string();
        if message["method"].is_string() || is_answer {
            self.output.print(line.to_owned()).await;
        }
    }

    async fn respond(&self, id: Option<String>, command: &str, error: Option<&str>) {
        let mut record = json!({"type": "response", "id": id, "command": command});
        if let Some(error) = error {
            record["error"] = error.into();
        }
        self.output.print(record.to_string()).await;
    }

    async fn report_queue(&self) {
        let record = json!({"type": "queue_update", "queued": self.queue.waiting()});
        self.output.print(record.to_string()).await;
    }
}

/// Reads lines of standard input; the channel closes at its end.
fn read_lines() -> mpsc::Receiver<String> {
    let (sender, receiver) = mpsc::channel(1);
    tokio::spawn(async move {
        let mut stdin = BufReader::new(tokio::io::stdin());
        loop {
            let mut line = Vec::new();
            let mut limited = (&mut stdin).take(MAX_LINE as u64);
            match limited.read_until(b'\n', &mut line).await {
                Ok(1..) => {}
                Ok(0) | Err(_) => return,
            }
            let text = String::from_utf8_lossy(line.trim_ascii_end()).into_owned();
            if !text.is_empty() && sender.send(text).await.is_err() {
                return;
            }
        }
    });
    receiver
}

/// Receives the signals to pass on to the agent.
fn forwarded_signals() -> std::io::Result<mpsc::Receiver<Signal>> {
    let (sender, receiver) = mpsc::channel(8);
    for (kind, number) in [
        (SignalKind::terminate(), Signal::TERM),
        (SignalKind::interrupt(), Signal::INT),
        (SignalKind::hangup(), Signal::HUP),
        (SignalKind::quit(), Signal::QUIT),
        (SignalKind::user_defined1(), Signal::USR1),
        (SignalKind::user_defined2(), Signal::USR2),
    ] {
        let mut stream = signal(kind)?;
        let sender = sender.clone();
        tokio::spawn(async move {
            while stream.recv().await.is_some() && sender.send(number).await.is_ok() {}
        });
    }
    Ok(receiver)
}
