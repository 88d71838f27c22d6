//! Agents that start with the daemon: each once, however often the daemon starts.
//!
//! An entry is tied to its agent by its key, which is kept in the agent's spec.json before the agent runs: so a
//! daemon that comes back finds the agent that runs for it, and starts none beside it. One that has ended is
//! started again, as a new agent, at the next start of a daemon; within the life of an agent its shim restarts it.

use std::sync::{Arc, PoisonError};

use colibri_config::{Autostart, ConfigFile};
use colibri_proto::{Call, Env, NotStarted, ReloadResult, SpawnRequest, Started};
use colibri_spawner::SpawnError;

use crate::connection::server::Server;
use crate::daemon::audit::Peer;
use crate::handlers::RequestError;
use crate::pool;

impl Server {
    /// Starts all that do not run, one after the other. One that cannot be started keeps nobody from the others.
    pub(crate) async fn autostart(self: Arc<Self>) {
        let _one_at_a_time = self.config.changing.lock().await;
        let file = self.config.current();
        let mut result = ReloadResult::default();
        for entry in &file.autostart {
            self.start_entry(&file, entry, &mut result).await;
        }
    }

    /// After a reload: starts those that are new or changed, or could not be started before, unless they run.
    pub(crate) async fn start_changed(&self, file: &ConfigFile, result: &mut ReloadResult) {
        let failed = {
            let mut not_started = self.not_started();
            not_started.retain(|key, _| file.autostart.iter().any(|entry| entry.key == *key));
            not_started.clone()
        };
        let named = |key: &String| {
            result.autostart.added.contains(key)
                || result.autostart.changed.contains(key)
                || failed.contains_key(key)
        };
        let entries: Vec<&Autostart> = file
            .autostart
            .iter()
            .filter(|entry| named(&entry.key))
            .collect();
        for entry in entries {
            self.start_entry(file, entry, result).await;
        }
    }

    async fn start_entry(&self, file: &ConfigFile, entry: &Autostart, result: &mut ReloadResult) {
        let name = entry.key.clone();
        if *self.ending.borrow() {
            return;
        }
        match self.spawn_entry(file, entry).await {
            Ok(id) => {
                tracing::info!(name, id, "started with the daemon");
                self.not_started().remove(&name);
                result.started.push(Started { name, id });
            }
            Err(RequestError::Spawn(SpawnError::AutostartInUse { id, .. })) => {
                let id = id.map(|id| id.to_string());
                tracing::info!(name, id, "runs already");
                self.not_started().remove(&name);
            }
            Err(error) => {
                let error = error.to_string();
                tracing::error!(name, "not started with the daemon: {error}");
                self.not_started().insert(name.clone(), error.clone());
                result.not_started.push(NotStarted { name, error });
            }
        }
    }

    async fn spawn_entry(
        &self,
        file: &ConfigFile,
        entry: &Autostart,
    ) -> Result<String, RequestError> {
        let mut params = SpawnRequest {
            profile: entry.own.request.profile.clone(),
            name: Some(entry.key.clone()),
            ..SpawnRequest::default()
        };
        let spawned = async {
            let profile = entry.merged(&file.profiles)?;
            let resolved = pool::short(move || profile.resolve(|name| std::env::var(name).ok()));
            let mut config = resolved.await.map_err(|source| SpawnError::Resources {
                doing: "reading the profile".to_owned(),
                source,
            })??;
            config.autostart = Some(entry.key.clone());
            params.program = Some(config.program.clone());
            params.args = Some(config.args.clone());
            params.env = Env(config.env.clone());
            params.cwd.clone_from(&config.cwd);
            params.jail.clone_from(&config.jail);
            params.name.clone_from(&config.name);
            let agent = self.registry.spawn(&config).await?;
            Ok(agent.spec.id.to_string())
        }
        .await;
        if matches!(
            spawned,
            Err(RequestError::Spawn(SpawnError::AutostartInUse { .. }))
        ) {
            // The agent already runs, so nothing is to be started.
            return spawned;
        }
        let (made, outcome) = match &spawned {
            Ok(id) => (Some(id.as_str()), "ok".to_owned()),
            Err(error) => (None, RequestError::to_string(error)),
        };
        self.audit
            .record(Peer::own(), &Call::SpawnAgent(params), made, &outcome)
            .await;
        spawned
    }

    fn not_started(&self) -> std::sync::MutexGuard<'_, std::collections::BTreeMap<String, String>> {
        self.config
            .not_started
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}
