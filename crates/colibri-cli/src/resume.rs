//! `colibri resume`: continues the session of an ended agent as a new one.

use std::collections::BTreeMap;

use colibri_client::{Agent, Env, JailConfig, MountConfig, SpawnRequest};
use colibri_presets::{Host, Mode, Session, find};

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
    let id = agent.view.as_ref().and_then(|view| view.session.as_deref());
    let session = match id {
        Some(id) => Session::Id(id),
        None if !preset.resume_last.is_empty() => Session::Last,
        None => {
            return Err(CliError::Message(format!(
                "agent {} has reported no session, so none can be continued; start a new agent",
                agent.id
            )));
        }
    };
    let mode = match &options.prompt {
        Some(prompt) => Mode::Once(prompt),
        None => Mode::Driven,
    };
    let host = Host::new(lookup);
    let plan = preset.plan(name, &mode, session, &host)?;
    if options.secrets.is_empty() && options.env.is_empty() {
        preset.check_login(name, &plan)?;
    }
    let mut request = plan.request;
    // The preset may need other mounts than at the first start, and the rest of the jail stays as it was.
    let planned = request.jail.take().unwrap_or_default();
    request.jail = agent
        .jail
        .clone()
        .map(|jail| with_mounts(jail, planned.mounts));
    let mut env = BTreeMap::new();
    for name in &options.secrets {
        let value = lookup(name).ok_or_else(|| {
            CliError::Message(format!(
                "cannot pass secret {name}: it is not set in the environment; set it"
            ))
        })?;
        env.insert(name.clone(), value);
    }
    env.extend(options.env.iter().cloned());
    request.env.0.extend(env);
    // Arguments that the user added to those of the preset.
    let args = request.args.get_or_insert_default();
    args.extend(options.args.iter().cloned());
    Ok(SpawnRequest {
        name: agent.name.clone(),
        cwd: agent.cwd.clone().filter(|_| agent.jail.is_none()),
        restart: agent.restart.clone(),
        env: Env(request.env.0),
        ..request
    })
}

fn with_mounts(mut jail: JailConfig, planned: Vec<MountConfig>) -> JailConfig {
    for mount in planned {
        let is_same = |other: &MountConfig| other.target_or_source() == mount.target_or_source();
        if !jail.mounts.iter().any(is_same) {
            jail.mounts.push(mount);
        }
    }
    jail
}
