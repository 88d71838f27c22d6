//! `spawn-agent`, `explain-spawn` and `restart-agent`.

use colibri_config::ProfileError;
use colibri_proto::{ExplainResult, RestartAgentParams, RestartResult, SpawnRequest, SpawnResult};
use colibri_spawner::SpawnError;

use super::control::grace;
use super::find_agent;
use crate::daemon::DaemonState;
use crate::errors::CallError;
use crate::pool;
use crate::registry::validate_name;

pub(super) async fn spawn(
    daemon: &DaemonState,
    params: SpawnRequest,
) -> Result<SpawnResult, CallError> {
    daemon.check_running()?;
    let profile = daemon.config.apply_profile(params)?;
    // The caller has put the secrets into `env`: the daemon's environment is not read.
    let config = pool::run(move || profile.resolve(|_| None)).await?;
    let agent = daemon.registry.spawn(&config).await?;
    Ok(SpawnResult {
        id: agent.spec.id.to_string(),
        warnings: agent.spec.warnings.clone(),
    })
}

pub(super) async fn explain(
    daemon: &DaemonState,
    params: SpawnRequest,
) -> Result<ExplainResult, CallError> {
    let config = daemon.config.apply_profile(params)?.request.resolve();
    let config = config.map_err(ProfileError::from)?;
    validate_name(&config)?;
    let prepared = daemon.registry.spawner().explain(&config).await?;
    let (program, args) = prepared.command.into_parts();
    Ok(ExplainResult {
        program,
        args,
        engine: prepared.engine,
        privilege: prepared.privilege,
    })
}

/// Ends the current run of a running agent, whose shim then starts the next one immediately; spawns an ended agent
/// again.
pub(super) async fn restart(
    daemon: &DaemonState,
    params: RestartAgentParams,
) -> Result<RestartResult, CallError> {
    let registry = &daemon.registry;
    let found = find_agent(registry, &params.id)?;
    if let Some(agent) = found.running() {
        if !params.env.is_empty() {
            return Err(SpawnError::Running(params.id).into());
        }
        registry
            .spawner()
            .restart(agent, grace(params.grace_ms))
            .await?;
        return Ok(RestartResult { id: params.id });
    }
    daemon.check_running()?;
    let mut config = found.spec.config.clone();
    let given = params.env.0;
    let missing = |name: &String| !given.contains_key(name);
    let variables: Vec<String> = config.env.0.into_keys().filter(missing).collect();
    if !variables.is_empty() {
        let id = params.id;
        return Err(SpawnError::EnvironmentNotKept { id, variables }.into());
    }
    config.env.0 = given;
    config.resumes = Some(params.id);
    let agent = registry.spawn(&config).await?;
    Ok(RestartResult {
        id: agent.spec.id.to_string(),
    })
}
