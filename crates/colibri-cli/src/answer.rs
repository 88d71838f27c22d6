//! Follows one turn of an agent, and collects the answer: the last message of the model in that turn.

use colibri_client::glasspane::{Glasspane, Item, Transcript};
use colibri_client::{
    AgentRuntime, AgentState, Client, ClientError, Events, Notification, Stream, StreamChoice,
    SubscribeParams,
};

use crate::error::CliError;
use crate::output;

/// Maximum size of an answer, in bytes; of a longer one only the end is kept.
const MOST: usize = 4 << 20;

/// The result of a turn.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(crate) struct Answer {
    /// The last message of the model; for the runtime `generic` all output of the turn.
    pub(crate) text: String,
    /// Why the turn failed.
    pub(crate) error: Option<String>,
}

/// A turn in progress, whose output is read.
pub(crate) struct Turn {
    id: String,
    events: Events,
    reader: Reader,
}

impl Turn {
    /// Subscribes to an agent's output, starting at its current end.
    pub(crate) async fn follow(
        client: &Client,
        id: &str,
        runtime: AgentRuntime,
    ) -> Result<Self, CliError> {
        let params = SubscribeParams {
            id: Some(id.to_owned()),
            stream: Some(StreamChoice::Stdout),
            from_offset: Some(client.get_agent(id).await?.stdout_bytes),
            ..SubscribeParams::default()
        };
        Ok(Self {
            id: id.to_owned(),
            events: client.subscribe(params).await?,
            reader: Reader::new(runtime),
        })
    }

    /// Waits until the turn has ended.
    pub(crate) async fn end(mut self) -> Result<Answer, CliError> {
        loop {
            let event = self.events.next().await;
            match event.ok_or(ClientError::Closed)? {
                Notification::AgentOutput(chunk) if chunk.stream == Stream::Stdout => {
                    let bytes = chunk.data.into_bytes().map_err(|error| {
                        CliError::io("cannot read output that the daemon sent")(
                            std::io::Error::other(error),
                        )
                    })?;
                    if self.reader.output(&bytes) {
                        break;
                    }
                }
                Notification::AgentState(change) => {
                    if change.state == AgentState::Blocked {
                        output::note(&format!(
                            "agent {id} asks a question; answer it with colibri attach {id}",
                            id = self.id
                        ));
                    }
                    if self.reader.state(change.state) {
                        break;
                    }
                }
                Notification::AgentExit(_) => return Err(ClientError::Ended(self.id).into()),
                _ => {}
            }
        }
        Ok(self.reader.answer())
    }
}

/// Extracts the answer from the output of a turn. Does no I/O.
struct Reader {
    runtime: AgentRuntime,
    pane: Glasspane,
    transcript: Transcript,
    /// The message that is being streamed.
    message: String,
    /// The last complete message.
    answer: String,
    worked: bool,
}

impl Reader {
    fn new(runtime: AgentRuntime) -> Self {
        Self {
            runtime,
            pane: Glasspane::new(runtime, 0),
            transcript: Transcript::new(runtime),
            message: String::new(),
            answer: String::new(),
            worked: false,
        }
    }

    /// Processes output; returns `true` at the end of the turn.
    fn output(&mut self, bytes: &[u8]) -> bool {
        // Line by line, so that the state after each line is checked.
        for line in bytes.split_inclusive(|byte| *byte == b'\n') {
            for item in self.transcript.stdout(line) {
                self.item(item);
            }
            if self.runtime == AgentRuntime::Generic {
                self.worked = true;
                continue;
            }
            self.pane.output(line, 0);
            match self.pane.view().state {
                AgentState::Working => self.worked = true,
                AgentState::Idle if self.worked => return true,
                _ => {}
            }
        }
        false
    }

    /// Processes a state that the daemon reports; returns `true` at the end of the turn. An agent without events is
    /// idle after a time without output, which only the daemon measures.
    fn state(&self, state: AgentState) -> bool {
        self.runtime == AgentRuntime::Generic && self.worked && state == AgentState::Idle
    }

    fn item(&mut self, item: Item) {
        match item {
            Item::Text(text) | Item::Output(text) => {
                self.message.push_str(&text);
                let surplus = self.message.len().saturating_sub(MOST);
                if surplus > 0 {
                    let start = (surplus..=self.message.len())
                        .find(|at| self.message.is_char_boundary(*at));
                    self.message.drain(..start.unwrap_or(0));
                }
            }
            Item::Break if !self.message.trim().is_empty() => {
                self.answer = std::mem::take(&mut self.message);
            }
            Item::Break => self.message.clear(),
            _ => {}
        }
    }

    fn answer(mut self) -> Answer {
        self.item(Item::Break);
        Answer {
            text: self.answer,
            error: self.pane.view().last_error.clone(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pi(lines: &[&str], piece: usize) -> Option<Answer> {
        let mut reader = Reader::new(AgentRuntime::Pi);
        let text: String = lines.iter().map(|line| format!("{line}\n")).collect();
        let ended = text
            .as_bytes()
            .chunks(piece)
            .any(|bytes| reader.output(bytes));
        ended.then(|| reader.answer())
    }

    #[test]
    fn answer_is_the_last_message_of_the_turn() {
        let said = |text: &str| {
            format!(
                r#"{{"type":"message_end","message":{{"role":"assistant","content":[{{"type":"text","text":"{text}"}}]}}}}"#
            )
        };
        let first = said("I look.");
        let last = said("All done.\\nReally.");
        let lines = [
            r#"{"type":"agent_start"}"#,
            &first,
            r#"{"type":"tool_execution_start","toolCallId":"1","toolName":"bash","args":{}}"#,
            r#"{"type":"tool_execution_end","toolCallId":"1","result":{"content":[{"type":"text","text":"no answer"}]}}"#,
            &last,
            r#"{"type":"agent_end"}"#,
        ];
        for piece in [1, 7, 10_000] {
            let answer = pi(&lines, piece).expect("the turn ends");
            assert_eq!(answer.text, "All done.\nReally.", "{piece}");
            assert_eq!(answer.error, None);
            assert_eq!(pi(&lines[..5], piece), None, "it has not ended");
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
    fn generic_turn_ends_when_the_daemon_calls_the_agent_idle() {
        let mut reader = Reader::new(AgentRuntime::Generic);
        assert!(!reader.state(AgentState::Idle), "before it has written");
        assert!(!reader.output(b"got "));
        assert!(!reader.output(b"it\n"));
        assert!(reader.state(AgentState::Idle));
        assert_eq!(reader.answer().text, "got it\n");
    }
}
