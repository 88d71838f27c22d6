//! `colibri resume`: continues the session of an ended agent as a new one.

use colibri_client::{Agent, SpawnRequest};
use colibri_presets::{EndedAgent, Host, Mode, find};

use crate::args::{Global, ResumeArgs};
use crate::connect::{connect, lookup};
use crate::error::CliError;
use crate::output;

/// Starts an agent with the session, the workspace and the home of an ended one, and prints its id.
pub(crate) async fn resume(global: &Global, options: ResumeArgs) -> Result<u8, CliError> {
    let client = connect(global).await?;
    let agent = client.find_agent(&options.agent.id).await?;
    let id = &agent.id;
    if agent.exited_at.is_none() {
        return Err(CliError::Message(format!(
            "agent {id} runs; send it a prompt with colibri prompt {id}"
        )));
    }
    let Some(name) = options.preset.as_ref().or(agent.preset.as_ref()) else {
        return Err(CliError::Message(format!(
            "agent {id} was not started by a preset; name its preset with --agent, or start it again with colibri restart {id}"
        )));
    };
    let request = request(&agent, name, &options)?;
    let started = client.spawn_agent(request).await?;
    output::warnings(&started.warnings);
    output::print(format!("{}\n", started.id))?;
    Ok(0)
}

fn request(agent: &Agent, name: &str, options: &ResumeArgs) -> Result<SpawnRequest, CliError> {
    let presets = crate::agents::presets()?;
    let preset = find(&presets, name)?;
    let mode = match &options.prompt {
        prompt if agent.terminal.is_some() => Mode::Terminal(prompt.as_deref()),
        Some(_) if agent.asks => {
            return Err(CliError::Message(format!(
                "agent {} was started with --ask, and a single prompt leaves no time for answers; resume it without a prompt, then use colibri prompt",
                agent.id
            )));
        }
        Some(prompt) => Mode::Once(prompt),
        None if agent.asks => Mode::Asking,
        None => Mode::Driven,
    };
    let ended = EndedAgent {
        session: agent.view.as_ref().and_then(|view| view.session.as_deref()),
        jail: agent.jail.as_ref(),
        variables: agent.variables.iter().map(String::as_str).collect(),
        added_args: match options.args.is_empty() {
            true => &agent.added_args,
            false => &options.args,
        },
    };
    let plan = preset.resume(name, &mode, &ended, &Host::new(lookup))?;
    crate::agents::report_exposed_keys(&plan);
    if options.variables.is_empty() {
        preset.check_login(name, &plan)?;
    }
    let mut request = plan.request;
    request.env.0.extend(options.variables.resolve()?);
    Ok(SpawnRequest {
        name: agent.name.clone(),
        cwd: agent.cwd.clone().filter(|_| agent.jail.is_none()),
        restart: agent.restart.clone(),
        terminal: agent.terminal,
        resumes: Some(agent.id.clone()),
        ..request
    })
}
