//! Follows one turn of an agent, and collects its answer: the last message of the model in that turn.

use colibri_client::glasspane::{Glasspane, Transcript, TranscriptItem};
use colibri_client::{
    AgentRuntime, AgentState, Client, ClientError, Events, Notification, Stream, output_bytes,
};

use crate::error::CliError;
use crate::output;

/// Maximum size of an answer, in bytes; a longer answer is truncated at its start.
const MAX_ANSWER: usize = 4 << 20;

/// The result of a turn.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(crate) struct TurnResult {
    /// The last message of the model; for an agent without events all output of the turn.
    pub(crate) text: String,
    /// Why the turn failed.
    pub(crate) error: Option<String>,
}

/// A turn in progress, whose output is read.
pub(crate) struct Turn {
    id: String,
    events: Events,
    reader: AnswerReader,
}

impl Turn {
    /// Subscribes to an agent's output, starting at its current end.
    pub(crate) async fn follow(
        client: &Client,
        id: &str,
        runtime: AgentRuntime,
    ) -> Result<Self, CliError> {
        Ok(Self {
            id: id.to_owned(),
            events: client.subscribe_new_stdout(id).await?,
            reader: AnswerReader::new(runtime),
        })
    }

    /// Waits until the turn has ended.
    pub(crate) async fn wait(mut self) -> Result<TurnResult, CliError> {
        loop {
            let event = self.events.next().await;
            let has_ended = match event.ok_or(ClientError::Closed)? {
                Notification::AgentOutput(output) if output.stream == Stream::Stdout => {
                    self.reader.output(&output_bytes(output.data)?)
                }
                Notification::AgentState(change) => {
                    if change.state == AgentState::Blocked {
                        output::message(&format!(
                            "agent {id} asks a question; answer it with colibri attach {id}",
                            id = self.id
                        ));
                    }
                    self.reader.state(change.state)
                }
                Notification::AgentExit(_) => return Err(ClientError::Ended(self.id).into()),
                _ => false,
            };
            if has_ended {
                return Ok(self.reader.answer());
            }
        }
    }
}

/// Extracts the answer from the output of a turn. Does no I/O.
struct AnswerReader {
    pane: Glasspane,
    transcript: Transcript,
    /// The message that is being streamed.
    message: String,
    /// The last complete message.
    answer: String,
    /// Whether the agent has worked in this turn.
    has_worked: bool,
}

impl AnswerReader {
    fn new(runtime: AgentRuntime) -> Self {
        Self {
            pane: Glasspane::new(runtime, 0),
            transcript: Transcript::new(runtime),
            message: String::new(),
            answer: String::new(),
            has_worked: false,
        }
    }

    /// Processes output; returns `true` at the end of the turn.
    fn output(&mut self, bytes: &[u8]) -> bool {
        // The state is checked after each line.
        for line in bytes.split_inclusive(|byte| *byte == b'\n') {
            for item in self.transcript.push_stdout(line) {
                self.item(item);
            }
            self.pane.push_output(line, 0);
            if self.pane.needs_activity() {
                self.has_worked = true;
                continue;
            }
            match self.pane.view().state {
                AgentState::Working => self.has_worked = true,
                AgentState::Idle if self.has_worked => return true,
                _ => {}
            }
        }
        false
    }

    /// Processes a state that the daemon reports; returns `true` at the end of the turn. The daemon calls an
    /// agent without events idle after a time without output.
    fn state(&self, state: AgentState) -> bool {
        self.pane.needs_activity() && self.has_worked && state == AgentState::Idle
    }

    fn item(&mut self, item: TranscriptItem) {
        match item {
            TranscriptItem::Text(text) | TranscriptItem::Output(text) => {
                self.message.push_str(&text);
                let surplus = self.message.len().saturating_sub(MAX_ANSWER);
                let surplus = self.message.ceil_char_boundary(surplus);
                self.message.drain(..surplus);
            }
            TranscriptItem::BlockEnd if !self.message.trim().is_empty() => {
                self.answer = std::mem::take(&mut self.message);
            }
            TranscriptItem::BlockEnd => self.message.clear(),
            _ => {}
        }
    }

    fn answer(mut self) -> TurnResult {
        self.item(TranscriptItem::BlockEnd);
        TurnResult {
            text: self.answer,
            error: self.pane.view().last_error.clone(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pi(lines: &[&str], chunk: usize) -> Option<TurnResult> {
        let mut reader = AnswerReader::new(AgentRuntime::Pi);
        let text: String = lines.iter().map(|line| format!("{line}\n")).collect();
        let ended = text
            .as_bytes()
            .chunks(chunk)
            .any(|bytes| reader.output(bytes));
        ended.then(|| reader.answer())
    }

    #[test]
    fn answer_is_the_last_message_of_the_turn() {
        let message_end = |text: &str| {
            format!(
                r#"{{"type":"message_end","message":{{"role":"assistant","content":[{{"type":"text","text":"{text}"}}]}}}}"#
            )
        };
        let first = message_end("First.");
        let last = message_end("All done.\\nReally.");
        let lines = [
            r#"{"type":"agent_start"}"#,
            &first,
            r#"{"type":"tool_execution_start","toolCallId":"1","toolName":"bash","args":{}}"#,
            r#"{"type":"tool_execution_end","toolCallId":"1","result":{"content":[{"type":"text","text":"no answer"}]}}"#,
            &last,
            r#"{"type":"agent_end"}"#,
        ];
        for chunk in [1, 7, 10_000] {
            let answer = pi(&lines, chunk).expect("the turn ends");
            assert_eq!(answer.text, "All done.\nReally.", "{chunk}");
            assert_eq!(answer.error, None);
            assert_eq!(pi(&lines[..5], chunk), None, "it has not ended");
        }
    }

    #[test]
    fn failed_turn_has_an_error() {
        let lines = [
            r#"{"type":"agent_start"}"#,
            r#"{"type":"message_end","message":{"role":"assistant","stopReason":"error","errorMessage":"overloaded"}}"#,
            r#"{"type":"agent_end"}"#,
        ];
        let answer = pi(&lines, 100).expect("the turn ends");
        assert_eq!(answer.error.as_deref(), Some("overloaded"));
        assert_eq!(answer.text, "");
    }

    #[test]
    fn generic_turn_ends_when_the_daemon_reports_idle() {
        let mut reader = AnswerReader::new(AgentRuntime::Generic);
        assert!(!reader.state(AgentState::Idle), "before it has written");
        assert!(!reader.output(b"got "));
        assert!(!reader.output(b"it\n"));
        assert!(reader.state(AgentState::Idle));
        assert_eq!(reader.answer().text, "got it\n");
    }
}
