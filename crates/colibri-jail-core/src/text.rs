//! Untrusted text in messages.

/// Returns whether a character is a control character or invisible, and so could change how a terminal shows other text, make two
/// names look the same, or hide text (Unicode: control, default ignorable without the first variation selectors, bidirectional
/// controls, line and paragraph separators).
#[must_use]
pub fn is_unprintable(c: char) -> bool {
    c.is_control()
        || matches!(
            c,
            '\u{ad}'
                | '\u{34f}'
                | '\u{61c}'
                | '\u{115f}'..='\u{1160}'
                | '\u{17b4}'..='\u{17b5}'
                | '\u{180b}'..='\u{180f}'
                | '\u{200b}'..='\u{200f}'
                | '\u{2028}'..='\u{202e}'
                | '\u{2060}'..='\u{206f}'
                | '\u{2800}'
                | '\u{3164}'
                | '\u{feff}'
                | '\u{ffa0}'
                | '\u{fff0}'..='\u{fffb}'
                | '\u{13430}'..='\u{1343f}'
                | '\u{1bca0}'..='\u{1bca3}'
                | '\u{1d173}'..='\u{1d17a}'
                | '\u{e0000}'..='\u{e0fff}'
        )
}

/// Returns the first `max` characters of a text, with all but printable ASCII replaced by `?`.
#[must_use]
pub fn printable_ascii(text: &str, max: usize) -> String {
    let plain = |c: char| if (' '..='~').contains(&c) { c } else { '?' };
    text.chars().map(plain).take(max).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hidden_characters_are_unprintable() {
        for c in
            "\u{0}\u{1b}\u{7f}\u{9b}\u{ad}\u{200b}\u{202e}\u{2066}\u{2800}\u{3164}\u{feff}\u{1d173}\u{e0041}".chars()
        {
            assert!(is_unprintable(c), "{c:?}");
        }
        for c in "aä漢 \u{fe0f}😀".chars() {
            assert!(!is_unprintable(c), "{c:?}");
        }
        assert_eq!(printable_ascii("a\u{1b}[31m\nb\u{202e}ä", 50), "a?[31m?b??");
        assert_eq!(printable_ascii(&"x".repeat(100), 5), "xxxxx");
    }
}
