//! Untrusted words, made fit for a terminal and a log: no control characters, no escape sequences, nothing that
//! turns the direction of text.

use vte::{Parser, Perform};

/// Bytes as they come, in pieces cut anywhere, to text whose only control characters are LF and tab.
#[derive(Default)]
pub(crate) struct Flow {
    parser: Parser,
    /// The beginning of a character whose end has not come.
    tail: Vec<u8>,
    after_return: bool,
}

impl Flow {
    pub(crate) fn push(&mut self, bytes: &[u8]) -> String {
        let mut plain = Plain {
            text: String::with_capacity(bytes.len()),
            after_return: self.after_return,
        };
        self.tail.extend_from_slice(bytes);
        let bytes = std::mem::take(&mut self.tail);
        let mut rest = bytes.utf8_chunks().peekable();
        while let Some(chunk) = rest.next() {
            // Character by character, so that the parser sees the same however they came.
            for c in chunk.valid().chars() {
                self.parser
                    .advance(&mut plain, c.encode_utf8(&mut [0; 4]).as_bytes());
            }
            let wrong = chunk.invalid();
            let cut = std::str::from_utf8(wrong).is_err_and(|error| error.error_len().is_none());
            if cut && rest.peek().is_none() {
                self.tail = wrong.to_vec();
            } else if !wrong.is_empty() {
                plain.print(char::REPLACEMENT_CHARACTER);
            }
        }
        self.after_return = plain.after_return;
        plain.text
    }
}

struct Plain {
    text: String,
    after_return: bool,
}

impl Perform for Plain {
    fn print(&mut self, c: char) {
        self.after_return = false;
        if !c.is_control() && !turns(c) {
            self.text.push(c);
        }
    }

    fn execute(&mut self, byte: u8) {
        let after_return = std::mem::replace(&mut self.after_return, byte == b'\r');
        match byte {
            b'\n' if after_return => {}
            // A line that is written over, as by a progress bar, is one line after the other.
            b'\n' | b'\r' => self.text.push('\n'),
            b'\t' => self.text.push('\t'),
            _ => {}
        }
    }
}

/// Characters that make what follows look like something else: marks and overrides of direction, and separators
/// that some terminals break lines at.
fn turns(c: char) -> bool {
    matches!(c, '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{feff}')
}

/// A whole text.
pub(crate) fn text(text: &str) -> String {
    Flow::default().push(text.as_bytes())
}

/// One line of at most so many characters.
pub(crate) fn line(text: &str, most: usize) -> String {
    // An escape sequence needs a few more characters than it leaves.
    let cut: String = text.chars().take(most.saturating_mul(2)).collect();
    let line: String = self::text(&cut)
        .chars()
        .map(|c| if c.is_control() { ' ' } else { c })
        .collect();
    if text.chars().nth(most.saturating_mul(2)).is_none() && line.chars().count() <= most {
        return line;
    }
    line.chars()
        .take(most.saturating_sub(1))
        .chain(['…'])
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn what_could_move_a_cursor_is_gone() {
        for (raw, cleaned) in [
            ("plain ü\tx\n", "plain ü\tx\n"),
            ("\x1b[31mred\x1b[0m", "red"),
            ("a\x1b]0;title\x07b", "ab"),
            ("50%\r100%\r\ndone\n", "50%\n100%\ndone\n"),
            ("\u{9b}2Jx\u{202e}evil\u{2028}", "2Jxevil"),
            ("bell\x07 nul\0 del\x7f.", "bell nul del."),
        ] {
            assert_eq!(text(raw), cleaned, "{raw:?}");
        }
        assert_eq!(line("one\ntwo\x1b[2J", 20), "one two");
        assert_eq!(line("abcdef", 4), "abc…");
        assert_eq!(line(&"\x1b".repeat(99), 4), "…");
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(if cfg!(miri) { 8 } else { 256 }))]
        #[test]
        fn how_bytes_are_cut_changes_nothing(
            bytes in prop::collection::vec(prop_oneof![any::<u8>(), Just(0x1b), Just(b'['), Just(b'\r'), Just(b'\n'), Just(0xe2)], 0..60),
            cut in 1..7_usize,
        ) {
            let whole = Flow::default().push(&bytes);
            let mut flow = Flow::default();
            let pieces: String = bytes.chunks(cut).map(|piece| flow.push(piece)).collect();
            prop_assert!(whole.chars().all(|c| !c.is_control() || c == '\n' || c == '\t'));
            prop_assert_eq!(whole, pieces);
        }
    }
}
