//! `qwen --output-format stream-json`, as Qwen Code 0.24.4 writes and reads it.

use serde_json::{Value, json};

use super::stream_json::{self, UsageScope};
use super::{Dialect, has_option, unsupported};
use crate::event::text;
use crate::{AgentCommand, AgentRuntime, CommandError, PromptDelivery};

pub(super) const DIALECT: Dialect = Dialect {
    runtime: AgentRuntime::Qwen,
    is_program: |name, args| {
        name == "qwen"
            && (has_option(args, "--output-format", &["stream-json"])
                || has_option(args, "-o", &["stream-json"]))
    },
    is_own_event: |event| {
        event["qwen_code_version"].is_string()
            || (text(&event["type"]) == "control_response"
                && event["response"]["response"]["capabilities"]["can_set_effort"].is_boolean())
    },
    new_parser: || Box::new(stream_json::Parser::new(UsageScope::Session)),
    encode,
    responds: |command, _| !matches!(command, AgentCommand::Answer(..)),
    reads_no_commands: |args| {
        (!has_option(args, "--input-format", &["stream-json"]))
            .then_some("start qwen with --input-format stream-json")
    },
    needs_adapter: |_| false,
    earliest: PromptDelivery::Now,
};

fn encode(id: &str, command: &AgentCommand<'_>) -> Result<Value, CommandError> {
    match command {
        AgentCommand::Prompt(_, PromptDelivery::Steer) => {
            Err(unsupported("qwen", PromptDelivery::Steer))
        }
        // qwen queues a prompt while it works.
        AgentCommand::Prompt(text, _) => {
            // It takes control requests only after this one, which it answers each time, unlike a prompt.
            let initialize = json!({"type": "control_request", "request_id": id, "request": {"subtype": "initialize"}});
            Ok(json!([initialize, stream_json::user_message(text)]))
        }
        AgentCommand::Abort => Ok(stream_json::interrupt(id)),
        AgentCommand::Answer(question, typed) => stream_json::permission(question, typed),
    }
}
