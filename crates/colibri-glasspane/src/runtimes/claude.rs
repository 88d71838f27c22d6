//! `claude --output-format stream-json`, as Claude Code 2.1.332 writes and reads it.

use serde_json::{Value, json};

use super::stream_json::{self, UsageScope};
use super::{Dialect, has_option};
use crate::event::text;
use crate::{AgentCommand, AgentRuntime, CommandError, PromptDelivery};

pub(super) const DIALECT: Dialect = Dialect {
    runtime: AgentRuntime::Claude,
    is_program: |name, args| {
        name == "claude" && has_option(args, "--output-format", &["stream-json"])
    },
    is_own_event: |event| match text(&event["type"]) {
        "system" => event["session_id"].is_string(),
        "result" => event["is_error"].is_boolean(),
        "control_request" => event["request"]["subtype"] == "can_use_tool",
        "assistant" => event["message"]["role"] == "assistant",
        _ => false,
    },
    new_parser: || Box::new(stream_json::Parser::new(UsageScope::Prompt)),
    encode,
    responds: |command, _| !matches!(command, AgentCommand::Answer(..)),
    reads_no_commands: |args| {
        (!has_option(args, "--input-format", &["stream-json"]))
            .then_some("start claude with --input-format stream-json")
    },
    needs_adapter: |_| false,
    earliest: PromptDelivery::Now,
};

fn encode(id: &str, command: &AgentCommand<'_>) -> Result<Value, CommandError> {
    Ok(match command {
        AgentCommand::Prompt(text, delivery) => {
            let mut record = stream_json::user_message(text);
            // The agent acknowledges a message with an id.
            record["uuid"] = json!(id);
            // Without a priority, a working agent reads the message before its next model call.
            if *delivery == PromptDelivery::FollowUp {
                record["priority"] = "later".into();
            }
            record
        }
        AgentCommand::Abort => stream_json::interrupt(id),
        AgentCommand::Answer(question, typed) => stream_json::permission(question, typed)?,
    })
}
