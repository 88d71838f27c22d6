//! `gemini --output-format stream-json`, as Gemini CLI 0.61.0 writes it. The program reads one prompt, from its arguments.

use serde_json::Value;

use super::{Dialect, LineKind, LineParser, has_option, parse_object};
use crate::event::{Content, Event, TokenUsage, error_text, text, tokens};
use crate::{Activity, AgentRuntime, CommandError, PromptDelivery};

pub(super) const DIALECT: Dialect = Dialect {
    runtime: AgentRuntime::Gemini,
    is_program: |name, args| {
        name == "gemini"
            && (has_option(args, "--output-format", &["stream-json"])
                || has_option(args, "-o", &["stream-json"]))
    },
    is_own_event: |event| {
        text(&event["type"]) == "init"
            && event["session_id"].is_string()
            && event["model"].is_string()
    },
    new_parser: || Box::new(Parser),
    encode: |_, _| Err(CommandError::new(READS_NOTHING.to_owned())),
    responds: |_, _| false,
    reads_no_commands: |_| Some(READS_NOTHING),
    needs_adapter: |_| false,
    earliest: PromptDelivery::Now,
};

const READS_NOTHING: &str = "start gemini --acp instead of gemini --output-format stream-json";

#[derive(Debug)]
struct Parser;

impl LineParser for Parser {
    fn parse(&mut self, line: &[u8], emit: &mut dyn FnMut(Event<'_>)) -> LineKind {
        let Some(event) = parse_object::<Value>(line) else {
            return LineKind::NotAnEvent;
        };
        let id = text(&event["tool_id"]);
        match text(&event["type"]) {
            "" => return LineKind::NotAnEvent,
            "init" => {
                emit(Event::Session(text(&event["session_id"])));
                emit(Event::Working(Some(Activity::Waiting)));
            }
            "message" if event["role"] == "user" => {
                emit(Event::Prompt(Content::Json(&event["content"])));
                emit(Event::Working(Some(Activity::Waiting)));
            }
            // The program writes no end of a message: other events and the result end it.
            "message" if event["delta"] == true => emit(Event::Text(text(&event["content"]))),
            "message" => emit(Event::Message(Content::Json(&event["content"]))),
            "tool_use" => {
                emit(Event::BlockEnded);
                emit(Event::ToolStarted {
                    id,
                    name: text(&event["tool_name"]),
                    arguments: Content::Json(&event["parameters"]),
                });
            }
            "tool_result" => {
                let failed = event["status"] == "error";
                let result = match failed && !event["error"].is_null() {
                    true => &event["error"]["message"],
                    false => &event["output"],
                };
                emit(Event::ToolEnded {
                    id,
                    result: Content::Json(result),
                    failed,
                });
                emit(Event::Working(Some(Activity::Waiting)));
            }
            "error" => emit(Event::Error(error_text(&event["message"]))),
            "result" => result(&event, emit),
            _ => return LineKind::Unknown,
        }
        LineKind::Event
    }
}

fn result(event: &Value, emit: &mut dyn FnMut(Event<'_>)) {
    let stats = &event["stats"];
    emit(Event::BlockEnded);
    emit(Event::TurnsEnded(1));
    emit(Event::Usage(TokenUsage {
        input: tokens(&stats["input"]),
        cached: tokens(&stats["cached"]),
        output: tokens(&stats["output_tokens"]),
        ..TokenUsage::default()
    }));
    if event["status"] == "error" {
        emit(Event::Failed(error_text(&event["error"])));
    }
    emit(Event::Idle);
}
