//! `colibri attach`: shows an agent's formatted output, and sends typed lines as prompts.

use std::io::IsTerminal;
use std::time::{Duration, Instant};

use colibri_client::glasspane::{
    AgentCommand, PromptDelivery, Question, Transcript, TranscriptFormatter, TranscriptItem,
    encode_command,
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
/// A question that follows a withdrawn one within this time replaces it.
const WITHDRAWN_INTERVAL: Duration = Duration::from_secs(5);
/// Time to read a question that has replaced another one; lines before that are not taken as its answer.
const READING_TIME: Duration = Duration::from_secs(1);

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
    shown: ShownQuestion,
    sink: Sink,
}

/// The question that the user sees, which the agent may replace while the user types.
#[derive(Default)]
struct ShownQuestion {
    question: Option<Question>,
    /// When it replaced another one that was not answered.
    replaced_at: Option<Instant>,
    /// When a question was withdrawn.
    withdrawn_at: Option<Instant>,
}

impl ShownQuestion {
    /// Follows the open question of the agent; `is_answer` after an answer of the user.
    fn follow(&mut self, open: Option<&Question>, is_answer: bool, now: Instant) {
        if open == self.question.as_ref() {
            return;
        }
        if is_answer {
            self.withdrawn_at = None;
        } else if self.question.is_some() {
            self.withdrawn_at = Some(now);
        }
        self.question = open.cloned();
        let is_recent = |at: Instant| now.duration_since(at) < WITHDRAWN_INTERVAL;
        self.replaced_at = self.withdrawn_at.filter(|at| is_recent(*at)).map(|_| now);
    }

    /// Reports whether a line may have been typed for an earlier question.
    fn may_be_mistaken(&self, now: Instant) -> bool {
        let is_recent = |at: Instant| now.duration_since(at) < READING_TIME;
        self.question.is_some() && self.replaced_at.is_some_and(is_recent)
    }
}

impl AttachView {
    fn new(agent: &Agent, options: AttachArgs, sink: Sink) -> Self {
        let mut view = Self {
            options,
            transcript: Transcript::new(agent.runtime),
            formatter: TranscriptFormatter::new(output::in_colour()),
            last_state: None,
            shown: ShownQuestion::default(),
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
        let later = TranscriptItem::Notice(
            "asks another question, which is shown after this one".to_owned(),
        );
        let text: String = items
            .iter()
            .map(|item| match item {
                TranscriptItem::Question(question)
                    if self.transcript.is_later_question(question) =>
                {
                    self.formatter.format(&later)
                }
                item => self.formatter.format(item),
            })
            .collect();
        let open = self.transcript.open_question();
        self.shown.follow(open, false, Instant::now());
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
        if self.shown.may_be_mistaken(Instant::now()) {
            self.show_message("the agent has just replaced its question; read the new one, and enter the answer again");
            return None;
        }
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
                let is_answer = self.transcript.open_question().is_some();
                self.transcript.close_question();
                let next = self.transcript.open_question().cloned();
                self.shown.follow(next.as_ref(), is_answer, Instant::now());
                if let Some(question) = next {
                    let text = self.formatter.format(&TranscriptItem::Question(question));
                    self.sink.write(Stream::Stdout, text.into_bytes());
                }
                Some(bytes)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answer_to_a_replaced_question_is_not_taken_at_once() {
        let question = |id: &str| {
            let mut transcript = Transcript::new(colibri_client::AgentRuntime::Claude);
            let event = format!(
                r#"{{"type":"control_request","request_id":"{id}","request":{{"subtype":"can_use_tool","tool_name":"Bash","input":{{"command":"{id}"}}}}}}"#
            );
            transcript.push_stdout(format!("{event}\n").as_bytes());
            transcript.open_question().cloned().unwrap()
        };
        let (start, second) = (Instant::now(), Duration::from_secs(1));
        let mut shown = ShownQuestion::default();
        shown.follow(Some(&question("safe")), false, start);
        assert!(!shown.may_be_mistaken(start), "the first question");
        // Withdrawn, and another one asked.
        shown.follow(None, false, start + second);
        shown.follow(Some(&question("evil")), false, start + 2 * second);
        assert!(shown.may_be_mistaken(start + 2 * second));
        assert!(!shown.may_be_mistaken(start + 4 * second));
        // The next one after an answer.
        shown.follow(None, true, start + 4 * second);
        shown.follow(Some(&question("other")), false, start + 4 * second);
        assert!(!shown.may_be_mistaken(start + 4 * second));
    }
}
