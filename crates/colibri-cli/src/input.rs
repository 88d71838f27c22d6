//! Reads typed lines from standard input.

use tokio::io::{AsyncBufReadExt, AsyncReadExt, BufReader, Stdin, Take, stdin};

/// Maximum length of a line, in bytes; a longer line is split.
const MAX_LINE: u64 = 1 << 20;

/// Standard input, line by line.
pub(crate) struct TypedLines {
    input: Take<BufReader<Stdin>>,
    /// The read part of the next line.
    partial: Vec<u8>,
}

impl TypedLines {
    pub(crate) fn new() -> Self {
        Self {
            input: BufReader::new(stdin()).take(MAX_LINE),
            partial: Vec::new(),
        }
    }

    /// Returns the next line; `None` at the end of the input. Cancel safe.
    pub(crate) async fn next(&mut self) -> Option<String> {
        let read = self.input.read_until(b'\n', &mut self.partial).await;
        read.ok().filter(|_| !self.partial.is_empty())?;
        self.input.set_limit(MAX_LINE);
        let text = String::from_utf8_lossy(&self.partial);
        let text = text.trim_end_matches(['\n', '\r']).to_owned();
        self.partial.clear();
        Some(text)
    }
}
