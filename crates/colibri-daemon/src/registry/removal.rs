//! Removal of ended agents and their directories.

use std::fs;
use std::io;

use colibri_shim::layout;
use colibri_spawner::{SpawnError, remove_home};
use colibri_types::AgentId;

use super::{Registry, RegistryChange};
use crate::agent::RegisteredAgent;
use crate::pool;
use crate::rotation::ignore_missing;

impl Registry {
    /// Removes an ended agent and its directory. An unknown agent is ignored.
    ///
    /// # Errors
    /// The agent runs, or its directory cannot be removed.
    pub(crate) async fn remove(&self, id: &AgentId) -> Result<(), SpawnError> {
        // One removal at a time: a second removal of the same agent then finds it removed.
        let _guard = self.removal.lock().await;
        let Some(agent) = self.get(id) else {
            return Ok(());
        };
        if !agent.has_ended() {
            return Err(SpawnError::Running(id.to_string()));
        }
        let path = agent.directory.clone();
        let removed = pool::run_in(&pool::LONG_WORK_SLOTS, move || remove_directory(&agent)).await;
        removed.map_err(|source| SpawnError::File { path, source })?;
        self.forget(id);
        Ok(())
    }

    /// Removes an agent from the registry, and notifies subscribers.
    pub(crate) fn forget(&self, id: &AgentId) {
        let mut agents = self.agents.write();
        agents.running.remove(id);
        agents.waiting.remove(id);
        if agents.by_id.remove(id).is_some() {
            let _ = self.changes.send(RegistryChange::Removed(id.clone()));
        }
    }
}

fn remove_directory(agent: &RegisteredAgent) -> io::Result<()> {
    agent.hook_memory.lock().removed = true;
    // In this order: an interrupted removal leaves either a complete ended agent, or an incomplete spawn, which the
    // next daemon removes.
    let remove_file = |name| ignore_missing(fs::remove_file(agent.directory.join(name)));
    let removed = remove_home(&agent.directory)
        .and_then(|()| remove_file(layout::SHIM))
        .and_then(|()| remove_file(layout::EXIT))
        .and_then(|()| match fs::remove_dir_all(&agent.directory) {
            // `view.json` may be written concurrently.
            Err(error) if error.kind() == io::ErrorKind::DirectoryNotEmpty => {
                fs::remove_dir_all(&agent.directory)
            }
            other => ignore_missing(other),
        });
    if removed.is_err() {
        agent.hook_memory.lock().removed = false;
    }
    removed
}
