//! Follows one turn of an agent, and collects its answer: the last message of the model in that turn.

use colibri_client::glasspane::{Glasspane, Question, Transcript, TranscriptItem};
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

/// What has happened in a turn.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum TurnEvent {
    /// The agent waits for an answer.
    Asked(Question),
    /// The turn has ended.
    Ended(TurnResult),
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

    /// Waits until the turn has ended. Reports questions to the user.
    pub(crate) async fn wait(mut self) -> Result<TurnResult, CliError> {
        loop {
            match self.next().await? {
                TurnEvent::Asked(_) => output::message(&format!(
                    "agent {id} asks a question; answer it with colibri attach {id}",
                    id = self.id
                )),
                TurnEvent::Ended(result) => return Ok(result),
            }
        }
    }

    /// Waits until the agent asks a question, or the turn has ended.
    pub(crate) async fn next(&mut self) -> Result<TurnEvent, CliError> {
        loop {
            let event = self.events.next().await;
            let has_ended = match event.ok_or(ClientError::Closed)? {
                Notification::AgentOutput(output) if output.stream == Stream::Stdout => {
                    self.reader.output(&output_bytes(output.data)?)
                }
                Notification::AgentState(change) => self.reader.turn.state(change.state),
                Notification::AgentExit(_) => {
                    return Err(ClientError::Ended(self.id.clone()).into());
                }
                _ => false,
            };
            if has_ended {
                return Ok(TurnEvent::Ended(self.reader.answer()));
            }
            if let Some(question) = self.reader.messages.question.take() {
                return Ok(TurnEvent::Asked(question));
            }
        }
    }
}

/// Finds the end of a turn in the output of an agent. Does no I/O.
pub(crate) struct TurnReader {
    pane: Glasspane,
    transcript: Transcript,
    /// Whether the agent has worked in this turn.
    has_worked: bool,
}

impl TurnReader {
    pub(crate) fn new(runtime: AgentRuntime) -> Self {
        Self {
            pane: Glasspane::new(runtime, 0),
            transcript: Transcript::new(runtime),
            has_worked: false,
        }
    }

    /// Processes output up to the end of the turn, and passes its items to `show`; returns `true` at the end of the turn.
    pub(crate) fn output(&mut self, bytes: &[u8], mut show: impl FnMut(TranscriptItem)) -> bool {
        // The state is checked after each line.
        for line in bytes.split_inclusive(|byte| *byte == b'\n') {
            for item in self.transcript.push_stdout(line) {
                // The caller answers it, so it must not fill the queue of open questions.
                if matches!(item, TranscriptItem::Question(_)) {
                    self.transcript.close_question();
                }
                show(item);
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

    /// Records that output was dropped.
    pub(crate) fn skip_gap(&mut self, bytes: u64) {
        self.transcript.skip_gap();
        self.pane.skip_output(bytes);
    }

    /// Processes a state that the daemon reports; returns `true` at the end of the turn. The daemon calls an
    /// agent without events idle after a time without output.
    pub(crate) fn state(&self, state: AgentState) -> bool {
        self.pane.needs_activity() && self.has_worked && state == AgentState::Idle
    }

    /// Returns the last error of the turn.
    fn error(&self) -> Option<String> {
        self.pane.view().last_error.clone()
    }
}

/// Extracts the answer from the output of a turn. Does no I/O.
struct AnswerReader {
    turn: TurnReader,
    messages: Messages,
}

/// The messages and the questions of a turn.
#[derive(Default)]
struct Messages {
    /// The message that is being streamed.
    current: String,
    /// The last complete message.
    answer: String,
    /// The oldest question that was not reported: an answer is to this one.
    question: Option<Question>,
}

impl AnswerReader {
    fn new(runtime: AgentRuntime) -> Self {
        Self {
            turn: TurnReader::new(runtime),
            messages: Messages::default(),
        }
    }

    /// Processes output; returns `true` at the end of the turn.
    fn output(&mut self, bytes: &[u8]) -> bool {
        self.turn.output(bytes, |item| self.messages.item(item))
    }

    fn answer(&mut self) -> TurnResult {
        self.messages.item(TranscriptItem::BlockEnd);
        TurnResult {
            text: std::mem::take(&mut self.messages.answer),
            error: self.turn.error(),
        }
    }
}

impl Messages {
    fn item(&mut self, item: TranscriptItem) {
        match item {
            TranscriptItem::Text(text) | TranscriptItem::Output(text) => {
                self.current.push_str(&text);
                let surplus = self.current.len().saturating_sub(MAX_ANSWER);
                let surplus = self.current.ceil_char_boundary(surplus);
                self.current.drain(..surplus);
            }
            TranscriptItem::BlockEnd if !self.current.trim().is_empty() => {
                self.answer = std::mem::take(&mut self.current);
            }
            TranscriptItem::BlockEnd => self.current.clear(),
            TranscriptItem::Question(question) => {
                self.question.get_or_insert(question);
            }
            _ => {}
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

    fn question(id: usize) -> String {
        format!(
            "{}\n",
            serde_json::json!({"type": "control_request", "request_id": id.to_string(), "request": {
                "subtype": "can_use_tool", "tool_name": "Bash", "input": {"command": id.to_string()},
            }})
        )
    }

    #[test]
    fn first_of_several_questions_is_reported() {
        let mut reader = AnswerReader::new(AgentRuntime::Claude);
        reader.output((question(1) + &question(2)).as_bytes());
        let reported = reader.messages.question.map(|question| question.text);
        assert!(reported.is_some_and(|text| text.starts_with("Bash: 1")));
    }

    #[test]
    fn each_question_of_a_long_turn_is_reported() {
        let mut reader = TurnReader::new(AgentRuntime::Claude);
        for id in 0..200 {
            let mut asked = 0;
            reader.output(question(id).as_bytes(), |item| {
                asked += usize::from(matches!(item, TranscriptItem::Question(_)));
            });
            assert_eq!(asked, 1, "{id}");
        }
    }

    #[test]
    fn generic_turn_ends_when_the_daemon_reports_idle() {
        let mut reader = AnswerReader::new(AgentRuntime::Generic);
        assert!(
            !reader.turn.state(AgentState::Idle),
            "before it has written"
        );
        assert!(!reader.output(b"got "));
        assert!(!reader.output(b"it\n"));
        assert!(reader.turn.state(AgentState::Idle));
        assert_eq!(reader.answer().text, "got it\n");
    }
}
