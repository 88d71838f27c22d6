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

/// Maximum number of started changes of files that are stored.
const MAX_CHANGES: usize = 16;
/// Maximum number of files of a change that an approval names.
const MAX_FILES: usize = 20;
/// Maximum length of a path, in characters.
const MAX_PATH_CHARS: usize = 300;

#[derive(Debug, Default)]
struct Parser {
    /// The usage that the thread has reported.
    total: TokenUsage,
    /// A turn runs. The usage before the first turn of a resumed thread is that of earlier turns.
    is_working: bool,
    /// Id of the approval request that waits for an answer.
    open_request: Option<Value>,
    /// The started changes of files, oldest first: an approval request contains only the id of its item.
    changes: Vec<FileChange>,
}

/// A started change of files.
#[derive(Debug)]
struct FileChange {
    item: String,
    files: FileList,
}

/// The files of a change, as an approval request shows them.
#[derive(Debug, Default)]
struct FileList {
    text: String,
    /// The text does not name all files completely.
    is_truncated: bool,
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
            "item/started" => {
                if text(&item["type"]) == "fileChange" {
                    self.store_change(&item["id"], &item["changes"]);
                }
                item_started(item, emit);
            }
            "item/fileChange/patchUpdated" => {
                self.store_change(&params["itemId"], &params["changes"]);
            }
            "item/completed" => {
                self.changes.retain(|change| item["id"] != *change.item);
                item_completed(item, emit);
            }
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
            "item/commandExecution/requestApproval" => {
                self.open_request = Some(event["id"].clone());
                emit(Event::Question(command_approval(event)));
            }
            "item/fileChange/requestApproval" => {
                self.open_request = Some(event["id"].clone());
                let mut changes = self.changes.iter();
                let change = changes.find(|change| params["itemId"] == *change.item);
                let files = change.map(|change| &change.files);
                emit(Event::Question(file_approval(event, files)));
            }
            "warning" | "configWarning" => emit(Event::Notice(error_text(&params["message"]))),
            // The turn that ends with it reports the error.
            "error" | "initialize" | "initialized" => {}
            _ if method.contains('/') => {}
            _ => return LineKind::Unknown,
        }
        LineKind::Event
    }

    fn store_change(&mut self, item: &Value, changes: &Value) {
        self.changes.retain(|change| *item != *change.item);
        if self.changes.len() >= MAX_CHANGES {
            self.changes.remove(0);
        }
        self.changes.push(FileChange {
            item: text(item).to_owned(),
            files: file_list(changes),
        });
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

/// Returns the list of the files in `changes`: their number, and the kind and path of the first ones.
fn file_list(changes: &Value) -> FileList {
    let changes = changes.as_array().map_or(&[][..], Vec::as_slice);
    let plural = match changes.len() {
        1 => "",
        _ => "s",
    };
    let mut list = FileList {
        text: format!("{} file{plural}:", changes.len()),
        is_truncated: changes.len() > MAX_FILES,
    };
    for (index, change) in changes.iter().take(MAX_FILES).enumerate() {
        let separator = if index == 0 { " " } else { ", " };
        list.text.push_str(separator);
        list.text.push_str(match text(&change["kind"]["type"]) {
            "add" => "add ",
            "delete" => "delete ",
            _ => "",
        });
        list.push_path(text(&change["path"]));
        if let Some(target) = change["kind"]["move_path"].as_str() {
            list.text.push_str(" -> ");
            list.push_path(target);
        }
    }
    if list.is_truncated {
        list.text.push_str(", …");
    }
    list
}

impl FileList {
    fn push_path(&mut self, path: &str) {
        let end = path.char_indices().nth(MAX_PATH_CHARS);
        let shown = end.and_then(|(end, _)| path.get(..end)).unwrap_or(path);
        self.text.push_str(shown);
        if shown.len() < path.len() {
            self.text.push('…');
            self.is_truncated = true;
        }
    }
}

fn command_approval(event: &Value) -> Question {
    let params = &event["params"];
    let detail = match text(&params["command"]) {
        "" => text(&params["reason"]),
        command => command,
    };
    approval(event, "shell:", detail)
}

/// Returns the question for a change of files. The files are unknown if the change started before the parsed output, or if more than
/// [`MAX_CHANGES`] changes were started after it.
fn file_approval(event: &Value, files: Option<&FileList>) -> Question {
    let params = &event["params"];
    let mut detail = files
        .map_or("unknown files", |files| &files.text)
        .to_owned();
    if let Some(root) = params["grantRoot"].as_str() {
        detail.push_str(&format!("; also later writes below {root}"));
    }
    let reason = text(&params["reason"]);
    if !reason.is_empty() {
        detail.push_str(&format!("; reason: {reason}"));
    }
    let mut question = approval(event, "change of files:", &detail);
    question.is_truncated |= files.is_none_or(|files| files.is_truncated);
    question
}

fn approval(event: &Value, title: &str, detail: &str) -> Question {
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

#[cfg(test)]
mod tests {
    use super::*;

    /// Returns the question of a change, whose item started with these changes of files.
    fn question(changes: Option<Value>, params: Value) -> Question {
        let mut parser = Parser::default();
        let mut questions = Vec::new();
        let mut push = |message: Value| {
            parser.parse(message.to_string().as_bytes(), &mut |event| {
                if let Event::Question(question) = event {
                    questions.push(question);
                }
            });
        };
        if let Some(changes) = changes {
            let item = json!({"type": "fileChange", "id": "i", "changes": changes});
            push(json!({"method": "item/started", "params": {"item": item}}));
        }
        push(json!({"id": 1, "method": "item/fileChange/requestApproval", "params": params}));
        questions.pop().unwrap()
    }

    #[test]
    fn approval_of_a_change_names_its_files() {
        let change = |path: &str, kind: &str| json!({"path": path, "kind": {"type": kind}});
        let moved = json!({"path": "c", "kind": {"type": "update", "move_path": "d\u{1b}[2J"}});
        let request = json!({"itemId": "i", "reason": "tidy", "grantRoot": null});
        for (changes, params, expected) in [
            (
                Some(json!([
                    change("a.rs", "add"),
                    change("b.rs", "delete"),
                    moved
                ])),
                request.clone(),
                "change of files: 3 files: add a.rs, delete b.rs, c -> d; reason: tidy",
            ),
            (
                Some(json!([change("/etc/x", "update")])),
                json!({"itemId": "i", "grantRoot": "/etc"}),
                "change of files: 1 file: /etc/x; also later writes below /etc",
            ),
            (
                Some(json!([change("a", "add")])),
                json!({"itemId": "other", "reason": "tidy"}),
                "change of files: unknown files; reason: tidy",
            ),
            (None, json!({}), "change of files: unknown files"),
        ] {
            let question = question(changes, params);
            assert_eq!(question.text.lines().next(), Some(expected));
            let is_known = !expected.contains("unknown");
            assert_eq!(question.parse_answer("y").is_ok(), is_known, "{expected}");
            assert!(question.parse_answer("1").is_ok());
        }
        let many: Vec<Value> = (0..1000).map(|n| change(&n.to_string(), "add")).collect();
        let long = json!([change(&"x".repeat(1 << 20), "add")]);
        for (changes, start) in [(json!(many), "1000 files: add 0,"), (long, "1 file: add x")] {
            let question = question(Some(changes), request.clone());
            let text = question.text.strip_prefix("change of files: ");
            assert!(text.is_some_and(|text| text.starts_with(start)), "{start}");
            assert!(question.text.len() < 3000);
            assert!(question.parse_answer("y").is_err(), "it is not complete");
        }
    }

    #[test]
    fn started_changes_are_bounded() {
        let mut parser = Parser::default();
        for number in 0..1000 {
            parser.store_change(&json!(number.to_string()), &json!([]));
        }
        assert_eq!(parser.changes.len(), MAX_CHANGES);
    }
}
