//! Diagnostics of a settings file: position, message, and the source line with secrets masked.

use std::fmt;
use std::ops::Range;
use std::path::{Path, PathBuf};

use annotate_snippets::{AnnotationKind, Group, Level, Renderer, Snippet};

/// Replaces a masked value.
const MASK: char = '…';
/// Maximum width of a source line, and of its marked part, in columns.
const MAX_WIDTH: usize = 160;

/// One mistake in a settings file, and its position.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Diagnostic {
    /// The file.
    pub path: PathBuf,
    /// The line, from 1.
    pub line: usize,
    /// The character in the line, from 1.
    pub column: usize,
    /// What is wrong, and which values are allowed.
    pub message: String,
    /// The masked source line with a caret line; empty for a blank line.
    excerpt: String,
}

impl fmt::Display for Diagnostic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (path, line, column) = (self.path.display(), self.line, self.column);
        write!(
            f,
            "{path}:{line}:{column}: {}{}",
            self.message, self.excerpt
        )
    }
}

/// The text of a settings file, and the spans that must not be shown.
#[derive(Clone)]
pub(crate) struct Source {
    pub(crate) path: PathBuf,
    text: String,
    masked: Vec<Range<usize>>,
}

impl Source {
    pub(crate) fn new(path: &Path, text: &str) -> Self {
        Self {
            path: path.to_owned(),
            text: text.to_owned(),
            masked: Vec::new(),
        }
    }

    /// Masks a span in all diagnostics.
    pub(crate) fn mask(&mut self, span: Range<usize>) {
        self.masked.push(span);
    }

    /// Masks the value in a line that is not valid TOML, if the file mentions `env` up to that line: the value may be
    /// that of a variable.
    pub(crate) fn mask_unparsed(&mut self, offset: usize) {
        let line = self.line(offset);
        let content = self.text.get(line.clone()).unwrap_or_default();
        let text = self.text.get(..line.end).unwrap_or_default();
        if text.contains("env") {
            let start = match content.find('=') {
                Some(equals) => line.start + equals + 1,
                None if content.trim_start().starts_with('[') => line.end,
                None => line.start,
            };
            self.masked.push(start..line.end);
        }
    }

    /// Returns the span of the line that contains a byte, without its line end.
    fn line(&self, offset: usize) -> Range<usize> {
        let (before, after) = self
            .text
            .split_at_checked(offset)
            .unwrap_or((&self.text, ""));
        let start = before.rfind('\n').map_or(0, |newline| newline + 1);
        let end = before.len() + after.find('\n').unwrap_or(after.len());
        start..end
    }

    /// Returns the diagnostic for a span of the text.
    pub(crate) fn diagnostic(&self, span: &Range<usize>, message: &str) -> Diagnostic {
        let line = self.line(span.start);
        let before = self.text.get(..line.start).unwrap_or_default();
        let prefix = self.text.get(line.start..span.start).unwrap_or_default();
        let number = 1 + before.matches('\n').count();
        Diagnostic {
            path: self.path.clone(),
            line: number,
            column: 1 + prefix.chars().count(),
            // A message can contain a value of the file, and a value can contain terminal escape sequences.
            message: message.replace(char::is_control, "?"),
            excerpt: self.excerpt(line, number, span),
        }
    }

    fn excerpt(&self, line: Range<usize>, number: usize, span: &Range<usize>) -> String {
        let content = self.text.get(line.clone()).unwrap_or_default().trim_end();
        if content.is_empty() {
            return String::new();
        }
        let mut shown = String::new();
        // The marked bytes of `shown`.
        let mut mark = None;
        let mut width = 0;
        for (offset, c) in content.char_indices() {
            let offset = line.start + offset;
            if self.masked.iter().any(|masked| masked.contains(&offset)) {
                if !shown.ends_with(MASK) {
                    shown.push(MASK);
                }
            } else if c.is_control() {
                shown.push(if c == '\t' { ' ' } else { '?' });
            } else {
                shown.push(c);
            }
            if (span.start..span.end.max(span.start + 1)).contains(&offset) && width < MAX_WIDTH {
                let last = shown
                    .char_indices()
                    .next_back()
                    .map_or(0, |(start, _)| start);
                mark.get_or_insert(last..last).end = shown.len();
                width += 1;
            }
        }
        let mark = mark.unwrap_or(shown.len()..shown.len());
        let snippet = Snippet::source(shown)
            .line_start(number)
            .annotation(AnnotationKind::Primary.span(mark));
        let group = Group::with_level(Level::ERROR).element(snippet);
        let rendered = Renderer::plain().term_width(MAX_WIDTH).render(&[group]);
        // The first line is an empty margin.
        rendered
            .split_once('\n')
            .map_or_else(String::new, |(_, excerpt)| format!("\n{excerpt}"))
    }
}
