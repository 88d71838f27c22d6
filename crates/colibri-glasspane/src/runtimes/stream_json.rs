//! The stream-json protocol of Claude Code, which Qwen Code shares in large parts.

use std::borrow::Cow;

use serde_json::{Value, json};

use super::{LineKind, LineParser, parse_object};
use crate::cost::Cost;
use crate::event::{Content, Event, TokenUsage, error_text, text, tokens};
use crate::question::{Answer, Grant, Question, QuestionKind, QuestionOption};
use crate::{Activity, CommandError, CommandResponse};

/// How an agent reports the tokens of a prompt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum UsageScope {
    /// Of the prompt.
    Prompt,
    /// Of the session, cached tokens included in those read.
    Session,
}

#[derive(Debug)]
pub(super) struct Parser {
    scope: UsageScope,
    /// The usage that the session has reported.
    total: TokenUsage,
    /// Id of the permission request that waits for an answer.
    open_request: Option<Value>,
}

impl Parser {
    pub(super) fn new(scope: UsageScope) -> Self {
        Self {
            scope,
            total: TokenUsage::default(),
            open_request: None,
        }
    }
}

impl LineParser for Parser {
    fn parse(&mut self, line: &[u8], emit: &mut dyn FnMut(Event<'_>)) -> LineKind {
        let Some(event) = parse_object::<Value>(line) else {
            return LineKind::NotAnEvent;
        };
        // Messages of a subagent: the tool that runs it stays the current one.
        let is_nested = event["parent_tool_use_id"].is_string();
        match text(&event["type"]) {
            "" => return LineKind::NotAnEvent,
            "system" => return self.system(&event, emit),
            "assistant" if is_nested => emit(Event::Working(None)),
            "user" if is_nested => emit(Event::Working(None)),
            "assistant" => self.assistant(&event, emit),
            "user" => user(&event, emit),
            "stream_event" if is_nested => {}
            "stream_event" => stream_event(&event["event"], emit),
            "tool_progress" => emit(Event::ToolProgressed(text(&event["tool_use_id"]))),
            "result" => self.result(&event, emit),
            "control_request" => self.control_request(&event, emit),
            "control_cancel_request" => {
                if self
                    .open_request
                    .take_if(|id| *id == event["request_id"])
                    .is_some()
                {
                    emit(Event::Working(None));
                    emit(Event::Notice("the question was withdrawn".into()));
                }
            }
            "control_response" => control_response(&event["response"], emit),
            "command_lifecycle" if event["state"] != "completed" => emit(Event::Response(
                CommandResponse::new(event["command_uuid"].as_str(), "prompt", None),
            )),
            "command_lifecycle" | "rate_limit_event" | "auth_status" => {}
            _ => return LineKind::Unknown,
        }
        LineKind::Event
    }
}

impl Parser {
    fn system(&mut self, event: &Value, emit: &mut dyn FnMut(Event<'_>)) -> LineKind {
        match text(&event["subtype"]) {
            "init" => {
                emit(Event::Session(text(&event["session_id"])));
                emit(Event::Working(Some(Activity::Waiting)));
            }
            "status" => emit(Event::Working(Some(match text(&event["status"]) {
                "compacting" => Activity::Compacting,
                _ => Activity::Waiting,
            }))),
            "thinking_tokens" => emit(Event::Working(Some(Activity::Thinking))),
            "api_retry" => {
                emit(Event::Working(Some(Activity::Retrying)));
                emit(Event::Notice(retry_notice(event).into()));
            }
            "session_state_changed" => match text(&event["state"]) {
                "running" => emit(Event::Working(None)),
                "idle" => emit(Event::Idle),
                _ => {}
            },
            "compact_boundary" => emit(Event::Notice("compacted its history".into())),
            "permission_denied" => emit(Event::Notice(
                format!("no permission for {}", text(&event["tool_name"])).into(),
            )),
            _ => return LineKind::Unknown,
        }
        LineKind::Event
    }

    /// Reports the blocks of an assistant message; the agent writes a line for each block.
    fn assistant(&mut self, event: &Value, emit: &mut dyn FnMut(Event<'_>)) {
        let message = &event["message"];
        self.open_request = None;
        // The result that follows repeats the text of a failure.
        if !event["error"].is_null() {
            return;
        }
        for block in message["content"].as_array().into_iter().flatten() {
            match text(&block["type"]) {
                "thinking" => emit(Event::Working(Some(Activity::Thinking))),
                "text" => emit(Event::Message(Content::Text(text(&block["text"])))),
                "tool_use" => emit(Event::ToolStarted {
                    id: text(&block["id"]),
                    name: text(&block["name"]),
                    arguments: Content::Json(&block["input"]),
                }),
                _ => emit(Event::Working(None)),
            }
        }
    }

    fn result(&mut self, event: &Value, emit: &mut dyn FnMut(Event<'_>)) {
        self.open_request = None;
        emit(Event::TurnsEnded(tokens(&event["num_turns"])));
        emit(Event::Usage(self.usage(event)));
        if event["is_error"] == true {
            emit(match was_aborted(event) {
                true => Event::Notice("aborted".into()),
                false => Event::Failed(result_error(event)),
            });
        }
        emit(Event::Idle);
    }

    fn usage(&mut self, event: &Value) -> TokenUsage {
        let usage = &event["usage"];
        let cached = tokens(&usage["cache_read_input_tokens"])
            .saturating_add(tokens(&usage["cache_creation_input_tokens"]));
        let mut usage = TokenUsage {
            input: tokens(&usage["input_tokens"]),
            cached,
            output: tokens(&usage["output_tokens"]),
            cost: Cost::from_json(&event["total_cost_usd"]),
        };
        if self.scope == UsageScope::Session {
            usage.input = usage.input.saturating_sub(cached);
            return self.total.advance_to(usage);
        }
        // The total cost contains earlier prompts, those of a resumed session included.
        if let Some(models) = event["model_usage_since_last_result"].as_object() {
            usage.cost = models
                .values()
                .map(|model| Cost::from_json(&model["costUSD"]))
                .sum();
        } else {
            let total = usage.cost;
            usage.cost = total.since(self.total.cost);
            self.total.cost = total;
        }
        usage
    }

    fn control_request(&mut self, event: &Value, emit: &mut dyn FnMut(Event<'_>)) {
        let request = &event["request"];
        if request["subtype"] != "can_use_tool" {
            return;
        }
        let option = |id: &str, label: &str, grant| QuestionOption {
            id: id.into(),
            label: label.to_owned(),
            grant: Some(grant),
        };
        let mut options = vec![option("allow", "allow", Grant::Once)];
        let suggestions = session_permissions(request);
        if !suggestions.is_empty() {
            options.push(option(
                "allow-session",
                "allow in this session",
                Grant::Always,
            ));
        }
        options.push(option("deny", "deny", Grant::Refused));
        let title = format!("{}:", text(&request["tool_name"]));
        let detail = crate::transcript::arguments_text(&request["input"]);
        self.open_request = Some(event["request_id"].clone());
        emit(Event::Question(Question {
            context: json!({"input": request["input"], "permissions": suggestions}),
            ..Question::new(
                &event["request_id"],
                &title,
                &detail,
                QuestionKind::Choice(options),
            )
        }));
    }
}

/// Returns the suggested permissions that end with the session. Others write the project's settings.
fn session_permissions(request: &Value) -> Vec<Value> {
    let suggestions = request["permission_suggestions"].as_array();
    let of_session = |suggestion: &&Value| suggestion["destination"] == "session";
    suggestions
        .into_iter()
        .flatten()
        .filter(of_session)
        .cloned()
        .collect()
}

fn user(event: &Value, emit: &mut dyn FnMut(Event<'_>)) {
    let content = &event["message"]["content"];
    let blocks = content.as_array().map_or(&[][..], Vec::as_slice);
    let results = blocks.iter().filter(|block| block["type"] == "tool_result");
    let mut has_result = false;
    for result in results {
        has_result = true;
        emit(Event::ToolEnded {
            id: text(&result["tool_use_id"]),
            result: Content::Json(&result["content"]),
            failed: result["is_error"] == true,
        });
    }
    let first = content
        .as_str()
        .or_else(|| blocks.first()?["text"].as_str());
    // The agent reports an interruption as a message of the user.
    let is_interruption = first.is_some_and(|text| text.starts_with("[Request interrupted"));
    if !has_result && !is_interruption && event["isSynthetic"] != true {
        emit(Event::Prompt(Content::Json(content)));
    }
}

fn stream_event(event: &Value, emit: &mut dyn FnMut(Event<'_>)) {
    let delta = &event["delta"];
    match text(&event["type"]) {
        "message_start" => emit(Event::MessageStarted),
        "content_block_start" => emit(Event::Working(Some(
            match text(&event["content_block"]["type"]) {
                "thinking" => Activity::Thinking,
                _ => Activity::Writing,
            },
        ))),
        "content_block_delta" => match text(&delta["type"]) {
            "text_delta" => emit(Event::Text(text(&delta["text"]))),
            "thinking_delta" => emit(Event::Thinking(text(&delta["thinking"]))),
            "input_json_delta" => emit(Event::Working(Some(Activity::Writing))),
            _ => {}
        },
        "content_block_stop" => emit(Event::BlockEnded),
        _ => {}
    }
}

fn control_response(response: &Value, emit: &mut dyn FnMut(Event<'_>)) {
    let error = (response["subtype"] == "error").then(|| error_text(&response["error"]));
    emit(Event::Response(CommandResponse::new(
        response["request_id"].as_str(),
        "control request",
        error.as_deref(),
    )));
}

fn was_aborted(event: &Value) -> bool {
    text(&event["terminal_reason"]).starts_with("aborted")
        || event["error"]["message"] == "Operation cancelled."
}

fn result_error(event: &Value) -> Cow<'_, str> {
    let first = event["errors"].as_array().and_then(|errors| errors.first());
    match (event["result"].as_str(), first) {
        (Some(result), _) if !result.is_empty() => result.into(),
        (_, Some(error)) => error_text(error),
        _ if !event["error"].is_null() => error_text(&event["error"]),
        _ => text(&event["subtype"]).replace('_', " ").into(),
    }
}

fn retry_notice(event: &Value) -> String {
    format!(
        "{}; retries in {} ms ({} of {})",
        error_text(&event["error"]),
        tokens(&event["retry_delay_ms"]),
        tokens(&event["attempt"]),
        tokens(&event["max_retries"])
    )
}

/// Encodes an abort.
pub(super) fn interrupt(id: &str) -> Value {
    json!({"type": "control_request", "request_id": id, "request": {"subtype": "interrupt"}})
}

/// Encodes a prompt.
pub(super) fn user_message(text: &str) -> Value {
    let content = json!([{"type": "text", "text": text}]);
    json!({"type": "user", "message": {"role": "user", "content": content}, "parent_tool_use_id": null})
}

/// Encodes the answer to a permission request.
pub(super) fn permission(question: &Question, typed: &str) -> Result<Value, CommandError> {
    let id = match question.parse_answer(typed)? {
        Answer::Chosen(option) => text(&option.id),
        Answer::Confirmed(_) | Answer::Text(_) => "",
    };
    let context = &question.context;
    let answer = match id {
        "allow" => json!({"behavior": "allow", "updatedInput": context["input"]}),
        "allow-session" => json!({
            "behavior": "allow",
            "updatedInput": context["input"],
            "updatedPermissions": context["permissions"],
        }),
        _ => json!({"behavior": "deny", "message": "The user refused this."}),
    };
    Ok(json!({
        "type": "control_response",
        "response": {"subtype": "success", "request_id": question.id, "response": answer},
    }))
}
