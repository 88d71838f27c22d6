//! Formats a transcript as lines for a terminal. Each line starts with the marker of its kind, so that agent output
//! cannot imitate another kind of line.

use crate::TranscriptItem;

/// Kind of an output line; selects its marker and colour.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum LineKind {
    User,
    Text,
    Thinking,
    ToolCall,
    ToolResult,
    ToolFailure,
    Question,
    Notice,
    Error,
    Malformed,
    Stderr,
}

impl LineKind {
    /// Returns the marker and the parameters of the SGR sequence (ECMA-48, section 8.3.117); empty for no colour.
    fn style(self) -> (&'static str, &'static str) {
        match self {
            Self::User => ("> ", "1"),
            Self::Text => ("  ", ""),
            Self::Thinking => ("~ ", "2"),
            Self::ToolCall => ("* ", "36"),
            Self::ToolResult => ("  | ", "2"),
            Self::ToolFailure => ("  ! ", "31"),
            Self::Question => ("? ", "1;33"),
            Self::Notice => ("- ", "34"),
            Self::Error => ("! ", "31"),
            Self::Malformed => ("# ", "35"),
            Self::Stderr => ("stderr| ", "33"),
        }
    }
}

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
        let mut out = String::new();
        match item {
            TranscriptItem::User(text) => self.write_lines(LineKind::User, text, &mut out),
            TranscriptItem::Text(text) | TranscriptItem::Output(text) => {
                self.write_fragment(LineKind::Text, text, &mut out);
            }
            TranscriptItem::Thinking(text) => {
                self.write_fragment(LineKind::Thinking, text, &mut out);
            }
            TranscriptItem::Stderr(text) => self.write_fragment(LineKind::Stderr, text, &mut out),
            TranscriptItem::BlockEnd => out.push_str(self.end_line()),
            TranscriptItem::ToolCall { name, arguments } if arguments.is_empty() => {
                self.write_lines(LineKind::ToolCall, name, &mut out);
            }
            TranscriptItem::ToolCall { name, arguments } => {
                self.write_lines(
                    LineKind::ToolCall,
                    &format!("{name}: {arguments}"),
                    &mut out,
                );
            }
            TranscriptItem::ToolResult {
                tool,
                text,
                omitted_lines,
                failed,
            } => {
                let kind = match failed {
                    true => LineKind::ToolFailure,
                    false => LineKind::ToolResult,
                };
                if let Some(name) = tool {
                    self.write_lines(LineKind::ToolCall, &format!("{name} ended:"), &mut out);
                }
                match text.as_str() {
                    "" if *failed => self.write_lines(kind, "(failed)", &mut out),
                    "" => {}
                    text => self.write_lines(kind, text, &mut out),
                }
                if *omitted_lines > 0 {
                    self.write_lines(kind, &format!("… {omitted_lines} more lines"), &mut out);
                }
            }
            TranscriptItem::Question(question) => {
                self.write_lines(LineKind::Question, &question.text, &mut out);
            }
            TranscriptItem::Notice(text) => self.write_lines(LineKind::Notice, text, &mut out),
            TranscriptItem::Error(text) => self.write_lines(LineKind::Error, text, &mut out),
            TranscriptItem::Malformed(text) => {
                let text = format!("not an event: {text}");
                self.write_lines(LineKind::Malformed, &text, &mut out);
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
                self.write_lines(LineKind::Notice, &text, &mut out);
            }
        }
        out
    }

    /// Returns LF if the last line has none yet, else an empty string.
    #[must_use]
    pub fn end_line(&mut self) -> &'static str {
        match self.open_line.take() {
            Some(_) => "\n",
            None => "",
        }
    }

    fn write_lines(&mut self, kind: LineKind, text: &str, out: &mut String) {
        out.push_str(self.end_line());
        self.write_fragment(kind, text, out);
        out.push_str(self.end_line());
    }

    fn write_fragment(&mut self, kind: LineKind, text: &str, out: &mut String) {
        let (marker, colour) = kind.style();
        for line in text.split_inclusive('\n') {
            if self.open_line.is_some_and(|open| open != kind) {
                out.push_str(self.end_line());
            }
            let (content, is_complete) = match line.strip_suffix('\n') {
                Some(content) => (content, true),
                None => (line, false),
            };
            let marker = if self.open_line.is_some() { "" } else { marker };
            if self.colour && !colour.is_empty() {
                out.push_str(&format!("\x1b[{colour}m{marker}{content}\x1b[0m"));
            } else {
                out.push_str(marker);
                out.push_str(content);
            }
            self.open_line = Some(kind);
            if is_complete {
                out.push_str(self.end_line());
            }
        }
    }
}
