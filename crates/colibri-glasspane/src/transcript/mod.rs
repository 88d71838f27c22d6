//! What an agent writes, as a person reads it: who says what, which tool is called with what, what came of it.
//! Everything in it is cleaned; [`crate::Painter`] makes lines of it.

mod pi;
mod words;
mod zot;

use serde_json::Value;

use crate::clean::{self, Flow};
use crate::events;
use crate::lines::Lines;
use crate::{AgentRuntime, AgentState};

/// Longest line of a tool's call or result, in characters.
const MAX_LINE: usize = 200;

/// A piece of a transcript. Texts are cleaned of control characters but LF and tab; those called lines hold
/// neither.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub enum Item {
    /// A prompt that the agent has begun with.
    User(String),
    /// A piece of what its model says, as it streams.
    Text(String),
    /// A piece of what its model thinks.
    Thinking(String),
    /// What streamed is complete.
    Break,
    /// It calls a tool.
    Call {
        /// The tool; a line.
        name: String,
        /// What it is given; a line.
        arguments: String,
    },
    /// A tool has ended.
    Result {
        /// The tool, where other calls stand between this and its own.
        of: Option<String>,
        /// The first lines of what it returned.
        text: String,
        /// How many lines more it returned.
        more: usize,
        /// It says that it failed.
        failed: bool,
    },
    /// It waits for a person.
    Question(Question),
    /// Something to know; a line.
    Notice(String),
    /// Something failed; a line.
    Error(String),
    /// A line that is no event.
    Malformed(String),
    /// Output of an agent without events.
    Output(String),
    /// What it wrote to standard error.
    Stderr(String),
    /// It is done with what it was told, for now.
    Settled {
        /// Turns since it last was.
        turns: u64,
        /// Tokens read since then, those from a cache included.
        input_tokens: u64,
        /// Tokens written.
        output_tokens: u64,
        /// What that cost, in US dollars.
        cost_usd: f64,
    },
}

/// Something that an agent wants to be told before it goes on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Question {
    /// The agent's own id of it, as it wrote it.
    pub(crate) id: String,
    /// `confirm`, `select`, `input` or `editor`.
    pub(crate) method: String,
    /// What to show: the question and how it can be answered; cleaned.
    pub text: String,
    /// What can be chosen, as it was written.
    pub(crate) options: Vec<String>,
}

/// Reads what an agent writes.
pub struct Transcript {
    runtime: AgentRuntime,
    lines: Lines,
    output: Flow,
    errors: Flow,
    /// What of the message that is under way has been shown.
    streamed: bool,
    /// Tools that run, by id, in the order of their calls.
    calls: Vec<(String, String)>,
    /// The id of the call that was shown last, while nothing else was.
    shown: Option<String>,
    question: Option<Question>,
    turns: u64,
    usage: events::Usage,
}

impl Transcript {
    /// A transcript from any place of the agent's output on.
    #[must_use]
    pub fn new(runtime: AgentRuntime) -> Self {
        Self {
            runtime,
            lines: Lines::default(),
            output: Flow::default(),
            errors: Flow::default(),
            streamed: false,
            calls: Vec::new(),
            shown: None,
            question: None,
            turns: 0,
            usage: events::Usage::default(),
        }
    }

    /// The agent wrote these bytes to standard output.
    pub fn stdout(&mut self, bytes: &[u8]) -> Vec<Item> {
        if self.runtime == AgentRuntime::Generic {
            let text = self.output.push(bytes);
            return not_empty(text).map(Item::Output).into_iter().collect();
        }
        let mut items = Vec::new();
        let mut lines = std::mem::take(&mut self.lines);
        lines.push(bytes, |line| self.line(line, &mut items));
        self.lines = lines;
        items
    }

    /// The agent wrote these bytes to standard error.
    pub fn stderr(&mut self, bytes: &[u8]) -> Vec<Item> {
        let text = self.errors.push(bytes);
        not_empty(text).map(Item::Stderr).into_iter().collect()
    }

    /// Bytes are missing: what came last is not joined with what comes next, and of events what comes next is
    /// passed over up to the end of its line.
    pub fn cut(&mut self) {
        *self = Self::new(self.runtime);
        self.lines = Lines::within_line();
    }

    /// What the agent waits to be told, as far as its output shows.
    #[must_use]
    pub fn question(&self) -> Option<&Question> {
        self.question.as_ref()
    }

    /// It has been told.
    pub fn answered(&mut self) {
        self.question = None;
    }

    fn line(&mut self, line: Option<&[u8]>, items: &mut Vec<Item>) {
        let Some(line) = line else {
            return items.push(Item::Malformed("a line that is too long".to_owned()));
        };
        if line.trim_ascii().is_empty() {
            return;
        }
        let event: Option<Value> = serde_json::from_slice(line).ok();
        let meaning = events::read(self.runtime, line);
        let (Some(event), Some(meaning)) = (event, meaning) else {
            let text = String::from_utf8_lossy(line);
            return items.push(Item::Malformed(clean::line(&text, MAX_LINE)));
        };
        let goes_on = matches!(meaning.state, Some(AgentState::Working | AgentState::Idle));
        if goes_on || matches!(meaning.tool, Some(events::Tool::Ended { .. })) {
            self.question = None;
        }
        self.turns += u64::from(meaning.turn);
        let usage = meaning.usage;
        let read = usage.input.saturating_add(usage.cached);
        self.usage.input = self.usage.input.saturating_add(read);
        self.usage.output = self.usage.output.saturating_add(usage.output);
        self.usage.cost += usage.cost;
        let before = items.len();
        match self.runtime {
            AgentRuntime::Zot => self.zot(&event, items),
            _ => self.pi(&event, items),
        }
        if meaning.state == Some(AgentState::Idle) {
            self.settled(items);
        }
        if items.len() > before && !matches!(items.last(), Some(Item::Call { .. })) {
            self.shown = None;
        }
    }

    fn settled(&mut self, items: &mut Vec<Item>) {
        self.calls.clear();
        let (turns, usage) = (self.turns, self.usage);
        (self.turns, self.usage) = (0, events::Usage::default());
        if turns > 0 || usage != events::Usage::default() {
            items.push(Item::Settled {
                turns,
                input_tokens: usage.input,
                output_tokens: usage.output,
                cost_usd: usage.cost,
            });
        }
    }

    fn called(&mut self, id: &Value, name: &Value, arguments: &Value) -> Item {
        let name = clean::line(name.as_str().unwrap_or("?"), MAX_LINE);
        let id = id.as_str().unwrap_or_default().to_owned();
        self.calls.push((id.clone(), name.clone()));
        self.shown = Some(id);
        Item::Call {
            name,
            arguments: words::arguments(arguments),
        }
    }

    fn returned(&mut self, id: &Value, content: &Value, failed: &Value) -> Item {
        let id = id.as_str().unwrap_or_default();
        let call = self.calls.iter().position(|(call, _)| call == id);
        let name = call.map(|call| self.calls.remove(call).1);
        let (text, more) = words::beginning(&words::content(content));
        Item::Result {
            of: name.filter(|_| self.shown.as_deref() != Some(id)),
            text,
            more,
            failed: failed == true,
        }
    }

    /// A piece of a message that streams.
    fn streams(&mut self, text: &Value, item: fn(String) -> Item, items: &mut Vec<Item>) {
        self.streamed = true;
        let text = clean::text(text.as_str().unwrap_or_default());
        items.extend(not_empty(text).map(item));
    }

    /// A message of the model's is complete. Where its beginning was not seen, it is shown whole.
    fn said(&mut self, content: &Value, items: &mut Vec<Item>) {
        if !std::mem::take(&mut self.streamed) {
            items.extend(not_empty(words::content(content)).map(Item::Text));
        }
        items.push(Item::Break);
    }
}

fn not_empty(text: String) -> Option<String> {
    Some(text).filter(|text| !text.is_empty())
}

/// An agent's words as a line.
fn line(text: &Value) -> String {
    clean::line(&events::text_of(Some(text)), 2 * MAX_LINE)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Painter;
    use proptest::prelude::*;

    fn painted(transcript: &mut Transcript, pieces: &[&[u8]]) -> String {
        let mut painter = Painter::new(false);
        let mut shown = String::new();
        for piece in pieces {
            for item in transcript.stdout(piece) {
                shown.push_str(&painter.paint(&item));
            }
        }
        shown + painter.finish()
    }

    #[test]
    fn what_is_no_event_is_shown_as_that() {
        let lines =
            b"Warning: old\x1b[2J\n\n{\"type\":\"agent_start\"}\n[1]\n{\"type\":\"tomorrow\"}\n";
        let shown = painted(&mut Transcript::new(AgentRuntime::Pi), &[lines]);
        assert_eq!(shown, "# not an event: Warning: old\n# not an event: [1]\n");
    }

    #[test]
    fn behind_a_gap_it_begins_with_a_whole_line() {
        let mut transcript = Transcript::new(AgentRuntime::Pi);
        transcript.stdout(b"{\"type\":\"agent");
        transcript.cut();
        let shown = painted(
            &mut transcript,
            &[b"_end\"}\n{\"type\":\"compaction_start\"}\n"],
        );
        assert_eq!(shown, "- compacting its history\n");
    }

    #[test]
    fn outputs_do_not_mix_in_a_line() {
        let mut transcript = Transcript::new(AgentRuntime::Generic);
        let mut painter = Painter::new(false);
        let mut shown = String::new();
        let mut show = |items: Vec<Item>| {
            items
                .iter()
                .for_each(|item| shown.push_str(&painter.paint(item)));
        };
        show(transcript.stdout(b"name? "));
        show(transcript.stderr(b"no \x1b[31mtty\nstderr| "));
        show(transcript.stdout(b"- ended\n"));
        assert_eq!(
            shown,
            "  name? \nstderr| no tty\nstderr| stderr| \n  - ended\n"
        );
    }

    #[test]
    fn a_question_is_open_until_the_agent_goes_on() {
        let mut transcript = Transcript::new(AgentRuntime::Pi);
        let ask = br#"{"type":"extension_ui_request","id":"q","method":"select","title":"Which?","options":["a\u001b[2J","b"]}"#;
        transcript.stdout(&[ask, &b"\n"[..]].concat());
        let text = transcript.question().map(|question| question.text.as_str());
        assert_eq!(text, Some("Which?\n1: a\n2: b"));
        transcript.stdout(b"{\"type\":\"queue_update\",\"steering\":[]}\n");
        assert!(transcript.question().is_some());
        transcript.stdout(b"{\"type\":\"turn_start\"}\n");
        assert_eq!(transcript.question(), None);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(if cfg!(miri) { 8 } else { 128 }))]
        #[test]
        fn how_bytes_are_cut_changes_nothing_and_nothing_moves_a_cursor(
            lines in prop::collection::vec(prop_oneof![
                Just(&br#"{"type":"message_update","assistantMessageEvent":{"type":"text_delta","delta":"a\u001b[2Jb\n"}}"#[..]),
                Just(&br#"{"type":"tool_execution_start","toolCallId":"1","toolName":"\u009b2J","args":{"a":"\r"}}"#[..]),
                Just(&br#"{"type":"tool_execution_end","toolCallId":"1","result":{"content":[{"type":"text","text":"\u0007"}]}}"#[..]),
                Just(&br#"{"type":"agent_end"}"#[..]),
                Just(&b"\x1b]0;x\x07 \xff\xe2\x82"[..]),
            ], 0..8),
            cut in 1..40_usize,
        ) {
            let stream = lines.join(&b'\n');
            for runtime in [AgentRuntime::Pi, AgentRuntime::Zot, AgentRuntime::Generic] {
                let whole = painted(&mut Transcript::new(runtime), &[&stream]);
                let pieces: Vec<&[u8]> = stream.chunks(cut).collect();
                prop_assert_eq!(&whole, &painted(&mut Transcript::new(runtime), &pieces));
                prop_assert!(whole.chars().all(|c| !c.is_control() || c == '\n' || c == '\t'));
            }
        }
    }
}
