//! `colibri mcp`: a server of the Model Context Protocol, by which an agent starts and leads other agents.
//!
//! The client sees and changes only the agents that this server has started. It chooses presets and workspaces; everything
//! else comes from the options of the server and from the settings file.

mod tools;
mod workspaces;

use std::sync::Arc;

use colibri_client::JailConfig;
use rmcp::ServiceExt;
use tokio::io::{AsyncWriteExt, BufReader, DuplexStream};

use self::tools::AgentTools;
use self::workspaces::Workspaces;
use crate::args::{Global, McpArgs};
use crate::bridge::{OwnAgents, next_line};
use crate::connect::settings;
use crate::default_jail::DefaultJail;
use crate::error::CliError;
use crate::output;
use crate::signals::{SignalStream, TERMINATING};

/// Capacity of the pipe to the library, in bytes.
const PIPE: usize = 64 << 10;

/// Serves one connection until its end.
pub(crate) async fn mcp(global: &Global, options: McpArgs) -> Result<u8, CliError> {
    let agents = OwnAgents::connect(global, options.max_agents.into()).await?;
    let agents = Arc::new(agents);
    let jail = match &options.profile {
        Some(name) => {
            let profiles = agents.client().await?.list_profiles().await?.profiles;
            let profile = profiles.into_iter().find(|profile| profile.name == *name);
            let profile = profile.ok_or_else(|| {
                CliError::Message(format!(
                    "the daemon's settings file has no profile {name:?}; list them with colibri profiles"
                ))
            })?;
            profile.jail
        }
        None => None,
    };
    let has_jail = jail.as_ref().is_some_and(JailConfig::is_jail);
    if !has_jail && DefaultJail::of(&settings(global)?).jail()?.is_none() {
        return Err(CliError::Message(
            "the agents would have no jail, because [defaults] of the settings file says so; give --profile with a jail"
                .to_owned(),
        ));
    }
    let workspaces = Workspaces::new(options.workspace.as_deref(), jail.as_ref())?;
    let mut signals = SignalStream::install(&TERMINATING)?;
    let tools = AgentTools::new(agents.clone(), options.profile, workspaces);
    let served = tokio::select! {
        served = serve(tools) => served,
        _ = signals.next() => Ok(()),
    };
    if !options.keep {
        agents.kill_all().await;
    }
    served.map(|()| 0)
}

/// Answers the requests of the client until the end of standard input.
async fn serve(tools: AgentTools) -> Result<(), CliError> {
    let (pipe, input) = tokio::io::duplex(PIPE);
    tokio::spawn(read_lines(pipe));
    let failed = |error: &dyn std::fmt::Display| {
        CliError::Message(format!("cannot serve the client: {error}"))
    };
    let service = tools.serve((input, tokio::io::stdout())).await;
    let service = service.map_err(|error| failed(&error))?;
    let ended = service.waiting().await;
    ended.map(drop).map_err(|error| failed(&error))
}

/// Passes the lines of standard input to the library.
async fn read_lines(mut pipe: DuplexStream) {
    let mut input = BufReader::new(tokio::io::stdin());
    loop {
        let mut line = match next_line(&mut input).await {
            Ok(Some(line)) => line,
            Ok(None) => return,
            Err(error) => {
                return output::message(&format!("cannot read standard input: {error}"));
            }
        };
        line.push('\n');
        if pipe.write_all(line.as_bytes()).await.is_err() {
            return;
        }
    }
}
