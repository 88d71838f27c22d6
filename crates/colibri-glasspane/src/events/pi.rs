//! Events of pi, as documented in its docs/json.md, rpc.md and rpc-extension-ui.md, version 0.87.

use std::borrow::Cow;

use serde::Deserialize;
use serde_json::Value;
use serde_json::value::RawValue;

use super::{EventEffect, TokenUsage, ToolStep, cost_usd, error_text, string};
use crate::question::QuestionMethod;
use crate::{Activity, AgentState};

/// Fields that may be long stay unparsed unless the event's type needs them: each update repeats the whole message.
#[derive(Deserialize, Default)]
#[serde(default, rename_all = "camelCase")]
struct PiEvent<'a> {
    #[serde(rename = "type", borrow)]
    kind: Cow<'a, str>,
    tool_call_id: Value,
    tool_name: Value,
    error_message: Value,
    final_error: Value,
    error: Value,
    success: Value,
    method: Value,
    #[serde(borrow)]
    message: Option<&'a RawValue>,
    #[serde(borrow)]
    assistant_message_event: Option<&'a RawValue>,
    will_retry: Value,
    reason: Value,
    #[serde(borrow)]
    result: Option<&'a RawValue>,
    steering: Value,
    follow_up: Value,
}

/// Fields of a message, of a part of it, and of the result of a compaction.
#[derive(Deserialize, Default)]
#[serde(default, rename_all = "camelCase")]
struct Nested {
    #[serde(rename = "type")]
    kind: Value,
    role: Value,
    usage: Value,
    stop_reason: Value,
    error_message: Value,
}

/// Parses a nested object of an event; returns the default if it is missing or malformed.
fn parse_nested<'a, T: Deserialize<'a> + Default>(raw: Option<&'a RawValue>) -> T {
    raw.and_then(|raw| serde_json::from_str(raw.get()).ok())
        .unwrap_or_default()
}

/// Parses one line; `None` if it is not an event.
pub(crate) fn parse(line: &[u8]) -> Option<EventEffect> {
    let event: PiEvent = serde_json::from_slice(line).ok()?;
    if event.kind.is_empty() {
        return None;
    }
    let error = |field: &Value| (!field.is_null()).then(|| error_text(field));
    let tool = |step| EventEffect::tool(&event.tool_call_id, step);
    Some(match event.kind.as_ref() {
        "agent_start" => EventEffect::working(None),
        "turn_start" => EventEffect::working(Activity::Waiting),
        "message_start" if parse_nested::<Nested>(event.message).role == "assistant" => {
            EventEffect::working(Activity::Waiting)
        }
        "message_start" => EventEffect::working(None),
        "message_update" => EventEffect::working(streaming_activity(&parse_nested(
            event.assistant_message_event,
        ))),
        "message_end" => message_end(&parse_nested(event.message)),
        "turn_end" => EventEffect {
            ends_turn: true,
            ..EventEffect::default()
        },
        "tool_execution_start" => tool(ToolStep::Started(string(&event.tool_name))),
        "tool_execution_update" => tool(ToolStep::Progressed),
        "tool_execution_end" => tool(ToolStep::Ended),
        // Releases of pi before agent_settled end with agent_end.
        "agent_end" if event.will_retry == true => EventEffect::working(Activity::Retrying),
        "agent_end" | "agent_settled" => EventEffect::state(AgentState::Idle),
        "queue_update" => EventEffect {
            queued: Some(count(&event.steering) + count(&event.follow_up)),
            ..EventEffect::default()
        },
        "compaction_start" => EventEffect::working(Activity::Compacting),
        "compaction_end" => EventEffect {
            // pi continues with its work after an automatic compaction.
            state: Some(match event.reason == "manual" && event.will_retry != true {
                true => AgentState::Idle,
                false => AgentState::Working,
            }),
            usage: usage(&parse_nested::<Nested>(event.result).usage),
            error: error(&event.error_message),
            ..EventEffect::default()
        },
        "auto_retry_start" | "summarization_retry_scheduled" => EventEffect {
            error: error(&event.error_message),
            ..EventEffect::working(Activity::Retrying)
        },
        "auto_retry_end" => EventEffect {
            error: error(&event.final_error),
            ..EventEffect::default()
        },
        "summarization_retry_attempt_start" => EventEffect::working(Activity::Compacting),
        "extension_ui_request" => match QuestionMethod::from_name(&event.method) {
            Some(_) => EventEffect::state(AgentState::Blocked),
            None => EventEffect::default(),
        },
        "extension_error" | "error" => EventEffect::error(match &event.error {
            Value::Null => error_text(&parse_nested(event.message)),
            error => error_text(error),
        }),
        "response" if event.success == false => EventEffect::error(error_text(&event.error)),
        _ => EventEffect::default(),
    })
}

fn streaming_activity(part: &Nested) -> Option<Activity> {
    let kind = part.kind.as_str().unwrap_or_default();
    match kind.split_once('_').map_or(kind, |(prefix, _)| prefix) {
        "thinking" => Some(Activity::Thinking),
        "text" | "toolcall" => Some(Activity::Writing),
        _ => None,
    }
}

/// Returns the effect of a complete message. Results of tools that call models have a usage too.
fn message_end(message: &Nested) -> EventEffect {
    EventEffect {
        usage: usage(&message.usage),
        error: (message.stop_reason == "error").then(|| error_text(&message.error_message)),
        ..EventEffect::working(None)
    }
}

fn usage(usage: &Value) -> TokenUsage {
    let tokens = |name: &str| usage[name].as_u64().unwrap_or(0);
    TokenUsage {
        input: tokens("input"),
        cached: tokens("cacheRead").saturating_add(tokens("cacheWrite")),
        output: tokens("output"),
        cost_usd: cost_usd(&usage["cost"]["total"]),
    }
}

fn count(list: &Value) -> u64 {
    list.as_array().map_or(0, |list| list.len() as u64)
}
