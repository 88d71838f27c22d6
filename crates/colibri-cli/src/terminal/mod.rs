//! Agents with a terminal, on the user's terminal: `run -t` and `attach`.

mod detach;
mod filter;
mod history;
mod host;
mod modes;
mod screen;
mod session;

use std::ops::ControlFlow;

use colibri_client::{Agent, Client, Endpoint};
use rustix::process::Signal;

pub(crate) use self::detach::DetachKeys;
pub(crate) use self::host::{is_interactive, size as host_size};
use self::screen::AgentScreen;
use self::session::{OnSignal, Outcome, SessionOptions, Start, run_session};
use crate::args::{AttachArgs, Global, Run};
use crate::connect::{connect_to, endpoint};
use crate::error::CliError;
use crate::output;
use crate::run::{report_no_answer, start};
use crate::signals::{SignalStream, TERMINATING};
use crate::tables::short_exit;
use crate::{exit, signals};

/// Runs a new agent with a terminal on the user's terminal, and exits as it does.
pub(crate) async fn run(global: &Global, run: Run) -> Result<u8, CliError> {
    if !is_interactive() {
        return Err(CliError::NotInteractive);
    }
    let endpoint = endpoint(global)?;
    let client = connect_to(&endpoint).await?;
    let params = crate::config::spawn_params(global, &client, run.spawn).await?;
    let mut signals = SignalStream::install(&TERMINATING)?;
    let mut early_signals = Vec::new();
    let spawned = match start(&client, params, &mut signals, &mut early_signals).await? {
        ControlFlow::Continue(spawned) => spawned,
        ControlFlow::Break(exit_code) => {
            report_no_answer(&endpoint);
            return Ok(exit_code);
        }
    };
    output::warnings(&spawned.warnings);
    let agent = client.get_agent(&spawned.id).await?;
    let options = SessionOptions {
        keys: run.detach_keys,
        sends_input: true,
        on_signal: OnSignal::Forward,
        early_signals,
    };
    let outcome = run_session(&endpoint, client, &agent, Start::FirstByte, options).await?;
    Ok(match outcome {
        Outcome::Ended(exit) => exit::explained_code(&exit),
        other => detached(&agent.id, &other),
    })
}

/// Shows an agent with a terminal on the user's terminal, until it has ended or the user detaches.
pub(crate) async fn attach(
    endpoint: &Endpoint,
    client: Client,
    agent: &Agent,
    options: AttachArgs,
) -> Result<u8, CliError> {
    if agent.exited_at.is_some() {
        return show_ended(&client, agent).await;
    }
    let options = SessionOptions {
        keys: options.detach_keys,
        sends_input: !options.no_input,
        on_signal: OnSignal::Detach,
        early_signals: Vec::new(),
    };
    let outcome = run_session(endpoint, client, agent, Start::Present, options).await?;
    Ok(match outcome {
        Outcome::Ended(exit) => {
            output::message(&format!("{} ended: {}", agent.id, short_exit(exit.exit)));
            exit::explained_code(&exit)
        }
        other => detached(&agent.id, &other),
    })
}

/// Prints the last screen of an agent that has ended.
async fn show_ended(client: &Client, agent: &Agent) -> Result<u8, CliError> {
    let size = agent.terminal.unwrap_or_default();
    let screen = AgentScreen::new(size, size);
    if let Ok(mut screen) = screen {
        history::replay(client, agent, |bytes| drop(screen.push(bytes))).await?;
        output::print(screen.text() + "\n")?;
    }
    output::message(&format!("{} ended: {}", agent.id, short_exit(agent.exit)));
    exit::explain(&agent.id, agent.exit, agent.error.as_deref());
    Ok(exit::code(agent.exit))
}

/// Reports that the agent keeps running, and returns the exit code.
fn detached(id: &str, outcome: &Outcome) -> u8 {
    output::message(&format!(
        "detached; agent {id} keeps running; attach again with colibri attach {id}"
    ));
    match outcome {
        Outcome::Signalled(signal) if *signal != Signal::INT => signals::exit_code(*signal),
        _ => 0,
    }
}
