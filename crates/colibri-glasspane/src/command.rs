//! Encodes commands for an agent's standard input and parses its responses. Formats: docs/rpc-commands.md and
//! docs/rpc-extension-ui.md of pi, docs/rpc.md of zot. A generic agent receives plain lines.

use serde::Deserialize;
use serde_json::{Value, json};

use crate::AgentRuntime;
use crate::events::error_text;
use crate::line_splitter::LineSplitter;
use crate::question::{Question, QuestionMethod};
use crate::sanitize::sanitize_line;

/// Maximum length of a text in a response, in characters.
const MAX_RESPONSE_CHARS: usize = 500;

/// When a prompt is delivered to a working agent.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub enum PromptDelivery {
    /// Immediately. A working pi refuses the prompt; zot queues it.
    #[default]
    Now,
    /// Before the agent's next model call.
    Steer,
    /// After the agent has finished its current work.
    FollowUp,
}

impl PromptDelivery {
    /// Returns the earliest delivery that a working agent of this runtime accepts.
    #[must_use]
    pub fn earliest(runtime: AgentRuntime) -> Self {
        match runtime {
            AgentRuntime::Pi => Self::Steer,
            AgentRuntime::Zot | AgentRuntime::Generic => Self::Now,
        }
    }
}

/// A command to an agent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AgentCommand<'a> {
    /// Starts or queues a task.
    Prompt(&'a str, PromptDelivery),
    /// Cancels the current turn; the agent keeps running.
    Abort,
    /// Answers a question.
    Answer(&'a Question, &'a str),
}

/// The runtime does not support a command, or an answer is invalid; the message.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct CommandError(String);

/// Encodes a command as the bytes to write to the agent's standard input, LF included. A response to it repeats `id`.
///
/// # Errors
/// [`CommandError`] if the runtime does not support the command, or the answer is invalid.
pub fn encode_command(
    runtime: AgentRuntime,
    id: &str,
    command: &AgentCommand<'_>,
) -> Result<Vec<u8>, CommandError> {
    use AgentCommand::{Abort, Answer, Prompt};
    use AgentRuntime::{Generic, Pi, Zot};
    let record = match (runtime, command) {
        (Generic, Prompt(text, PromptDelivery::Now) | Answer(_, text)) => {
            return Ok(format!("{text}\n").into_bytes());
        }
        (Generic, Abort) => {
            return Err(CommandError(
                "a generic agent has no abort command; interrupt it with colibri kill --signal INT, or start pi or zot with --runtime"
                    .to_owned(),
            ));
        }
        (Zot, Prompt(_, PromptDelivery::Steer)) => {
            return Err(unsupported("zot", "be steered while it works"));
        }
        (Generic, Prompt(_, PromptDelivery::Steer)) => {
            return Err(unsupported("a generic agent", "be steered while it works"));
        }
        (Generic, Prompt(_, PromptDelivery::FollowUp)) => {
            return Err(unsupported("a generic agent", "queue a prompt"));
        }
        // zot queues a prompt while it works.
        (Zot, Prompt(text, _)) | (Pi, Prompt(text, PromptDelivery::Now)) => {
            json!({"id": id, "type": "prompt", "message": text})
        }
        // An idle pi starts these two immediately.
        (Pi, Prompt(text, PromptDelivery::Steer)) => {
            json!({"id": id, "type": "prompt", "message": text, "streamingBehavior": "steer"})
        }
        (Pi, Prompt(text, PromptDelivery::FollowUp)) => {
            json!({"id": id, "type": "prompt", "message": text, "streamingBehavior": "followUp"})
        }
        (Pi | Zot, Abort) => json!({"id": id, "type": "abort"}),
        (Pi | Zot, Answer(question, text)) => answer_record(question, text)?,
    };
    Ok(format!("{record}\n").into_bytes())
}

fn unsupported(agent: &str, delivery: &str) -> CommandError {
    CommandError(format!("{agent} cannot {delivery}; send a plain prompt"))
}

/// Returns whether agents of the runtime respond to commands.
#[must_use]
pub fn sends_responses(runtime: AgentRuntime) -> bool {
    match runtime {
        AgentRuntime::Pi | AgentRuntime::Zot => true,
        AgentRuntime::Generic => false,
    }
}

fn answer_record(question: &Question, text: &str) -> Result<Value, CommandError> {
    let answer = text.trim();
    let invalid =
        |expected: &str| CommandError(format!("invalid answer {answer:?}; enter {expected}"));
    let id = &question.id;
    Ok(match question.method {
        QuestionMethod::Confirm => {
            let confirmed = match answer.to_lowercase().as_str() {
                "y" | "yes" => true,
                "n" | "no" => false,
                _ => return Err(invalid("y or n")),
            };
            json!({"type": "extension_ui_response", "id": id, "confirmed": confirmed})
        }
        QuestionMethod::Select => {
            let options = &question.options;
            let number = answer.parse::<usize>().ok();
            let option = options.iter().find(|option| *option == answer);
            let option = option
                .or_else(|| options.get(number?.checked_sub(1)?))
                .ok_or_else(|| invalid(&format!("a number from 1 to {}", options.len())))?;
            json!({"type": "extension_ui_response", "id": id, "value": option})
        }
        QuestionMethod::Input => {
            json!({"type": "extension_ui_response", "id": id, "value": text})
        }
    })
}

/// Response of an agent to a command.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CommandResponse {
    /// Id of the command; `None` if the agent could not parse it.
    pub id: Option<String>,
    /// Type of the command.
    pub command: String,
    /// Reason for a refusal; `None` if the agent accepted the command.
    pub error: Option<String>,
}

/// Finds responses in an agent's standard output. Parsing may start within a line.
#[derive(Debug, Default)]
pub struct ResponseParser(LineSplitter);

impl ResponseParser {
    /// Returns the responses that these bytes complete.
    pub fn push(&mut self, bytes: &[u8]) -> Vec<CommandResponse> {
        let mut responses = Vec::new();
        self.0.push(bytes, |line| {
            responses.extend(line.and_then(parse_response));
        });
        responses
    }
}

/// Parses a line as a response; `None` if it is something else.
fn parse_response(line: &[u8]) -> Option<CommandResponse> {
    #[derive(Deserialize)]
    struct ResponseRecord {
        #[serde(rename = "type")]
        kind: String,
        id: Option<String>,
        command: Option<String>,
        success: bool,
        #[serde(default)]
        error: Value,
    }
    let record: ResponseRecord = serde_json::from_slice(line).ok()?;
    (record.kind == "response").then(|| CommandResponse {
        id: record.id,
        command: sanitize_line(&record.command.unwrap_or_default(), MAX_RESPONSE_CHARS),
        error: (!record.success)
            .then(|| sanitize_line(&error_text(&record.error), MAX_RESPONSE_CHARS)),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn question(method: QuestionMethod) -> Question {
        Question {
            id: "q1".into(),
            method,
            text: "Sure?".into(),
            options: vec!["Allow".into(), "Block".into()],
        }
    }

    #[test]
    fn each_runtime_encodes_commands() {
        let confirm = question(QuestionMethod::Confirm);
        let select = question(QuestionMethod::Select);
        let input = question(QuestionMethod::Input);
        let mut shown = String::new();
        for &runtime in AgentRuntime::ALL {
            for command in [
                AgentCommand::Prompt("say \"hi\"\nand\u{2028}go", PromptDelivery::Now),
                AgentCommand::Prompt("left", PromptDelivery::Steer),
                AgentCommand::Prompt("then", PromptDelivery::FollowUp),
                AgentCommand::Abort,
                AgentCommand::Answer(&confirm, "Yes"),
                AgentCommand::Answer(&confirm, "maybe"),
                AgentCommand::Answer(&select, "2"),
                AgentCommand::Answer(&select, "Allow"),
                AgentCommand::Answer(&select, "0"),
                AgentCommand::Answer(&input, "a b "),
            ] {
                let result = match encode_command(runtime, "c-1", &command) {
                    Ok(bytes) => format!("{:?}", String::from_utf8_lossy(&bytes)),
                    Err(error) => format!("error: {error}"),
                };
                let title = match command {
                    AgentCommand::Prompt(text, delivery) => format!("{delivery:?} {text:?}"),
                    AgentCommand::Abort => "Abort".to_owned(),
                    AgentCommand::Answer(question, text) => {
                        format!("{:?} {text:?}", question.method)
                    }
                };
                shown.push_str(&format!("{runtime:?} {title}\n  {result}\n"));
            }
        }
        insta::assert_snapshot!(shown);
    }

    #[test]
    fn encoded_prompt_is_one_line_for_any_text() {
        for runtime in [AgentRuntime::Pi, AgentRuntime::Zot] {
            let text = "a\nb\r\nc\u{2028}d\u{85}\0";
            let bytes = encode_command(
                runtime,
                "1",
                &AgentCommand::Prompt(text, PromptDelivery::Now),
            )
            .unwrap();
            assert_eq!(bytes.iter().filter(|byte| **byte == b'\n').count(), 1);
            let record: Value = serde_json::from_slice(&bytes).unwrap();
            assert_eq!(record["message"], text);
        }
    }

    #[test]
    fn only_responses_are_parsed() {
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
            let response = parse_response(line.as_bytes());
            let fields = response.as_ref().map(|response| {
                (
                    response.id.as_deref(),
                    response.command.as_str(),
                    response.error.as_deref(),
                )
            });
            assert_eq!(fields, expected, "{line}");
        }
    }
}
