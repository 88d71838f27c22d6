//! Escapes text of the caller for the system log and for terminals.

/// Returns `text` with everything but printable ASCII escaped.
pub(crate) fn printable(text: &str) -> String {
    let escaped = text.chars().map(|c| match c {
        ' ' | '!'..='~' => c.to_string(),
        _ => c.escape_default().to_string(),
    });
    escaped.collect()
}

/// Returns `text` as [`printable`] does, at most `limit` bytes of it and the mark `...` then.
pub(crate) fn shortened(text: &str, limit: usize) -> String {
    let mut shown = printable(text);
    if shown.len() > limit {
        shown.truncate(limit);
        shown.push_str("...");
    }
    shown
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
    fn long_text_is_shortened_with_a_mark() {
        assert_eq!(shortened("abcd", 4), "abcd");
        assert_eq!(shortened("ab\nde", 4), "ab\\n...");
    }

    #[test]
    fn printable_text_is_unchanged_rest_is_escaped() {
        assert_eq!(
            printable("a b\n\u{1b}[2J\u{202e}ö"),
            "a b\\n\\u{1b}[2J\\u{202e}\\u{f6}"
        );
    }
}
