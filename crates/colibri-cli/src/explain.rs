//! `colibri explain`: the same preparation as the daemon's, without the daemon.

use colibri_client::ExplainResult;
use colibri_priv::BackendRegistry;
use colibri_spawner::AgentSpawnConfig;
use colibri_spawner::settings::Settings;

use crate::args::{Global, Spawn};
use crate::connect::{lookup, settings, socket};
use crate::error::CliError;
use crate::output;

/// A spawner as a daemon with this environment would have.
pub(crate) fn spawner(global: &Global) -> Result<colibri_spawner::Spawner, CliError> {
    let partial = settings(global)?;
    let settings = Settings::resolve(&partial, lookup, BackendRegistry::builtin)?;
    Ok(settings.spawner(
        &socket(&partial),
        std::env::vars_os().filter_map(|(name, value)| {
            Some((name.into_string().ok()?, value.into_string().ok()?))
        }),
    ))
}

/// Prints what would be executed.
pub(crate) fn explain(global: &Global, spawn: Spawn, json: bool) -> Result<u8, CliError> {
    let params = spawn.into_params();
    let prepared = spawner(global)?.prepare(&AgentSpawnConfig {
        program: params.program,
        args: params.args,
        env: params.env.0,
        cwd: params.cwd,
        jail: params.jail,
        runtime: None,
        name: params.name,
        restart: None,
    })?;
    if json {
        let (program, args) = prepared.command.into_parts();
        let (engine, privilege) = (prepared.engine, prepared.privilege);
        output::print_json(&ExplainResult {
            program,
            args,
            engine,
            privilege,
        })?;
    } else {
        output::print(format!("{}\n", prepared.command).as_bytes())?;
    }
    Ok(0)
}
