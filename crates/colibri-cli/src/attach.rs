//! `colibri attach`: shows an agent's formatted output, and sends typed lines as prompts.

use std::io::IsTerminal;
use std::time::Duration;

use colibri_client::glasspane::{
    AgentCommand, PromptDelivery, Transcript, TranscriptFormatter, TranscriptItem, encode_command,
};
use colibri_client::{
    Agent, AgentState, ClientError, ExitEvent, FollowEvent, OutputChunk, StateEvent, Stream,
    SubscribeParams, unique_command_id,
};
use rustix::process::Signal;
use tokio::task::JoinSet;

use crate::args::{AttachArgs, Global};
use crate::commands::INPUT_TIMEOUT;
use crate::connect::{connect_to, endpoint};
use crate::error::CliError;
use crate::exit::{self, BROKEN_PIPE};
use crate::input::TypedLines;
use crate::output;
use crate::signals::{self, SignalStream, TERMINATING};
use crate::sink::Sink;
use crate::tables::short_exit;
use crate::terminal;

/// Maximum number of bytes of each stream that are shown from before the attach.
const MAX_HISTORY: u64 = 1 << 20;

/// Maximum time to finish writing queued output when the user detaches.
const DETACH_TIMEOUT: Duration = Duration::from_millis(200);

/// Shows an agent until it has ended, then exits with its code; a signal (Ctrl-C is SIGINT) detaches. As in `run`, the
/// loop never blocks.
pub(crate) async fn attach(global: &Global, mut options: AttachArgs) -> Result<u8, CliError> {
    let endpoint = endpoint(global)?;
    let client = connect_to(&endpoint).await?;
    let agent = client.find_agent(&options.agent.id).await?;
    if agent.terminal.is_some() && !options.raw && terminal::is_interactive() {
        return terminal::attach(&endpoint, client, &agent, options).await;
    }
    if let Some(notice) = notice(&agent, &options) {
        output::message(&notice);
    }
    options.raw |= agent.terminal.is_some();
    let mut signals = SignalStream::install(&TERMINATING)?;
    let (sink, mut failures) = Sink::start()?;
    let reads_input = !options.no_input && agent.exited_at.is_none();
    let mut typed_lines = TypedLines::new(reads_input);
    let mut view = AttachView::new(&agent, options, sink);
    let params = SubscribeParams {
        from_offset: Some(view.start_of(agent.stdout_bytes)),
        stderr_from_offset: Some(view.start_of(agent.stderr_bytes)),
        ..SubscribeParams::default()
    };
    let mut events = endpoint.follow(client, &agent.id, params);
    let mut client = events.client();
    let mut sending: JoinSet<Result<(), ClientError>> = JoinSet::new();
    let mut end: Option<ExitEvent> = None;
    loop {
        tokio::select! {
            biased;
            signal = signals.next() => {
                view.finish_line();
                view.sink.close();
                let written = async { while failures.recv().await.is_some() {} };
                let _ = tokio::time::timeout(DETACH_TIMEOUT, written).await;
                output::message(&format!(
                    "detached; agent {id} keeps running; attach again with colibri attach {id}",
                    id = agent.id
                ));
                // Ctrl-C is the normal way to detach: exit with 0. Other signals exit with 128+N.
                return Ok(if signal == Signal::INT { 0 } else { signals::exit_code(signal) });
            }
            failure = failures.recv() => {
                if let Some(failure) = failure {
                    if failure.is_broken_pipe() {
                        return Ok(BROKEN_PIPE);
                    }
                    let context = "cannot write the agent's output (the agent keeps running)";
                    return Err(CliError::io(context)(failure.error));
                }
                let Some(exit) = end else { return Ok(1) };
                output::message(&format!("{} ended: {}", agent.id, short_exit(exit.exit)));
                return Ok(exit::explained_code(&exit));
            }
            event = async { view.sink.room().await; events.next().await }, if end.is_none() => match event {
                Some(Ok(FollowEvent::Output(output))) => view.show_output(output),
                Some(Ok(FollowEvent::State(event))) => view.show_state(&event),
                Some(Ok(FollowEvent::Exit(exit))) => {
                    view.finish_line();
                    view.sink.close();
                    end = Some(exit);
                }
                Some(Ok(FollowEvent::Connection(event))) => view.show_message(&event.to_string()),
                Some(Ok(_)) => {}
                Some(Err(error)) => return Err(error.into()),
                None => return Ok(1),
            },
            line = typed_lines.next(), if sending.is_empty() => if let Some(bytes) = view.encode_line(&agent, &line) {
                let (client, id) = (client.get(), agent.id.clone());
                sending.spawn(async move { client.send_all(&id, &bytes, INPUT_TIMEOUT).await });
            },
            Some(result) = sending.join_next() => if let Ok(Err(error)) = result {
                view.show_message(&error.to_string());
            },
        }
    }
}

/// Returns what the user should know about the output, if that is not obvious.
fn notice(agent: &Agent, options: &AttachArgs) -> Option<String> {
    let id = &agent.id;
    match agent.terminal {
        Some(_) if !options.raw => Some(format!(
            "agent {id} has a terminal: its output is printed unchanged, because standard input and output are not a terminal"
        )),
        None if !options.raw && std::io::stderr().is_terminal() => {
            let lines = match options.no_input || agent.exited_at.is_some() {
                true => "",
                false => "; typed lines are prompts",
            };
            Some(format!(
                "attached to agent {id}: its output is formatted{lines}; Ctrl-C detaches"
            ))
        }
        _ => None,
    }
}

/// Formats output and messages, and writes them.
struct AttachView {
    options: AttachArgs,
    transcript: Transcript,
    formatter: TranscriptFormatter,
    last_state: Option<AgentState>,
    sink: Sink,
}

impl AttachView {
    fn new(agent: &Agent, options: AttachArgs, sink: Sink) -> Self {
        let mut view = Self {
            options,
            transcript: Transcript::new(agent.runtime),
            formatter: TranscriptFormatter::new(output::in_colour()),
            last_state: None,
            sink,
        };
        if view.start_of(agent.stdout_bytes) > 0 {
            view.transcript.skip_gap();
            output::message(&format!(
                "only the end of the output of agent {} is shown; show all of it with --all",
                agent.id
            ));
        }
        view
    }

    /// Returns the offset at which to start in a stream of this length.
    fn start_of(&self, length: u64) -> u64 {
        match self.options.all {
            true => 0,
            false => length.saturating_sub(MAX_HISTORY),
        }
    }

    fn show_output(&mut self, output: OutputChunk) {
        if output.gap > 0 {
            if output.stream == Stream::Stdout {
                self.transcript.skip_gap();
            }
            self.show_message(&format!("{} bytes are no longer kept", output.gap));
        }
        if self.options.raw {
            return self.sink.write(output.stream, output.bytes);
        }
        let items = match output.stream {
            Stream::Stdout => self.transcript.push_stdout(&output.bytes),
            Stream::Stderr => self.transcript.push_stderr(&output.bytes),
        };
        let text: String = items
            .iter()
            .map(|item| self.formatter.format(item))
            .collect();
        self.sink.write(Stream::Stdout, text.into_bytes());
    }

    /// Shows the state `stalled`, which the agent's own events do not contain.
    fn show_state(&mut self, event: &StateEvent) {
        if self.last_state.replace(event.state) == Some(event.state)
            || event.state != AgentState::Stalled
            || self.options.raw
        {
            return;
        }
        let reason = output::sanitize(event.last_error.as_deref().unwrap_or_default(), 300);
        let text = self
            .formatter
            .format(&TranscriptItem::Notice(format!("stalled: {reason}")));
        self.sink.write(Stream::Stdout, text.into_bytes());
    }

    /// Ends an unfinished line.
    fn finish_line(&mut self) {
        let text = self.formatter.end_line();
        self.sink.write(Stream::Stdout, text.as_bytes().to_vec());
    }

    /// Queues a message for stderr, after the queued output.
    fn show_message(&mut self, message: &str) {
        self.finish_line();
        let line = output::message_line(message);
        self.sink.write(Stream::Stderr, line.into_bytes());
    }

    /// Encodes a typed line: as the answer to an open question of the agent, otherwise as a prompt.
    fn encode_line(&mut self, agent: &Agent, line: &str) -> Option<Vec<u8>> {
        let delivery = PromptDelivery::earliest(agent.runtime);
        let command = match self.transcript.open_question() {
            Some(question) => AgentCommand::Answer(question, line),
            None if line.trim().is_empty() => return None,
            None => AgentCommand::Prompt(line, delivery),
        };
        match encode_command(agent.runtime, &unique_command_id(), &command) {
            Err(error) => {
                self.show_message(&error.to_string());
                None
            }
            Ok(bytes) => {
                self.transcript.close_question();
                Some(bytes)
            }
        }
    }
}
