//! One agent on the user's terminal: output and size in both directions, input, keys that detach, and signals.
//!
//! The loop never blocks, as in `run`: a thread writes output, a task reads input, and calls to the daemon are tasks.

use std::time::Duration;

use colibri_client::{
    Agent, Client, ClientError, ConnectionEvent, CurrentClient, Endpoint, ExitEvent, FollowEvent,
    FollowStream, KillParams, KillResult, Stream, SubscribeParams, TerminalSize,
};
use rustix::process::Signal;
use tokio::io::AsyncReadExt;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until};

use super::detach::{DetachKeys, DetachMatcher};
use super::history;
use super::host::{self, RawMode};
use super::screen::AgentScreen;
use crate::commands::INPUT_TIMEOUT;
use crate::error::CliError;
use crate::output;
use crate::signals::{self, SignalStream, TERMINATING};
use crate::sink::{Sink, WriteFailure};

/// Maximum time to finish writing queued output at the end.
const LEAVE_TIMEOUT: Duration = Duration::from_millis(500);
/// Time after which a size that makes the agent draw its screen again is taken back, if it draws nothing.
const REDRAW_TIMEOUT: Duration = Duration::from_millis(300);
/// Size of one read of input, in bytes.
const READ_BYTES: usize = 16 * 1024;
/// Maximum number of bytes of input for an agent that does not read. More are lost, as in the queue of a terminal.
const MAX_PENDING: usize = 64 * 1024;
/// The key that detaches too if the agent gets no input.
const INTERRUPT: &str = "ctrl-c";

/// How a session treats input and signals.
pub(crate) struct SessionOptions {
    pub(crate) keys: DetachKeys,
    /// Typed bytes are input of the agent.
    pub(crate) sends_input: bool,
    pub(crate) on_signal: OnSignal,
    /// Signals that arrived before the session.
    pub(crate) early_signals: Vec<Signal>,
}

/// What a signal to this process does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum OnSignal {
    /// The session ends; the agent keeps running.
    Detach,
    /// The agent gets it; a second one of the same kind ends the session.
    Forward,
}

/// Where a session starts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Start {
    /// With the first byte of a new agent.
    FirstByte,
    /// With the screen at this moment.
    Present,
}

/// How a session ended.
pub(crate) enum Outcome {
    Ended(ExitEvent),
    Detached,
    Signalled(Signal),
}

/// Shows an agent on the user's terminal until it has ended or the user detaches. The terminal has its previous modes then.
///
/// # Errors
/// The terminal cannot be used, or the daemon cannot be reached.
pub(crate) async fn run_session(
    endpoint: &Endpoint,
    client: Client,
    agent: &Agent,
    start: Start,
    options: SessionOptions,
) -> Result<Outcome, CliError> {
    let host = host::size();
    let size = agent.terminal.unwrap_or_default();
    let mut screen = AgentScreen::new(size, host).map_err(|error| {
        CliError::Message(format!("cannot model the terminal of the agent: {error}"))
    })?;
    let (from, is_complete) = match start {
        Start::FirstByte => (0, true),
        Start::Present => {
            let is_complete =
                history::replay(&client, agent, |bytes| drop(screen.push(bytes))).await?;
            (agent.stdout_bytes, is_complete)
        }
    };
    let watched = [&TERMINATING[..], &[Signal::WINCH]].concat();
    let signals = SignalStream::install(&watched)?;
    let (sink, failures) = Sink::start()?;
    let raw = RawMode::enter().map_err(CliError::io("cannot set the modes of the terminal"))?;
    let params = SubscribeParams {
        from_offset: Some(from),
        terminal: Some(host),
        ..SubscribeParams::default()
    };
    let events = endpoint.follow(client, &agent.id, params);
    let mut session = Session {
        client: events.client(),
        events,
        id: agent.id.clone(),
        matcher: DetachMatcher::new(options.keys),
        interrupt: match options.sends_input {
            true => None,
            false => INTERRUPT.parse().ok().map(DetachMatcher::new),
        },
        sends_input: options.sends_input,
        on_signal: options.on_signal,
        screen,
        sink,
        host,
        input: Vec::new(),
        sending: JoinSet::new(),
        forwarding: JoinSet::new(),
        forwarded: Vec::new(),
        redraw: None,
    };
    let shown = session.screen.show(session.sends_input);
    session.write(shown);
    if !is_complete {
        session.request_redraw();
    }
    for signal in options.early_signals {
        session.handle_signal(signal);
    }
    let outcome = session.serve(signals, failures).await;
    drop(raw);
    outcome
}

struct Session {
    events: FollowStream,
    client: CurrentClient,
    id: String,
    matcher: DetachMatcher,
    interrupt: Option<DetachMatcher>,
    sends_input: bool,
    on_signal: OnSignal,
    screen: AgentScreen,
    sink: Sink,
    /// The size of the user's terminal.
    host: TerminalSize,
    /// Input that was not sent yet.
    input: Vec<u8>,
    sending: JoinSet<Result<(), ClientError>>,
    forwarding: JoinSet<Result<KillResult, ClientError>>,
    forwarded: Vec<Signal>,
    /// When a size that only makes the agent draw its screen again is taken back.
    redraw: Option<Instant>,
}

impl Session {
    async fn serve(
        mut self,
        mut signals: SignalStream,
        mut failures: mpsc::UnboundedReceiver<WriteFailure>,
    ) -> Result<Outcome, CliError> {
        let mut typed = read_input();
        let outcome = loop {
            self.send_input();
            tokio::select! {
                biased;
                signal = signals.next() => if let Some(outcome) = self.handle_signal(signal) {
                    break Ok(outcome);
                },
                // The terminal is gone, or cannot be written.
                failure = failures.recv() => break match failure {
                    Some(failure) => Err(CliError::io("cannot write to the terminal (the agent keeps running)")(failure.error)),
                    None => Ok(Outcome::Detached),
                },
                bytes = typed.recv() => match bytes {
                    Some(bytes) if self.type_bytes(&bytes) => {}
                    Some(_) => break Ok(Outcome::Detached),
                    None => break Ok(Outcome::Signalled(Signal::HUP)),
                },
                Some(_) = self.sending.join_next() => {}
                Some(_) = self.forwarding.join_next() => {}
                () = sleep_until(self.redraw.unwrap_or_else(Instant::now)), if self.redraw.is_some() => self.end_redraw(),
                event = async { self.sink.room().await; self.events.next().await } => match event {
                    Some(Ok(FollowEvent::Exit(exit))) => break Ok(Outcome::Ended(exit)),
                    Some(Ok(event)) => self.handle_event(event),
                    Some(Err(error)) => break Err(error.into()),
                    None => break Err(ClientError::Closed.into()),
                },
            }
        };
        let hidden = self.screen.hide(matches!(outcome, Ok(Outcome::Ended(_))));
        self.write(hidden);
        self.sink.close();
        let written = async { while failures.recv().await.is_some() {} };
        let _ = tokio::time::timeout(LEAVE_TIMEOUT, written).await;
        outcome
    }

    fn write(&mut self, text: String) {
        self.sink.write(Stream::Stdout, text.into_bytes());
    }

    fn handle_event(&mut self, event: FollowEvent) {
        let text = match event {
            FollowEvent::Output(output) if output.stream == Stream::Stdout => {
                self.end_redraw();
                self.screen.push(&output.bytes)
            }
            FollowEvent::Terminal(size) => self.screen.resize(size),
            FollowEvent::Connection(ConnectionEvent::Reconnected(_)) => self.screen.refresh(),
            FollowEvent::Connection(event) => {
                self.screen.notice(&output::printable(&event.to_string()))
            }
            _ => String::new(),
        };
        self.write(text);
    }

    fn handle_signal(&mut self, signal: Signal) -> Option<Outcome> {
        if signal == Signal::WINCH {
            self.host = host::size();
            self.redraw = None;
            self.events.resize(self.host);
            let text = self.screen.resize_host(self.host);
            self.write(text);
            return None;
        }
        if self.on_signal == OnSignal::Detach || self.forwarded.contains(&signal) {
            return Some(Outcome::Signalled(signal));
        }
        self.forwarded.push(signal);
        let params = KillParams {
            signal: Some(signals::name(signal).to_owned()),
            escalate: false,
            no_restart: true,
            ..KillParams::new(&self.id)
        };
        let mut client = self.client.clone();
        self.forwarding.spawn(async move {
            let params = &params;
            client
                .call(|client| async move { client.kill_agent(params.clone()).await })
                .await
        });
        None
    }

    /// Takes typed bytes. Returns `false` if they detach.
    fn type_bytes(&mut self, bytes: &[u8]) -> bool {
        let typed = self.matcher.push(bytes);
        if self.sends_input {
            let room = MAX_PENDING.saturating_sub(self.input.len());
            let accepted = typed.forwarded.get(..room).unwrap_or(&typed.forwarded);
            self.input.extend(accepted);
        }
        let interrupts = self
            .interrupt
            .as_mut()
            .is_some_and(|key| key.push(bytes).detach);
        !typed.detach && !interrupts
    }

    /// Sends the input that is pending, unless a call does that already or the daemon is away.
    fn send_input(&mut self) {
        if self.input.is_empty() || !self.sending.is_empty() {
            return;
        }
        let client = self.client.get();
        if client.is_closed() {
            return;
        }
        let (id, bytes) = (self.id.clone(), std::mem::take(&mut self.input));
        // Input in transit when the daemon ends is lost, because the agent may have received it.
        self.sending
            .spawn(async move { client.send_all(&id, &bytes, INPUT_TIMEOUT).await });
    }

    /// Makes the agent draw its whole screen, by another size for a moment.
    fn request_redraw(&mut self) {
        let narrow = TerminalSize::new(self.host.rows(), self.host.cols().saturating_sub(1));
        if let Ok(narrow) = narrow {
            self.events.resize(narrow);
            self.redraw = Some(Instant::now() + REDRAW_TIMEOUT);
        }
    }

    fn end_redraw(&mut self) {
        if self.redraw.take().is_some() {
            self.events.resize(self.host);
        }
    }
}

/// Reads standard input in a task; the channel ends with it.
fn read_input() -> mpsc::Receiver<Vec<u8>> {
    let (sender, typed) = mpsc::channel(1);
    tokio::spawn(async move {
        let mut stdin = tokio::io::stdin();
        let mut buffer = vec![0; READ_BYTES];
        while let Ok(count @ 1..) = stdin.read(&mut buffer).await {
            let bytes = buffer.get(..count).unwrap_or_default().to_vec();
            if sender.send(bytes).await.is_err() {
                return;
            }
        }
    });
    typed
}
