//! The events of pi: its docs/json.md, rpc.md and rpc-extension-ui.md, version 0.87.

use std::borrow::Cow;

use serde::Deserialize;
use serde_json::Value;
use serde_json::value::RawValue;

use super::{Meaning, Tool, Usage, dollars, text_of};
use crate::{Activity, AgentState};

/// What may be long is read only where the event's kind asks for it: an update repeats all that was written before.
#[derive(Deserialize, Default)]
#[serde(default, rename_all = "camelCase")]
struct Event<'a> {
    #[serde(rename = "type", borrow)]
    kind: Cow<'a, str>,
    tool_call_id: Value,
    tool_name: Value,
    error_message: Option<Value>,
    final_error: Option<Value>,
    error: Option<Value>,
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

/// What is looked at of a message.
#[derive(Deserialize, Default)]
#[serde(default, rename_all = "camelCase")]
struct Message {
    role: Value,
    usage: Value,
    stop_reason: Value,
    error_message: Value,
}

/// What is looked at of a part of an assistant's message.
#[derive(Deserialize, Default)]
#[serde(default)]
struct Part {
    #[serde(rename = "type")]
    kind: Value,
}

/// What is looked at of a result of compaction.
#[derive(Deserialize, Default)]
#[serde(default)]
struct Compacted {
    usage: Value,
}

/// Reads a part of an event; what is not as it should be is passed over.
fn part<'a, T: Deserialize<'a> + Default>(raw: Option<&'a RawValue>) -> T {
    raw.and_then(|raw| serde_json::from_str(raw.get()).ok())
        .unwrap_or_default()
}

/// Methods of pi's extension interface that wait for an answer.
pub(crate) const DIALOGUES: &[&str] = &["select", "confirm", "input", "editor"];

/// Reads one line; `None` where it is no event.
pub(crate) fn read(line: &[u8]) -> Option<Meaning> {
    let event: Event = serde_json::from_slice(line).ok()?;
    if event.kind.is_empty() {
        return None;
    }
    let said = |error: &Option<Value>| error.as_ref().map(|error| text_of(Some(error)));
    Some(match event.kind.as_ref() {
        "agent_start" => Meaning::working(None),
        "turn_start" => Meaning::working(Activity::Waiting),
        "message_start" if part::<Message>(event.message).role == "assistant" => {
            Meaning::working(Activity::Waiting)
        }
        "message_start" => Meaning::working(None),
        "message_update" => Meaning::working(streaming(&part(event.assistant_message_event))),
        "message_end" => message(&part(event.message)),
        "turn_end" => Meaning {
            turn: true,
            ..Meaning::default()
        },
        "tool_execution_start" => tool(Tool::Started {
            id: word(&event.tool_call_id),
            name: word(&event.tool_name),
        }),
        "tool_execution_update" => tool(Tool::Progressed {
            id: word(&event.tool_call_id),
        }),
        "tool_execution_end" => tool(Tool::Ended {
            id: word(&event.tool_call_id),
        }),
        // A run of the agent's loop; what follows by itself is not over before agent_settled, of which an
        // older pi knows nothing.
        "agent_end" if event.will_retry == true => Meaning::working(Activity::Retrying),
        "agent_end" | "agent_settled" => Meaning::now(AgentState::Idle),
        "queue_update" => Meaning {
            queued: Some(count(&event.steering) + count(&event.follow_up)),
            ..Meaning::default()
        },
        "compaction_start" => Meaning::working(Activity::Compacting),
        "compaction_end" => Meaning {
            // One that was asked for stands alone; pi goes on after any other.
            state: Some(match event.reason == "manual" && event.will_retry != true {
                true => AgentState::Idle,
                false => AgentState::Working,
            }),
            usage: usage(&part::<Compacted>(event.result).usage),
            error: said(&event.error_message),
            ..Meaning::default()
        },
        "auto_retry_start" | "summarization_retry_scheduled" => Meaning {
            error: said(&event.error_message),
            ..Meaning::working(Activity::Retrying)
        },
        "auto_retry_end" => Meaning {
            error: said(&event.final_error),
            ..Meaning::default()
        },
        "summarization_retry_attempt_start" => Meaning::working(Activity::Compacting),
        "extension_ui_request"
            if event
                .method
                .as_str()
                .is_some_and(|method| DIALOGUES.contains(&method)) =>
        {
            Meaning::now(AgentState::Blocked)
        }
        "extension_error" | "error" => Meaning::failed(match &event.error {
            Some(error) => text_of(Some(error)),
            None => text_of(Some(&part(event.message))),
        }),
        "response" if event.success == false => Meaning::failed(text_of(event.error.as_ref())),
        _ => Meaning::default(),
    })
}

fn tool(tool: Tool) -> Meaning {
    Meaning {
        tool: Some(tool),
        ..Meaning::default()
    }
}

/// What an assistant's message is made of right now.
fn streaming(part: &Part) -> Option<Activity> {
    let kind = part.kind.as_str().unwrap_or_default();
    match kind.split_once('_').map_or(kind, |(what, _)| what) {
        "thinking" => Some(Activity::Thinking),
        "text" | "toolcall" => Some(Activity::Writing),
        _ => None,
    }
}

/// A message is complete. Tools that call models say what that cost.
fn message(message: &Message) -> Meaning {
    Meaning {
        usage: usage(&message.usage),
        error: (message.stop_reason == "error").then(|| text_of(Some(&message.error_message))),
        ..Meaning::working(None)
    }
}

fn usage(usage: &Value) -> Usage {
    let tokens = |name: &str| usage[name].as_u64().unwrap_or(0);
    Usage {
        input: tokens("input"),
        cached: tokens("cacheRead").saturating_add(tokens("cacheWrite")),
        output: tokens("output"),
        cost: dollars(&usage["cost"]["total"]),
    }
}

fn count(list: &Value) -> u64 {
    list.as_array().map_or(0, |list| list.len() as u64)
}

fn word(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}
