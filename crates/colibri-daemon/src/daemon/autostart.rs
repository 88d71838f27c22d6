//! Agents that start with the daemon.
//!
//! The key of an `[[autostart]]` entry is stored in its agent's spec.json before the agent runs. A restarted daemon
//! therefore finds the running agent of an entry and does not start a second one. If that agent has ended, the next
//! daemon starts a new one; while the daemon runs, the agent's restart policy applies.

use std::sync::Arc;

use colibri_config::{Autostart, ConfigFile};
use colibri_proto::{
    AutostartFailure, AutostartedAgent, Call, ChangedNames, ReloadResult, SpawnRequest,
};
use colibri_spawner::SpawnError;

use super::DaemonState;
use super::audit::Peer;
use crate::errors::CallError;
use crate::pool;

impl DaemonState {
    /// Starts the agents of all entries that do not run, one after the other. A failure is logged and does not affect the
    /// other entries.
    pub(crate) async fn autostart(self: Arc<Self>) {
        let _guard = self.config.reload_lock.lock().await;
        let file = self.config.current();
        let mut result = ReloadResult::default();
        for entry in &file.autostart {
            self.start_entry(&file, entry, &mut result).await;
        }
    }

    /// Starts, after a reload, the agents of entries that are new, changed, or could not be started before.
    pub(super) async fn start_changed(&self, file: &ConfigFile, result: &mut ReloadResult) {
        let ChangedNames { added, changed, .. } = &result.autostart;
        let mut due = [added.as_slice(), changed].concat();
        {
            let mut failures = self.config.autostart_failures.lock();
            failures.retain(|key, _| file.autostart.iter().any(|entry| entry.key == *key));
            due.extend(failures.keys().cloned());
        }
        for entry in &file.autostart {
            if due.contains(&entry.key) {
                self.start_entry(file, entry, result).await;
            }
        }
    }

    async fn start_entry(&self, file: &ConfigFile, entry: &Autostart, result: &mut ReloadResult) {
        let name = entry.key.clone();
        if self.check_running().is_err() {
            return;
        }
        let spawned = self.spawn_entry(file, entry).await;
        let mut failures = self.config.autostart_failures.lock();
        failures.remove(&name);
        match spawned {
            Ok(id) => {
                tracing::info!(name, id, "started [[autostart]] agent");
                result.started.push(AutostartedAgent { name, id });
            }
            Err(CallError::Spawn(SpawnError::AutostartInUse { id, .. })) => {
                let id = id.map(|id| id.to_string());
                tracing::info!(name, id, "[[autostart]] agent already runs");
            }
            Err(error) => {
                let error = error.to_string();
                tracing::error!(name, "cannot start [[autostart]] agent: {error}");
                failures.insert(name.clone(), error.clone());
                result.not_started.push(AutostartFailure { name, error });
            }
        }
    }

    async fn spawn_entry(&self, file: &ConfigFile, entry: &Autostart) -> Result<String, CallError> {
        let mut params = SpawnRequest {
            profile: entry.options.request.profile.clone(),
            name: Some(entry.key.clone()),
            ..SpawnRequest::default()
        };
        let spawned = async {
            let profile = entry.merged(&file.profiles)?;
            let resolved = pool::run(move || profile.resolve(|name| std::env::var(name).ok()));
            let mut config = resolved.await?;
            config.autostart = Some(entry.key.clone());
            let profile = params.profile.take();
            params = SpawnRequest {
                profile,
                ..config.clone().into()
            };
            let agent = self.registry.spawn(&config).await?;
            Ok(agent.spec.id.to_string())
        }
        .await;
        let outcome = match &spawned {
            // Not audited: nothing was started.
            Err(CallError::Spawn(SpawnError::AutostartInUse { .. })) => return spawned,
            Err(error) => CallError::to_string(error),
            Ok(_) => "ok".to_owned(),
        };
        let id = spawned.as_deref().ok();
        let call = Call::SpawnAgent(params);
        self.audit(Peer::daemon(), &call, id, &outcome).await;
        spawned
    }
}
