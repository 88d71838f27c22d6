//! `pi --mode json` and `pi --mode rpc`, as documented in its docs/json.md, rpc.md, rpc-commands.md and
//! rpc-extension-ui.md, version 1.6.

use std::borrow::Cow;

use serde::Deserialize;
use serde_json::value::RawValue;
use serde_json::{Value, json};

use super::{Dialect, LineKind, LineParser, has_option, parse_object};
use crate::cost::Cost;
use crate::event::{Content, Event, TokenUsage, error_text, text, tokens};
use crate::question::{Answer, Question, QuestionKind, QuestionOption};
use crate::{Activity, AgentCommand, AgentRuntime, CommandError, CommandResponse, PromptDelivery};

pub(super) const DIALECT: Dialect = Dialect {
    runtime: AgentRuntime::Pi,
    is_program: |name, args| name == "pi" && has_option(args, "--mode", &["json", "rpc"]),
    is_own_event: |event| match text(&event["type"]) {
        "session" => event["version"].is_number() && event["cwd"].is_string(),
        "agent_start" | "agent_settled" | "tool_execution_start" | "extension_ui_request" => true,
        _ => false,
    },
    new_parser: || Box::new(Parser),
    encode,
    responds: |command, _| !matches!(command, AgentCommand::Answer(..)),
    reads_no_commands: |args| {
        (!has_option(args, "--mode", &["rpc"])).then_some("start pi with --mode rpc")
    },
    needs_adapter: |_| false,
    earliest: PromptDelivery::Steer,
};

/// Fields that may be long stay unparsed unless the event's type needs them: each update repeats the whole message.
#[derive(Deserialize, Default)]
#[serde(default, rename_all = "camelCase")]
struct PiEvent<'a> {
    #[serde(rename = "type", borrow)]
    kind: Cow<'a, str>,
    #[serde(borrow)]
    id: Option<Cow<'a, str>>,
    tool_call_id: Value,
    tool_name: Value,
    error_message: Value,
    final_error: Value,
    error: Value,
    success: Value,
    command: Value,
    aborted: Value,
    is_error: Value,
    #[serde(borrow)]
    args: Option<&'a RawValue>,
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
    method: Value,
    title: Value,
    options: Value,
    delta: Value,
    delay_ms: Value,
    attempt: Value,
    max_attempts: Value,
    data: Value,
}

/// The part of an update that is not a repetition.
#[derive(Deserialize, Default)]
#[serde(default)]
struct Update<'a> {
    #[serde(rename = "type", borrow)]
    kind: Cow<'a, str>,
    #[serde(borrow)]
    delta: Option<Cow<'a, str>>,
}

#[derive(Deserialize, Default)]
#[serde(default, rename_all = "camelCase")]
struct Message<'a> {
    #[serde(borrow)]
    role: Cow<'a, str>,
    #[serde(borrow)]
    content: Option<&'a RawValue>,
    usage: Value,
    stop_reason: Value,
    error_message: Value,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct ToolResult<'a> {
    #[serde(borrow)]
    content: Option<&'a RawValue>,
}

#[derive(Debug)]
struct Parser;

/// Parses a nested value of an event; returns the default if it is missing or malformed.
fn parse_nested<'a, T: Deserialize<'a> + Default>(raw: Option<&'a RawValue>) -> T {
    raw.and_then(|raw| serde_json::from_str(raw.get()).ok())
        .unwrap_or_default()
}

impl LineParser for Parser {
    fn parse(&mut self, line: &[u8], emit: &mut dyn FnMut(Event<'_>)) -> LineKind {
        let Some(event) = parse_object::<PiEvent<'_>>(line).filter(|event| !event.kind.is_empty())
        else {
            return LineKind::NotAnEvent;
        };
        let error = |field: &Value, emit: &mut dyn FnMut(Event<'_>)| {
            if !field.is_null() {
                emit(Event::Error(error_text(field)));
            }
        };
        let tool_id = text(&event.tool_call_id);
        match event.kind.as_ref() {
            "session" => emit(Event::Session(event.id.as_deref().unwrap_or_default())),
            "agent_start" => emit(Event::Working(None)),
            "turn_start" => emit(Event::Working(Some(Activity::Waiting))),
            "message_start" => match parse_nested::<Message<'_>>(event.message).role == "assistant"
            {
                true => emit(Event::MessageStarted),
                false => emit(Event::Working(None)),
            },
            "message_update" => update(&parse_nested(event.assistant_message_event), emit),
            "message_end" => message_end(&parse_nested(event.message), emit),
            "turn_end" => emit(Event::TurnsEnded(1)),
            "tool_execution_start" => emit(Event::ToolStarted {
                id: tool_id,
                name: text(&event.tool_name),
                arguments: Content::raw(event.args),
            }),
            "tool_execution_update" => emit(Event::ToolProgressed(tool_id)),
            "tool_execution_end" => emit(Event::ToolEnded {
                id: tool_id,
                result: Content::raw(parse_nested::<ToolResult<'_>>(event.result).content),
                failed: event.is_error == true,
            }),
            // Releases of pi before agent_settled end with agent_end.
            "agent_end" if event.will_retry == true => {
                emit(Event::Working(Some(Activity::Retrying)));
            }
            "agent_end" | "agent_settled" => emit(Event::Idle),
            "queue_update" => emit(Event::Queued(
                count(&event.steering) + count(&event.follow_up),
            )),
            "compaction_start" => {
                emit(Event::Working(Some(Activity::Compacting)));
                emit(Event::Notice("compacting its history".into()));
            }
            "compaction_end" => compaction_end(&event, emit),
            "auto_retry_start" | "summarization_retry_scheduled" => {
                emit(Event::Working(Some(Activity::Retrying)));
                // The message that failed has reported the error of an automatic retry.
                if event.kind == "summarization_retry_scheduled" {
                    error(&event.error_message, emit);
                }
                emit(Event::Notice(retry_notice(&event).into()));
            }
            "auto_retry_end" if event.success == false => {
                emit(Event::Notice("stops retrying".into()));
                if !event.final_error.is_null() {
                    emit(Event::Failed(error_text(&event.final_error)));
                }
            }
            "summarization_retry_attempt_start" => {
                emit(Event::Working(Some(Activity::Compacting)));
            }
            "extension_ui_request" => extension_request(&event, emit),
            "extension_error" | "error" => match &event.error {
                Value::Null => emit(Event::Error(error_text(&parse_nested(event.message)))),
                error => emit(Event::Error(error_text(error))),
            },
            "bash_execution_update" => emit(Event::Output(text(&event.delta))),
            "response" => response(&event, emit),
            "session_info"
            | "agent_info"
            | "auto_retry_end"
            | "model_change"
            | "thinking_level_change" => {}
            _ => return LineKind::Unknown,
        }
        LineKind::Event
    }
}

fn update(update: &Update<'_>, emit: &mut dyn FnMut(Event<'_>)) {
    let delta = update.delta.as_deref().unwrap_or_default();
    match update.kind.as_ref() {
        "text_delta" => emit(Event::Text(delta)),
        "thinking_delta" => emit(Event::Thinking(delta)),
        "text_end" | "thinking_end" => emit(Event::BlockEnded),
        kind if kind.starts_with("thinking") => {
            emit(Event::Working(Some(Activity::Thinking)));
        }
        kind if kind.starts_with("text") || kind.starts_with("toolcall") => {
            emit(Event::Working(Some(Activity::Writing)));
        }
        _ => {}
    }
}

/// Reports a complete message. Results of tools that call models have a usage too.
fn message_end(message: &Message<'_>, emit: &mut dyn FnMut(Event<'_>)) {
    let content = Content::raw(message.content);
    emit(Event::Working(None));
    match message.role.as_ref() {
        "user" => emit(Event::Prompt(content)),
        "assistant" => emit(Event::Message(content)),
        _ => {}
    }
    emit(Event::Usage(usage(&message.usage)));
    match text(&message.stop_reason) {
        "error" => emit(Event::Failed(error_text(&message.error_message))),
        "aborted" => emit(Event::Notice("aborted".into())),
        "length" => emit(Event::Notice(
            "the answer was truncated: it is too long".into(),
        )),
        _ => {}
    }
}

fn compaction_end(event: &PiEvent<'_>, emit: &mut dyn FnMut(Event<'_>)) {
    // pi continues with its work after an automatic compaction.
    match event.reason == "manual" && event.will_retry != true {
        true => emit(Event::Idle),
        false => emit(Event::Working(None)),
    }
    let result: Value = parse_nested(event.result);
    emit(Event::Usage(usage(&result["usage"])));
    if !event.error_message.is_null() {
        return emit(Event::Error(error_text(&event.error_message)));
    }
    let before = result["tokensBefore"].as_u64();
    let after = result["estimatedTokensAfter"].as_u64();
    emit(Event::Notice(match before.zip(after) {
        Some((before, after)) => {
            format!("compacted its history: {before} to about {after} tokens").into()
        }
        None if event.aborted == true => "compaction aborted".into(),
        None => "compacted its history".into(),
    }));
}

fn retry_notice(event: &PiEvent<'_>) -> String {
    format!(
        "retries in {} ms ({} of {})",
        tokens(&event.delay_ms),
        tokens(&event.attempt),
        tokens(&event.max_attempts)
    )
}

fn extension_request(event: &PiEvent<'_>, emit: &mut dyn FnMut(Event<'_>)) {
    let message: Value = parse_nested(event.message);
    let kind = match text(&event.method) {
        "confirm" => QuestionKind::Confirm,
        "select" => {
            let options = event.options.as_array().into_iter().flatten();
            let option = |label: &Value| QuestionOption {
                id: label.clone(),
                label: text(label).to_owned(),
                grant: None,
            };
            QuestionKind::Choice(options.map(option).collect())
        }
        "input" | "editor" => QuestionKind::Text,
        "notify" => return emit(Event::Notice(error_text(&message))),
        _ => return,
    };
    let id = json!(event.id.as_deref().unwrap_or_default());
    let title = error_text(&event.title);
    emit(Event::Question(Question::new(
        &id,
        &title,
        text(&message),
        kind,
    )));
}

fn response(event: &PiEvent<'_>, emit: &mut dyn FnMut(Event<'_>)) {
    if event.command == "get_state" && event.success == true {
        emit(Event::Session(text(&event.data["sessionId"])));
    }
    let error = (event.success == false).then(|| error_text(&event.error));
    emit(Event::Response(CommandResponse::new(
        event.id.as_deref(),
        text(&event.command),
        error.as_deref(),
    )));
}

fn usage(usage: &Value) -> TokenUsage {
    TokenUsage {
        input: tokens(&usage["input"]),
        cached: tokens(&usage["cacheRead"]).saturating_add(tokens(&usage["cacheWrite"])),
        output: tokens(&usage["output"]),
        cost: Cost::from_json(&usage["cost"]["total"]),
    }
}

fn count(list: &Value) -> u64 {
    list.as_array().map_or(0, |list| list.len() as u64)
}

fn encode(id: &str, command: &AgentCommand<'_>) -> Result<Value, CommandError> {
    Ok(match command {
        AgentCommand::Prompt(text, delivery) => {
            let mut record = json!({"id": id, "type": "prompt", "message": text});
            // An idle pi starts these two immediately.
            let behavior = match delivery {
                PromptDelivery::Now => return Ok(record),
                PromptDelivery::Steer => "steer",
                PromptDelivery::FollowUp => "followUp",
            };
            record["streamingBehavior"] = behavior.into();
            record
        }
        AgentCommand::Abort => json!({"id": id, "type": "abort"}),
        AgentCommand::Answer(question, typed) => {
            let mut record = json!({"type": "extension_ui_response", "id": question.id});
            match question.parse_answer(typed)? {
                Answer::Confirmed(confirmed) => record["confirmed"] = confirmed.into(),
                Answer::Chosen(option) => record["value"] = option.id.clone(),
                Answer::Text(text) => record["value"] = text.into(),
            }
            record
        }
    })
}
