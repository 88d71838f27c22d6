//! Commands that send the daemon one request for each agent, or wait for agents.

use std::io::{self, BufRead};
use std::time::Duration;

use clap::CommandFactory;
use clap_complete::Shell;
use colibri_client::glasspane::{AgentCommand, PromptDelivery};
use colibri_client::{
    Agent, Client, ClientError, Env, ErrorKind, KillOutcome, KillParams, RestartAgentParams,
};
use jiff::Timestamp;

use crate::args::{
    Background, CliArguments, Global, KillArgs, PsArgs, SendArgs, VariableArgs, milliseconds,
};
use crate::connect::{connect, connect_existing, endpoint};
use crate::error::CliError;
use crate::{exit, output, tables};

/// Maximum time without progress while an agent does not read its input.
pub(crate) const INPUT_TIMEOUT: Duration = Duration::from_secs(10);

fn report(id: &str, error: &CliError) {
    let id = output::sanitize(id, 64);
    output::message(&format!("{id}: {}", error.message()));
}

/// Applies `command` to each agent in order. Reports a failure and continues with the remaining agents.
pub(crate) async fn for_each_agent(
    global: &Global,
    ids: &[String],
    mut command: impl AsyncFnMut(&Client, Agent) -> Result<(), CliError>,
) -> Result<u8, CliError> {
    let client = connect(global).await?;
    let mut command = async |id: &str| command(&client, client.find_agent(id).await?).await;
    // The failure of a single agent is the failure of the command.
    if let [id] = ids {
        return command(id).await.map(|()| 0);
    }
    let mut failed = false;
    for id in ids {
        if let Err(error) = command(id).await {
            failed = true;
            report(id, &error);
        }
    }
    Ok(u8::from(failed))
}

pub(crate) async fn spawn(global: &Global, background: Background) -> Result<u8, CliError> {
    let Background { spawn, prompt } = background;
    let client = connect(global).await?;
    let params = crate::config::spawn_params(global, &client, spawn).await?;
    let agent = client.spawn_agent(params).await?;
    output::warnings(&agent.warnings);
    output::print(format!("{}\n", agent.id))?;
    let Some(prompt) = prompt else { return Ok(0) };
    let prompted = async {
        let agent = client.get_agent(&agent.id).await?;
        let command = AgentCommand::Prompt(&prompt, PromptDelivery::Now);
        client.command(&agent, &command, INPUT_TIMEOUT).await
    };
    prompted.await.map(|_| 0).map_err(|error: ClientError| {
        CliError::Message(format!(
            "cannot send the prompt: {error}; agent {id} runs; send the prompt with colibri prompt {id}",
            id = agent.id
        ))
    })
}

pub(crate) async fn ps(global: &Global, list: &PsArgs) -> Result<u8, CliError> {
    let client = connect(global).await?;
    let mut agents = match list.running {
        true => client.list_running().await?,
        false => client.list_agents().await?,
    };
    agents.sort_by(tables::list_order);
    agents.truncate(list.last.unwrap_or(usize::MAX));
    output::print_result(list.json, &agents, |agents| match list.quiet {
        true => agents
            .iter()
            .map(|agent| format!("{}\n", agent.id))
            .collect(),
        false => tables::agents(agents, Timestamp::now()),
    })?;
    Ok(0)
}

pub(crate) async fn runs(global: &Global, id: &str, json: bool) -> Result<u8, CliError> {
    let client = connect(global).await?;
    let agent = client.find_agent(id).await?;
    let runs = client.list_runs(&agent.id).await?;
    if !json && runs.is_empty() && agent.restart.is_none() {
        output::message(&format!(
            "agent {} has no restart policy, so its runs are not recorded; see colibri ps",
            agent.id
        ));
    } else {
        output::print_result(json, &runs, |runs| tables::runs(runs))?;
    }
    Ok(0)
}

pub(crate) async fn send(global: &Global, options: SendArgs) -> Result<u8, CliError> {
    let client = connect(global).await?;
    let agent = client.find_agent(&options.agent.id).await?;
    let send = async |bytes: &[u8]| client.send_all(&agent.id, bytes, INPUT_TIMEOUT).await;
    match options.line.as_deref() {
        None => {}
        Some("-") => {
            let mut stdin = io::stdin().lock();
            loop {
                let bytes = stdin
                    .fill_buf()
                    .map_err(CliError::io("cannot read standard input"))?;
                if bytes.is_empty() {
                    break;
                }
                let count = bytes.len();
                send(bytes).await?;
                stdin.consume(count);
            }
        }
        Some(line) => send(format!("{line}\n").as_bytes()).await?,
    }
    if options.close {
        client.close_input(&agent.id).await?;
    }
    Ok(0)
}

/// Waits for all agents, and returns the first exit code that is not 0, in the order of the arguments.
pub(crate) async fn wait(global: &Global, ids: &[String]) -> Result<u8, CliError> {
    let client = connect(global).await?;
    if let [id] = ids {
        return wait_for(global, &client, &client.find_agent(id).await?.id).await;
    }
    // All agents are resolved first, so that a wrong one is reported before any wait.
    let failed = |id: &str, error: &CliError| {
        report(id, error);
        error.agent_exit_code()
    };
    let mut found = Vec::new();
    for id in ids {
        let agent = client.find_agent(id).await;
        found.push(agent.map_err(|error| failed(id, &error.into())));
    }
    let mut first = 0;
    for agent in found {
        let code = match agent {
            Err(code) => code,
            Ok(Agent { id, .. }) => {
                let code = wait_for(global, &client, &id).await;
                code.unwrap_or_else(|error| failed(&id, &error))
            }
        };
        if first == 0 {
            first = code;
        }
    }
    Ok(first)
}

async fn wait_for(global: &Global, client: &Client, id: &str) -> Result<u8, CliError> {
    let agent = endpoint(global)?
        .wait_agent(client, id, output::connection_event)
        .await?;
    exit::explain(&agent.id, agent.exit, agent.error.as_deref());
    Ok(exit::code(agent.exit))
}

pub(crate) async fn kill(global: &Global, options: KillArgs) -> Result<u8, CliError> {
    let signal = &options.signal;
    for_each_agent(global, &options.agents.ids, async |client, agent| {
        let params = KillParams {
            signal: Some(signal.clone()),
            grace_ms: Some(milliseconds(options.grace)),
            ..KillParams::new(&agent.id)
        };
        let result = client.kill_agent(params).await?;
        output::message(&kill_message(&agent.id, signal, result.outcome));
        Ok(())
    })
    .await
}

/// Returns the message about a kill with this first signal.
pub(crate) fn kill_message(id: &str, signal: &str, outcome: KillOutcome) -> String {
    match outcome {
        KillOutcome::Terminated => format!("agent {id} ended at {signal}; no process is left"),
        KillOutcome::Killed => format!("agent {id} needed KILL; no process is left"),
        KillOutcome::AlreadyExited => format!("agent {id} had already ended"),
        KillOutcome::Signalled => format!("agent {id} was sent {signal}"),
    }
}

/// Restarts agents, and prints the id of each; an agent that had ended gets a new id.
pub(crate) async fn restart(
    global: &Global,
    ids: &[String],
    grace: Duration,
    variables: &VariableArgs,
) -> Result<u8, CliError> {
    let env = Env(variables.resolve()?);
    for_each_agent(global, ids, async |client, agent| {
        let params = RestartAgentParams {
            id: agent.id,
            grace_ms: Some(milliseconds(grace)),
            env: env.clone(),
        };
        let restarted = client.restart_agent(params).await?;
        output::print(format!("{}\n", restarted.id))
    })
    .await
}

pub(crate) async fn rm(global: &Global, ids: &[String], force: bool) -> Result<u8, CliError> {
    for_each_agent(global, ids, async |client, agent| {
        if force {
            client.kill_agent(KillParams::new(&agent.id)).await?;
        }
        Ok(client.remove_agent(&agent.id).await?)
    })
    .await
}

/// Deletes ended agents, and prints each with the number of output bytes that this freed.
pub(crate) async fn prune(
    global: &Global,
    older_than: Option<Timestamp>,
    dry_run: bool,
) -> Result<u8, CliError> {
    let client = connect(global).await?;
    let mut agents = client.list_agents().await?;
    agents.retain(|agent| ended_before(agent, older_than));
    agents.sort_by(tables::list_order);
    let (mut count, mut freed, mut failed) = (0, 0, false);
    for agent in &agents {
        let kept = kept_bytes(&client, agent).await;
        if !dry_run {
            match client.remove_agent(&agent.id).await {
                Ok(()) => {}
                // Another client removed it first.
                Err(ClientError::Rpc(error)) if error.data.kind == ErrorKind::UnknownAgent => {
                    continue;
                }
                Err(error) => {
                    output::message(&format!("cannot remove agent {}: {error}", agent.id));
                    failed = true;
                    continue;
                }
            }
        }
        count += 1;
        freed += kept;
        let name = agent.name.as_deref().unwrap_or("-");
        let line = format!(
            "{}  {}  {}  {}\n",
            agent.id,
            agent.exited_at.as_deref().unwrap_or("-"),
            tables::short_bytes(kept),
            output::sanitize(name, 64),
        );
        output::print(line)?;
    }
    let verb = if dry_run { "would remove" } else { "removed" };
    output::message(&format!(
        "{verb} {count} ended agents with {} of output",
        tables::short_bytes(freed)
    ));
    Ok(u8::from(failed))
}

/// Returns whether an agent has ended, and not after `before`. An unreadable end time counts as after `before`.
fn ended_before(agent: &Agent, before: Option<Timestamp>) -> bool {
    agent.exited_at.as_ref().is_some_and(|exited_at| {
        let exited_at = exited_at.parse::<Timestamp>();
        before.is_none_or(|before| exited_at.is_ok_and(|exited_at| exited_at <= before))
    })
}

/// Returns how many bytes of output are kept: the bytes written minus the bytes dropped by retention.
async fn kept_bytes(client: &Client, agent: &Agent) -> u64 {
    let mut kept = 0;
    for (stream, written) in agent.written() {
        let oldest = client.oldest_offset(&agent.id, stream).await;
        kept += written.saturating_sub(oldest.unwrap_or(0));
    }
    kept
}

pub(crate) async fn shutdown(global: &Global) -> Result<u8, CliError> {
    let client = connect_existing(global).await?;
    let listed = client.list_running().await?;
    let running = listed.iter().filter(|agent| agent.exited_at.is_none());
    let running = running.count();
    client.shutdown().await?;
    output::message(&format!(
        "the daemon is stopping; {running} agents keep running, and the next daemon adopts them"
    ));
    Ok(0)
}

pub(crate) fn completions(shell: Shell) -> Result<u8, CliError> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut CliArguments::command(), "colibri", &mut script);
    output::print(script)?;
    Ok(0)
}
