//! `zot rpc` and `zot --json`, as documented in its docs/rpc.md, protocol version 1, and as version 0.1.62 writes them.
//! The protocol has no event for a question.

use serde_json::{Value, json};

use super::{Dialect, LineKind, LineParser, parse_object, unsupported};
use crate::cost::Cost;
use crate::event::{Content, Event, TokenUsage, error_text, text, tokens};
use crate::{Activity, AgentCommand, AgentRuntime, CommandError, CommandResponse, PromptDelivery};

pub(super) const DIALECT: Dialect = Dialect {
    runtime: AgentRuntime::Zot,
    is_program: |name, args| {
        name == "zot" && args.iter().any(|arg| matches!(*arg, "rpc" | "--json"))
    },
    is_own_event: |event| match text(&event["type"]) {
        "user_message" | "assistant_start" | "assistant_message" | "tool_use_start" => true,
        "turn_start" => event["step"].is_number(),
        _ => false,
    },
    new_parser: || Box::new(Parser::default()),
    encode,
    // It responds to a queued prompt when it starts it.
    responds: |command, is_busy| match command {
        AgentCommand::Prompt(..) => !is_busy,
        AgentCommand::Abort => true,
        AgentCommand::Answer(..) => false,
    },
    reads_no_commands: |args| {
        (!args.contains(&"rpc")).then_some("start zot rpc instead of zot --json")
    },
    needs_adapter: |_| false,
    earliest: PromptDelivery::Now,
};

#[derive(Debug, Default)]
struct Parser {
    is_working: bool,
    /// The response to an abort was seen, and the end of the aborted work was not.
    is_aborting: bool,
}

impl LineParser for Parser {
    fn parse(&mut self, line: &[u8], emit: &mut dyn FnMut(Event<'_>)) -> LineKind {
        let Some(event) = parse_object::<Value>(line) else {
            return LineKind::NotAnEvent;
        };
        let id = text(&event["id"]);
        match text(&event["type"]) {
            "" => return LineKind::NotAnEvent,
            "turn_start" => emit(Event::MessageStarted),
            "assistant_start" => emit(Event::Working(Some(Activity::Waiting))),
            "text_delta" => emit(Event::Text(text(&event["delta"]))),
            "tool_use_start" | "tool_use_args" => {
                emit(Event::Working(Some(Activity::Writing)));
            }
            "user_message" => {
                self.is_working = true;
                emit(Event::Prompt(Content::Json(&event["content"])));
            }
            "tool_use_end" => emit(Event::Working(None)),
            "assistant_message" => emit(Event::Message(Content::Json(&event["content"]))),
            "tool_call" => emit(Event::ToolStarted {
                id,
                name: text(&event["name"]),
                arguments: Content::Json(&event["args"]),
            }),
            "tool_progress" => emit(Event::ToolProgressed(id)),
            "tool_result" => emit(Event::ToolEnded {
                id,
                result: Content::Json(&event["content"]),
                failed: event["is_error"] == true,
            }),
            "usage" => emit(Event::Usage(TokenUsage {
                input: tokens(&event["input"]),
                cached: tokens(&event["cache_read"]).saturating_add(tokens(&event["cache_write"])),
                output: tokens(&event["output"]),
                cost: Cost::from_json(&event["cost_usd"]),
            })),
            "turn_end" => self.turn_end(&event, emit),
            "done" => {
                *self = Self::default();
                emit(Event::Idle);
            }
            "compact_done" => {
                emit(Event::Notice("compacted its history".into()));
                emit(Event::Idle);
            }
            "error" => emit(Event::Failed(error_text(&event["message"]))),
            "response" => self.response(&event, emit),
            _ => return LineKind::Unknown,
        }
        LineKind::Event
    }
}

impl Parser {
    fn turn_end(&mut self, event: &Value, emit: &mut dyn FnMut(Event<'_>)) {
        emit(Event::TurnsEnded(1));
        let stop = text(&event["stop"]);
        let is_error = !event["error"].is_null() || stop == "error";
        match stop {
            // An aborted call of the model ends with an error about its connection.
            _ if self.is_aborting || stop == "aborted" => {
                emit(Event::Notice("aborted".into()));
            }
            _ if is_error => emit(Event::Failed(error_text(&event["error"]))),
            "length" => emit(Event::Notice(
                "the answer was truncated: it is too long".into(),
            )),
            _ => {}
        }
    }

    fn response(&mut self, event: &Value, emit: &mut dyn FnMut(Event<'_>)) {
        let command = text(&event["command"]);
        let accepted = event["success"] != false;
        self.is_aborting |= accepted && command == "abort" && self.is_working;
        let error = (!accepted).then(|| match &event["error"] {
            Value::Null => error_text(&event["message"]),
            error => error_text(error),
        });
        emit(Event::Response(CommandResponse::new(
            event["id"].as_str(),
            command,
            error.as_deref(),
        )));
    }
}

fn encode(id: &str, command: &AgentCommand<'_>) -> Result<Value, CommandError> {
    match command {
        AgentCommand::Prompt(_, PromptDelivery::Steer) => {
            Err(unsupported("zot", PromptDelivery::Steer))
        }
        // zot queues a prompt while it works.
        AgentCommand::Prompt(text, _) => Ok(json!({"id": id, "type": "prompt", "message": text})),
        AgentCommand::Abort => Ok(json!({"id": id, "type": "abort"})),
        AgentCommand::Answer(..) => Err(CommandError::new("zot asks no questions".to_owned())),
    }
}
