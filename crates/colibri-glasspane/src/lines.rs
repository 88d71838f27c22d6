//! Cuts a stream of bytes into lines at LF, in bounded memory.

use memchr::memchr;

/// A line longer than this is not looked at.
pub(crate) const MAX_LINE: usize = 1 << 20;

#[derive(Debug, Default)]
pub(crate) struct Lines {
    partial: Vec<u8>,
    skipping: bool,
    /// The line that is under way was not seen from its beginning on, and is passed over.
    within: bool,
}

impl Lines {
    /// What comes next may begin within a line.
    pub(crate) fn within_line() -> Self {
        Self {
            within: true,
            ..Self::default()
        }
    }

    /// Calls `line` for each line that `bytes` complete; with `None` for one that was too long.
    pub(crate) fn push(&mut self, bytes: &[u8], mut line: impl FnMut(Option<&[u8]>)) {
        let mut rest = bytes;
        while let Some(end) = memchr(b'\n', rest) {
            let (head, tail) = rest.split_at(end);
            rest = tail.get(1..).unwrap_or_default();
            // Most lines come whole.
            if self.partial.is_empty() && !self.skipping && !self.within && head.len() <= MAX_LINE {
                line(Some(head));
                continue;
            }
            self.keep(head);
            if std::mem::take(&mut self.within) {
                // Nobody is told of a line that was not seen whole.
            } else if self.skipping {
                line(None);
            } else {
                line(Some(&self.partial));
            }
            self.partial.clear();
            self.skipping = false;
        }
        self.keep(rest);
    }

    fn keep(&mut self, bytes: &[u8]) {
        if self.skipping || self.partial.len() + bytes.len() > MAX_LINE {
            self.skipping = true;
            self.partial.clear();
        } else {
            self.partial.extend_from_slice(bytes);
        }
    }
}
