//! `colibri prompt` and `colibri abort`: commands in the form that an agent's runtime expects.

use std::time::Duration;

use colibri_client::glasspane::{AgentCommand, PromptDelivery};
use colibri_client::{Acceptance, AgentState, ClientError};

use crate::answer::{Turn, TurnResult};
use crate::args::{Global, PromptArgs};
use crate::connect::connect;
use crate::error::CliError;
use crate::output;

/// Default maximum time until an agent has accepted a prompt.
const ACCEPT_TIMEOUT: Duration = Duration::from_secs(30);

/// Sends a prompt; with `wait`, waits for the end of the turn and prints the answer.
pub(crate) async fn prompt(global: &Global, options: PromptArgs) -> Result<u8, CliError> {
    let client = connect(global).await?;
    let agent = client.find_agent(&options.agent.id).await?;
    let text = match options.text.as_str() {
        "-" => std::io::read_to_string(std::io::stdin())
            .map_err(CliError::io("cannot read the prompt from standard input"))?,
        _ => options.text,
    };
    let delivery = match (options.steer, options.follow_up) {
        (true, _) => PromptDelivery::Steer,
        (_, true) => PromptDelivery::FollowUp,
        _ => PromptDelivery::Now,
    };
    let command = AgentCommand::Prompt(&text, delivery);
    let accept_timeout = options.timeout.unwrap_or(ACCEPT_TIMEOUT);
    // Subscribe before the prompt is sent, so that no part of the answer is missed.
    let turn = match options.wait {
        true => Some(Turn::follow(&client, &agent.id, agent.runtime).await?),
        false => None,
    };
    let accepted = client.command(&agent, &command, accept_timeout).await;
    let is_busy = agent.state == AgentState::Working;
    if matches!(accepted, Err(ClientError::Refused { .. }))
        && is_busy
        && delivery == PromptDelivery::Now
    {
        output::message("the agent is working; pass --steer or --follow-up");
    }
    if accepted? == Acceptance::Sent && is_busy {
        output::message("the agent is working, and reads the prompt after its current work");
    }
    if agent.state == AgentState::Blocked && turn.is_none() {
        output::message(&format!(
            "the agent waits for an answer; give it with colibri attach {}",
            agent.id
        ));
    }
    let Some(turn) = turn else { return Ok(0) };
    let id = &agent.id;
    let answer = match options.timeout {
        None => turn.wait().await,
        Some(waited) => tokio::time::timeout(waited, turn.wait()).await.unwrap_or_else(|_| {
            Err(CliError::Message(format!(
                "agent {id} did not end its turn within {waited:?}; follow it with colibri attach {id}"
            )))
        }),
    };
    let TurnResult { text, error } = answer?;
    if !text.is_empty() {
        output::print(format!("{}\n", text.trim_end_matches('\n')))?;
    }
    match error {
        Some(error) => Err(CliError::Message(format!(
            "the turn of agent {id} failed: {error}"
        ))),
        None => Ok(0),
    }
}

pub(crate) async fn abort(global: &Global, id: &str, timeout: Duration) -> Result<u8, CliError> {
    let client = connect(global).await?;
    let agent = client.find_agent(id).await?;
    client
        .command(&agent, &AgentCommand::Abort, timeout)
        .await?;
    Ok(0)
}
