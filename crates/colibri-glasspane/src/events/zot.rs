//! Events of `zot rpc` and `zot --json`, as documented in its docs/rpc.md, protocol version 1. The protocol has no event
//! for a question.

use serde::Deserialize;
use serde_json::Value;

use super::{EventEffect, TokenUsage, ToolStep, cost_usd, error_text, string};
use crate::{Activity, AgentState};

#[derive(Deserialize, Default)]
#[serde(default)]
struct ZotEvent {
    #[serde(rename = "type")]
    kind: String,
    id: Value,
    name: Value,
    stop: Value,
    error: Value,
    message: Value,
    success: Value,
    input: Value,
    output: Value,
    cache_read: Value,
    cache_write: Value,
    cost_usd: Value,
}

/// Parses one line; `None` if it is not an event.
pub(crate) fn parse(line: &[u8]) -> Option<EventEffect> {
    let event: ZotEvent = serde_json::from_slice(line).ok()?;
    let tool = |step| EventEffect::tool(&event.id, step);
    Some(match event.kind.as_str() {
        "" => return None,
        "turn_start" | "assistant_start" => EventEffect::working(Activity::Waiting),
        "text_delta" | "tool_use_start" | "tool_use_args" => {
            EventEffect::working(Activity::Writing)
        }
        "user_message" | "assistant_message" | "tool_use_end" => EventEffect::working(None),
        "tool_call" => tool(ToolStep::Started(string(&event.name))),
        "tool_progress" => tool(ToolStep::Progressed),
        "tool_result" => tool(ToolStep::Ended),
        "usage" => {
            let tokens = |value: &Value| value.as_u64().unwrap_or(0);
            EventEffect {
                usage: TokenUsage {
                    input: tokens(&event.input),
                    cached: tokens(&event.cache_read).saturating_add(tokens(&event.cache_write)),
                    output: tokens(&event.output),
                    cost_usd: cost_usd(&event.cost_usd),
                },
                ..EventEffect::default()
            }
        }
        "turn_end" => EventEffect {
            ends_turn: true,
            error: (!event.error.is_null() || event.stop == "error")
                .then(|| error_text(&event.error)),
            ..EventEffect::default()
        },
        "done" | "compact_done" => EventEffect::state(AgentState::Idle),
        "error" => EventEffect::error(error_text(&event.message)),
        "response" if event.success == false => EventEffect::error(match event.error {
            Value::Null => error_text(&event.message),
            error => error_text(&error),
        }),
        _ => EventEffect::default(),
    })
}
