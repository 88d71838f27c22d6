//! `copilot --output-format json`, as Copilot CLI 1.0.102 writes it. The program reads one prompt, from its arguments.

use serde_json::Value;

use super::{Dialect, LineKind, LineParser, has_option, parse_object};
use crate::event::{Content, Event, TokenUsage, error_text, text, tokens};
use crate::{Activity, AgentRuntime, CommandError, PromptDelivery};

pub(super) const DIALECT: Dialect = Dialect {
    runtime: AgentRuntime::Copilot,
    is_program: |name, args| name == "copilot" && has_option(args, "--output-format", &["json"]),
    is_own_event: |event| {
        event["data"].is_object() && event["parentId"].is_string()
            || event["type"] == "session.skills_loaded"
    },
    new_parser: || Box::new(Parser),
    encode: |_, _| Err(CommandError::new(READS_NOTHING.to_owned())),
    responds: |_, _| false,
    reads_no_commands: |_| Some(READS_NOTHING),
    needs_adapter: |_| false,
    earliest: PromptDelivery::Now,
};

const READS_NOTHING: &str = "start copilot --acp instead of copilot --output-format json";

#[derive(Debug)]
struct Parser;

impl LineParser for Parser {
    fn parse(&mut self, line: &[u8], emit: &mut dyn FnMut(Event<'_>)) -> LineKind {
        let Some(event) = parse_object::<Value>(line) else {
            return LineKind::NotAnEvent;
        };
        let data = &event["data"];
        let id = text(&data["toolCallId"]);
        match text(&event["type"]) {
            "" => return LineKind::NotAnEvent,
            "user.message" => emit(Event::Prompt(Content::Json(&data["content"]))),
            "assistant.turn_start" | "model.call_start" => {
                emit(Event::Working(Some(Activity::Waiting)));
            }
            "assistant.message_start" => emit(Event::MessageStarted),
            "assistant.message_delta" => emit(Event::Text(text(&data["deltaContent"]))),
            "assistant.reasoning_delta" => emit(Event::Thinking(text(&data["deltaContent"]))),
            "assistant.tool_call_delta" => emit(Event::Working(Some(Activity::Writing))),
            "assistant.message" => emit(Event::Message(Content::Json(&data["content"]))),
            "tool.execution_start" => emit(Event::ToolStarted {
                id,
                name: text(&data["toolName"]),
                arguments: Content::Json(&data["arguments"]),
            }),
            "tool.execution_partial_result" | "tool.shell_output" => {
                emit(Event::ToolProgressed(id));
            }
            "tool.execution_complete" => tool_ended(id, data, emit),
            "assistant.turn_end" => emit(Event::TurnsEnded(1)),
            "assistant.turn_retry" => {
                emit(Event::Working(Some(Activity::Retrying)));
                emit(Event::Notice(
                    format!("retries: {}", text(&data["reason"])).into(),
                ));
            }
            "assistant.usage" => emit(Event::Usage(usage(data))),
            "session.error" => emit(Event::Failed(error_text(&data["message"]))),
            "assistant.idle" => emit(Event::Idle),
            "result" => {
                emit(Event::Session(text(&event["sessionId"])));
                emit(Event::Idle);
            }
            kind if kind.starts_with("session.") || kind.starts_with("model.") => {}
            _ => return LineKind::Unknown,
        }
        LineKind::Event
    }
}

fn tool_ended(id: &str, data: &Value, emit: &mut dyn FnMut(Event<'_>)) {
    let has_failed = data["success"] == false;
    let exit_code = data["shellExecution"]["exitCode"].as_i64().unwrap_or(0);
    emit(Event::ToolEnded {
        id,
        result: Content::Json(match has_failed {
            true => &data["error"]["message"],
            false => &data["result"]["content"],
        }),
        failed: has_failed || exit_code != 0,
    });
}

fn usage(data: &Value) -> TokenUsage {
    let cached = tokens(&data["cacheReadTokens"]).saturating_add(tokens(&data["cacheWriteTokens"]));
    TokenUsage {
        input: tokens(&data["inputTokens"]).saturating_sub(cached),
        cached,
        output: tokens(&data["outputTokens"]),
        ..TokenUsage::default()
    }
}
