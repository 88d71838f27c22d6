//! Removes control characters, escape sequences and direction overrides from untrusted text, so that it is safe to print
//! on a terminal and in a log.

use colibri_types::is_unprintable;
use vte::{Parser, Perform};

/// Sanitizes a byte stream that arrives in chunks of any size. The result contains no control characters except LF and
/// tab.
#[derive(Default)]
pub(crate) struct Sanitizer {
    parser: Parser,
    /// The first bytes of a UTF-8 sequence whose last bytes are in the next chunk.
    incomplete: Vec<u8>,
    output: PlainText,
}

impl Sanitizer {
    /// Returns the sanitized text of the next chunk.
    pub(crate) fn push(&mut self, bytes: &[u8]) -> String {
        self.incomplete.extend_from_slice(bytes);
        let bytes = std::mem::take(&mut self.incomplete);
        let mut chunks = bytes.utf8_chunks().peekable();
        while let Some(chunk) = chunks.next() {
            // One character at a time, so that the parser's result does not depend on the chunk boundaries.
            for c in chunk.valid().chars() {
                self.parser
                    .advance(&mut self.output, c.encode_utf8(&mut [0; 4]).as_bytes());
            }
            let invalid = chunk.invalid();
            let is_incomplete =
                std::str::from_utf8(invalid).is_err_and(|error| error.error_len().is_none());
            if is_incomplete && chunks.peek().is_none() {
                self.incomplete = invalid.to_vec();
            } else if !invalid.is_empty() {
                self.output.print(char::REPLACEMENT_CHARACTER);
            }
        }
        std::mem::take(&mut self.output.text)
    }
}

#[derive(Default)]
struct PlainText {
    text: String,
    after_carriage_return: bool,
}

impl Perform for PlainText {
    fn print(&mut self, c: char) {
        self.after_carriage_return = false;
        if !is_unprintable(c) || JOINERS.contains(&c) {
            self.text.push(c);
        }
    }

    fn execute(&mut self, byte: u8) {
        let after_carriage_return =
            std::mem::replace(&mut self.after_carriage_return, byte == b'\r');
        match byte {
            b'\n' if after_carriage_return => {}
            // Each update of a progress bar becomes a line.
            b'\n' | b'\r' => self.text.push('\n'),
            b'\t' => self.text.push('\t'),
            _ => {}
        }
    }
}

/// Joiners, which scripts and emoji need.
const JOINERS: [char; 2] = ['\u{200c}', '\u{200d}'];

/// Returns the sanitized form of a complete text.
pub(crate) fn sanitize_text(text: &str) -> String {
    Sanitizer::default().push(text.as_bytes())
}

/// Returns the sanitized text as one line of at most `max_chars` characters; a longer one ends in `…`.
pub(crate) fn sanitize_line(text: &str, max_chars: usize) -> String {
    // Limits the work on long texts. The factor leaves room for escape sequences, which the result does not contain.
    let input_chars = max_chars.saturating_mul(2);
    let start: String = text.chars().take(input_chars).collect();
    let line: String = sanitize_text(&start)
        .chars()
        .map(|c| if c.is_control() { ' ' } else { c })
        .collect();
    if text.chars().nth(input_chars).is_none() && line.chars().count() <= max_chars {
        return line;
    }
    line.chars()
        .take(max_chars.saturating_sub(1))
        .chain(['…'])
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn control_characters_and_escapes_are_removed() {
        for (raw, sanitized) in [
            ("plain ü\tx\n", "plain ü\tx\n"),
            ("\x1b[31mred\x1b[0m", "red"),
            ("a\x1b]0;title\x07b", "ab"),
            ("50%\r100%\r\ndone\n", "50%\n100%\ndone\n"),
            ("\u{9b}2Jx\u{202e}evil\u{2028}", "2Jxevil"),
            ("zero\u{200b}width \u{e0041}\u{e007f}tag", "zerowidth tag"),
            ("bell\x07 nul\0 del\x7f.", "bell nul del."),
        ] {
            assert_eq!(sanitize_text(raw), sanitized, "{raw:?}");
        }
        assert_eq!(sanitize_line("one\ntwo\x1b[2J", 20), "one two");
        assert_eq!(sanitize_line("abcdef", 4), "abc…");
        assert_eq!(sanitize_line(&"\x1b".repeat(99), 4), "…");
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(if cfg!(miri) { 8 } else { 256 }))]
        #[test]
        fn sanitizer_result_is_independent_of_chunk_size(
            bytes in prop::collection::vec(prop_oneof![any::<u8>(), Just(0x1b), Just(b'['), Just(b'\r'), Just(b'\n'), Just(0xe2)], 0..60),
            chunk_size in 1..7_usize,
        ) {
            let whole = Sanitizer::default().push(&bytes);
            let mut sanitizer = Sanitizer::default();
            let chunked: String = bytes.chunks(chunk_size).map(|chunk| sanitizer.push(chunk)).collect();
            prop_assert!(whole.chars().all(|c| !c.is_control() || c == '\n' || c == '\t'));
            prop_assert_eq!(whole, chunked);
        }
    }
}
