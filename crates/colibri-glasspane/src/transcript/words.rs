//! Values of events in few words.

use serde_json::Value;

use super::MAX_LINE;
use crate::clean;

/// Most lines shown of what a tool returns.
const MAX_LINES: usize = 8;

/// The text of a message's or result's blocks; cleaned.
pub(super) fn content(content: &Value) -> String {
    let block = |block: &Value| match block["type"].as_str() {
        Some("text") => block["text"].as_str().map(clean::text),
        Some("image") => Some("(an image)".to_owned()),
        _ => None,
    };
    match content {
        Value::String(text) => clean::text(text),
        Value::Array(blocks) => {
            let texts: Vec<String> = blocks.iter().filter_map(block).collect();
            texts.join("\n")
        }
        _ => String::new(),
    }
}

/// The first lines of a cleaned text, and how many more there are; without empty ones.
pub(super) fn beginning(text: &str) -> (String, usize) {
    let mut lines = text.lines().filter(|line| !line.trim().is_empty());
    let first: Vec<String> = lines
        .by_ref()
        .take(MAX_LINES)
        .map(|line| clean::line(line, MAX_LINE))
        .collect();
    (first.join("\n"), lines.count())
}

/// What a tool is given, in one line: the only value as it is, of several each with its name.
pub(super) fn arguments(arguments: &Value) -> String {
    let words = |value: &Value| match value {
        Value::String(text) => text.clone(),
        other => other.to_string(),
    };
    let text = match arguments {
        Value::Null => String::new(),
        Value::Object(fields) => match fields.iter().collect::<Vec<_>>().as_slice() {
            [(_, value)] => words(value),
            several => {
                let named = several.iter().map(|(name, value)| match value {
                    Value::String(text) if !text.contains(char::is_whitespace) => {
                        format!("{name}={text}")
                    }
                    other => format!("{name}={other}"),
                });
                let mut named: Vec<String> = named.collect();
                // What is long is cut: a file's name comes before what is written to it.
                named.sort_by_key(String::len);
                named.join(" ")
            }
        },
        other => words(other),
    };
    clean::line(&text, MAX_LINE)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn arguments_fit_a_line() {
        for (given, shown) in [
            (json!({"command": "ls -l\nrm x"}), "ls -l rm x"),
            (json!({"path": "a.txt"}), "a.txt"),
            (
                json!({"path": "a.txt", "content": "one two", "n": 3}),
                "n=3 path=a.txt content=\"one two\"",
            ),
            (json!({}), ""),
            (json!(null), ""),
            (json!(["x", 1]), "[\"x\",1]"),
            (json!({"command": "\u{1b}[2Jecho"}), "echo"),
        ] {
            assert_eq!(arguments(&given), shown);
        }
        let long = arguments(&json!({"command": "x".repeat(1000)}));
        assert_eq!(long.chars().count(), MAX_LINE);
    }

    #[test]
    fn results_are_shortened() {
        let (text, more) = beginning(&"line\n".repeat(20));
        assert_eq!((text.lines().count(), more), (MAX_LINES, 12));
        assert_eq!(beginning(""), (String::new(), 0));
        assert_eq!(beginning("a\n\n b\n"), ("a\n b".to_owned(), 0));
    }
}
