//! Reservations: what a spawn in progress holds before its agent is in the registry.
//!
//! A spawn waits for its shim, so a check against the running agents is out of date when the agent is added. Each spawn
//! therefore reserves its name, its `[[autostart]]` entry and its mounts, under the same lock as the check against
//! running agents and earlier reservations. Of two spawns that conflict, the second is refused.

use std::sync::Arc;

use colibri_spawner::{AgentId, AgentName, AgentSpawnConfig, AgentSpec, SpawnError};
use parking_lot::RwLock;

use super::Registry;
use super::index::Agents;

/// Placeholder for the id of an agent that is being started, in messages about its mounts.
const PENDING_ID: &str = "starting";

/// A spawn in progress and what it has reserved.
pub(super) struct PendingSpawn {
    name: Option<AgentName>,
    autostart: Option<String>,
    /// Its specification as far as known, if it has mounts.
    mounts: Option<AgentSpec>,
}

/// The agent that holds a name or an `[[autostart]]` entry.
enum Holder {
    Running(AgentId),
    Pending,
}

impl Holder {
    fn into_id(self) -> Option<AgentId> {
        match self {
            Self::Running(id) => Some(id),
            Self::Pending => None,
        }
    }
}

/// Holds the reservation of one spawn; dropping it releases the reservation.
pub(super) struct Reservation {
    agents: Arc<RwLock<Agents>>,
    number: u64,
    /// Running agents and earlier reservations whose mounts must not overlap those of this spawn.
    pub(super) other_mounts: Vec<AgentSpec>,
}

impl Drop for Reservation {
    fn drop(&mut self) {
        self.agents.write().pending.remove(&self.number);
    }
}

impl Registry {
    /// Reserves the name, the `[[autostart]]` entry and the mounts of a spawn.
    ///
    /// # Errors
    /// The name is invalid, or another agent has the name or the entry.
    pub(super) fn reserve(&self, config: &AgentSpawnConfig) -> Result<Reservation, SpawnError> {
        let name = parse_name(config)?;
        let mounts = has_mounts(config)
            .then(|| PENDING_ID.parse::<AgentId>().ok())
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
        let mut agents = self.agents.write();
        if let Some(key) = &config.autostart
            && let Some(holder) = agents.autostart_holder(key)
        {
            let (key, id) = (key.clone(), holder.into_id());
            return Err(SpawnError::AutostartInUse { key, id });
        }
        if let Some(name) = &name
            && let Some(holder) = agents.name_holder(name)
        {
            let (name, id) = (name.to_string(), holder.into_id());
            return Err(SpawnError::NameInUse { name, id });
        }
        let other_mounts = match &mounts {
            Some(_) => agents.specs_with_mounts(),
            None => Vec::new(),
        };
        let number = agents.next_reservation;
        agents.next_reservation += 1;
        let pending = PendingSpawn {
            name,
            autostart: config.autostart.clone(),
            mounts,
        };
        agents.pending.insert(number, pending);
        Ok(Reservation {
            agents: self.agents.clone(),
            number,
            other_mounts,
        })
    }
}

impl Agents {
    fn name_holder(&self, name: &AgentName) -> Option<Holder> {
        self.holder(
            |config| config.name.as_deref() == Some(name.as_str()),
            |pending| pending.name.as_ref() == Some(name),
        )
    }

    fn autostart_holder(&self, key: &str) -> Option<Holder> {
        self.holder(
            |config| config.autostart.as_deref() == Some(key),
            |pending| pending.autostart.as_deref() == Some(key),
        )
    }

    fn holder(
        &self,
        is_running_holder: impl Fn(&AgentSpawnConfig) -> bool,
        is_pending_holder: impl Fn(&PendingSpawn) -> bool,
    ) -> Option<Holder> {
        let running = self
            .running
            .values()
            .find(|agent| is_running_holder(&agent.spec.config) && !agent.has_ended());
        match running {
            Some(agent) => Some(Holder::Running(agent.spec.id.clone())),
            None => {
                let is_pending = self.pending.values().any(is_pending_holder);
                is_pending.then_some(Holder::Pending)
            }
        }
    }

    fn specs_with_mounts(&self) -> Vec<AgentSpec> {
        let running = self
            .running
            .values()
            .filter(|agent| has_mounts(&agent.spec.config) && !agent.has_ended())
            .map(|agent| AgentSpec::clone(&agent.spec));
        let pending = self.pending.values();
        running
            .chain(pending.filter_map(|pending| pending.mounts.clone()))
            .collect()
    }
}

/// Parses the name in a spawn request; returns `None` if the request has none.
///
/// # Errors
/// The name is invalid.
pub(crate) fn parse_name(config: &AgentSpawnConfig) -> Result<Option<AgentName>, SpawnError> {
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
