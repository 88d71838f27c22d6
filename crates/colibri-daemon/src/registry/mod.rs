//! All agents by id, and how agents are added to and removed from the registry.

mod interrupted;
mod removal;
mod reservation;
pub(crate) mod retention;

use std::collections::BTreeMap;
use std::ops::Bound::{Excluded, Unbounded};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use colibri_config::Retention;
use colibri_glasspane::AgentView;
use colibri_journal::JournalOptions;
use colibri_shim::control::ShimStatus;
use colibri_shim::record::ExitRecord;
use colibri_spawner::{
    AdoptedAgent, AgentHandle, AgentId, AgentSpawnConfig, AgentSpec, SpawnError, Spawner,
};
use parking_lot::{Mutex, RwLock};
use tokio::sync::{broadcast, watch};

use crate::agent::{AgentSnapshot, RegisteredAgent, new_pane};
use crate::errors::spawn_error_kind;
use crate::metrics::{LiveCounts, MetricsEvent};
use crate::pool;
use crate::supervision::{self, Observers};

pub(crate) use reservation::validate_name;

/// Maximum number of registry changes that a subscriber may lag behind; beyond it the subscriber reads the whole list.
const MAX_CHANGE_LAG: usize = 256;

/// Delay between a spawn and the start of the shim for the next spawn, so that the two do not compete.
const POOL_REFILL_DELAY: Duration = Duration::from_millis(5);

/// The agents by id, and the spawns in progress.
#[derive(Default)]
struct Agents {
    by_id: BTreeMap<AgentId, Arc<RegisteredAgent>>,
    /// The running agents, and for a moment those that have just ended. A lookup of running agents does not walk all the
    /// ended agents in the state directory.
    running: BTreeMap<AgentId, Arc<RegisteredAgent>>,
    /// Ended agents that wait to be resumed.
    waiting: BTreeMap<AgentId, Arc<RegisteredAgent>>,
    /// Number of agents that were ever added.
    count: u64,
    /// Specifications of spawns in progress, as far as known.
    pending: Vec<Arc<AgentSpec>>,
}

/// An agent was added or removed.
#[derive(Clone)]
pub(crate) enum RegistryChange {
    Added(Arc<RegisteredAgent>),
    Removed(AgentId),
}

/// All agents at one moment, and the changes after it.
pub(crate) struct RegistryFeed {
    pub(crate) present: Vec<Arc<RegisteredAgent>>,
    /// Sequence number of the next agent that is added.
    pub(crate) next_number: u64,
    pub(crate) changes: broadcast::Receiver<RegistryChange>,
}

/// An ended agent; ordered by end time.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct EndedAgent {
    /// End time, in nanoseconds since 1970.
    pub(crate) ended_at_ns: u64,
    pub(crate) id: AgentId,
}

/// All agents, and the spawner that starts and ends them.
pub(crate) struct Registry {
    /// A reload replaces it.
    spawner: RwLock<Arc<Spawner>>,
    pub(crate) observers: Observers,
    agents: Arc<RwLock<Agents>>,
    changes: broadcast::Sender<RegistryChange>,
    /// Settings of the retention; a change, or the end of an agent, starts a pass.
    pub(crate) retention: watch::Sender<Retention>,
    /// Serializes removals.
    removal: tokio::sync::Mutex<()>,
}

impl Registry {
    /// Creates a registry with the agents in the state directory.
    ///
    /// # Errors
    /// The state directory cannot be read.
    pub(crate) async fn adopt(
        spawner: Spawner,
        observers: Observers,
    ) -> Result<Arc<Self>, SpawnError> {
        let spawner = Arc::new(spawner);
        let registry = Arc::new(Self {
            spawner: RwLock::new(spawner.clone()),
            observers,
            agents: Arc::default(),
            changes: broadcast::channel(MAX_CHANGE_LAG).0,
            retention: watch::Sender::default(),
            removal: tokio::sync::Mutex::default(),
        });
        for found in spawner.adopt().await? {
            match found {
                Ok(AdoptedAgent::Running(agent)) => drop(registry.add(agent, true)),
                Ok(AdoptedAgent::Ended { spec, exit }) => {
                    let directory = spawner.state.agent(&spec.id);
                    let view = pool::run(move || supervision::read_view(&directory)).await;
                    registry.add_ended(spec, exit, view);
                }
                Err((id, error)) => tracing::error!(%id, %error, "cannot adopt agent"),
            }
        }
        Ok(registry)
    }

    /// Spawns an agent.
    ///
    /// # Errors
    /// See [`SpawnError`]; no agent runs then.
    pub(crate) async fn spawn(
        self: &Arc<Self>,
        config: &AgentSpawnConfig,
    ) -> Result<Arc<RegisteredAgent>, SpawnError> {
        let started = Instant::now();
        // Held until the agent is in the registry, or the spawn has failed.
        let mut reservation = None;
        let spawned = match self.reserve(config) {
            Ok(reserved) => {
                let others = &reservation.insert(reserved).other_mounts;
                self.spawner().spawn(config, others).await
            }
            Err(error @ SpawnError::AutostartInUse { .. }) => return Err(error),
            Err(error) => Err(error),
        };
        self.observers.record(MetricsEvent::Spawn {
            took: started.elapsed(),
            error: spawned.as_ref().err().map(spawn_error_kind),
        });
        self.refill_shim_pool();
        let agent = self.add(spawned?, false);
        if let Some(old) = &config.resumes {
            self.end_resume_wait(old).await;
        }
        Ok(agent)
    }

    /// Starts the shim for the next spawn, after [`POOL_REFILL_DELAY`].
    pub(crate) fn refill_shim_pool(&self) {
        let spawner = self.spawner();
        tokio::spawn(async move {
            tokio::time::sleep(POOL_REFILL_DELAY).await;
            spawner.fill_shim_pool().await;
        });
    }

    /// Returns the spawner with the current settings for new agents.
    pub(crate) fn spawner(&self) -> Arc<Spawner> {
        self.spawner.read().clone()
    }

    /// Replaces the settings for new agents.
    pub(crate) fn set_spawn_settings(
        &self,
        shim: PathBuf,
        journal: JournalOptions,
        private_files: Vec<PathBuf>,
    ) {
        let mut spawner = self.spawner.write();
        let mut changed = Spawner {
            shim,
            journal,
            ..Spawner::clone(&spawner)
        };
        changed.preparer.private_files = private_files;
        *spawner = Arc::new(changed);
    }

    fn add(self: &Arc<Self>, agent: AgentHandle, adopted: bool) -> Arc<RegisteredAgent> {
        let pane = new_pane(&agent.spec);
        let status = agent.shim.state().borrow().status.clone();
        let snapshot = AgentSnapshot::new(&pane, &status, None);
        if !adopted {
            // Counts the runs and output before the registration, as a change from an agent that has just started.
            let started = ShimStatus {
                run: 1,
                ..ShimStatus::default()
            };
            let before = &AgentSnapshot::new(&pane, &started, None);
            let now = &snapshot;
            self.observers
                .record(MetricsEvent::Snapshot { before, now });
        }
        let registered = self.insert(agent.spec.clone(), Some(agent.clone()), snapshot, adopted);
        // Boxed, because the task would otherwise contain the future twice: as argument and as awaited future.
        let supervised = Box::pin(supervision::supervise(
            registered.clone(),
            agent,
            pane,
            self.spawner(),
            self.observers.clone(),
        ));
        let (registry, id) = (Arc::downgrade(self), registered.spec.id.clone());
        tokio::spawn(async move {
            supervised.await;
            if let Some(registry) = registry.upgrade() {
                registry.agents.write().running.remove(&id);
                registry.retention.send_modify(|_| {});
            }
        });
        registered
    }

    /// Adds an agent that had ended before this daemon started, with its final view if an earlier daemon stored it.
    pub(crate) fn add_ended(
        &self,
        spec: Arc<AgentSpec>,
        exit: ExitRecord,
        stored_view: Option<AgentView>,
    ) {
        let mut pane = new_pane(&spec);
        let ended_ms = exit.exited_at_ns / 1_000_000;
        pane.record_exit(&exit.exit(), exit.error.as_deref(), ended_ms);
        let needs_parsing = pane.needs_output() && stored_view.is_none();
        let mut snapshot = AgentSnapshot::new(&pane, &ShimStatus::default(), Some(exit));
        if let Some(view) = stored_view {
            snapshot.view = view;
        }
        let registered = self.insert(spec, None, snapshot.clone(), true);
        if let Some(hooks) = &self.observers.hooks {
            hooks.publish(&registered, None, &snapshot);
        }
        if needs_parsing {
            tokio::spawn(supervision::parse_ended(registered));
        }
    }

    fn insert(
        &self,
        spec: Arc<AgentSpec>,
        agent: Option<AgentHandle>,
        snapshot: AgentSnapshot,
        adopted: bool,
    ) -> Arc<RegisteredAgent> {
        let mut agents = self.agents.write();
        let agent = Arc::new(RegisteredAgent {
            directory: self.spawner().state.agent(&spec.id),
            terminal: spec.config.terminal.map(|_| Box::default()),
            spec,
            agent,
            latest: watch::Sender::new(snapshot),
            adopted,
            number: agents.count,
            hook_memory: Mutex::default(),
            subscribers: Mutex::default(),
        });
        agents.count += 1;
        agents.by_id.insert(agent.spec.id.clone(), agent.clone());
        if !agent.has_ended() {
            agents.running.insert(agent.spec.id.clone(), agent.clone());
        }
        // Under the lock, so that a subscriber that lists and then follows misses no agent.
        let _ = self.changes.send(RegistryChange::Added(agent.clone()));
        agent
    }

    /// Returns the agent with an id.
    pub(crate) fn get(&self, id: &AgentId) -> Option<Arc<RegisteredAgent>> {
        self.agents.read().by_id.get(id).cloned()
    }

    /// Returns up to `limit` agents after `after`, by id; with `running_only` without those that have ended, except for those
    /// that wait to be resumed.
    pub(crate) fn list(
        &self,
        after: Option<&AgentId>,
        running_only: bool,
        limit: usize,
    ) -> Vec<Arc<RegisteredAgent>> {
        let agents = self.agents.read();
        let range = (after.map_or(Unbounded, Excluded), Unbounded);
        let cloned = |(_, agent): (_, &Arc<RegisteredAgent>)| agent.clone();
        if !running_only {
            let all = agents.by_id.range::<AgentId, _>(range);
            return all.take(limit).map(cloned).collect();
        }
        let running = agents.running.range::<AgentId, _>(range);
        let running = running.filter(|(_, agent)| !agent.has_ended());
        let waiting = agents.waiting.range::<AgentId, _>(range);
        let mut listed: Vec<_> = running.chain(waiting).map(cloned).collect();
        listed.sort_by(|one, other| one.spec.id.cmp(&other.spec.id));
        listed.truncate(limit);
        listed
    }

    /// Returns all running agents.
    pub(crate) fn list_running(&self) -> Vec<Arc<RegisteredAgent>> {
        let agents = self.agents.read();
        let running = agents.running.values();
        running
            .filter(|agent| !agent.has_ended())
            .cloned()
            .collect()
    }

    /// Returns the values that are read when metrics are collected.
    pub(crate) fn live_counts(&self) -> LiveCounts {
        let agents = self.agents.read();
        let hooks = self.observers.hooks.as_ref();
        let all = agents.by_id.values();
        LiveCounts {
            states: all
                .clone()
                .map(|agent| agent.latest.borrow().view.state)
                .collect(),
            behind: all.flat_map(|agent| agent.bytes_behind()).collect(),
            hooks: hooks.map(|hooks| hooks.counts()).unwrap_or_default(),
        }
    }

    /// Returns all ended agents, except for those that wait to be resumed.
    pub(crate) fn ended(&self) -> Vec<EndedAgent> {
        let agents = self.agents.read();
        let is_done = |(id, _): &(&AgentId, _)| !agents.waiting.contains_key(*id);
        let done = agents.by_id.iter().filter(is_done);
        let ended = done.filter_map(|(_, agent)| {
            let ended_at_ns = agent.latest.borrow().exit.as_ref()?.exited_at_ns;
            let id = agent.spec.id.clone();
            Some(EndedAgent { ended_at_ns, id })
        });
        ended.collect()
    }

    /// Returns all agents, and the changes from now on.
    pub(crate) fn feed(&self) -> RegistryFeed {
        let agents = self.agents.read();
        RegistryFeed {
            changes: self.changes.subscribe(),
            present: agents.by_id.values().cloned().collect(),
            next_number: agents.count,
        }
    }
}

#[cfg(test)]
pub(crate) mod tests;
