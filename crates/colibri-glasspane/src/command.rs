//! Commands for an agent's standard input, and its responses. Each runtime encodes them in its own form; an agent without
//! events receives plain lines.

use crate::AgentRuntime;
use serde_json::Value;

use crate::event::Event;
use crate::line_splitter::LineSplitter;
use crate::question::Question;
use crate::runtimes::{Dialect, EventReader};
use crate::sanitize::sanitize_line;

/// Maximum length of a text in a response, in characters.
const MAX_RESPONSE_CHARS: usize = 500;

/// When a prompt is delivered to a working agent.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub enum PromptDelivery {
    /// Immediately. A working pi refuses the prompt, claude reads it before its next model call, and others queue it.
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
        Dialect::of(runtime).map_or(Self::Now, |dialect| dialect.earliest)
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

impl CommandError {
    pub(crate) fn new(message: String) -> Self {
        Self(message)
    }
}

/// Encodes a command as the bytes to write to the agent's standard input, LF included. A response to it repeats `id`, which
/// must be a UUID.
///
/// # Errors
/// [`CommandError`] if the runtime does not support the command, or the answer is invalid.
pub fn encode_command(
    runtime: AgentRuntime,
    id: &str,
    command: &AgentCommand<'_>,
) -> Result<Vec<u8>, CommandError> {
    let line = match (Dialect::of(runtime), command) {
        (Some(dialect), _) => match (dialect.encode)(id, command)? {
            Value::Array(lines) => {
                let lines: Vec<String> = lines.iter().map(Value::to_string).collect();
                lines.join("\n")
            }
            line => line.to_string(),
        },
        (None, AgentCommand::Prompt(text, PromptDelivery::Now) | AgentCommand::Answer(_, text)) => {
            (*text).to_owned()
        }
        (None, AgentCommand::Abort) => {
            return Err(CommandError::new(
                "an agent without a known runtime has no abort command; interrupt it with colibri kill --signal INT, or give its --runtime"
                    .to_owned(),
            ));
        }
        (None, AgentCommand::Prompt(_, delivery)) => {
            return Err(unsupported("an agent without a known runtime", *delivery));
        }
    };
    Ok(format!("{line}\n").into_bytes())
}

/// The error for a delivery that an agent does not support.
pub(crate) fn unsupported(agent: &str, delivery: PromptDelivery) -> CommandError {
    let delivery = match delivery {
        PromptDelivery::Steer => "be steered while it works",
        PromptDelivery::Now | PromptDelivery::FollowUp => "queue a prompt",
    };
    CommandError::new(format!("{agent} cannot {delivery}; send a plain prompt"))
}

/// Returns whether agents of the runtime respond to the command soon. `is_busy` is whether the agent is working: some
/// respond to a prompt only when they start it.
#[must_use]
pub fn sends_response(runtime: AgentRuntime, command: &AgentCommand<'_>, is_busy: bool) -> bool {
    Dialect::of(runtime).is_some_and(|dialect| (dialect.responds)(command, is_busy))
}

/// Returns how to start an agent so that it reads commands. `None` if it reads them with these arguments, or if they are not
/// those of a program of its runtime.
#[must_use]
pub fn reads_no_commands(runtime: AgentRuntime, args: &[String]) -> Option<&'static str> {
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    let dialect = Dialect::of(runtime)?;
    let is_program = (dialect.is_program)(runtime.into(), &args);
    is_program
        .then(|| (dialect.reads_no_commands)(&args))
        .flatten()
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

impl CommandResponse {
    /// Creates a response with sanitized texts.
    pub(crate) fn new(id: Option<&str>, command: &str, error: Option<&str>) -> Self {
        Self {
            id: id.map(str::to_owned),
            command: sanitize_line(command, MAX_RESPONSE_CHARS),
            error: error.map(|error| sanitize_line(error, MAX_RESPONSE_CHARS)),
        }
    }
}

/// Finds responses in an agent's standard output. Parsing may start within a line.
#[derive(Debug, Default)]
pub struct ResponseParser {
    lines: LineSplitter,
    reader: EventReader,
}

impl ResponseParser {
    /// Creates a parser for the output of an agent.
    #[must_use]
    pub fn new(runtime: AgentRuntime) -> Self {
        Self {
            lines: LineSplitter::default(),
            reader: EventReader::new(runtime),
        }
    }

    /// Returns the responses that these bytes complete.
    pub fn push(&mut self, bytes: &[u8]) -> Vec<CommandResponse> {
        let mut responses = Vec::new();
        let reader = &mut self.reader;
        self.lines.push(bytes, |line| {
            reader.read(line.unwrap_or_default(), &mut |event| {
                if let Event::Response(response) = event {
                    responses.push(response);
                }
            });
        });
        responses
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::question::{Grant, QuestionKind, QuestionOption};

    const ID: &str = "0b8a7f9e-1111-4222-8333-444455556666";

    fn question(kind: QuestionKind) -> Question {
        Question {
            context: json!({"input": {"command": "ls"}, "permissions": []}),
            ..Question::new(&json!("q1"), "Sure?", "", kind)
        }
    }

    fn choice() -> QuestionKind {
        let option = |id: &str, label: &str, grant| QuestionOption {
            id: id.into(),
            label: label.to_owned(),
            grant: Some(grant),
        };
        QuestionKind::Choice(vec![
            option("allow", "Allow it", Grant::Once),
            option("allow-session", "Always", Grant::Always),
            option("deny", "Block", Grant::Refused),
        ])
    }

    #[test]
    fn each_runtime_encodes_commands() {
        let confirm = question(QuestionKind::Confirm);
        let choice = question(choice());
        let text = question(QuestionKind::Text);
        let mut shown = String::new();
        for &runtime in AgentRuntime::ALL {
            for command in [
                AgentCommand::Prompt("say \"hi\"\nand\u{2028}go", PromptDelivery::Now),
                AgentCommand::Prompt("left", PromptDelivery::Steer),
                AgentCommand::Prompt("then", PromptDelivery::FollowUp),
                AgentCommand::Abort,
                AgentCommand::Answer(&confirm, "Yes"),
                AgentCommand::Answer(&choice, "2"),
                AgentCommand::Answer(&text, "a b "),
            ] {
                let result = match encode_command(runtime, ID, &command) {
                    Ok(bytes) => format!("{:?}", String::from_utf8_lossy(&bytes)),
                    Err(error) => format!("error: {error}"),
                };
                let title = match command {
                    AgentCommand::Prompt(text, delivery) => format!("{delivery:?} {text:?}"),
                    AgentCommand::Abort => "Abort".to_owned(),
                    AgentCommand::Answer(_, text) => format!("Answer {text:?}"),
                };
                shown.push_str(&format!("{runtime:?} {title}\n  {result}\n"));
            }
        }
        insta::assert_snapshot!(shown);
    }

    #[test]
    fn encoded_prompt_is_one_line_for_any_text() {
        for &runtime in AgentRuntime::ALL {
            let text = "a\nb\r\nc\u{2028}d\u{85}\0";
            let prompt = AgentCommand::Prompt(text, PromptDelivery::Now);
            let Ok(bytes) = encode_command(runtime, ID, &prompt) else {
                continue;
            };
            if Dialect::of(runtime).is_none() {
                continue;
            }
            let lines = bytes.iter().filter(|byte| **byte == b'\n').count();
            assert_eq!(lines, if runtime == AgentRuntime::Qwen { 2 } else { 1 });
            let last = bytes.trim_ascii_end().rsplit(|byte| *byte == b'\n').next();
            let record: Value = serde_json::from_slice(last.unwrap()).unwrap();
            let content = &record["message"]["content"][0]["text"];
            assert!(record["message"] == text || *content == text, "{record}");
        }
    }

    #[test]
    fn typed_answer_selects_an_option() {
        let choice = question(choice());
        let confirm = question(QuestionKind::Confirm);
        for (question, typed, expected) in [
            (&choice, "1", Ok("allow")),
            (&choice, " Block ", Ok("deny")),
            (
                &choice,
                "allow-session",
                Err("invalid answer \"allow-session\"; enter a number from 1 to 3"),
            ),
            (&choice, "y", Ok("allow")),
            (&choice, "No", Ok("deny")),
            (
                &choice,
                "0",
                Err("invalid answer \"0\"; enter a number from 1 to 3"),
            ),
            (
                &choice,
                "4",
                Err("invalid answer \"4\"; enter a number from 1 to 3"),
            ),
            (&confirm, "YES", Ok("true")),
            (
                &confirm,
                "maybe",
                Err("invalid answer \"maybe\"; enter y or n"),
            ),
        ] {
            let answer = question.parse_answer(typed);
            let answer = answer.map(|answer| match answer {
                crate::question::Answer::Chosen(option) => option.id.as_str().unwrap().to_owned(),
                crate::question::Answer::Confirmed(yes) => yes.to_string(),
                crate::question::Answer::Text(text) => text.to_owned(),
            });
            let answer = answer.map_err(|error| error.to_string());
            let expected = expected.map(str::to_owned).map_err(str::to_owned);
            assert_eq!(answer, expected, "{typed}");
        }
    }

    #[test]
    fn responses_of_each_runtime_are_found() {
        use AgentRuntime::{Acp, Claude, Codex, Pi, Qwen, Zot};
        for (runtime, line, expected) in [
            (
                Pi,
                r#"{"id":"1","type":"response","command":"prompt","success":true,"data":{"disposition":"started"}}"#,
                Some((Some("1"), None)),
            ),
            (
                Zot,
                r#"{"id":"2","type":"response","command":"prompt","success":false,"error":"no\u001b[2J"}"#,
                Some((Some("2"), Some("no"))),
            ),
            (
                Pi,
                r#"{"type":"response","command":"parse","success":false}"#,
                Some((None, Some("an error without a message"))),
            ),
            (
                Claude,
                r#"{"type":"command_lifecycle","command_uuid":"3","state":"queued"}"#,
                Some((Some("3"), None)),
            ),
            (
                Qwen,
                r#"{"type":"control_response","response":{"subtype":"error","request_id":"4","error":"no"}}"#,
                Some((Some("4"), Some("no"))),
            ),
            (
                Codex,
                r#"{"type":"response","id":"5","command":"prompt"}"#,
                Some((Some("5"), None)),
            ),
            (
                Acp,
                r#"{"type":"response","id":"6","command":"abort","error":"it is idle"}"#,
                Some((Some("6"), Some("it is idle"))),
            ),
            (Pi, r#"{"type":"agent_start"}"#, None),
            (Pi, "not json", None),
        ] {
            let responses = ResponseParser::new(runtime).push(format!("{line}\n").as_bytes());
            let found = responses.first();
            let found = found.map(|found| (found.id.as_deref(), found.error.as_deref()));
            assert_eq!(found, expected, "{line}");
        }
    }
}
