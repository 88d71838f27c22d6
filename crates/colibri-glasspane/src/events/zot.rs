//! The events of zot, `zot rpc` and `zot --json`: its docs/rpc.md, protocol version 1. None of them says that it
//! waits for a person.

use serde::Deserialize;
use serde_json::Value;

use super::{Meaning, Tool, Usage, dollars, text_of};
use crate::{Activity, AgentState};

#[derive(Deserialize, Default)]
#[serde(default)]
struct Event {
    #[serde(rename = "type")]
    kind: String,
    id: Value,
    name: Value,
    stop: Value,
    error: Option<Value>,
    message: Option<Value>,
    success: Value,
    input: Value,
    output: Value,
    cache_read: Value,
    cache_write: Value,
    cost_usd: Value,
}

/// Reads one line; `None` where it is no event.
pub(crate) fn read(line: &[u8]) -> Option<Meaning> {
    let event: Event = serde_json::from_slice(line).ok()?;
    let id = || event.id.as_str().unwrap_or_default().to_owned();
    let tool = |tool| Meaning {
        tool: Some(tool),
        ..Meaning::default()
    };
    Some(match event.kind.as_str() {
        "" => return None,
        "turn_start" | "assistant_start" => Meaning::working(Activity::Waiting),
        "text_delta" | "tool_use_start" | "tool_use_args" => Meaning::working(Activity::Writing),
        "user_message" | "assistant_message" | "tool_use_end" => Meaning::working(None),
        "tool_call" => tool(Tool::Started {
            id: id(),
            name: event.name.as_str().unwrap_or_default().to_owned(),
        }),
        "tool_progress" => tool(Tool::Progressed { id: id() }),
        "tool_result" => tool(Tool::Ended { id: id() }),
        "usage" => {
            let tokens = |value: &Value| value.as_u64().unwrap_or(0);
            Meaning {
                usage: Usage {
                    input: tokens(&event.input),
                    cached: tokens(&event.cache_read).saturating_add(tokens(&event.cache_write)),
                    output: tokens(&event.output),
                    cost: dollars(&event.cost_usd),
                },
                ..Meaning::default()
            }
        }
        "turn_end" => Meaning {
            turn: true,
            error: (event.error.is_some() || event.stop == "error")
                .then(|| text_of(event.error.as_ref())),
            ..Meaning::default()
        },
        "done" | "compact_done" => Meaning::now(AgentState::Idle),
        "error" => Meaning::failed(text_of(event.message.as_ref())),
        "response" if event.success == false => {
            Meaning::failed(text_of(event.error.as_ref().or(event.message.as_ref())))
        }
        _ => Meaning::default(),
    })
}
