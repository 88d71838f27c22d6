//! `colibri prompt` and `colibri abort`: commands in the form that an agent's runtime expects.

use std::io::Read;
use std::time::Duration;

use colibri_client::glasspane::{Command, Delivery};
use colibri_client::{AgentRuntime, AgentState, Client, ClientError};

use crate::answer::{Answer, Turn};
use crate::args::Global;
use crate::connect::{connect, find};
use crate::error::CliError;
use crate::output;

/// Default maximum time until an agent has accepted a prompt.
const ACCEPTED_WITHIN: Duration = Duration::from_secs(30);

/// Sends a prompt; with `wait` also waits for the end of the turn, and prints the answer.
pub(crate) async fn prompt(
    global: &Global,
    id: &str,
    text: String,
    delivery: Delivery,
    wait: bool,
    timeout: Option<Duration>,
) -> Result<u8, CliError> {
    let client = connect(global).await?;
    let agent = find(&client, id).await?;
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
    let command = Command::Prompt(&text, delivery);
    let accepted_within = timeout.unwrap_or(ACCEPTED_WITHIN);
    if !wait {
        let accepted = client.command(&agent, &command, accepted_within).await;
        hint_delivery(&accepted, agent.runtime, agent.state, delivery);
        accepted?;
        return Ok(0);
    }
    // Subscribe before the prompt is sent, so that no part of the answer is missed.
    let turn = Turn::follow(&client, &agent.id, agent.runtime).await?;
    let accepted = client.command(&agent, &command, accepted_within).await;
    hint_delivery(&accepted, agent.runtime, agent.state, delivery);
    accepted?;
    let answer = match timeout {
        None => turn.end().await?,
        Some(waited) => tokio::time::timeout(waited, turn.end())
            .await
            .map_err(|_| CliError::TurnNotEnded {
                id: agent.id.clone(),
                waited,
            })??,
    };
    let Answer { text, error } = answer;
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

/// Prints a hint on `--steer` and `--follow-up` if pi refused a plain prompt while it was working.
fn hint_delivery(
    accepted: &Result<(), ClientError>,
    runtime: AgentRuntime,
    state: AgentState,
    delivery: Delivery,
) {
    let busy = (runtime, state) == (AgentRuntime::Pi, AgentState::Working);
    if matches!(accepted, Err(ClientError::Refused { .. })) && busy && delivery == Delivery::Now {
        output::note("pi is working, and accepts a prompt only with --steer or --follow-up");
    }
}

pub(crate) async fn abort(global: &Global, id: &str, timeout: Duration) -> Result<u8, CliError> {
    let client: Client = connect(global).await?;
    let agent = find(&client, id).await?;
    client.command(&agent, &Command::Abort, timeout).await?;
    Ok(0)
}
