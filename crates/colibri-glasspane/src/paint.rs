//! A transcript as lines for a terminal. What an agent says stands behind a mark of its own kind, so that it
//! cannot look like anything else.

use crate::Item;

/// The kinds of lines: their mark, and their colour as an SGR code.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    User,
    Text,
    Thinking,
    Call,
    Result,
    Failed,
    Question,
    Notice,
    Error,
    Malformed,
    Stderr,
}

impl Kind {
    fn style(self) -> (&'static str, &'static str) {
        match self {
            Self::User => ("> ", "1"),
            Self::Text => ("  ", ""),
            Self::Thinking => ("~ ", "2"),
            Self::Call => ("* ", "36"),
            Self::Result => ("  | ", "2"),
            Self::Failed => ("  ! ", "31"),
            Self::Question => ("? ", "1;33"),
            Self::Notice => ("- ", "34"),
            Self::Error => ("! ", "31"),
            Self::Malformed => ("# ", "35"),
            Self::Stderr => ("stderr| ", "33"),
        }
    }
}

/// Turns items into text. Pieces that stream are joined.
#[derive(Debug)]
pub struct Painter {
    colour: bool,
    /// The kind of the line that is not ended yet.
    open: Option<Kind>,
}

impl Painter {
    /// With `colour`, lines are coloured by SGR sequences.
    #[must_use]
    pub fn new(colour: bool) -> Self {
        Self { colour, open: None }
    }

    /// The text of an item.
    #[must_use]
    pub fn paint(&mut self, item: &Item) -> String {
        let mut out = String::new();
        match item {
            Item::User(text) => self.whole(Kind::User, text, &mut out),
            Item::Text(text) | Item::Output(text) => self.piece(Kind::Text, text, &mut out),
            Item::Thinking(text) => self.piece(Kind::Thinking, text, &mut out),
            Item::Stderr(text) => self.piece(Kind::Stderr, text, &mut out),
            Item::Break => out.push_str(self.finish()),
            Item::Call { name, arguments } if arguments.is_empty() => {
                self.whole(Kind::Call, name, &mut out);
            }
            Item::Call { name, arguments } => {
                self.whole(Kind::Call, &format!("{name}: {arguments}"), &mut out);
            }
            Item::Result {
                of,
                text,
                more,
                failed,
            } => {
                let kind = if *failed { Kind::Failed } else { Kind::Result };
                if let Some(name) = of {
                    self.whole(Kind::Call, &format!("{name} has ended:"), &mut out);
                }
                match text.as_str() {
                    "" if *failed => self.whole(kind, "(failed)", &mut out),
                    "" => {}
                    text => self.whole(kind, text, &mut out),
                }
                if *more > 0 {
                    self.whole(kind, &format!("… {more} lines more"), &mut out);
                }
            }
            Item::Question(question) => self.whole(Kind::Question, &question.text, &mut out),
            Item::Notice(text) => self.whole(Kind::Notice, text, &mut out),
            Item::Error(text) => self.whole(Kind::Error, text, &mut out),
            Item::Malformed(text) => {
                self.whole(Kind::Malformed, &format!("not an event: {text}"), &mut out);
            }
            Item::Settled {
                turns,
                input_tokens,
                output_tokens,
                cost_usd,
            } => {
                let turns = match turns {
                    1 => "1 turn".to_owned(),
                    turns => format!("{turns} turns"),
                };
                let text = format!(
                    "idle after {turns}, {input_tokens}+{output_tokens} tokens, ${cost_usd:.4}"
                );
                self.whole(Kind::Notice, &text, &mut out);
            }
        }
        out
    }

    /// What ends a line that is under way.
    #[must_use]
    pub fn finish(&mut self) -> &'static str {
        match self.open.take() {
            Some(_) => "\n",
            None => "",
        }
    }

    fn whole(&mut self, kind: Kind, text: &str, out: &mut String) {
        out.push_str(self.finish());
        self.piece(kind, text, out);
        out.push_str(self.finish());
    }

    fn piece(&mut self, kind: Kind, text: &str, out: &mut String) {
        let (mark, code) = kind.style();
        for line in text.split_inclusive('\n') {
            if self.open.is_some_and(|open| open != kind) {
                out.push_str(self.finish());
            }
            let (words, ends) = match line.strip_suffix('\n') {
                Some(words) => (words, true),
                None => (line, false),
            };
            let mark = if self.open.is_some() { "" } else { mark };
            if self.colour && !code.is_empty() {
                out.push_str(&format!("\x1b[{code}m{mark}{words}\x1b[0m"));
            } else {
                out.push_str(mark);
                out.push_str(words);
            }
            self.open = Some(kind);
            if ends {
                out.push_str(self.finish());
            }
        }
    }
}
