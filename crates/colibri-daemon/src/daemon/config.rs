//! The settings file as it counts now, and how it is read again without a restart.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError, RwLock};

use colibri_config::ConfigFile;
use colibri_config::{PartialSettings, Settings, SettingsError};
use colibri_config::{Profile, ProfileError};
use colibri_priv::{BackendRegistry, Finding};
use colibri_proto::{
    Changes, ErrorKind, ProfileInfo, ProfilesResult, ReloadResult, RpcError, SpawnRequest,
};
use colibri_spawner::{AgentSpawnConfig, SpawnError};

use crate::connection::server::Server;
use crate::handlers::RequestError;
use crate::pool;

/// Selects whether the environment file of a profile is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Secrets {
    Wanted,
    Unwanted,
}

/// What the settings file says, and what is stronger than it.
pub(crate) struct Configuration {
    /// The file that was named at the start.
    named: Option<PathBuf>,
    /// What flags and the environment say.
    stronger: PartialSettings,
    backends: BackendRegistry,
    current: RwLock<Arc<ConfigFile>>,
    /// The settings that count.
    counting: Mutex<PartialSettings>,
    /// Entries of `[[autostart]]` whose agents could not be started, and why.
    pub(crate) not_started: Mutex<BTreeMap<String, String>>,
    /// Held by whoever reads the file anew or starts its agents: one after the other.
    pub(crate) changing: tokio::sync::Mutex<()>,
}

impl Configuration {
    pub(crate) fn new(
        named: Option<PathBuf>,
        stronger: PartialSettings,
        backends: BackendRegistry,
        file: ConfigFile,
    ) -> Self {
        warn_of_env_files(&file);
        let counting = stronger.clone().or(file.settings.clone());
        Self {
            named,
            stronger,
            backends,
            current: RwLock::new(Arc::new(file)),
            counting: Mutex::new(counting),
            not_started: Mutex::default(),
            changing: tokio::sync::Mutex::default(),
        }
    }

    /// The file as it counts now.
    pub(crate) fn current(&self) -> Arc<ConfigFile> {
        self.current
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// Merges a spawn request with the profile that it names; the request takes precedence. Reads the environment file
    /// of the profile if `secrets` says so.
    ///
    /// # Errors
    /// The profile or its environment file cannot be used.
    pub(crate) async fn over_profile(
        &self,
        params: SpawnRequest,
        secrets: Secrets,
    ) -> Result<AgentSpawnConfig, RequestError> {
        let file = self.current();
        let read = pool::short(move || {
            let profile = Profile::from(params).over(&file.profiles)?;
            match secrets {
                // The caller has put the secrets into `env`: the daemon's own environment is not read.
                Secrets::Wanted => profile.resolve(|_| None),
                Secrets::Unwanted => profile.request.resolve().map_err(ProfileError::from),
            }
        });
        let config = read.await.map_err(|source| SpawnError::Resources {
            doing: "reading the profile".to_owned(),
            source,
        })?;
        Ok(config?)
    }

    /// All profiles.
    pub(crate) fn profiles(&self) -> ProfilesResult {
        let current = self.current();
        ProfilesResult {
            file: current.path().map(|path| path.display().to_string()),
            profiles: current
                .profiles
                .iter()
                .map(|(name, profile)| shown(name, profile))
                .collect(),
        }
    }

    /// What `doctor` says of agents that should have been started.
    pub(crate) fn findings(&self) -> Vec<Finding> {
        let not_started = self
            .not_started
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let finding = |(key, error): (&String, &String)| {
            Finding::fail(
                format!(
                    "agent {key:?}, which starts with the daemon, could not be started: {error}"
                ),
                "mend that or the entry in the settings file, then run: colibri config reload",
            )
        };
        not_started.iter().map(finding).collect()
    }

    /// Reads the file anew and takes over what a running daemon can; says nothing yet of agents.
    async fn replace(
        &self,
        server: &Server,
    ) -> Result<(Arc<ConfigFile>, ReloadResult), SettingsError> {
        let (named, stronger) = (self.named.clone(), self.stronger.clone());
        let backends = self.backends.clone();
        let read = pool::short(move || {
            let lookup = |name: &str| std::env::var(name).ok();
            let file = ConfigFile::read(named.as_deref(), lookup)?;
            let newer = stronger.clone().or(file.settings.clone());
            if stronger.privilege.is_none() {
                file.check_privilege(&backends)?;
            }
            let settings = Settings::resolve(&newer, lookup, |_| backends)?;
            warn_of_env_files(&file);
            Ok::<_, SettingsError>((file, newer, settings))
        });
        let (file, newer, settings) =
            read.await.map_err(|source| SettingsError::Unreadable {
                path: self.named.clone().unwrap_or_default(),
                source,
            })??;
        let mut counting = self.counting.lock().unwrap_or_else(PoisonError::into_inner);
        let (live, needs_restart) = counting.changed(&newer);
        *counting = counting.updated(&newer);
        drop(counting);
        let registry = &server.registry;
        registry.start_from_now_on_with(settings.shim, settings.journal);
        registry.retention.set(settings.retention);
        let file = Arc::new(file);
        let before = std::mem::replace(
            &mut *self.current.write().unwrap_or_else(PoisonError::into_inner),
            file.clone(),
        );
        let entries = |file: &ConfigFile| -> BTreeMap<String, _> {
            let keyed = |entry: &colibri_config::Autostart| (entry.key.clone(), entry.clone());
            file.autostart.iter().map(keyed).collect()
        };
        let result = ReloadResult {
            file: file.path().map(|path| path.display().to_string()),
            settings: live,
            needs_restart,
            profiles: changes(&before.profiles, &file.profiles),
            autostart: changes(&entries(&before), &entries(&file)),
            ..ReloadResult::default()
        };
        Ok((file, result))
    }
}

impl Server {
    /// Reads the settings file again, and starts the agents that are new in it. A file with a mistake changes
    /// nothing.
    pub(crate) async fn reload(&self) -> Result<ReloadResult, RpcError> {
        let _one_at_a_time = self.config.changing.lock().await;
        let (file, mut result) = self.config.replace(self).await.map_err(|error| {
            tracing::error!("settings not reloaded, those before count on: {error}");
            RpcError::new(ErrorKind::InvalidConfig, error.to_string())
                .hint("nothing has changed; mend the file, see it with colibri config check, and reload again")
        })?;
        self.start_changed(&file, &mut result).await;
        tracing::info!(settings = ?result.settings, needs_restart = ?result.needs_restart,
            profiles = ?result.profiles, autostart = ?result.autostart, "settings reloaded");
        Ok(result)
    }

    /// The same for a signal, which nobody waits for: the log says how it went.
    pub(crate) async fn reload_alone(self: Arc<Self>) {
        let call = colibri_proto::Call::ReloadConfig(colibri_proto::Empty {});
        let _ = crate::handlers::perform(
            &self,
            crate::daemon::audit::Peer::own(),
            "reload-config",
            call,
        )
        .await;
    }
}

fn warn_of_env_files(file: &ConfigFile) {
    for problem in file.unusable_env_files() {
        tracing::warn!("{problem}");
    }
}

fn changes<T: PartialEq>(before: &BTreeMap<String, T>, now: &BTreeMap<String, T>) -> Changes {
    let names = |wanted: &dyn Fn(&String, &T) -> bool, of: &BTreeMap<String, T>| {
        let chosen = of.iter().filter(|(name, value)| wanted(name, value));
        chosen.map(|(name, _)| name.clone()).collect()
    };
    Changes {
        added: names(&|name, _| !before.contains_key(name), now),
        changed: names(
            &|name, value| before.get(name).is_some_and(|before| before != value),
            now,
        ),
        removed: names(&|name, _| !now.contains_key(name), before),
    }
}

fn shown(name: &str, profile: &Profile) -> ProfileInfo {
    let request = &profile.request;
    ProfileInfo {
        name: name.to_owned(),
        program: request.program.clone(),
        args: request.args.clone(),
        runtime: request.runtime,
        jail: request.jail.clone(),
        cwd: request.cwd.clone(),
        env: request.env.keys().cloned().collect(),
        env_file: profile
            .env_file
            .as_ref()
            .map(|path| path.display().to_string()),
        secrets: profile.secrets.iter().cloned().collect(),
        label: request.name.clone(),
        restart: request.restart.as_ref().and_then(|restart| restart.policy),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_came_changed_and_went() {
        let map = |pairs: &[(&str, i32)]| -> BTreeMap<String, i32> {
            pairs
                .iter()
                .map(|(name, value)| ((*name).to_owned(), *value))
                .collect()
        };
        let changes = changes(
            &map(&[("a", 1), ("b", 1), ("c", 1)]),
            &map(&[("b", 1), ("c", 2), ("d", 1)]),
        );
        assert_eq!(
            (changes.added, changes.changed, changes.removed),
            (
                vec!["d".to_owned()],
                vec!["c".to_owned()],
                vec!["a".to_owned()]
            )
        );
    }
}
