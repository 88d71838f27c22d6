//! Reservations: what a spawn in progress holds before its agent is in the registry.
//!
//! A spawn waits for its shim, so a check against the running agents is out of date when the agent is added. Each spawn
//! therefore reserves its name, its `[[autostart]]` entry and its mounts, under the same lock as the check against
//! running agents and earlier reservations. Of two spawns that conflict, the second is refused.

use std::sync::Arc;

use colibri_spawner::{AgentName, AgentSpawnConfig, AgentSpec, SpawnError};
use parking_lot::RwLock;

use super::{Agents, Registry};

/// Placeholder for the id of an agent that is being started, in messages about its mounts.
const PENDING_ID: &str = "starting";

/// Holds the reservation of one spawn; dropping it releases the reservation.
pub(super) struct Reservation {
    agents: Arc<RwLock<Agents>>,
    spec: Arc<AgentSpec>,
    /// Running agents and earlier reservations whose mounts must not overlap those of this spawn.
    pub(super) other_mounts: Vec<AgentSpec>,
}

impl Drop for Reservation {
    fn drop(&mut self) {
        let mut agents = self.agents.write();
        agents.pending.retain(|spec| !Arc::ptr_eq(spec, &self.spec));
    }
}

impl Registry {
    /// Reserves the name, the `[[autostart]]` entry and the mounts of a spawn.
    ///
    /// # Errors
    /// The name is invalid, or another agent has the name or the entry.
    pub(super) fn reserve(&self, config: &AgentSpawnConfig) -> Result<Reservation, SpawnError> {
        validate_name(config)?;
        let spawner = self.spawner();
        let spec = Arc::new(AgentSpec {
            id: PENDING_ID.parse()?,
            config: config.redacted(),
            engine: spawner.preparer.engine.name().to_owned(),
            privilege: spawner.preparer.backend.name().to_owned(),
            warnings: Vec::new(),
            created_at_ns: 0,
            boot: None,
        });
        let mut agents = self.agents.write();
        let holder = |field: fn(&AgentSpawnConfig) -> &Option<String>| {
            let value = field(config).as_ref()?;
            let holds = |other: &AgentSpawnConfig| field(other).as_ref() == Some(value);
            let id = &agents.find(holds).next()?.id;
            // A spawn in progress has no id yet.
            let running_id = agents.running.contains_key(id).then(|| id.clone());
            Some((value.clone(), running_id))
        };
        if let Some((key, id)) = holder(|config| &config.autostart) {
            return Err(SpawnError::AutostartInUse { key, id });
        }
        if let Some((name, id)) = holder(|config| &config.name) {
            return Err(SpawnError::NameInUse { name, id });
        }
        let other_mounts = match has_mounts(config) {
            true => agents.find(has_mounts).cloned().collect(),
            false => Vec::new(),
        };
        agents.pending.push(spec.clone());
        Ok(Reservation {
            agents: self.agents.clone(),
            spec,
            other_mounts,
        })
    }
}

impl Agents {
    /// Returns the running agents, then the spawns in progress, whose configuration matches.
    fn find(
        &self,
        matches: impl Fn(&AgentSpawnConfig) -> bool + Copy,
    ) -> impl Iterator<Item = &AgentSpec> {
        let running = self
            .running
            .values()
            .filter(move |agent| matches(&agent.spec.config) && !agent.has_ended())
            .map(|agent| &*agent.spec);
        let pending = self.pending.iter().map(|spec| &**spec);
        running.chain(pending.filter(move |spec| matches(&spec.config)))
    }
}

/// Validates the name in a spawn request, if it has one.
///
/// # Errors
/// The name is invalid.
pub(crate) fn validate_name(config: &AgentSpawnConfig) -> Result<(), SpawnError> {
    let Some(name) = &config.name else {
        return Ok(());
    };
    let parsed = name.parse::<AgentName>();
    parsed.map(drop).map_err(|source| SpawnError::Name {
        name: name.clone(),
        source,
    })
}

fn has_mounts(config: &AgentSpawnConfig) -> bool {
    let jail = config.jail.as_ref();
    jail.is_some_and(|jail| !jail.mounts.is_empty())
}
