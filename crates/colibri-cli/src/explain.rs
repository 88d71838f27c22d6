//! `colibri explain`: the same preparation as the daemon's, without the daemon.

use std::collections::BTreeMap;

use colibri_client::{ExplainResult, JailConfig};
use colibri_priv::BackendRegistry;
use colibri_spawner::file::ConfigFile;
use colibri_spawner::profile::Profile;
use colibri_spawner::settings::Settings;
use colibri_spawner::{Cgroups, SpawnError};

use crate::args::{Global, OfProfile, Spawn};
use crate::connect::{lookup, settings, socket};
use crate::error::CliError;
use crate::output;

/// Returns the spawner of a daemon with this environment.
pub(crate) fn spawner(global: &Global) -> Result<colibri_spawner::Spawner, CliError> {
    let partial = settings(global)?;
    let settings = Settings::resolve(&partial, lookup, BackendRegistry::builtin)?;
    let mut spawner = settings.spawner(
        &socket(&partial),
        std::env::vars_os().filter_map(|(name, value)| {
            Some((name.into_string().ok()?, value.into_string().ok()?))
        }),
    );
    spawner.cgroups = Cgroups::probe(partial.cgroup.as_deref());
    Ok(spawner)
}

/// Prints what would be executed. Of the variables only the names could count.
pub(crate) fn explain(global: &Global, spawn: Spawn, json: bool) -> Result<u8, CliError> {
    let name = spawn.profile.clone();
    let profiles = match name {
        Some(_) => ConfigFile::read(None, lookup)?.profiles,
        None => BTreeMap::new(),
    };
    let profile = name.as_ref().and_then(|name| profiles.get(name));
    let of_profile = OfProfile {
        has_jail: profile
            .and_then(|profile| profile.jail.as_ref())
            .is_some_and(JailConfig::is_jail),
        has_cwd: profile.is_some_and(|profile| profile.cwd.is_some()),
        secrets: Vec::new(),
    };
    let params = spawn.into_params(&of_profile)?;
    let request = Profile {
        program: params.program,
        args: params.args,
        env: params.env.0,
        cwd: params.cwd,
        jail: params.jail,
        ..Profile::default()
    };
    let config = request
        .over(name.as_deref(), &profiles)
        .and_then(Profile::into_config)
        .map_err(SpawnError::from)?;
    let prepared = spawner(global)?.prepare(&config)?;
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
