//! Reads typed lines from standard input.

use tokio::io::{AsyncBufReadExt, AsyncReadExt, BufReader, Stdin, Take, stdin};

/// Maximum length of a line, in bytes; a longer line is split.
const MAX_LINE: u64 = 1 << 20;

/// Standard input, line by line.
pub(crate) struct TypedLines {
    /// Absent after the end of the input.
    input: Option<Take<BufReader<Stdin>>>,
    /// The read part of the next line.
    partial: Vec<u8>,
}

impl TypedLines {
    /// Creates a reader. If `reads_input` is false, it reads nothing and [`Self::next`] waits forever.
    pub(crate) fn new(reads_input: bool) -> Self {
        Self {
            input: reads_input.then(|| BufReader::new(stdin()).take(MAX_LINE)),
            partial: Vec::new(),
        }
    }

    /// Returns the next line; waits forever after the end of the input. Cancel safe.
    pub(crate) async fn next(&mut self) -> String {
        if let Some(input) = &mut self.input {
            let read = input.read_until(b'\n', &mut self.partial).await;
            if read.is_ok() && !self.partial.is_empty() {
                input.set_limit(MAX_LINE);
                let line = std::mem::take(&mut self.partial);
                let text = String::from_utf8_lossy(&line);
                return text.trim_end_matches(['\n', '\r']).to_owned();
            }
            self.input = None;
        }
        std::future::pending().await
    }
}
