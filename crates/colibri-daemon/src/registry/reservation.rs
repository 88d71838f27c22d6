//! Reservations: what a spawn in progress holds before its agent is in the registry.
//!
//! A spawn waits for its shim, so a check against the running agents is out of date when the agent is added. Each spawn
//! therefore reserves its name, its `[[autostart]]` entry and its mounts, under the same lock as the check against
//! running agents and earlier reservations. Of two spawns that conflict, the second is refused.

use std::sync::{Arc, PoisonError, RwLock};

use colibri_spawner::{AgentId, AgentName, AgentSpawnConfig, AgentSpec, SpawnError};

use super::{Agents, Registry, has_ended};

/// Placeholder for the id of an agent that is being started, in messages about its mounts.
const STARTING: &str = "starting";

/// A spawn in progress and what it has reserved.
pub(super) struct Starting {
    name: Option<AgentName>,
    autostart: Option<String>,
    /// Its specification as far as known, if it has mounts.
    mounts: Option<AgentSpec>,
}

/// Holds the reservation of one spawn; dropping it releases the reservation.
pub(super) struct Reservation {
    agents: Arc<RwLock<Agents>>,
    number: u64,
}

impl Drop for Reservation {
    fn drop(&mut self) {
        let mut agents = self.agents.write().unwrap_or_else(PoisonError::into_inner);
        agents.starting.remove(&self.number);
    }
}

impl Registry {
    /// Reserves the name, the `[[autostart]]` entry and the mounts of a spawn. Also returns the specifications of
    /// running agents and earlier reservations, with whose mounts its own must not overlap.
    ///
    /// # Errors
    /// The name is invalid, or another agent has the name or the entry.
    pub(super) fn reserve(
        &self,
        config: &AgentSpawnConfig,
    ) -> Result<(Reservation, Vec<AgentSpec>), SpawnError> {
        let name = valid_name(config)?;
        let mounts = has_mounts(config)
            .then(|| STARTING.parse::<AgentId>().ok())
            .flatten()
            .map(|id| AgentSpec {
                id,
                config: config.redacted(),
                engine: self.spawner.preparer.engine.name().to_owned(),
                privilege: self.spawner.preparer.backend.name().to_owned(),
                exit_note: None,
                warnings: Vec::new(),
                created_at_ns: 0,
            });
        let mut agents = self.agents.write().unwrap_or_else(PoisonError::into_inner);
        if let Some(key) = &config.autostart
            && let Some(id) = agents.autostart_holder(key)
        {
            let key = key.clone();
            return Err(SpawnError::AutostartInUse { key, id });
        }
        if let Some(name) = &name
            && let Some(id) = agents.name_holder(name)
        {
            let name = name.to_string();
            return Err(SpawnError::NameInUse { name, id });
        }
        let others = match &mounts {
            Some(_) => agents.specs_with_mounts(),
            None => Vec::new(),
        };
        let number = agents.reservations;
        agents.reservations += 1;
        agents.starting.insert(
            number,
            Starting {
                name,
                autostart: config.autostart.clone(),
                mounts,
            },
        );
        let reservation = Reservation {
            agents: self.agents.clone(),
            number,
        };
        Ok((reservation, others))
    }
}

impl Agents {
    /// Returns the agent that holds a name: `Some(None)` while it is being started.
    fn name_holder(&self, name: &AgentName) -> Option<Option<AgentId>> {
        self.holder(
            |config| config.name.as_deref() == Some(name.as_str()),
            |starting| starting.name.as_ref() == Some(name),
        )
    }

    /// Returns the agent that holds an `[[autostart]]` entry: `Some(None)` while it is being started.
    pub(super) fn autostart_holder(&self, key: &str) -> Option<Option<AgentId>> {
        self.holder(
            |config| config.autostart.as_deref() == Some(key),
            |starting| starting.autostart.as_deref() == Some(key),
        )
    }

    fn holder(
        &self,
        running: impl Fn(&AgentSpawnConfig) -> bool,
        starting: impl Fn(&Starting) -> bool,
    ) -> Option<Option<AgentId>> {
        let entry = self
            .running
            .values()
            .find(|entry| running(&entry.spec.config) && !has_ended(entry));
        match entry {
            Some(entry) => Some(Some(entry.spec.id.clone())),
            None => self.starting.values().any(starting).then_some(None),
        }
    }

    fn specs_with_mounts(&self) -> Vec<AgentSpec> {
        let running = self
            .running
            .values()
            .filter(|entry| has_mounts(&entry.spec.config) && !has_ended(entry))
            .map(|entry| AgentSpec::clone(&entry.spec));
        let starting = self.starting.values();
        running
            .chain(starting.filter_map(|starting| starting.mounts.clone()))
            .collect()
    }
}

/// Validates the name in a spawn request; returns `None` if the request has none.
///
/// # Errors
/// The name is invalid.
pub(crate) fn valid_name(config: &AgentSpawnConfig) -> Result<Option<AgentName>, SpawnError> {
    let name = config.name.as_deref().map(|name| {
        name.parse().map_err(|source| SpawnError::Name {
            name: name.to_owned(),
            source,
        })
    });
    name.transpose()
}

fn has_mounts(config: &AgentSpawnConfig) -> bool {
    let jail = config.jail.as_ref();
    jail.is_some_and(|jail| !jail.mounts.is_empty())
}
