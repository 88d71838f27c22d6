//! What is wrong in a settings file: where, what, the line with a mark under it, and nothing of a secret.

use std::fmt;
use std::ops::Range;
use std::path::{Path, PathBuf};

/// Stands for what is not shown.
const HIDDEN: char = '…';
/// Characters of a line that are shown.
const SHOWN: usize = 160;

/// One thing that is wrong, and where.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Diagnostic {
    /// The file.
    pub path: PathBuf,
    /// The line, from 1.
    pub line: usize,
    /// The character in the line, from 1.
    pub column: usize,
    /// What is wrong, and what is allowed.
    pub message: String,
    /// The line, with values that may be secrets left out, and from where to where it is marked.
    shown: (String, Range<usize>),
}

impl fmt::Display for Diagnostic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (path, line, column) = (self.path.display(), self.line, self.column);
        write!(f, "{path}:{line}:{column}: {}", self.message)?;
        let (text, mark) = &self.shown;
        if text.trim().is_empty() {
            return Ok(());
        }
        let number = line.to_string();
        let (margin, before, marks) = (" ".repeat(number.len()), mark.start, mark.len());
        write!(f, "\n {number} | {}", text.trim_end())?;
        write!(f, "\n {margin} | {:before$}{:^<marks$}", "", "")
    }
}

/// A settings file's text.
#[derive(Clone)]
pub(crate) struct Source {
    pub(crate) path: PathBuf,
    text: String,
    /// Where values are that are shown to nobody.
    secret: Vec<Range<usize>>,
}

impl Source {
    pub(crate) fn new(path: &Path, text: &str) -> Self {
        Self {
            path: path.to_owned(),
            text: text.to_owned(),
            secret: Vec::new(),
        }
    }

    /// What stands there is not shown.
    pub(crate) fn hide(&mut self, span: Range<usize>) {
        self.secret.push(span);
    }

    /// Hides the values of a line that could not be understood, so that nobody knows whose they are: all of
    /// them once there may be an `env` in the file.
    pub(crate) fn hide_unknown(&mut self, at: usize) {
        let line = self.line(at);
        let shown = self.text.get(line.clone()).unwrap_or_default();
        if self
            .text
            .get(..line.end)
            .is_some_and(|text| text.contains("env"))
        {
            let from = match shown.find('=') {
                Some(equals) => line.start + equals + 1,
                None if shown.trim_start().starts_with('[') => line.end,
                None => line.start,
            };
            self.secret.push(from..line.end);
        }
    }

    /// The line that holds this byte, without its end.
    fn line(&self, at: usize) -> Range<usize> {
        let (before, behind) = self.text.split_at_checked(at).unwrap_or((&self.text, ""));
        let start = before.rfind('\n').map_or(0, |newline| newline + 1);
        let end = at.min(self.text.len()) + behind.find('\n').unwrap_or(behind.len());
        start..end
    }

    /// What is wrong there.
    pub(crate) fn problem(&self, span: &Range<usize>, message: String) -> Diagnostic {
        let line = self.line(span.start);
        let before = self.text.get(..line.start).unwrap_or_default();
        let mut text = String::new();
        let (mut column, mut from, mut to) = (1, None, 0);
        for (at, c) in self
            .text
            .get(line.clone())
            .unwrap_or_default()
            .char_indices()
        {
            let at = line.start + at;
            column += usize::from(at < span.start);
            if self.secret.iter().any(|secret| secret.contains(&at)) {
                if !text.ends_with(HIDDEN) {
                    text.push(HIDDEN);
                }
            } else {
                text.push(if c == '\t' {
                    ' '
                } else if c.is_control() {
                    '?'
                } else {
                    c
                });
            }
            if (span.start..span.end.max(span.start + 1)).contains(&at) {
                let end = text.chars().count();
                from.get_or_insert(end - 1);
                to = end;
            }
        }
        text = text.trim_end_matches('?').to_owned();
        let end = text.chars().count();
        let from = from.unwrap_or(end).min(SHOWN);
        if end > SHOWN {
            text = text.chars().take(SHOWN).chain([HIDDEN]).collect();
        }
        Diagnostic {
            path: self.path.clone(),
            line: 1 + before.matches('\n').count(),
            column,
            // A value may be told in it, and hold what moves a terminal's cursor.
            message: message.replace(char::is_control, "?"),
            shown: (text, from..to.min(SHOWN).max(from + 1)),
        }
    }
}
