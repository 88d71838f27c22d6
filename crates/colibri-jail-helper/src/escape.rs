//! Escapes text of the caller for the system log and for terminals.

/// Returns `text` with everything but printable ASCII escaped.
pub(crate) fn printable(text: &str) -> String {
    let escaped = text.chars().map(|c| match c {
        ' ' | '!'..='~' => c.to_string(),
        _ => c.escape_default().to_string(),
    });
    escaped.collect()
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
