//! `opencode run --format json`, as opencode 1.18.33 writes it. The program reads one prompt, from its arguments.

use serde_json::Value;

use super::{Dialect, LineKind, LineParser, has_option, parse_object};
use crate::cost::Cost;
use crate::event::{Content, Event, TokenUsage, error_text, text, tokens};
use crate::{Activity, AgentRuntime, CommandError, PromptDelivery};

pub(super) const DIALECT: Dialect = Dialect {
    runtime: AgentRuntime::Opencode,
    is_program: |name, args| {
        name == "opencode" && args.contains(&"run") && has_option(args, "--format", &["json"])
    },
    is_own_event: |event| {
        event["sessionID"].is_string() && (event["part"].is_object() || event["error"].is_object())
    },
    new_parser: || Box::new(Parser),
    encode: |_, _| Err(CommandError::new(READS_NOTHING.to_owned())),
    responds: |_, _| false,
    reads_no_commands: |_| Some(READS_NOTHING),
    needs_adapter: |_| false,
    earliest: PromptDelivery::Now,
};

const READS_NOTHING: &str = "start opencode acp instead of opencode run";

#[derive(Debug)]
struct Parser;

impl LineParser for Parser {
    fn parse(&mut self, line: &[u8], emit: &mut dyn FnMut(Event<'_>)) -> LineKind {
        let Some(event) = parse_object::<Value>(line) else {
            return LineKind::NotAnEvent;
        };
        let part = &event["part"];
        match text(&event["type"]) {
            "" => return LineKind::NotAnEvent,
            "step_start" => {
                emit(Event::Session(text(&event["sessionID"])));
                emit(Event::Working(Some(Activity::Waiting)));
            }
            "text" => emit(Event::Message(Content::Text(text(&part["text"])))),
            "reasoning" => emit(Event::Working(Some(Activity::Thinking))),
            "tool_use" => tool_use(part, emit),
            "step_finish" => step_finish(part, emit),
            "error" => {
                let error = &event["error"];
                emit(Event::Session(text(&event["sessionID"])));
                emit(Event::Failed(error_text(match error["data"].is_object() {
                    true => &error["data"],
                    false => error,
                })));
                emit(Event::Idle);
            }
            _ => return LineKind::Unknown,
        }
        LineKind::Event
    }
}

/// Reports a tool call. The program writes it at its end.
fn tool_use(part: &Value, emit: &mut dyn FnMut(Event<'_>)) {
    let state = &part["state"];
    let id = text(&part["callID"]);
    emit(Event::ToolStarted {
        id,
        name: text(&part["tool"]),
        arguments: Content::Json(&state["input"]),
    });
    let has_failed = state["status"] == "error";
    let exit_code = state["metadata"]["exit"].as_i64().unwrap_or(0);
    emit(Event::ToolEnded {
        id,
        result: Content::Json(match has_failed {
            true => &state["error"],
            false => &state["output"],
        }),
        failed: has_failed || exit_code != 0,
    });
}

fn step_finish(part: &Value, emit: &mut dyn FnMut(Event<'_>)) {
    let usage = &part["tokens"];
    emit(Event::TurnsEnded(1));
    emit(Event::Usage(TokenUsage {
        input: tokens(&usage["input"]),
        cached: tokens(&usage["cache"]["read"]).saturating_add(tokens(&usage["cache"]["write"])),
        output: tokens(&usage["output"]).saturating_add(tokens(&usage["reasoning"])),
        cost: Cost::from_json(&part["cost"]),
    }));
    emit(match text(&part["reason"]) {
        "tool-calls" => Event::Working(Some(Activity::Waiting)),
        _ => Event::Idle,
    });
}
