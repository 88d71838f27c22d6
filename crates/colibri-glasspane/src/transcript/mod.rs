//! Converts agent output into a readable transcript: messages, tool calls and results, questions. All texts are
//! sanitized. [`crate::TranscriptFormatter`] formats it for a terminal.

mod pi;
mod summary;
mod zot;

use serde_json::Value;

use crate::events::{self, TokenUsage, ToolStep};
use crate::line_splitter::LineSplitter;
use crate::question::Question;
use crate::sanitize::{Sanitizer, sanitize_line, sanitize_text};
use crate::{AgentRuntime, AgentState};

/// Maximum length of a line of a tool call or result, in characters.
const MAX_LINE_CHARS: usize = 200;

/// An item of a transcript. Texts contain no control characters except LF and tab; a text documented as a line contains
/// neither.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub enum TranscriptItem {
    /// A prompt that the agent has started.
    User(String),
    /// A fragment of a streamed message.
    Text(String),
    /// A fragment of streamed reasoning.
    Thinking(String),
    /// End of a streamed message or of its reasoning.
    BlockEnd,
    /// The agent calls a tool.
    ToolCall {
        /// Name of the tool; a line.
        name: String,
        /// Arguments; a line.
        arguments: String,
    },
    /// A tool ended.
    ToolResult {
        /// Name of the tool, if other items separate the result from its call.
        tool: Option<String>,
        /// First lines of the result.
        text: String,
        /// Number of lines of the result that `text` omits.
        omitted_lines: usize,
        /// The tool reported a failure.
        failed: bool,
    },
    /// The agent waits for an answer.
    Question(Question),
    /// A status message; a line.
    Notice(String),
    /// An error message; a line.
    Error(String),
    /// A line that is not an event.
    Malformed(String),
    /// Output of an agent without events, or of a shell command.
    Output(String),
    /// Standard error of the agent.
    Stderr(String),
    /// The agent has finished its current work. Counters cover the time since the previous item of this kind.
    Idle {
        /// Number of completed turns.
        turns: u64,
        /// Tokens read, cached ones included.
        input_tokens: u64,
        /// Tokens written.
        output_tokens: u64,
        /// Cost in US dollars.
        cost_usd: f64,
    },
}

#[derive(Debug)]
struct OpenCall {
    id: String,
    name: String,
}

/// Parses the output of one agent into transcript items.
#[derive(Default)]
pub struct Transcript {
    runtime: AgentRuntime,
    lines: LineSplitter,
    output: Sanitizer,
    errors: Sanitizer,
    /// Fragments of the current message were emitted.
    streamed: bool,
    /// Running tool calls, oldest first.
    open_calls: Vec<OpenCall>,
    /// Id of the last emitted call if no other item followed it.
    last_call: Option<String>,
    open_question: Option<Question>,
    turns: u64,
    usage: TokenUsage,
    /// Items of the output that is being parsed.
    items: Vec<TranscriptItem>,
}

impl Transcript {
    /// Creates a transcript. Parsing may start at any offset of the output.
    #[must_use]
    pub fn new(runtime: AgentRuntime) -> Self {
        Self {
            runtime,
            ..Self::default()
        }
    }

    /// Parses bytes that the agent wrote to standard output.
    pub fn push_stdout(&mut self, bytes: &[u8]) -> Vec<TranscriptItem> {
        if self.runtime == AgentRuntime::Generic {
            let text = self.output.push(bytes);
            return Vec::from_iter(non_empty(text).map(TranscriptItem::Output));
        }
        let mut lines = std::mem::take(&mut self.lines);
        lines.push(bytes, |line| self.parse_line(line));
        self.lines = lines;
        std::mem::take(&mut self.items)
    }

    /// Parses bytes that the agent wrote to standard error.
    pub fn push_stderr(&mut self, bytes: &[u8]) -> Vec<TranscriptItem> {
        let text = self.errors.push(bytes);
        Vec::from_iter(non_empty(text).map(TranscriptItem::Stderr))
    }

    /// Records a gap in the output. Discards the state, and ignores events up to the end of the next line.
    pub fn skip_gap(&mut self) {
        *self = Self::new(self.runtime);
        self.lines = LineSplitter::mid_line();
    }

    /// Returns the question that the agent waits for, according to its output.
    #[must_use]
    pub fn open_question(&self) -> Option<&Question> {
        self.open_question.as_ref()
    }

    /// Records that the open question was answered.
    pub fn close_question(&mut self) {
        self.open_question = None;
    }

    fn parse_line(&mut self, line: Option<&[u8]>) {
        let Some(line) = line else {
            return self
                .items
                .push(TranscriptItem::Malformed("line too long".to_owned()));
        };
        if line.trim_ascii().is_empty() {
            return;
        }
        let event: Option<Value> = serde_json::from_slice(line).ok();
        let effect = events::parse(self.runtime, line);
        let (Some(event), Some(effect)) = (event, effect) else {
            let text = sanitize_line(&String::from_utf8_lossy(line), MAX_LINE_CHARS);
            return self.items.push(TranscriptItem::Malformed(text));
        };
        let continues = matches!(effect.state, Some(AgentState::Working | AgentState::Idle));
        let step = effect.tool.map(|change| change.step);
        if continues || step == Some(ToolStep::Ended) {
            self.open_question = None;
        }
        self.turns += u64::from(effect.ends_turn);
        let usage = effect.usage;
        let input = usage.input.saturating_add(usage.cached);
        self.usage.input = self.usage.input.saturating_add(input);
        self.usage.output = self.usage.output.saturating_add(usage.output);
        self.usage.cost_usd += usage.cost_usd;
        let count_before = self.items.len();
        match self.runtime {
            AgentRuntime::Zot => self.push_zot_event(&event),
            AgentRuntime::Pi => self.push_pi_event(&event),
            AgentRuntime::Generic => {}
        }
        if effect.state == Some(AgentState::Idle) {
            self.push_idle();
        }
        if self.items.len() > count_before
            && !matches!(self.items.last(), Some(TranscriptItem::ToolCall { .. }))
        {
            self.last_call = None;
        }
    }

    fn push_idle(&mut self) {
        self.open_calls.clear();
        let turns = std::mem::take(&mut self.turns);
        let usage = std::mem::take(&mut self.usage);
        if turns > 0 || usage != TokenUsage::default() {
            self.items.push(TranscriptItem::Idle {
                turns,
                input_tokens: usage.input,
                output_tokens: usage.output,
                cost_usd: usage.cost_usd,
            });
        }
    }

    fn push_tool_call(&mut self, id: &Value, name: &Value, arguments: &Value) {
        let name = sanitize_line(name.as_str().unwrap_or("?"), MAX_LINE_CHARS);
        let id = events::string(id);
        self.last_call = Some(id.clone());
        self.open_calls.push(OpenCall {
            id,
            name: name.clone(),
        });
        self.items.push(TranscriptItem::ToolCall {
            name,
            arguments: summary::arguments_line(arguments),
        });
    }

    fn push_tool_result(&mut self, id: &Value, content: &Value, failed: &Value) {
        let id = id.as_str().unwrap_or_default();
        let index = self.open_calls.iter().position(|call| call.id == id);
        let call = index.map(|index| self.open_calls.remove(index));
        let result = summary::first_lines(&summary::content_text(content));
        self.items.push(TranscriptItem::ToolResult {
            tool: call
                .map(|call| call.name)
                .filter(|_| self.last_call.as_deref() != Some(id)),
            text: result.text,
            omitted_lines: result.omitted_lines,
            failed: failed == true,
        });
    }

    fn push_fragment(&mut self, text: &Value, item: fn(String) -> TranscriptItem) {
        self.streamed = true;
        let text = sanitize_text(text.as_str().unwrap_or_default());
        self.items.extend(non_empty(text).map(item));
    }

    /// Ends a message of the model. Emits the whole message if its fragments were not seen.
    fn end_message(&mut self, content: &Value) {
        if !std::mem::take(&mut self.streamed) {
            self.items
                .extend(non_empty(summary::content_text(content)).map(TranscriptItem::Text));
        }
        self.items.push(TranscriptItem::BlockEnd);
    }

    fn notice(&mut self, text: impl Into<String>) {
        self.items.push(TranscriptItem::Notice(text.into()));
    }

    /// Emits an error message of an event.
    fn error(&mut self, text: &Value) {
        self.items.push(TranscriptItem::Error(text_line(text)));
    }

    /// Emits the reason for which a model stopped; `error` is the message of a failure.
    fn push_stop(&mut self, reason: &Value, error: &Value) {
        match reason.as_str().unwrap_or_default() {
            "error" => self.error(error),
            "aborted" => self.notice("aborted"),
            "length" => self.notice("the answer was truncated: it is too long"),
            _ => {}
        }
    }

    /// Emits the refusal of a command by the agent.
    fn push_refusal(&mut self, response: &Value) {
        let command = text_line(&response["command"]);
        let text = format!("{command}: {}", text_line(&response["error"]));
        self.items.push(TranscriptItem::Error(text));
    }
}

fn non_empty(text: String) -> Option<String> {
    Some(text).filter(|text| !text.is_empty())
}

/// Returns a text field of an event as a sanitized line.
fn text_line(text: &Value) -> String {
    sanitize_line(&events::error_text(text), 2 * MAX_LINE_CHARS)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::TranscriptFormatter;
    use proptest::prelude::*;

    fn formatted(transcript: &mut Transcript, chunks: &[&[u8]]) -> String {
        let mut formatter = TranscriptFormatter::new(false);
        let mut text = String::new();
        for chunk in chunks {
            for item in transcript.push_stdout(chunk) {
                text.push_str(&formatter.format(&item));
            }
        }
        text + formatter.end_line()
    }

    #[test]
    fn malformed_lines_are_marked() {
        let lines =
            b"Warning: old\x1b[2J\n\n{\"type\":\"agent_start\"}\n[1]\n{\"type\":\"tomorrow\"}\n";
        let shown = formatted(&mut Transcript::new(AgentRuntime::Pi), &[lines]);
        assert_eq!(shown, "# not an event: Warning: old\n# not an event: [1]\n");
    }

    #[test]
    fn output_after_gap_starts_at_next_line() {
        let mut transcript = Transcript::new(AgentRuntime::Pi);
        transcript.push_stdout(b"{\"type\":\"agent");
        transcript.skip_gap();
        let shown = formatted(
            &mut transcript,
            &[b"_end\"}\n{\"type\":\"compaction_start\"}\n"],
        );
        assert_eq!(shown, "- compacting its history\n");
    }

    #[test]
    fn stdout_and_stderr_use_separate_lines() {
        let mut transcript = Transcript::new(AgentRuntime::Generic);
        let mut formatter = TranscriptFormatter::new(false);
        let mut shown = String::new();
        let mut show = |items: Vec<TranscriptItem>| {
            items
                .iter()
                .for_each(|item| shown.push_str(&formatter.format(item)));
        };
        show(transcript.push_stdout(b"name? "));
        show(transcript.push_stderr(b"no \x1b[31mtty\nstderr| "));
        show(transcript.push_stdout(b"- ended\n"));
        assert_eq!(
            shown,
            "  name? \nstderr| no tty\nstderr| stderr| \n  - ended\n"
        );
    }

    #[test]
    fn question_stays_open_until_agent_continues() {
        let mut transcript = Transcript::new(AgentRuntime::Pi);
        let ask = br#"{"type":"extension_ui_request","id":"q","method":"select","title":"Which?","options":["a\u001b[2J","b"]}"#;
        transcript.push_stdout(&[ask, &b"\n"[..]].concat());
        let text = transcript
            .open_question()
            .map(|question| question.text.as_str());
        assert_eq!(text, Some("Which?\n1: a\n2: b"));
        transcript.push_stdout(b"{\"type\":\"queue_update\",\"steering\":[]}\n");
        assert!(transcript.open_question().is_some());
        transcript.push_stdout(b"{\"type\":\"turn_start\"}\n");
        assert_eq!(transcript.open_question(), None);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(if cfg!(miri) { 8 } else { 128 }))]
        #[test]
        fn transcript_is_safe_and_independent_of_chunk_size(
            lines in prop::collection::vec(prop_oneof![
                Just(&br#"{"type":"message_update","assistantMessageEvent":{"type":"text_delta","delta":"a\u001b[2Jb\n"}}"#[..]),
                Just(&br#"{"type":"tool_execution_start","toolCallId":"1","toolName":"\u009b2J","args":{"a":"\r"}}"#[..]),
                Just(&br#"{"type":"tool_execution_end","toolCallId":"1","result":{"content":[{"type":"text","text":"\u0007"}]}}"#[..]),
                Just(&br#"{"type":"agent_end"}"#[..]),
                Just(&b"\x1b]0;x\x07 \xff\xe2\x82"[..]),
            ], 0..8),
            chunk_size in 1..40_usize,
        ) {
            let stream = lines.join(&b'\n');
            for &runtime in AgentRuntime::ALL {
                let whole = formatted(&mut Transcript::new(runtime), &[&stream]);
                let chunks: Vec<&[u8]> = stream.chunks(chunk_size).collect();
                prop_assert_eq!(&whole, &formatted(&mut Transcript::new(runtime), &chunks));
                prop_assert!(whole.chars().all(|c| !c.is_control() || c == '\n' || c == '\t'));
            }
        }
    }
}
