//! Short texts for message contents, tool arguments and tool results.

use serde_json::Value;

use super::MAX_LINE_CHARS;
use crate::event::Content;
use crate::sanitize::{sanitize_line, sanitize_text};

/// Maximum number of lines shown of a tool's result.
const MAX_LINES: usize = 8;

/// The shortened result of a tool.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct FirstLines {
    pub(super) text: String,
    pub(super) omitted_lines: usize,
}

/// Returns the sanitized text of the content blocks of a message or a result.
pub(crate) fn content_text(content: Content<'_>) -> String {
    if let Content::Text(text) = content {
        return sanitize_text(text);
    }
    let block = |block: &Value| match block["type"].as_str() {
        Some("text") => block["text"].as_str().map(sanitize_text),
        Some("image") => Some("(an image)".to_owned()),
        _ => None,
    };
    match content.to_value().as_ref() {
        Value::String(text) => sanitize_text(text),
        Value::Array(blocks) => {
            let texts: Vec<String> = blocks.iter().filter_map(block).collect();
            texts.join("\n")
        }
        _ => String::new(),
    }
}

/// Returns the first lines of a sanitized text, without empty ones.
pub(super) fn first_lines(text: &str) -> FirstLines {
    let mut lines = text.lines().filter(|line| !line.trim().is_empty());
    let first: Vec<String> = lines
        .by_ref()
        .take(MAX_LINES)
        .map(|line| sanitize_line(line, MAX_LINE_CHARS))
        .collect();
    FirstLines {
        text: first.join("\n"),
        omitted_lines: lines.count(),
    }
}

/// Returns a tool's arguments as one sanitized line of limited length; see [`arguments_text`].
pub(crate) fn arguments_line(arguments: &Value) -> String {
    sanitize_line(&arguments_text(arguments), MAX_LINE_CHARS)
}

/// Returns a tool's arguments: a single value without its name, several as `name=value`. Not sanitized.
pub(crate) fn arguments_text(arguments: &Value) -> String {
    let text = |value: &Value| match value {
        Value::String(text) => text.clone(),
        other => other.to_string(),
    };
    match arguments {
        Value::Null => String::new(),
        Value::Object(fields) => match fields.iter().collect::<Vec<_>>().as_slice() {
            [(_, value)] => text(value),
            several => {
                let named = several.iter().map(|(name, value)| match value {
                    Value::String(text) if !text.contains(char::is_whitespace) => {
                        format!("{name}={text}")
                    }
                    other => format!("{name}={other}"),
                });
                let mut named: Vec<String> = named.collect();
                // Shortest first, because the line is truncated: a path precedes the content to write.
                named.sort_by_key(String::len);
                named.join(" ")
            }
        },
        other => text(other),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn arguments_are_formatted_as_one_line() {
        for (value, expected) in [
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
            assert_eq!(arguments_line(&value), expected);
        }
        let long = arguments_line(&json!({"command": "x".repeat(1000)}));
        assert_eq!(long.chars().count(), MAX_LINE_CHARS);
    }

    #[test]
    fn long_result_is_shortened() {
        let long = first_lines(&"line\n".repeat(20));
        assert_eq!(
            (long.text.lines().count(), long.omitted_lines),
            (MAX_LINES, 12)
        );
        for (text, expected) in [("", ""), ("a\n\n b\n", "a\n b")] {
            let expected = FirstLines {
                text: expected.to_owned(),
                omitted_lines: 0,
            };
            assert_eq!(first_lines(text), expected);
        }
    }
}
