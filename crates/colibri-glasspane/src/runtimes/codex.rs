//! `codex exec --json` and `codex app-server`, as Codex CLI 0.171.0 writes and reads them. The app server is driven by
//! the adapter, which holds its thread.

use serde_json::{Value, json};

use super::{Dialect, LineKind, LineParser, adapter, parse_object};
use crate::event::{Content, Event, TokenUsage, error_text, text, tokens};
use crate::question::{Answer, Grant, Question, QuestionKind, QuestionOption};
use crate::{Activity, AgentCommand, AgentRuntime, CommandError, PromptDelivery};

pub(super) const DIALECT: Dialect = Dialect {
    runtime: AgentRuntime::Codex,
    is_program: |name, args| {
        name == "codex"
            && (args.contains(&"app-server")
                || (args.contains(&"exec") && args.contains(&"--json")))
    },
    is_own_event: |event| {
        event["type"] == "thread.started"
            || event["method"] == "thread/started"
            || event["result"]["codexHome"].is_string()
    },
    new_parser: || Box::new(Parser::default()),
    encode,
    responds: adapter::responds,
    reads_no_commands: |args| {
        (!args.contains(&"app-server")).then_some("start codex app-server instead of codex exec")
    },
    needs_adapter: |args| args.contains(&"app-server"),
    earliest: PromptDelivery::Steer,
};

#[derive(Debug, Default)]
struct Parser {
    /// The usage that the thread has reported.
    total: TokenUsage,
    /// A turn runs. The usage before the first turn of a resumed thread is that of earlier turns.
    is_working: bool,
    /// Id of the approval request that waits for an answer.
    open_request: Option<Value>,
}

impl LineParser for Parser {
    fn parse(&mut self, line: &[u8], emit: &mut dyn FnMut(Event<'_>)) -> LineKind {
        let Some(event) = parse_object::<Value>(line) else {
            return LineKind::NotAnEvent;
        };
        if let Some(kind) = adapter::parse(&event, emit) {
            return kind;
        }
        match (event["method"].as_str(), event["type"].as_str()) {
            (Some(method), _) => self.server_message(method, &event, emit),
            (None, Some(kind)) => self.exec_event(kind, &event, emit),
            (None, None) if event["id"].is_null() => LineKind::NotAnEvent,
            (None, None) => {
                emit(Event::Session(text(&event["result"]["thread"]["id"])));
                LineKind::Event
            }
        }
    }
}

impl Parser {
    /// Reports an event of `codex exec`.
    fn exec_event(
        &mut self,
        kind: &str,
        event: &Value,
        emit: &mut dyn FnMut(Event<'_>),
    ) -> LineKind {
        let item = &event["item"];
        match kind {
            "thread.started" => {
                emit(Event::Session(text(&event["thread_id"])));
                emit(Event::Working(Some(Activity::Waiting)));
            }
            "turn.started" => emit(Event::Working(Some(Activity::Waiting))),
            "item.started" => item_started(item, emit),
            "item.updated" => emit(Event::ToolProgressed(text(&item["id"]))),
            "item.completed" => item_completed(item, emit),
            "turn.completed" => {
                emit(Event::TurnsEnded(1));
                emit(Event::Usage(
                    self.total.advance_to(exec_usage(&event["usage"])),
                ));
                emit(Event::Idle);
            }
            "turn.failed" => {
                emit(Event::TurnsEnded(1));
                emit(Event::Failed(error_text(&event["error"])));
                emit(Event::Idle);
            }
            // A failure follows if the program does not connect again.
            "error" => {
                emit(Event::Working(Some(Activity::Retrying)));
                emit(Event::Notice(error_text(&event["message"])));
            }
            _ => return LineKind::Unknown,
        }
        LineKind::Event
    }

    /// Reports a notification or a request of `codex app-server`.
    fn server_message(
        &mut self,
        method: &str,
        event: &Value,
        emit: &mut dyn FnMut(Event<'_>),
    ) -> LineKind {
        let params = &event["params"];
        let item = &params["item"];
        match method {
            "turn/started" => {
                self.is_working = true;
                emit(Event::Working(Some(Activity::Waiting)));
            }
            "item/started" => item_started(item, emit),
            "item/completed" => item_completed(item, emit),
            "item/agentMessage/delta" => emit(Event::Text(text(&params["delta"]))),
            "item/reasoning/summaryTextDelta" | "item/reasoning/textDelta" => {
                emit(Event::Thinking(text(&params["delta"])));
            }
            "item/commandExecution/outputDelta" | "item/fileChange/outputDelta" => {
                emit(Event::ToolProgressed(text(&params["itemId"])));
            }
            "thread/tokenUsage/updated" if self.is_working => {
                emit(Event::Usage(server_usage(&params["tokenUsage"]["last"])));
            }
            "thread/tokenUsage/updated" => {}
            "turn/completed" => self.turn_completed(&params["turn"], emit),
            "error" if params["willRetry"] == true => {
                emit(Event::Working(Some(Activity::Retrying)));
                let error = &params["error"];
                let details = text(&error["additionalDetails"]);
                emit(Event::Notice(
                    format!("{} {details}", error_text(error)).into(),
                ));
            }
            "serverRequest/resolved" => {
                if self
                    .open_request
                    .take_if(|id| *id == params["requestId"])
                    .is_some()
                {
                    emit(Event::Working(None));
                }
            }
            "item/commandExecution/requestApproval" | "item/fileChange/requestApproval" => {
                self.open_request = Some(event["id"].clone());
                emit(Event::Question(approval(method, event)));
            }
            "warning" | "configWarning" => emit(Event::Notice(error_text(&params["message"]))),
            // The turn that ends with it reports the error.
            "error" | "initialize" | "initialized" => {}
            _ if method.contains('/') => {}
            _ => return LineKind::Unknown,
        }
        LineKind::Event
    }

    fn turn_completed(&mut self, turn: &Value, emit: &mut dyn FnMut(Event<'_>)) {
        *self = Self {
            total: self.total,
            ..Self::default()
        };
        emit(Event::TurnsEnded(1));
        match text(&turn["status"]) {
            "failed" => emit(Event::Failed(error_text(&turn["error"]))),
            "interrupted" => emit(Event::Notice("aborted".into())),
            _ => {}
        }
        emit(Event::Idle);
    }
}

/// Returns the name of an item's tool; `None` for an item that is not a tool call.
fn tool_name(item: &Value) -> Option<&str> {
    Some(match text(&item["type"]) {
        "command_execution" | "commandExecution" => "shell",
        "file_change" | "fileChange" => "edit",
        "mcp_tool_call" | "mcpToolCall" | "dynamicToolCall" => text(&item["tool"]),
        "web_search" | "webSearch" => "web_search",
        _ => return None,
    })
}

fn item_started(item: &Value, emit: &mut dyn FnMut(Event<'_>)) {
    match text(&item["type"]) {
        "reasoning" => emit(Event::Working(Some(Activity::Thinking))),
        "agent_message" | "agentMessage" => emit(Event::MessageStarted),
        _ => {
            if let Some(name) = tool_name(item) {
                tool_started(item, name, emit);
            }
        }
    }
}

fn tool_started(item: &Value, name: &str, emit: &mut dyn FnMut(Event<'_>)) {
    let fields = ["command", "changes", "arguments", "query"];
    let arguments = fields.iter().map(|field| &item[*field]);
    emit(Event::ToolStarted {
        id: text(&item["id"]),
        name,
        arguments: arguments
            .into_iter()
            .find(|value| !value.is_null())
            .map_or(Content::Text(""), Content::Json),
    });
}

fn item_completed(item: &Value, emit: &mut dyn FnMut(Event<'_>)) {
    let content = Content::Text(text(&item["text"]));
    match text(&item["type"]) {
        "userMessage" => emit(Event::Prompt(Content::Json(&item["content"]))),
        "agent_message" | "agentMessage" => emit(Event::Message(content)),
        "reasoning" => {
            let has_text = item["text"].is_string();
            if has_text {
                emit(Event::Thinking(text(&item["text"])));
            }
            emit(Event::BlockEnded);
        }
        "error" => emit(Event::Notice(error_text(&item["message"]))),
        _ => {
            let Some(name) = tool_name(item) else { return };
            // codex exec writes a change of files at its end only; the state machine ignores the second start.
            if text(&item["type"]) == "file_change" {
                tool_started(item, name, emit);
            }
            let outputs = ["aggregated_output", "aggregatedOutput", "error", "result"];
            let output = outputs.iter().map(|field| &item[*field]);
            let output = output.into_iter().find(|value| !value.is_null());
            emit(Event::ToolEnded {
                id: text(&item["id"]),
                result: output.map_or(Content::Text(""), Content::Json),
                failed: matches!(text(&item["status"]), "failed" | "declined"),
            });
        }
    }
}

fn exec_usage(usage: &Value) -> TokenUsage {
    let cached = tokens(&usage["cached_input_tokens"]);
    TokenUsage {
        input: tokens(&usage["input_tokens"]).saturating_sub(cached),
        cached,
        output: tokens(&usage["output_tokens"]),
        ..TokenUsage::default()
    }
}

fn server_usage(usage: &Value) -> TokenUsage {
    let cached = tokens(&usage["cachedInputTokens"]);
    TokenUsage {
        input: tokens(&usage["inputTokens"]).saturating_sub(cached),
        cached,
        output: tokens(&usage["outputTokens"]),
        ..TokenUsage::default()
    }
}

fn approval(method: &str, event: &Value) -> Question {
    let params = &event["params"];
    let option = |id: &str, label: &str, grant| QuestionOption {
        id: id.into(),
        label: label.to_owned(),
        grant: Some(grant),
    };
    let options = vec![
        option("accept", "allow", Grant::Once),
        option("acceptForSession", "allow in this session", Grant::Always),
        option("decline", "deny", Grant::Refused),
        option("cancel", "deny and end the turn", Grant::Refused),
    ];
    let title = match method {
        "item/fileChange/requestApproval" => "change of files:",
        _ => "shell:",
    };
    let detail = match text(&params["command"]) {
        "" => text(&params["reason"]),
        command => command,
    };
    Question::new(&event["id"], title, detail, QuestionKind::Choice(options))
}

fn encode(id: &str, command: &AgentCommand<'_>) -> Result<Value, CommandError> {
    let AgentCommand::Answer(question, typed) = command else {
        return adapter::encode(id, command);
    };
    let decision = match question.parse_answer(typed)? {
        Answer::Chosen(option) => option.id.clone(),
        Answer::Confirmed(_) | Answer::Text(_) => "decline".into(),
    };
    Ok(json!({"id": question.id, "result": {"decision": decision}}))
}
