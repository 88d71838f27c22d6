//! The Agent Client Protocol, version 1 (agentclientprotocol.com). The adapter holds the session, and also writes the
//! prompts that it sends.

use serde_json::{Value, json};

use super::{Dialect, LineKind, LineParser, adapter, parse_object};
use crate::cost::Cost;
use crate::event::{Content, Event, TokenUsage, error_text, text, tokens};
use crate::question::{Answer, Grant, Question, QuestionKind, QuestionOption};
use crate::{Activity, AgentCommand, AgentRuntime, CommandError, PromptDelivery};

pub(super) const DIALECT: Dialect = Dialect {
    runtime: AgentRuntime::Acp,
    is_program: |name, args| {
        let programs = [
            "gemini", "qwen", "copilot", "cline", "goose", "opencode", "auggie",
        ];
        name.ends_with("-acp")
            || (programs.contains(&name)
                && args
                    .iter()
                    .any(|arg| matches!(*arg, "--acp" | "--experimental-acp" | "acp")))
    },
    is_own_event: |event| {
        event["jsonrpc"] == "2.0"
            && (event["method"] == "session/update"
                || event["result"]["protocolVersion"].is_number())
    },
    new_parser: || Box::new(Parser::default()),
    encode,
    responds: adapter::responds,
    reads_no_commands: |_| None,
    needs_adapter: |_| true,
    earliest: PromptDelivery::FollowUp,
};

/// Maximum number of running tool calls whose names are stored.
const MAX_CALLS: usize = 64;

#[derive(Debug, Default)]
struct Parser {
    /// Id of the prompt that the adapter has sent, if it has not been answered.
    prompt: Option<Value>,
    /// A fragment of a message was reported, and its end was not.
    is_streaming: bool,
    /// The agent repeats an earlier session.
    is_replaying: bool,
    /// Ids of running tool calls, oldest first.
    calls: Vec<String>,
    open_request: Option<PermissionRequest>,
    /// The cost that the session has reported.
    cost: TokenUsage,
    /// The tokens that the session has reported, for an agent that reports totals.
    total: Option<TokenUsage>,
    /// The id of the session was reported.
    has_session: bool,
}

/// A permission request that waits for an answer.
#[derive(Debug)]
struct PermissionRequest {
    id: Value,
    call: String,
}

impl LineParser for Parser {
    fn parse(&mut self, line: &[u8], emit: &mut dyn FnMut(Event<'_>)) -> LineKind {
        let Some(message) = parse_object::<Value>(line) else {
            return LineKind::NotAnEvent;
        };
        if let Some(kind) = adapter::parse(&message, emit) {
            return kind;
        }
        if message["jsonrpc"] != "2.0" {
            return LineKind::NotAnEvent;
        }
        let Some(method) = message["method"].as_str() else {
            self.response(&message, emit);
            return LineKind::Event;
        };
        let params = &message["params"];
        match method {
            "session/prompt" => {
                self.is_replaying = false;
                self.prompt = Some(message["id"].clone());
                emit(Event::Prompt(Content::Json(&params["prompt"])));
                emit(Event::Working(Some(Activity::Waiting)));
            }
            "session/update" => {
                if !std::mem::replace(&mut self.has_session, true) {
                    emit(Event::Session(text(&params["sessionId"])));
                }
                return self.update(&params["update"], emit);
            }
            "session/request_permission" => {
                // Some agents report the call only after the permission.
                self.tool_call(&params["toolCall"], emit);
                self.open_request = Some(PermissionRequest {
                    id: message["id"].clone(),
                    call: text(&params["toolCall"]["toolCallId"]).to_owned(),
                });
                emit(Event::Question(permission(&message)));
            }
            "fs/read_text_file" | "fs/write_text_file" => emit(Event::Working(None)),
            _ if method.starts_with("terminal/") => emit(Event::Working(None)),
            _ if method.starts_with("session/") || method == "initialize" => {}
            _ => return LineKind::Unknown,
        }
        LineKind::Event
    }
}

impl Parser {
    fn update(&mut self, update: &Value, emit: &mut dyn FnMut(Event<'_>)) -> LineKind {
        let kind = text(&update["sessionUpdate"]);
        if kind == "user_message_chunk" && self.prompt.is_none() {
            self.is_replaying = true;
        }
        if self.is_replaying {
            return LineKind::Event;
        }
        let fragment = text(&update["content"]["text"]);
        match kind {
            "agent_message_chunk" => {
                self.is_streaming = true;
                emit(Event::Text(fragment));
            }
            "agent_thought_chunk" => {
                self.is_streaming = true;
                emit(Event::Thinking(fragment));
            }
            "tool_call" | "tool_call_update" => self.tool_call(update, emit),
            "plan" => emit(Event::Working(None)),
            "usage_update" => {
                let total = TokenUsage {
                    cost: Cost::from_json(&update["cost"]["amount"]),
                    ..TokenUsage::default()
                };
                emit(Event::Usage(self.cost.advance_to(total)));
            }
            "user_message_chunk"
            | "available_commands_update"
            | "current_mode_update"
            | "config_option_update"
            | "session_info_update" => {}
            _ => return LineKind::Unknown,
        }
        LineKind::Event
    }

    /// Reports a tool call. An agent may skip the first or any later status of a call.
    fn tool_call(&mut self, update: &Value, emit: &mut dyn FnMut(Event<'_>)) {
        self.end_block(emit);
        let id = text(&update["toolCallId"]);
        let is_granted = self.open_request.take_if(|request| request.call == id);
        if is_granted.is_some() {
            emit(Event::Working(None));
        }
        let index = self.calls.iter().position(|call| call == id);
        let status = text(&update["status"]);
        let has_ended = matches!(status, "completed" | "failed");
        match index {
            Some(_) if !has_ended => emit(Event::ToolProgressed(id)),
            Some(index) => drop(self.calls.remove(index)),
            None => {
                emit(Event::ToolStarted {
                    id,
                    name: tool_name(update),
                    arguments: Content::Json(tool_arguments(update)),
                });
                if !has_ended && self.calls.len() < MAX_CALLS {
                    self.calls.push(id.to_owned());
                }
            }
        }
        if has_ended {
            let result = &update["content"][0]["content"]["text"];
            emit(Event::ToolEnded {
                id,
                result: Content::Json(result),
                failed: status == "failed",
            });
        }
    }

    fn response(&mut self, message: &Value, emit: &mut dyn FnMut(Event<'_>)) {
        let result = &message["result"];
        let answered = self
            .open_request
            .take_if(|request| request.id == message["id"] && result["outcome"].is_object());
        if answered.is_some() {
            return emit(Event::Working(None));
        }
        // Copilot CLI 1.0.102 reports the tokens of the session at the end of each prompt.
        if result["agentInfo"]["name"] == "Copilot" {
            self.total = Some(TokenUsage::default());
        }
        let stop = text(&result["stopReason"]);
        let is_prompt = match &self.prompt {
            Some(prompt) => *prompt == message["id"],
            None => !stop.is_empty() || message["error"].is_object(),
        };
        if is_prompt {
            self.end_prompt(message, stop, emit);
        } else if self.prompt.is_none() {
            self.is_replaying = false;
        }
        emit(Event::Session(text(&result["sessionId"])));
    }

    fn end_prompt(&mut self, message: &Value, stop: &str, emit: &mut dyn FnMut(Event<'_>)) {
        self.end_block(emit);
        let usage = usage(&message["result"]);
        emit(Event::TurnsEnded(1));
        emit(Event::Usage(match &mut self.total {
            Some(total) => total.advance_to(usage),
            None => usage,
        }));
        *self = Self {
            cost: self.cost,
            total: self.total,
            has_session: self.has_session,
            ..Self::default()
        };
        match stop {
            "" => emit(Event::Failed(error_text(&message["error"]))),
            "cancelled" => emit(Event::Notice("aborted".into())),
            "max_tokens" => emit(Event::Notice(
                "the answer was truncated: it is too long".into(),
            )),
            "max_turn_requests" => emit(Event::Notice("ended at its limit of requests".into())),
            "refusal" => emit(Event::Failed("the model refused the prompt".into())),
            _ => {}
        }
        emit(Event::Idle);
    }

    fn end_block(&mut self, emit: &mut dyn FnMut(Event<'_>)) {
        if std::mem::take(&mut self.is_streaming) {
            emit(Event::BlockEnded);
        }
    }
}

/// Returns a short name of a tool: its kind, unless that says nothing.
fn tool_name(call: &Value) -> &str {
    match text(&call["kind"]) {
        "" | "other" => text(&call["title"]),
        "execute" => "shell",
        kind => kind,
    }
}

/// Returns the input of a tool, or else its title.
fn tool_arguments(call: &Value) -> &Value {
    match &call["rawInput"] {
        Value::Object(input) if input.contains_key("command") => &call["rawInput"]["command"],
        Value::Object(input) if !input.is_empty() => &call["rawInput"],
        _ => &call["title"],
    }
}

/// Returns the usage of a prompt. Agents differ in whether the tokens read contain the cached ones; the total shows it.
fn usage(result: &Value) -> TokenUsage {
    let usage = &result["usage"];
    if !usage.is_object() {
        let count = &result["_meta"]["quota"]["token_count"];
        return TokenUsage {
            input: tokens(&count["input_tokens"]),
            output: tokens(&count["output_tokens"]),
            ..TokenUsage::default()
        };
    }
    let (input, output) = (
        tokens(&usage["inputTokens"]),
        tokens(&usage["outputTokens"]),
    );
    let cached =
        tokens(&usage["cachedReadTokens"]).saturating_add(tokens(&usage["cachedWriteTokens"]));
    let total = tokens(&usage["totalTokens"]);
    TokenUsage {
        input: match total < input.saturating_add(output).saturating_add(cached) {
            true => input.saturating_sub(cached),
            false => input,
        },
        cached,
        output,
        ..TokenUsage::default()
    }
}

fn permission(message: &Value) -> Question {
    let params = &message["params"];
    let option = |option: &Value| QuestionOption {
        id: option["optionId"].clone(),
        label: text(&option["name"]).to_owned(),
        grant: match text(&option["kind"]) {
            "allow_once" => Some(Grant::Once),
            "allow_always" => Some(Grant::Always),
            "reject_once" | "reject_always" => Some(Grant::Refused),
            _ => None,
        },
    };
    let options = params["options"].as_array().into_iter().flatten();
    let kind = QuestionKind::Choice(options.map(option).collect());
    let call = &params["toolCall"];
    let title = format!("{}:", tool_name(call));
    let detail = crate::transcript::arguments_text(tool_arguments(call));
    Question::new(&message["id"], &title, &detail, kind)
}

fn encode(id: &str, command: &AgentCommand<'_>) -> Result<Value, CommandError> {
    let AgentCommand::Answer(question, typed) = command else {
        return adapter::encode(id, command);
    };
    let option = match question.parse_answer(typed)? {
        Answer::Chosen(option) => option.id.clone(),
        Answer::Confirmed(_) | Answer::Text(_) => Value::Null,
    };
    let outcome = json!({"outcome": "selected", "optionId": option});
    Ok(json!({"jsonrpc": "2.0", "id": question.id, "result": {"outcome": outcome}}))
}
