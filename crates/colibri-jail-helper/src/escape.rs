//! Escapes text of the caller for the system log and for terminals.

use std::fmt::Write as _;

/// Returns `text` with everything but printable ASCII escaped.
pub(crate) fn printable(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for c in text.chars() {
        if c == ' ' || c.is_ascii_graphic() {
            escaped.push(c);
        } else {
            let _ = write!(escaped, "{}", c.escape_default());
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn any_text_becomes_printable_ascii(text in ".*") {
            prop_assert!(printable(&text).bytes().all(|byte| (b' '..=b'~').contains(&byte)));
        }
    }

    #[test]
    fn printable_text_is_unchanged_rest_is_escaped() {
        assert_eq!(
            printable("a b\n\u{1b}[2J\u{202e}ö"),
            "a b\\n\\u{1b}[2J\\u{202e}\\u{f6}"
        );
    }
}
