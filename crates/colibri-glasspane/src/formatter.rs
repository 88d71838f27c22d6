//! Formats a transcript as lines for a terminal. Each line starts with the marker of its kind, so that agent output
//! cannot imitate another kind of line.

use crate::TranscriptItem;

/// Marker of a kind of line, and the parameters of its SGR sequence (ECMA-48, section 8.3.117); empty for no colour.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct LineKind(&'static str, &'static str);

const USER: LineKind = LineKind("> ", "1");
const TEXT: LineKind = LineKind("  ", "");
const THINKING: LineKind = LineKind("~ ", "2");
const TOOL_CALL: LineKind = LineKind("* ", "36");
const TOOL_RESULT: LineKind = LineKind("  | ", "2");
const TOOL_FAILURE: LineKind = LineKind("  ! ", "31");
const QUESTION: LineKind = LineKind("? ", "1;33");
const NOTICE: LineKind = LineKind("- ", "34");
const ERROR: LineKind = LineKind("! ", "31");
const MALFORMED: LineKind = LineKind("# ", "35");
const STDERR: LineKind = LineKind("stderr| ", "33");

/// Formats transcript items as text. Joins consecutive fragments of a streamed message.
#[derive(Debug)]
pub struct TranscriptFormatter {
    colour: bool,
    /// Kind of the last line if it has no LF yet.
    open_line: Option<LineKind>,
}

impl TranscriptFormatter {
    /// Creates a formatter; with `colour`, lines are coloured by SGR sequences.
    #[must_use]
    pub fn new(colour: bool) -> Self {
        Self {
            colour,
            open_line: None,
        }
    }

    /// Returns the text of an item. The text of a fragment may end without LF.
    #[must_use]
    pub fn format(&mut self, item: &TranscriptItem) -> String {
        match item {
            TranscriptItem::User(text) => self.lines(USER, text),
            TranscriptItem::Text(text) | TranscriptItem::Output(text) => self.fragment(TEXT, text),
            TranscriptItem::Thinking(text) => self.fragment(THINKING, text),
            TranscriptItem::Stderr(text) => self.fragment(STDERR, text),
            TranscriptItem::BlockEnd => self.end_line().to_owned(),
            TranscriptItem::ToolCall {
                name, arguments, ..
            } => match arguments.as_str() {
                "" => self.lines(TOOL_CALL, name),
                arguments => self.lines(TOOL_CALL, &format!("{name}: {arguments}")),
            },
            TranscriptItem::ToolResult {
                tool,
                text,
                omitted_lines,
                failed,
                ..
            } => {
                let kind = if *failed { TOOL_FAILURE } else { TOOL_RESULT };
                let mut out = String::new();
                if let Some(name) = tool {
                    out += &self.lines(TOOL_CALL, &format!("{name} ended:"));
                }
                match text.as_str() {
                    "" if *failed => out += &self.lines(kind, "(failed)"),
                    "" => {}
                    text => out += &self.lines(kind, text),
                }
                if *omitted_lines > 0 {
                    out += &self.lines(kind, &format!("… {omitted_lines} more lines"));
                }
                out
            }
            TranscriptItem::Question(question) => self.lines(QUESTION, &question.text),
            TranscriptItem::Notice(text) => self.lines(NOTICE, text),
            TranscriptItem::Error(text) => self.lines(ERROR, text),
            TranscriptItem::Malformed(text) => {
                self.lines(MALFORMED, &format!("not an event: {text}"))
            }
            TranscriptItem::Idle {
                turns,
                input_tokens,
                output_tokens,
                cost_usd,
            } => {
                let plural = if *turns == 1 { "" } else { "s" };
                let text = format!(
                    "idle after {turns} turn{plural}, {input_tokens}+{output_tokens} tokens, ${cost_usd:.4}"
                );
                self.lines(NOTICE, &text)
            }
        }
    }

    /// Returns LF if the last line has none yet, else an empty string.
    #[must_use]
    pub fn end_line(&mut self) -> &'static str {
        match self.open_line.take() {
            Some(_) => "\n",
            None => "",
        }
    }

    fn lines(&mut self, kind: LineKind, text: &str) -> String {
        let mut out = self.end_line().to_owned();
        out += &self.fragment(kind, text);
        out += self.end_line();
        out
    }

    fn fragment(&mut self, kind: LineKind, text: &str) -> String {
        let LineKind(marker, colour) = kind;
        let mut out = String::new();
        for line in text.split_inclusive('\n') {
            if self.open_line.is_some_and(|open| open != kind) {
                out += self.end_line();
            }
            let content = line.strip_suffix('\n').unwrap_or(line);
            let marker = if self.open_line.is_some() { "" } else { marker };
            if self.colour && !colour.is_empty() {
                out += &format!("\x1b[{colour}m{marker}{content}\x1b[0m");
            } else {
                out += marker;
                out += content;
            }
            self.open_line = Some(kind);
            if content != line {
                out += self.end_line();
            }
        }
        out
    }
}
