//! `colibri prompt` and `colibri abort`: agents are told in their own words, and what they answer is the outcome.

use std::io::Read;
use std::time::Duration;

use colibri_client::glasspane::{Command, Delivery};
use colibri_client::{AgentRuntime, AgentState, ClientError};

use crate::args::Global;
use crate::connect::{connect, find};
use crate::error::CliError;
use crate::output;

pub(crate) async fn prompt(
    global: &Global,
    id: &str,
    text: String,
    delivery: Delivery,
    timeout: Duration,
) -> Result<u8, CliError> {
    let client = connect(global).await?;
    let agent = find(&client, id).await?;
    let text = match text.as_str() {
        "-" => {
            let mut text = String::new();
            std::io::stdin()
                .read_to_string(&mut text)
                .map_err(CliError::io("reading the prompt from stdin"))?;
            text
        }
        _ => text,
    };
    let told = client
        .command(&agent, &Command::Prompt(&text, delivery), timeout)
        .await;
    let busy = (agent.runtime, agent.state) == (AgentRuntime::Pi, AgentState::Working);
    if matches!(told, Err(ClientError::Refused { .. })) && busy && delivery == Delivery::Now {
        output::note("while pi works, it takes a prompt with --steer or --follow-up only");
    }
    told?;
    Ok(0)
}

pub(crate) async fn abort(global: &Global, id: &str, timeout: Duration) -> Result<u8, CliError> {
    let client = connect(global).await?;
    let agent = find(&client, id).await?;
    client.command(&agent, &Command::Abort, timeout).await?;
    Ok(0)
}
