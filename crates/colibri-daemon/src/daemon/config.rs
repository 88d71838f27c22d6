//! The settings file that is in effect, and its reload.

use std::collections::BTreeMap;
use std::sync::Arc;

use colibri_config::{
    Autostart, ConfigFile, ConfigSources, PartialSettings, Profile, ProfileError,
};
use colibri_prepare::KnownConfinement;
use colibri_priv::Finding;
use colibri_proto::{
    ChangedNames, ErrorKind, ProfileInfo, ProfilesResult, ReloadResult, RpcError, SpawnRequest,
};
use colibri_spawner::Spawner;
use parking_lot::{Mutex, RwLock};

use super::DaemonState;
use crate::pool;

/// The settings in effect, and their sources.
pub(crate) struct Configuration {
    sources: ConfigSources,
    current: RwLock<Arc<ConfigFile>>,
    /// Settings in effect.
    effective: Mutex<PartialSettings>,
    /// Errors of `[[autostart]]` entries whose agents could not be started, by key.
    pub(super) autostart_failures: Mutex<BTreeMap<String, String>>,
    /// Serializes reloads and the start of `[[autostart]]` agents.
    pub(super) reload_lock: tokio::sync::Mutex<()>,
}

impl Configuration {
    pub(crate) fn new(
        sources: ConfigSources,
        file: ConfigFile,
        effective: PartialSettings,
    ) -> Self {
        warn_of_env_files(&file);
        Self {
            sources,
            current: RwLock::new(Arc::new(file)),
            effective: Mutex::new(effective),
            autostart_failures: Mutex::default(),
            reload_lock: tokio::sync::Mutex::default(),
        }
    }

    /// Returns the settings file in effect.
    pub(super) fn current(&self) -> Arc<ConfigFile> {
        self.current.read().clone()
    }

    /// Merges a spawn request with the profile that it names; the request takes precedence.
    ///
    /// # Errors
    /// The profile does not exist.
    pub(crate) fn apply_profile(&self, params: SpawnRequest) -> Result<Profile, ProfileError> {
        Profile::from(params).with_named_profile(&self.current().profiles)
    }

    /// Returns all profiles, as clients see them.
    pub(crate) fn profiles(&self) -> ProfilesResult {
        let current = self.current();
        let profiles = current.profiles.iter();
        ProfilesResult {
            file: current.path().map(|path| path.display().to_string()),
            profiles: profiles
                .map(|(name, profile)| profile_info(name, profile))
                .collect(),
        }
    }

    /// Returns the jails that profiles and `[[autostart]]` entries name.
    pub(crate) fn confinements(&self) -> Vec<KnownConfinement> {
        let current = self.current();
        KnownConfinement::of_settings(current.profile_jails(), current.autostart_jails())
    }

    /// Returns a finding of `doctor` for each `[[autostart]]` agent that could not be started.
    pub(crate) fn findings(&self) -> Vec<Finding> {
        let failures = self.autostart_failures.lock();
        let finding = |(key, error): (&String, &String)| {
            Finding::fail(
                format!("cannot start [[autostart]] agent {key:?}: {error}"),
                "fix the cause or the entry in the settings file, then run: colibri config reload",
            )
        };
        failures.iter().map(finding).collect()
    }
}

impl DaemonState {
    /// Reads the settings file again, applies what a running daemon can change, and starts the agents of new entries. An
    /// invalid file changes nothing.
    ///
    /// # Errors
    /// The file cannot be read or is invalid.
    pub(crate) async fn reload(&self) -> Result<ReloadResult, RpcError> {
        let config = &self.config;
        let _guard = config.reload_lock.lock().await;
        let sources = config.sources.clone();
        let read = pool::run(move || {
            sources
                .load(|name| std::env::var(name).ok())
                .inspect(|loaded| warn_of_env_files(&loaded.file))
        });
        let loaded = read.await.map_err(|error| {
            tracing::error!("cannot reload the settings file; the previous settings stay in effect: {error}");
            RpcError::new(ErrorKind::InvalidConfig, error.to_string())
                .hint("nothing has changed; fix the file, check it with colibri config check, and reload it again")
        })?;
        let changes = {
            let mut effective = config.effective.lock();
            let changes = effective.changes(&loaded.partial);
            effective.apply_live(&loaded.partial);
            changes
        };
        let (registry, settings) = (&self.registry, loaded.settings);
        let private_files = loaded.file.private_files().collect();
        registry.set_spawn_settings(settings.shim, settings.journal, private_files);
        let spawner = registry.spawner();
        pool::run(move || tell_other_daemons(&spawner)).await;
        registry.retention.send_replace(settings.retention);
        let file = Arc::new(loaded.file);
        let before = std::mem::replace(&mut *config.current.write(), file.clone());
        let mut result = ReloadResult {
            file: file.path().map(|path| path.display().to_string()),
            settings: changes.live,
            needs_restart: changes.needs_restart,
            profiles: changed_names(&before.profiles, &file.profiles),
            autostart: changed_names(&entries_by_key(&before), &entries_by_key(&file)),
            ..ReloadResult::default()
        };
        self.start_changed(&file, &mut result).await;
        tracing::info!(settings = ?result.settings, needs_restart = ?result.needs_restart,
            profiles = ?result.profiles, autostart = ?result.autostart, "settings reloaded");
        Ok(result)
    }
}

/// Stores the private paths for the sandboxes of the other daemons of this user. An error is logged.
pub(crate) fn tell_other_daemons(spawner: &Spawner) {
    let preparer = &spawner.preparer;
    let Some(known) = &preparer.known_daemons else {
        return;
    };
    let private = [&preparer.private_directories[..], &preparer.private_files].concat();
    if let Err(error) = known.register(spawner.state.path(), &private) {
        tracing::warn!(%error, "cannot tell other daemons of this user which paths to hide from their agents");
    }
}

fn warn_of_env_files(file: &ConfigFile) {
    for problem in file.unusable_env_files() {
        tracing::warn!("{problem}");
    }
}

fn entries_by_key(file: &ConfigFile) -> BTreeMap<String, Autostart> {
    let entries = file.autostart.iter();
    entries
        .map(|entry| (entry.key.clone(), entry.clone()))
        .collect()
}

fn changed_names<T: PartialEq>(
    before: &BTreeMap<String, T>,
    now: &BTreeMap<String, T>,
) -> ChangedNames {
    let mut names = ChangedNames::default();
    for (name, value) in now {
        match before.get(name) {
            None => names.added.push(name.clone()),
            Some(old) if old != value => names.changed.push(name.clone()),
            Some(_) => {}
        }
    }
    let is_removed = |name: &&String| !now.contains_key(*name);
    names.removed = before.keys().filter(is_removed).cloned().collect();
    names
}

fn profile_info(name: &str, profile: &Profile) -> ProfileInfo {
    let request = &profile.request;
    let env_file = profile.env_file.as_ref();
    ProfileInfo {
        name: name.to_owned(),
        program: request.program.clone(),
        args: request.args.clone(),
        runtime: request.runtime,
        jail: request.jail.clone(),
        cwd: request.cwd.clone(),
        env: request.env.keys().cloned().collect(),
        env_file: env_file.map(|path| path.display().to_string()),
        secrets: profile.secrets.iter().cloned().collect(),
        label: request.name.clone(),
        restart: request.restart.as_ref().and_then(|restart| restart.policy),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn changed_names_lists_added_changed_and_removed() {
        let map = |pairs: &[(&str, i32)]| -> BTreeMap<String, i32> {
            let pairs = pairs.iter();
            pairs
                .map(|(name, value)| ((*name).to_owned(), *value))
                .collect()
        };
        let changes = changed_names(
            &map(&[("a", 1), ("b", 1), ("c", 1)]),
            &map(&[("b", 1), ("c", 2), ("d", 1)]),
        );
        assert_eq!(changes.added, ["d"]);
        assert_eq!(changes.changed, ["c"]);
        assert_eq!(changes.removed, ["a"]);
    }
}
