//! What an agent is told, as bytes for its standard input, and what it answers. pi: its docs/rpc-commands.md and
//! docs/rpc-extension-ui.md; zot: its docs/rpc.md. Any other agent is given a line.

use serde::Deserialize;
use serde_json::{Value, json};

use crate::lines::Lines;
use crate::transcript::Question;
use crate::{AgentRuntime, clean};

/// Most characters kept of an agent's answer.
const MAX_ERROR: usize = 500;

/// When a prompt is delivered to an agent that is at work.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub enum Delivery {
    /// Now; pi refuses it while it works, and zot takes it when it is done.
    #[default]
    Now,
    /// Before its model is asked next.
    Steer,
    /// When it is done with all it has to do.
    FollowUp,
}

impl Delivery {
    /// How a person who watches means what they type: it is heard as soon as the runtime can.
    #[must_use]
    pub fn while_watching(runtime: AgentRuntime) -> Self {
        match runtime {
            AgentRuntime::Pi => Self::Steer,
            AgentRuntime::Zot | AgentRuntime::Generic => Self::Now,
        }
    }
}

/// What an agent is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Command<'a> {
    /// Something to do.
    Prompt(&'a str, Delivery),
    /// End what you do, and wait.
    Abort,
    /// What a person says to its question.
    Answer(&'a Question, &'a str),
}

/// The agent cannot be told that.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum CommandError {
    /// The runtime knows no such delivery.
    #[error("{0} has no way to {1}; send it as a plain prompt")]
    Delivery(&'static str, &'static str),
    /// Only a signal ends what a generic agent does.
    #[error(
        "a generic agent takes no abort: what it reads is its own affair; end it with colibri kill --signal INT, or start it with --runtime pi or zot if it is one"
    )]
    Abort,
    /// The answer fits no question of that kind.
    #[error("{0:?} is no answer to this; say {1}")]
    Answer(String, String),
}

/// The bytes that say it, LF included. With `id` the agent's answer can be told from others.
///
/// # Errors
/// [`CommandError`] where the runtime has no words for it.
pub fn encode(
    runtime: AgentRuntime,
    id: &str,
    command: &Command<'_>,
) -> Result<Vec<u8>, CommandError> {
    let record = match (runtime, command) {
        (AgentRuntime::Generic, Command::Prompt(text, Delivery::Now)) => {
            return Ok(format!("{text}\n").into_bytes());
        }
        (AgentRuntime::Generic, Command::Prompt(_, delivery)) => {
            return Err(no_delivery("a generic agent", *delivery));
        }
        (AgentRuntime::Generic, Command::Abort) => return Err(CommandError::Abort),
        (AgentRuntime::Generic, Command::Answer(_, text)) => {
            return Ok(format!("{text}\n").into_bytes());
        }
        (AgentRuntime::Zot, Command::Prompt(_, Delivery::Steer)) => {
            return Err(no_delivery("zot", Delivery::Steer));
        }
        // zot begins with it when it is done with what it does.
        (AgentRuntime::Zot, Command::Prompt(text, _))
        | (AgentRuntime::Pi, Command::Prompt(text, Delivery::Now)) => {
            json!({"id": id, "type": "prompt", "message": text})
        }
        // As prompts, these two begin at once where pi is idle.
        (AgentRuntime::Pi, Command::Prompt(text, Delivery::Steer)) => {
            json!({"id": id, "type": "prompt", "message": text, "streamingBehavior": "steer"})
        }
        (AgentRuntime::Pi, Command::Prompt(text, Delivery::FollowUp)) => {
            json!({"id": id, "type": "prompt", "message": text, "streamingBehavior": "followUp"})
        }
        (AgentRuntime::Pi | AgentRuntime::Zot, Command::Abort) => {
            json!({"id": id, "type": "abort"})
        }
        (AgentRuntime::Pi | AgentRuntime::Zot, Command::Answer(question, text)) => {
            answer(question, text)?
        }
    };
    Ok(format!("{record}\n").into_bytes())
}

fn no_delivery(who: &'static str, delivery: Delivery) -> CommandError {
    let what = match delivery {
        Delivery::Now => "be prompted",
        Delivery::Steer => "be steered while it works",
        Delivery::FollowUp => "queue a prompt",
    };
    CommandError::Delivery(who, what)
}

/// Whether agents of the runtime answer commands; `false`: what was sent is all that is known.
#[must_use]
pub fn answers(runtime: AgentRuntime) -> bool {
    runtime != AgentRuntime::Generic
}

fn answer(question: &Question, text: &str) -> Result<Value, CommandError> {
    let said = text.trim();
    let wrong = |say: String| CommandError::Answer(said.to_owned(), say);
    let mut record = json!({"type": "extension_ui_response", "id": question.id});
    let (name, value) = match question.method.as_str() {
        "confirm" => match said.to_lowercase().as_str() {
            "y" | "yes" => ("confirmed", Value::Bool(true)),
            "n" | "no" => ("confirmed", Value::Bool(false)),
            _ => return Err(wrong("y or n".to_owned())),
        },
        "select" => {
            let by_number = said
                .parse::<usize>()
                .ok()
                .and_then(|number| question.options.get(number.checked_sub(1)?));
            let chosen = question
                .options
                .iter()
                .find(|option| *option == said)
                .or(by_number);
            let say = || format!("a number from 1 to {}", question.options.len());
            (
                "value",
                Value::String(chosen.ok_or_else(|| wrong(say()))?.clone()),
            )
        }
        _ => ("value", Value::String(text.to_owned())),
    };
    if let Some(fields) = record.as_object_mut() {
        fields.insert(name.to_owned(), value);
    }
    Ok(record)
}

/// What an agent answered to a command.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Response {
    /// The id that the command had; one that could not be read has none.
    pub id: Option<String>,
    /// The command's kind.
    pub command: String,
    /// Why it was refused.
    pub error: Option<String>,
}

/// Finds answers in what an agent writes to standard output, from any place in it on.
#[derive(Debug, Default)]
pub struct Responses(Lines);

impl Responses {
    /// Those that these bytes complete.
    pub fn push(&mut self, bytes: &[u8]) -> Vec<Response> {
        let mut found = Vec::new();
        self.0
            .push(bytes, |line| found.extend(line.and_then(response)));
        found
    }
}

/// Reads a line as an answer; `None` where it is something else.
fn response(line: &[u8]) -> Option<Response> {
    #[derive(Deserialize)]
    struct Raw {
        #[serde(rename = "type")]
        kind: String,
        #[serde(default)]
        id: Option<String>,
        #[serde(default)]
        command: Option<String>,
        success: bool,
        #[serde(default)]
        error: Option<Value>,
    }
    let raw: Raw = serde_json::from_slice(line).ok()?;
    (raw.kind == "response").then(|| Response {
        id: raw.id,
        command: clean::line(&raw.command.unwrap_or_default(), MAX_ERROR),
        error: (!raw.success)
            .then(|| clean::line(&crate::events::text_of(raw.error.as_ref()), MAX_ERROR)),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn question(method: &str) -> Question {
        Question {
            id: "q1".into(),
            method: method.into(),
            text: "Sure?".into(),
            options: vec!["Allow".into(), "Block".into()],
        }
    }

    #[test]
    fn commands_of_each_runtime() {
        let confirm = question("confirm");
        let select = question("select");
        let input = question("input");
        let mut shown = String::new();
        for runtime in [AgentRuntime::Pi, AgentRuntime::Zot, AgentRuntime::Generic] {
            for command in [
                Command::Prompt("say \"hi\"\nand\u{2028}go", Delivery::Now),
                Command::Prompt("left", Delivery::Steer),
                Command::Prompt("then", Delivery::FollowUp),
                Command::Abort,
                Command::Answer(&confirm, "Yes"),
                Command::Answer(&confirm, "maybe"),
                Command::Answer(&select, "2"),
                Command::Answer(&select, "Allow"),
                Command::Answer(&select, "0"),
                Command::Answer(&input, "a b "),
            ] {
                let said = match encode(runtime, "c-1", &command) {
                    Ok(bytes) => format!("{:?}", String::from_utf8_lossy(&bytes)),
                    Err(error) => format!("error: {error}"),
                };
                let what = match command {
                    Command::Prompt(text, delivery) => format!("{delivery:?} {text:?}"),
                    Command::Abort => "Abort".to_owned(),
                    Command::Answer(question, text) => format!("{} {text:?}", question.method),
                };
                shown.push_str(&format!("{runtime:?} {what}\n  {said}\n"));
            }
        }
        insta::assert_snapshot!(shown);
    }

    #[test]
    fn a_record_is_one_line_whatever_the_prompt() {
        for runtime in [AgentRuntime::Pi, AgentRuntime::Zot] {
            let text = "a\nb\r\nc\u{2028}d\u{85}\0";
            let bytes = encode(runtime, "1", &Command::Prompt(text, Delivery::Now)).unwrap();
            assert_eq!(bytes.iter().filter(|byte| **byte == b'\n').count(), 1);
            let record: Value = serde_json::from_slice(&bytes).unwrap();
            assert_eq!(record["message"], text);
        }
    }

    #[test]
    fn answers_are_told_from_events() {
        for (line, expected) in [
            (
                r#"{"id":"1","type":"response","command":"prompt","success":true}"#,
                Some((Some("1"), "prompt", None)),
            ),
            (
                r#"{"id":"2","type":"response","command":"prompt","success":false,"error":"no\u001b[2J"}"#,
                Some((Some("2"), "prompt", Some("no"))),
            ),
            (
                r#"{"type":"response","command":"parse","success":false}"#,
                Some((None, "parse", Some("an error without a message"))),
            ),
            (r#"{"type":"agent_start"}"#, None),
            (r#"{"type":"response","success":"yes"}"#, None),
            ("not json", None),
        ] {
            let found = response(line.as_bytes());
            let found = found.as_ref().map(|found| {
                (
                    found.id.as_deref(),
                    found.command.as_str(),
                    found.error.as_deref(),
                )
            });
            assert_eq!(found, expected, "{line}");
        }
    }
}
