//! Splits a byte stream into lines at LF, in bounded memory.

use memchr::memchr;

/// Maximum length of a line, in bytes; the content of a longer line is discarded.
pub(crate) const MAX_LINE: usize = 1 << 20;

#[derive(Debug, Default)]
pub(crate) struct LineSplitter {
    partial: Vec<u8>,
    /// The current line is longer than [`MAX_LINE`].
    too_long: bool,
    /// The start of the current line was not seen; the line is not reported.
    mid_line: bool,
}

impl LineSplitter {
    /// Creates a splitter for a stream that may start within a line. Everything before the first LF is ignored.
    pub(crate) fn mid_line() -> Self {
        Self {
            mid_line: true,
            ..Self::default()
        }
    }

    /// Calls `on_line` for each line that `bytes` complete, with `None` for a line that is too long.
    pub(crate) fn push(&mut self, bytes: &[u8], mut on_line: impl FnMut(Option<&[u8]>)) {
        let mut remaining = bytes;
        while let Some(end) = memchr(b'\n', remaining) {
            let (head, tail) = remaining.split_at(end);
            remaining = tail.get(1..).unwrap_or_default();
            // Without a copy: most lines are complete in one chunk.
            if self.partial.is_empty() && !self.too_long && !self.mid_line && head.len() <= MAX_LINE
            {
                on_line(Some(head));
                continue;
            }
            self.buffer(head);
            if !std::mem::take(&mut self.mid_line) {
                on_line((!self.too_long).then_some(self.partial.as_slice()));
            }
            self.partial.clear();
            self.too_long = false;
        }
        self.buffer(remaining);
    }

    fn buffer(&mut self, bytes: &[u8]) {
        if self.too_long || self.partial.len() + bytes.len() > MAX_LINE {
            self.too_long = true;
            self.partial.clear();
        } else {
            self.partial.extend_from_slice(bytes);
        }
    }
}
