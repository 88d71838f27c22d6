//! `colibri explain`: prepares a spawn request as the daemon does, and prints the command line.

use std::collections::BTreeMap;

use colibri_client::{ExplainResult, JailConfig};
use colibri_config::{ConfigFile, Profile, ProfileError, Registries, Settings};
use colibri_prepare::{Cgroups, HostEnv, Installation, KnownDaemons, Preparer};

use crate::agents::MissingLogin;
use crate::args::{Global, ProfileSettings, Spawn};
use crate::connect::{lookup, settings, socket};
use crate::default_jail::DefaultJail;
use crate::error::CliError;
use crate::output;

/// Returns the preparer of a daemon with this environment, and its paths.
pub(crate) fn preparer(global: &Global) -> Result<(Preparer, Installation), CliError> {
    let partial = settings(global)?;
    // An invalid profile does not concern the command line.
    let file = ConfigFile::read(None, lookup).unwrap_or_default();
    let settings = Settings::resolve(&partial, lookup, &Registries::default())?;
    let socket = socket(&partial);
    let preparer = Preparer {
        private_directories: settings.private_directories(&socket),
        private_files: file.private_files().collect(),
        known_daemons: Some(KnownDaemons::of_user()),
        engine: settings.engine,
        backend: settings.backend,
        host: HostEnv::of_process(),
        cgroups: Cgroups::probe(partial.cgroup.as_deref()),
        soft_open_files: None,
        adapter: settings.adapter,
    };
    let installation = Installation {
        shim: settings.shim,
        state_dir: settings.state_dir,
        socket,
        confinements: Vec::new(),
    };
    Ok((preparer, installation))
}

/// Prints the command line that would be executed. Values of environment variables do not affect it.
pub(crate) fn explain(global: &Global, spawn: Spawn, json: bool) -> Result<u8, CliError> {
    let profiles = match spawn.profile {
        Some(_) => ConfigFile::read(None, lookup)?.profiles,
        None => BTreeMap::new(),
    };
    let name = spawn.profile.as_ref();
    let profile = name.and_then(|name| profiles.get(name));
    let profile_settings = ProfileSettings {
        default_jail: DefaultJail::of(&settings(global)?),
        has_jail: profile
            .and_then(|profile| profile.request.jail.as_ref())
            .is_some_and(JailConfig::is_jail),
        has_cwd: profile.is_some_and(|profile| profile.request.cwd.is_some()),
        secrets: Vec::new(),
    };
    let agent = crate::agents::request(&spawn, MissingLogin::Warn)?;
    if let Some(agent) = &agent {
        crate::agents::explain(agent);
    }
    let request = spawn.into_request(&profile_settings)?;
    let request = crate::agents::with_preset(request, agent);
    let profile = Profile::from(request).with_named_profile(&profiles)?;
    let config = profile.request.resolve().map_err(ProfileError::from)?;
    let (preparer, _) = preparer(global)?;
    let prepared = preparer.prepare(&config)?;
    if prepared.supervised != prepared.command {
        output::message(&format!(
            "the shim runs it under a monitor: {}",
            prepared.supervised
        ));
    }
    output::warnings(&prepared.warnings);
    let line = format!("{}\n", prepared.command);
    let (program, args) = prepared.command.into_parts();
    let result = ExplainResult {
        program,
        args,
        engine: prepared.engine,
        privilege: prepared.privilege,
    };
    output::print_result(json, &result, |_| line)?;
    Ok(0)
}
