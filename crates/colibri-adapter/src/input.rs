//! Lines on the adapter's standard input.

use serde_json::Value;

/// When a prompt is delivered to a working agent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Delivery {
    /// In the current turn.
    Steer,
    /// After the current turn.
    Queue,
}

/// A line on standard input.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Input {
    Prompt(Prompt),
    /// Cancel the current turn; the id of the command.
    Abort(Option<String>),
    /// A line for the agent.
    Raw(String),
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Prompt {
    /// Id of the command.
    pub(crate) id: Option<String>,
    pub(crate) text: String,
    pub(crate) delivery: Delivery,
}

/// Parses a line without LF.
pub(crate) fn parse(line: String) -> Input {
    let Ok(command) = serde_json::from_str::<Value>(&line) else {
        return Input::Raw(line);
    };
    let id = command["id"].as_str().map(str::to_owned);
    match (command["type"].as_str(), command["message"].as_str()) {
        (Some("prompt"), Some(text)) => Input::Prompt(Prompt {
            id,
            text: text.to_owned(),
            delivery: match command["delivery"].as_str() {
                Some("steer") => Delivery::Steer,
                _ => Delivery::Queue,
            },
        }),
        (Some("abort"), _) => Input::Abort(id),
        _ => Input::Raw(line),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_commands_are_not_passed_to_the_agent() {
        let prompt = |id: Option<&str>, delivery| {
            Input::Prompt(Prompt {
                id: id.map(str::to_owned),
                text: "go".to_owned(),
                delivery,
            })
        };
        for (line, expected) in [
            (
                r#"{"type":"prompt","id":"1","message":"go","delivery":"steer"}"#,
                Some(prompt(Some("1"), Delivery::Steer)),
            ),
            (
                r#"{"type":"prompt","message":"go","delivery":"now"}"#,
                Some(prompt(None, Delivery::Queue)),
            ),
            (
                r#"{"type":"abort","id":"2"}"#,
                Some(Input::Abort(Some("2".to_owned()))),
            ),
            (
                r#"{"jsonrpc":"2.0","id":1,"method":"session/prompt"}"#,
                None,
            ),
            (r#"{"type":"prompt"}"#, None),
            ("hello", None),
        ] {
            let expected = expected.unwrap_or_else(|| Input::Raw(line.to_owned()));
            assert_eq!(parse(line.to_owned()), expected, "{line}");
        }
    }
}
