//! The events of pi (its docs/json.md and docs/rpc.md) and, with the same envelope, of zot. Unknown ones
//! are counted and change nothing.

use serde::Deserialize;

/// What an event means for the view.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Meaning {
    Working,
    Idle,
    Blocked,
    ToolStarted(String),
    ToolEnded,
    TurnEnded,
    /// An assistant's message is complete.
    Message {
        input: u64,
        output: u64,
        cost: f64,
        error: Option<String>,
    },
    Failed(String),
    Nothing,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Event<'a> {
    #[serde(rename = "type")]
    kind: &'a str,
    #[serde(rename = "toolName")]
    tool_name: Option<String>,
    #[serde(rename = "errorMessage")]
    error_message: Option<String>,
    #[serde(rename = "finalError")]
    final_error: Option<String>,
    error: Option<serde_json::Value>,
    success: Option<bool>,
    method: Option<String>,
    message: Option<serde_json::Value>,
}

/// Methods of pi's extension interface that wait for an answer (docs/rpc.md, extension_ui_request).
const DIALOGUES: &[&str] = &["select", "confirm", "input", "editor"];

/// Reads one line; `None` where it is no event.
pub(crate) fn read(line: &[u8]) -> Option<Meaning> {
    let event: Event<'_> = serde_json::from_slice(line).ok()?;
    Some(match event.kind {
        "" => return None,
        "agent_start"
        | "turn_start"
        | "message_start"
        | "message_update"
        | "tool_execution_update"
        | "compaction_start"
        | "compaction_end"
        | "extension_ui_response" => Meaning::Working,
        "auto_retry_start" => event
            .error_message
            .map_or(Meaning::Working, Meaning::Failed),
        "auto_retry_end" => event.final_error.map_or(Meaning::Working, Meaning::Failed),
        "tool_execution_start" => Meaning::ToolStarted(event.tool_name.unwrap_or_default()),
        "tool_execution_end" => Meaning::ToolEnded,
        "turn_end" => Meaning::TurnEnded,
        "agent_end" => Meaning::Idle,
        "extension_ui_request"
            if event
                .method
                .as_deref()
                .is_some_and(|method| DIALOGUES.contains(&method)) =>
        {
            Meaning::Blocked
        }
        "permission_request" => Meaning::Blocked,
        "error" => Meaning::Failed(text_of(event.error.as_ref().or(event.message.as_ref()))),
        "response" if event.success == Some(false) => {
            Meaning::Failed(text_of(event.error.as_ref()))
        }
        "message_end" => match event.message {
            Some(message) if message["role"] == "assistant" => {
                let usage = &message["usage"];
                Meaning::Message {
                    input: usage["input"].as_u64().unwrap_or(0),
                    output: usage["output"].as_u64().unwrap_or(0),
                    cost: usage["cost"]["total"]
                        .as_f64()
                        .filter(|cost| cost.is_finite())
                        .unwrap_or(0.0),
                    error: (message["stopReason"] == "error")
                        .then(|| text_of(Some(&message["errorMessage"]))),
                }
            }
            _ => Meaning::Working,
        },
        _ => Meaning::Nothing,
    })
}

fn text_of(value: Option<&serde_json::Value>) -> String {
    match value {
        Some(serde_json::Value::String(text)) => text.clone(),
        Some(value) if !value.is_null() => value.to_string(),
        _ => "an error without a message".to_owned(),
    }
}
