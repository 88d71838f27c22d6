//! `colibri prompt` and `colibri abort`: commands in the form that an agent's runtime expects.

use std::io::Read;
use std::time::Duration;

use colibri_client::glasspane::{AgentCommand, PromptDelivery};
use colibri_client::{AgentRuntime, AgentState, ClientError};

use crate::answer::{Turn, TurnResult};
use crate::args::Global;
use crate::connect::connect;
use crate::error::CliError;
use crate::output;

/// Default maximum time until an agent has accepted a prompt.
const ACCEPT_TIMEOUT: Duration = Duration::from_secs(30);

/// Sends a prompt; with `wait`, waits for the end of the turn and prints the answer.
pub(crate) async fn prompt(
    global: &Global,
    id: &str,
    text: String,
    delivery: PromptDelivery,
    wait: bool,
    timeout: Option<Duration>,
) -> Result<u8, CliError> {
    let client = connect(global).await?;
    let agent = client.find_agent(id).await?;
    let text = match text.as_str() {
        "-" => {
            let mut text = String::new();
            std::io::stdin()
                .read_to_string(&mut text)
                .map_err(CliError::io("cannot read the prompt from standard input"))?;
            text
        }
        _ => text,
    };
    let command = AgentCommand::Prompt(&text, delivery);
    let accept_timeout = timeout.unwrap_or(ACCEPT_TIMEOUT);
    // Subscribe before the prompt is sent, so that no part of the answer is missed.
    let turn = match wait {
        true => Some(Turn::follow(&client, &agent.id, agent.runtime).await?),
        false => None,
    };
    let accepted = client.command(&agent, &command, accept_timeout).await;
    hint_delivery(&accepted, agent.runtime, agent.state, delivery);
    accepted?;
    let Some(turn) = turn else { return Ok(0) };
    let answer = match timeout {
        None => turn.wait().await?,
        Some(waited) => tokio::time::timeout(waited, turn.wait())
            .await
            .map_err(|_| CliError::TurnNotEnded {
                id: agent.id.clone(),
                waited,
            })??,
    };
    let TurnResult { text, error } = answer;
    if !text.is_empty() {
        output::print(format!("{}\n", text.trim_end_matches('\n')).as_bytes())?;
    }
    match error {
        Some(error) => Err(CliError::TurnFailed {
            id: agent.id,
            error,
        }),
        None => Ok(0),
    }
}

/// Prints a hint if pi refused a prompt without `--steer` and `--follow-up` while it was working.
fn hint_delivery(
    accepted: &Result<(), ClientError>,
    runtime: AgentRuntime,
    state: AgentState,
    delivery: PromptDelivery,
) {
    let busy = (runtime, state) == (AgentRuntime::Pi, AgentState::Working);
    if matches!(accepted, Err(ClientError::Refused { .. }))
        && busy
        && delivery == PromptDelivery::Now
    {
        output::message("pi is working; pass --steer or --follow-up");
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
