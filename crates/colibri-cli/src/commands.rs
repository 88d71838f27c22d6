//! The commands that ask the daemon once, or follow it.

use std::io::{self, Read};
use std::time::Duration;

use clap::CommandFactory;
use clap_complete::Shell;
use colibri_client::{Agent, KillOutcome, KillParams};

use crate::args::{Arguments, Global, Spawn};
use crate::connect::{self, connect, connect_existing, find};
use crate::error::CliError;
use crate::output;
use crate::run::code;

/// How long an agent that does not read is waited for.
pub(crate) const PATIENCE: Duration = Duration::from_secs(10);

pub(crate) async fn spawn(global: &Global, spawn: Spawn) -> Result<u8, CliError> {
    let client = connect(global).await?;
    let params = crate::config::params(&client, spawn).await?;
    let agent = client.spawn_agent(params).await?;
    agent
        .warnings
        .iter()
        .for_each(|warning| output::note(warning));
    output::print(format!("{}\n", agent.id).as_bytes())?;
    Ok(0)
}

pub(crate) async fn ps(global: &Global, json: bool) -> Result<u8, CliError> {
    let mut agents = connect(global).await?.list_agents().await?;
    agents.sort_by(|a, b| a.started_at.cmp(&b.started_at));
    if json {
        output::print_json(&agents)?;
    } else {
        output::print(output::agents(&agents, jiff::Timestamp::now()).as_bytes())?;
    }
    Ok(0)
}

pub(crate) async fn runs(global: &Global, id: &str, json: bool) -> Result<u8, CliError> {
    let client = connect(global).await?;
    let agent = find(&client, id).await?;
    let runs = client.list_runs(&agent.id).await?;
    if json {
        output::print_json(&runs)?;
    } else if runs.is_empty() && agent.restart.is_none() {
        output::note("it is never started again, so its runs are not kept; see colibri ps");
    } else {
        output::print(output::runs(&runs).as_bytes())?;
    }
    Ok(0)
}

pub(crate) async fn send(
    global: &Global,
    id: &str,
    line: Option<&str>,
    close: bool,
) -> Result<u8, CliError> {
    let client = connect(global).await?;
    let agent = find(&client, id).await?;
    match line {
        None => {}
        Some("-") => {
            let mut stdin = io::stdin().lock();
            let mut buffer = vec![0; 64 * 1024];
            loop {
                let count = stdin
                    .read(&mut buffer)
                    .map_err(CliError::io("reading stdin"))?;
                if count == 0 {
                    break;
                }
                let bytes = buffer.get(..count).unwrap_or_default();
                client.send_all(&agent.id, bytes, Some(PATIENCE)).await?;
            }
        }
        Some(line) => {
            let bytes = format!("{line}\n").into_bytes();
            client.send_all(&agent.id, &bytes, Some(PATIENCE)).await?;
        }
    }
    if close {
        client.close_input(&agent.id).await?;
    }
    Ok(0)
}

pub(crate) async fn wait(global: &Global, id: &str) -> Result<u8, CliError> {
    let client = connect(global).await?;
    let agent: Agent = find(&client, id).await?;
    let agent = connect::wait(global, &client, &agent.id).await?;
    if let Some(note) = agent.exit_note.as_ref().or(agent.error.as_ref()) {
        output::note(note);
    }
    Ok(agent.exit.map_or(1, code))
}

pub(crate) async fn kill(
    global: &Global,
    id: &str,
    signal: String,
    grace: Duration,
) -> Result<u8, CliError> {
    let client = connect(global).await?;
    let agent = find(&client, id).await?;
    let grace_ms = u64::try_from(grace.as_millis()).unwrap_or(u64::MAX);
    let params = KillParams {
        id: agent.id.clone(),
        signal: Some(signal),
        grace_ms: Some(grace_ms),
        ..KillParams::default()
    };
    let result = client.kill_agent(params).await?;
    output::note(&match result.outcome {
        KillOutcome::Terminated => {
            format!("{} ended at the signal; nothing of it is left", agent.id)
        }
        KillOutcome::Killed => format!("{} needed KILL; nothing of it is left", agent.id),
        KillOutcome::AlreadyExited => format!("{} had ended already", agent.id),
        KillOutcome::Signalled => format!("{} was signalled", agent.id),
    });
    Ok(0)
}

pub(crate) async fn rm(global: &Global, id: &str, force: bool) -> Result<u8, CliError> {
    let client = connect(global).await?;
    let agent = find(&client, id).await?;
    if force {
        let params = KillParams {
            id: agent.id.clone(),
            ..KillParams::default()
        };
        client.kill_agent(params).await?;
    }
    client.remove_agent(&agent.id).await?;
    Ok(0)
}

pub(crate) async fn shutdown(global: &Global) -> Result<u8, CliError> {
    let client = connect_existing(global).await?;
    let running = client.list_running().await?.len();
    client.shutdown().await?;
    output::note(&format!(
        "the daemon ends; {running} running agents go on and are adopted by the next one"
    ));
    Ok(0)
}

pub(crate) fn completions(shell: Shell) -> Result<u8, CliError> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Arguments::command(), "colibri", &mut script);
    output::print(&script)?;
    Ok(0)
}
