//! The `colibri` command: parses the command line, sends requests to the daemon, and prints the results.

#![forbid(unsafe_code)]

mod acp;
mod agents;
mod answer;
mod args;
mod attach;
mod bridge;
mod commands;
mod config;
mod connect;
mod default_jail;
mod doctor;
mod error;
mod events;
mod exit;
mod explain;
mod flags;
mod input;
mod jail;
mod logs;
mod mcp;
mod output;
mod paths;
mod prompt;
mod resume;
mod run;
mod signals;
mod sink;
mod status;
mod tables;
mod terminal;
mod top;

use std::process::ExitCode;

use crate::args::{CliArguments, CliCommand, Config};
use crate::error::CliError;

fn main() -> ExitCode {
    let arguments = args::parse();
    let exits_as_agent = arguments.command.exits_as_agent();
    let result = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(CliError::Runtime)
        .and_then(|runtime| {
            let result = runtime.block_on(execute(arguments));
            // A read of stdin may block its thread forever.
            runtime.shutdown_background();
            result
        });
    match result {
        Ok(code) => ExitCode::from(code),
        Err(CliError::ReaderClosed) => ExitCode::SUCCESS,
        Err(error) => {
            output::message(&error.message());
            ExitCode::from(match exits_as_agent {
                true => error.agent_exit_code(),
                false => error.exit_code(),
            })
        }
    }
}

async fn execute(arguments: CliArguments) -> Result<u8, CliError> {
    let global = arguments.global;
    match arguments.command {
        CliCommand::Run(run) if run.spawn.terminal => terminal::run(&global, run).await,
        CliCommand::Run(run) => run::run(&global, run).await,
        CliCommand::Spawn(background) => commands::spawn(&global, background).await,
        CliCommand::Explain { spawn, json } => explain::explain(&global, spawn, json),
        CliCommand::Agents { name, json } => agents::agents(name.as_deref(), json),
        CliCommand::Profiles { json } => config::profiles(&global, json).await,
        CliCommand::Config(Config::Check { config }) => config::check(config.as_deref()),
        CliCommand::Config(Config::Reload { json }) => config::reload(&global, json).await,
        CliCommand::Ps(list) => commands::ps(&global, &list).await,
        CliCommand::Status { agents, json } => status::status(&global, &agents.ids, json).await,
        CliCommand::Logs(logs) => logs::logs(&global, logs).await,
        CliCommand::Events(events) => events::events(&global, events).await,
        CliCommand::Runs { agent, json } => commands::runs(&global, &agent.id, json).await,
        CliCommand::Attach(attach) => attach::attach(&global, attach).await,
        CliCommand::Prompt(prompt) => prompt::prompt(&global, prompt).await,
        CliCommand::Abort { agent, timeout } => prompt::abort(&global, &agent.id, timeout).await,
        CliCommand::Send(send) => commands::send(&global, send).await,
        CliCommand::Wait { agents } => commands::wait(&global, &agents.ids).await,
        CliCommand::Kill(kill) => commands::kill(&global, kill).await,
        CliCommand::Resume(options) => resume::resume(&global, options).await,
        CliCommand::Restart {
            agents,
            grace,
            variables,
        } => commands::restart(&global, &agents.ids, grace, &variables).await,
        CliCommand::Rm { agents, force } => commands::rm(&global, &agents.ids, force).await,
        CliCommand::Prune {
            older_than,
            dry_run,
        } => commands::prune(&global, older_than, dry_run).await,
        CliCommand::Acp(acp) => acp::acp(&global, *acp).await,
        CliCommand::Mcp(mcp) => mcp::mcp(&global, mcp).await,
        CliCommand::Top => top::top(&global).await,
        CliCommand::Doctor { json } => doctor::doctor(&global, json).await,
        CliCommand::Jail(command) => jail::jail(command).await,
        CliCommand::Shutdown => commands::shutdown(&global).await,
        CliCommand::Completions { shell } => commands::completions(shell),
    }
}
