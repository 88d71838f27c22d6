//! Converts agent output into a readable transcript: messages, tool calls and results, questions. All texts are
//! sanitized. [`crate::TranscriptFormatter`] formats it for a terminal.

mod open_questions;
mod summary;

use crate::AgentRuntime;
use crate::event::{Content, Event, TokenUsage};
use crate::line_splitter::LineSplitter;
use crate::question::Question;
use crate::runtimes::{EventReader, LineKind};
use crate::sanitize::{Sanitizer, sanitize_line, sanitize_text};

use open_questions::{AskResult, MAX_OPEN, OpenQuestions};
pub(crate) use summary::{arguments_line, arguments_text, content_text};

/// Maximum length of a line of a tool call or result, in characters.
const MAX_LINE_CHARS: usize = 200;

/// Maximum number of running tool calls whose names are stored.
const MAX_OPEN_CALLS: usize = 64;

/// Maximum length of a line that may be an event of an unknown runtime, in bytes.
const MAX_HELD_BYTES: usize = 64 << 10;

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
        /// Id that the agent gave the call; a line.
        id: String,
        /// Name of the tool; a line.
        name: String,
        /// Arguments; a line.
        arguments: String,
    },
    /// A tool ended.
    ToolResult {
        /// Id of the call; a line.
        id: String,
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
    reader: EventReader,
    lines: LineSplitter,
    /// The start of a line of an agent whose runtime is not recognized yet.
    unrecognized: UnrecognizedLine,
    output: Sanitizer,
    errors: Sanitizer,
    /// Fragments of the current message were emitted.
    streamed: bool,
    /// Running tool calls, oldest first.
    open_calls: Vec<OpenCall>,
    /// Id of the last emitted call if no other item followed it.
    last_call: Option<String>,
    open_questions: OpenQuestions,
    /// The last emitted error of the current work.
    last_error: Option<String>,
    turns: u64,
    usage: TokenUsage,
    /// Items of the output that is being parsed.
    items: Vec<TranscriptItem>,
}

/// The current line of an agent whose runtime is not recognized yet. Only a line that starts with `{` can be an event, so
/// others are shown before they are complete.
#[derive(Debug, Default)]
struct UnrecognizedLine {
    /// The start of a line that may be an event.
    held: Vec<u8>,
    /// The line is not an event.
    is_text: bool,
}

impl Transcript {
    /// Creates a transcript. Parsing may start at any offset of the output.
    #[must_use]
    pub fn new(runtime: AgentRuntime) -> Self {
        Self {
            reader: EventReader::new(runtime),
            ..Self::default()
        }
    }

    /// Parses bytes that the agent wrote to standard output.
    pub fn push_stdout(&mut self, bytes: &[u8]) -> Vec<TranscriptItem> {
        let mut rest = bytes;
        while self.reader.runtime() == AgentRuntime::Auto && !rest.is_empty() {
            let end = memchr::memchr(b'\n', rest).map_or(rest.len(), |end| end + 1);
            let (line, tail) = rest.split_at(end);
            self.push_unrecognized(line);
            rest = tail;
        }
        if self.reader.runtime() == AgentRuntime::Generic {
            self.push_plain(rest);
        } else {
            let mut lines = std::mem::take(&mut self.lines);
            lines.push(rest, |line| self.parse_line(line));
            self.lines = lines;
        }
        std::mem::take(&mut self.items)
    }

    /// Parses a line, or a part of one, of an agent whose runtime is not recognized.
    fn push_unrecognized(&mut self, part: &[u8]) {
        let mut held = std::mem::take(&mut self.unrecognized.held);
        let is_line_end = part.ends_with(b"\n");
        self.unrecognized.is_text |= held.is_empty() && part.first() != Some(&b'{');
        if self.unrecognized.is_text {
            if is_line_end {
                self.reader.count_unrecognized(part.len());
                self.unrecognized.is_text = false;
            }
            return self.push_plain(part);
        }
        held.extend_from_slice(part);
        if is_line_end {
            self.parse_line(held.strip_suffix(b"\n"));
            if !self.reader.has_events() {
                self.push_plain(&held);
            }
        } else if held.len() > MAX_HELD_BYTES {
            self.reader.count_unrecognized(held.len());
            self.push_plain(&held);
            self.unrecognized.is_text = true;
        } else {
            self.unrecognized.held = held;
        }
    }

    fn push_plain(&mut self, bytes: &[u8]) {
        let text = self.output.push(bytes);
        self.items
            .extend(non_empty(text).map(TranscriptItem::Output));
    }

    /// Parses bytes that the agent wrote to standard error.
    pub fn push_stderr(&mut self, bytes: &[u8]) -> Vec<TranscriptItem> {
        let text = self.errors.push(bytes);
        Vec::from_iter(non_empty(text).map(TranscriptItem::Stderr))
    }

    /// Records a gap in the output. Discards the state, and ignores events up to the end of the next line.
    pub fn skip_gap(&mut self) {
        *self = Self::new(self.reader.runtime());
        self.lines = LineSplitter::mid_line();
    }

    /// Returns the question that the agent waits for, according to its output; of several the oldest.
    #[must_use]
    pub fn open_question(&self) -> Option<&Question> {
        self.open_questions.first()
    }

    /// Reports whether an open question waits for the answer to an older one.
    #[must_use]
    pub fn is_later_question(&self, question: &Question) -> bool {
        self.open_questions.is_later(question)
    }

    /// Records that the open question was answered. The next one may be open then.
    pub fn close_question(&mut self) {
        self.open_questions.answer();
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
        let count_before = self.items.len();
        let mut reader = std::mem::take(&mut self.reader);
        let kind = reader.read(line, &mut |event| self.apply(event));
        self.reader = reader;
        if kind == LineKind::NotAnEvent && self.reader.has_events() {
            let text = sanitize_line(&String::from_utf8_lossy(line), MAX_LINE_CHARS);
            self.items.push(TranscriptItem::Malformed(text));
        }
        if self.items.len() > count_before
            && !matches!(self.items.last(), Some(TranscriptItem::ToolCall { .. }))
        {
            self.last_call = None;
        }
    }

    fn apply(&mut self, event: Event<'_>) {
        match event {
            Event::Working(_) => self.open_questions.progress(),
            Event::Idle => {
                self.open_questions.end();
                self.push_idle();
            }
            Event::Prompt(content) => {
                self.open_questions.progress();
                let text = content_text(content);
                self.items.extend(non_empty(text).map(TranscriptItem::User));
            }
            Event::MessageStarted => {
                self.open_questions.progress();
                self.streamed = false;
            }
            Event::Text(text) => {
                self.streamed = true;
                self.push_fragment(text, TranscriptItem::Text);
            }
            Event::Thinking(text) => self.push_fragment(text, TranscriptItem::Thinking),
            Event::BlockEnded => self.items.push(TranscriptItem::BlockEnd),
            Event::Message(content) => self.end_message(content),
            Event::ToolStarted {
                id,
                name,
                arguments,
            } => self.push_tool_call(id, name, arguments_line(&arguments.to_value())),
            Event::ToolEnded { id, result, failed } => self.push_tool_result(id, result, failed),
            Event::Question(question) => {
                match self.open_questions.ask(question.clone()) {
                    AskResult::Queued => self.items.push(TranscriptItem::Question(question)),
                    AskResult::FirstDropped => self.error(&format!(
                        "asks more than {MAX_OPEN} questions at once; the rest is not shown and gets no answer; cancel the turn"
                    )),
                    AskResult::Dropped => {}
                }
            }
            Event::TurnsEnded(turns) => self.turns = self.turns.saturating_add(turns),
            Event::Usage(usage) => self.usage.add(usage),
            Event::Queued(0) => {}
            Event::Queued(1) => self.notice("1 prompt queued"),
            Event::Queued(count) => self.notice(&format!("{count} prompts queued")),
            Event::Failed(error) | Event::Error(error) => self.error(&error),
            Event::Notice(text) => self.notice(&text),
            Event::Output(text) => self.items.push(TranscriptItem::Output(sanitize_text(text))),
            Event::Response(response) => {
                if let Some(error) = response.error {
                    self.error(&format!("{}: {error}", response.command));
                }
            }
            Event::ToolProgressed(_) | Event::Session(_) => {}
        }
    }

    fn push_idle(&mut self) {
        self.open_calls.clear();
        self.last_error = None;
        let turns = std::mem::take(&mut self.turns);
        let usage = std::mem::take(&mut self.usage);
        if turns > 0 || usage != TokenUsage::default() {
            self.items.push(TranscriptItem::Idle {
                turns,
                input_tokens: usage.input.saturating_add(usage.cached),
                output_tokens: usage.output,
                cost_usd: usage.cost.usd(),
            });
        }
    }

    fn push_tool_call(&mut self, id: &str, name: &str, arguments: String) {
        let name = sanitize_line(if name.is_empty() { "?" } else { name }, MAX_LINE_CHARS);
        self.last_call = Some(id.to_owned());
        if self.open_calls.len() >= MAX_OPEN_CALLS {
            self.open_calls.remove(0);
        }
        self.open_calls.push(OpenCall {
            id: id.to_owned(),
            name: name.clone(),
        });
        self.items.push(TranscriptItem::ToolCall {
            id: sanitize_line(id, MAX_LINE_CHARS),
            name,
            arguments,
        });
    }

    fn push_tool_result(&mut self, id: &str, content: Content<'_>, failed: bool) {
        self.open_questions.progress();
        let index = self.open_calls.iter().position(|call| call.id == id);
        let call = index.map(|index| self.open_calls.remove(index));
        let result = summary::first_lines(&content_text(content));
        self.items.push(TranscriptItem::ToolResult {
            id: sanitize_line(id, MAX_LINE_CHARS),
            tool: call
                .map(|call| call.name)
                .filter(|_| self.last_call.as_deref() != Some(id)),
            text: result.text,
            omitted_lines: result.omitted_lines,
            failed,
        });
    }

    fn push_fragment(&mut self, text: &str, item: fn(String) -> TranscriptItem) {
        self.open_questions.progress();
        self.items.extend(non_empty(sanitize_text(text)).map(item));
    }

    /// Ends a message of the model. Emits the whole message if its fragments were not seen.
    fn end_message(&mut self, content: Content<'_>) {
        self.open_questions.progress();
        if !std::mem::take(&mut self.streamed) {
            self.items
                .extend(non_empty(content_text(content)).map(TranscriptItem::Text));
        }
        self.items.push(TranscriptItem::BlockEnd);
    }

    fn notice(&mut self, text: &str) {
        let text = sanitize_line(text, 2 * MAX_LINE_CHARS);
        self.items.push(TranscriptItem::Notice(text));
    }

    /// Emits an error message. An agent may report the same error in several events.
    fn error(&mut self, text: &str) {
        let text = sanitize_line(text, 2 * MAX_LINE_CHARS);
        if self.last_error.as_ref() != Some(&text) {
            self.last_error = Some(text.clone());
            self.items.push(TranscriptItem::Error(text));
        }
    }
}

fn non_empty(text: String) -> Option<String> {
    Some(text).filter(|text| !text.is_empty())
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

    #[test]
    fn shown_questions_are_those_that_can_be_answered() {
        let mut transcript = Transcript::new(AgentRuntime::Claude);
        let mut shown = Vec::new();
        let mut errors = 0;
        for number in 0..MAX_OPEN + 10 {
            let line = format!(
                r#"{{"type":"control_request","request_id":"{number}","request":{{"subtype":"can_use_tool","tool_name":"Bash","input":{{"command":"{number}"}}}}}}"#
            );
            for item in transcript.push_stdout(format!("{line}\n").as_bytes()) {
                match item {
                    TranscriptItem::Question(question) => shown.push(question),
                    TranscriptItem::Error(_) => errors += 1,
                    other => panic!("{other:?}"),
                }
            }
        }
        assert_eq!((shown.len(), errors), (MAX_OPEN, 1));
        for question in &shown {
            assert_eq!(transcript.open_question(), Some(question));
            transcript.close_question();
        }
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
