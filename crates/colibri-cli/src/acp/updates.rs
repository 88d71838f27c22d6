//! Transcript items as updates of a session. Does no I/O.

use agent_client_protocol::v1::schema::{
    ContentBlock, ContentChunk, PermissionOption, PermissionOptionKind, RequestPermissionRequest,
    SessionId, SessionUpdate, TextContent, ToolCall, ToolCallContent, ToolCallStatus,
    ToolCallUpdate, ToolCallUpdateFields, ToolKind,
};
use colibri_client::glasspane::{Grant, Question, TranscriptItem};

/// Maximum number of tool calls without a result that are stored.
const MAX_OPEN_CALLS: usize = 64;

/// Converts the items of one turn.
#[derive(Default)]
pub(super) struct Updates {
    /// Ids of tool calls without a result, oldest first.
    open_calls: Vec<String>,
    /// A message has ended, and the next one follows directly.
    message_ended: bool,
    /// The error that the turn ends with, unless the agent continues.
    failure: Option<String>,
}

impl Updates {
    /// Returns the updates for an item.
    pub(super) fn item(&mut self, item: TranscriptItem) -> Option<SessionUpdate> {
        match item {
            TranscriptItem::Text(text) | TranscriptItem::Output(text) => {
                self.failure = None;
                let separator = match std::mem::take(&mut self.message_ended) {
                    true => "\n\n",
                    false => "",
                };
                Some(message(format!("{separator}{text}")))
            }
            TranscriptItem::Thinking(text) => {
                self.failure = None;
                Some(SessionUpdate::AgentThoughtChunk(chunk(text)))
            }
            TranscriptItem::BlockEnd => {
                self.message_ended = true;
                None
            }
            TranscriptItem::ToolCall {
                id,
                name,
                arguments,
            } => Some(self.tool_call(id, &name, &arguments)),
            TranscriptItem::ToolResult {
                id,
                text,
                omitted_lines,
                failed,
                ..
            } => Some(self.tool_result(id, text, omitted_lines, failed)),
            TranscriptItem::Error(error) => {
                let thought = SessionUpdate::AgentThoughtChunk(chunk(format!("{error}\n")));
                self.failure = Some(error);
                Some(thought)
            }
            _ => None,
        }
    }

    fn tool_call(&mut self, id: String, name: &str, arguments: &str) -> SessionUpdate {
        self.failure = None;
        self.message_ended = false;
        let title = match arguments {
            "" => name.to_owned(),
            arguments => format!("{name}: {arguments}"),
        };
        let call = ToolCall::new(id.clone(), title)
            .kind(kind(name))
            .status(ToolCallStatus::InProgress);
        if self.open_calls.len() >= MAX_OPEN_CALLS {
            self.open_calls.remove(0);
        }
        self.open_calls.push(id);
        SessionUpdate::ToolCall(call)
    }

    fn tool_result(
        &mut self,
        id: String,
        mut text: String,
        omitted_lines: usize,
        failed: bool,
    ) -> SessionUpdate {
        self.open_calls.retain(|open| *open != id);
        if omitted_lines > 0 {
            text.push_str(&format!("\n… {omitted_lines} more lines"));
        }
        let status = match failed {
            true => ToolCallStatus::Failed,
            false => ToolCallStatus::Completed,
        };
        let mut fields = ToolCallUpdateFields::new().status(status);
        if !text.is_empty() {
            fields = fields.content(vec![tool_text(text)]);
        }
        SessionUpdate::ToolCallUpdate(ToolCallUpdate::new(id, fields))
    }

    /// Returns the updates at the end of a turn: tool calls without a result have failed.
    pub(super) fn end(&mut self) -> Vec<SessionUpdate> {
        let fields = ToolCallUpdateFields::new().status(ToolCallStatus::Failed);
        let failed = |id| SessionUpdate::ToolCallUpdate(ToolCallUpdate::new(id, fields.clone()));
        self.open_calls.drain(..).map(failed).collect()
    }

    /// Returns the error with which the turn has ended.
    pub(super) fn failure(&self) -> Option<&str> {
        self.failure.as_deref()
    }

    /// Returns the request that asks the user a question of the agent; `None` if the question expects text. The id of each
    /// option is its answer.
    pub(super) fn permission(
        &self,
        session: &SessionId,
        question: &Question,
    ) -> Option<RequestPermissionRequest> {
        let options = question.options();
        if options.is_empty() {
            return None;
        }
        let options = options.into_iter().map(|option| {
            let kind = match option.grant {
                Some(Grant::Always) => PermissionOptionKind::AllowAlways,
                Some(Grant::Refused) => PermissionOptionKind::RejectOnce,
                None if option.answer == "n" => PermissionOptionKind::RejectOnce,
                Some(Grant::Once) | None => PermissionOptionKind::AllowOnce,
            };
            PermissionOption::new(option.answer, option.label, kind)
        });
        let title = question.text.lines().next().unwrap_or_default();
        let fields = ToolCallUpdateFields::new()
            .title(title.to_owned())
            .status(ToolCallStatus::Pending);
        let call = self.open_calls.last().map_or("question", String::as_str);
        Some(RequestPermissionRequest::new(
            session.clone(),
            ToolCallUpdate::new(call.to_owned(), fields),
            options.collect(),
        ))
    }
}

/// Returns a message of the agent.
pub(super) fn message(text: String) -> SessionUpdate {
    SessionUpdate::AgentMessageChunk(chunk(text))
}

fn chunk(text: String) -> ContentChunk {
    ContentChunk::new(ContentBlock::Text(TextContent::new(text)))
}

fn tool_text(text: String) -> ToolCallContent {
    ToolCallContent::from(ContentBlock::Text(TextContent::new(text)))
}

/// Returns the kind of a tool by its name, which differs between agents.
fn kind(name: &str) -> ToolKind {
    let name = name.to_ascii_lowercase();
    let contains = |words: &[&str]| words.iter().any(|word| name.contains(word));
    match () {
        () if contains(&["bash", "shell", "exec", "terminal", "command"]) => ToolKind::Execute,
        () if contains(&["fetch", "web", "http", "browser"]) => ToolKind::Fetch,
        () if contains(&["grep", "glob", "search", "find", "list", "ls"]) => ToolKind::Search,
        () if contains(&["edit", "write", "patch", "replace"]) => ToolKind::Edit,
        () if contains(&["delete", "remove"]) => ToolKind::Delete,
        () if contains(&["move", "rename"]) => ToolKind::Move,
        () if contains(&["read", "view", "cat"]) => ToolKind::Read,
        () if contains(&["think", "todo", "plan", "task"]) => ToolKind::Think,
        () => ToolKind::Other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use colibri_client::AgentRuntime;
    use colibri_client::glasspane::Transcript;

    fn updates(lines: &[&str]) -> (Updates, String) {
        let mut transcript = Transcript::new(AgentRuntime::Pi);
        let mut updates = Updates::default();
        let mut shown = String::new();
        for line in lines {
            for item in transcript.push_stdout(format!("{line}\n").as_bytes()) {
                if let Some(update) = updates.item(item) {
                    shown.push_str(&serde_json::to_string(&update).unwrap());
                    shown.push('\n');
                }
            }
        }
        (updates, shown)
    }

    #[test]
    fn items_become_updates() {
        let (mut updates, shown) = updates(&[
            r#"{"type":"message_end","message":{"role":"assistant","content":[{"type":"text","text":"First."}]}}"#,
            r#"{"type":"message_end","message":{"role":"assistant","content":[{"type":"text","text":"Second."}]}}"#,
            r#"{"type":"tool_execution_start","toolCallId":"1","toolName":"bash","args":{"command":"ls"}}"#,
            r#"{"type":"tool_execution_end","toolCallId":"1","result":{"content":[{"type":"text","text":"a"}]}}"#,
            r#"{"type":"tool_execution_start","toolCallId":"2","toolName":"read","args":{"path":"a"}}"#,
        ]);
        let end = serde_json::to_string(&updates.end()).unwrap();
        insta::assert_snapshot!(format!("{shown}{end}"));
        assert_eq!(updates.failure(), None);
    }

    #[test]
    fn error_is_a_failure_unless_the_agent_continues() {
        let error = r#"{"type":"message_end","message":{"role":"assistant","stopReason":"error","errorMessage":"overloaded"}}"#;
        let text = r#"{"type":"message_end","message":{"role":"assistant","content":[{"type":"text","text":"Done."}]}}"#;
        assert_eq!(updates(&[error]).0.failure(), Some("overloaded"));
        assert_eq!(updates(&[error, text]).0.failure(), None);
    }

    #[test]
    fn question_with_options_becomes_a_permission_request() {
        let ask = |kind: &str| {
            let line = format!(
                r#"{{"type":"extension_ui_request","id":"q","method":"{kind}","title":"Which?","options":["a","b"]}}"#
            );
            let mut transcript = Transcript::new(AgentRuntime::Pi);
            transcript.push_stdout(format!("{line}\n").as_bytes());
            let question = transcript.open_question().cloned().unwrap();
            Updates::default().permission(&SessionId::new("s"), &question)
        };
        insta::assert_json_snapshot!([ask("select"), ask("confirm"), ask("input")]);
    }
}
