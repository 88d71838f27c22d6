//! Lines of `colibri-adapter`, which holds the session of an agent whose protocol has one. It writes them between the
//! messages of the protocol, and reads commands in this form.

use serde_json::{Value, json};

use super::LineKind;
use crate::event::{Event, text};
use crate::{Activity, AgentCommand, CommandError, CommandResponse, PromptDelivery};

/// Reports a line of the adapter; `None` if the line is something else.
pub(super) fn parse(event: &Value, emit: &mut dyn FnMut(Event<'_>)) -> Option<LineKind> {
    match event["type"].as_str()? {
        "response" => {
            let (command, error) = (text(&event["command"]), event["error"].as_str());
            // The adapter may have to open a session before the prompt reaches the agent.
            if command == "prompt" && error.is_none() {
                emit(Event::Working(Some(Activity::Waiting)));
            }
            let id = event["id"].as_str();
            emit(Event::Response(CommandResponse::new(id, command, error)));
        }
        "queue_update" => emit(Event::Queued(event["queued"].as_u64().unwrap_or(0))),
        "adapter_error" => {
            emit(Event::Failed(text(&event["message"]).into()));
            emit(Event::Idle);
        }
        _ => return None,
    }
    Some(LineKind::Event)
}

/// Encodes a prompt or an abort.
///
/// # Errors
/// The command is an answer, which is a message of the agent's own protocol.
pub(super) fn encode(id: &str, command: &AgentCommand<'_>) -> Result<Value, CommandError> {
    Ok(match command {
        AgentCommand::Prompt(text, delivery) => {
            let delivery = match delivery {
                PromptDelivery::Now => "now",
                PromptDelivery::Steer => "steer",
                PromptDelivery::FollowUp => "follow-up",
            };
            json!({"id": id, "type": "prompt", "message": text, "delivery": delivery})
        }
        AgentCommand::Abort => json!({"id": id, "type": "abort"}),
        AgentCommand::Answer(..) => {
            let message = "the adapter takes no answers".to_owned();
            return Err(CommandError::new(message));
        }
    })
}

/// Returns whether the adapter responds to the command.
pub(super) fn responds(command: &AgentCommand<'_>, _is_busy: bool) -> bool {
    !matches!(command, AgentCommand::Answer(..))
}
