//! All agents by id: what they were started with, and the latest of what is known of them.

mod reservation;
pub(crate) mod retention;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::{Duration, Instant};

use colibri_glasspane::{AgentRuntime, AgentState, AgentView, Glasspane};
use colibri_journal::{JournalOptions, JournalReader};
use colibri_proto as wire;
use colibri_shim::layout;
use colibri_shim::record::ExitRecord;
use colibri_spawner::{Agent, AgentId, AgentSpawnConfig, AgentSpec, Found, SpawnError, Spawner};
use tokio::sync::{broadcast, watch};

use crate::hooks::{self, Hooks};
use crate::metrics::Metrics;
use crate::{handlers, pool, supervision, times};
use retention::Keeper;

use reservation::Starting;
pub(crate) use reservation::valid_name;

/// Agents that came or went which a subscriber to all may be behind before it looks at the whole list again.
const CHANGES: usize = 256;

/// After a spawn, before a shim is started for the next one: the agent's own start comes first.
const AHEAD: Duration = Duration::from_millis(5);

/// An agent came or went.
#[derive(Clone)]
pub(crate) enum Change {
    Appeared(Arc<Entry>),
    Removed(AgentId),
}

/// An agent.
pub(crate) struct Entry {
    pub(crate) spec: Arc<AgentSpec>,
    pub(crate) runtime: AgentRuntime,
    pub(crate) directory: PathBuf,
    /// Its connection; absent where it had ended before this daemon started.
    pub(crate) agent: Option<Agent>,
    pub(crate) latest: watch::Sender<Snapshot>,
    /// It was there before this daemon.
    pub(crate) adopted: bool,
    /// Which one it is of those that this daemon has come to know.
    pub(crate) number: u64,
    pub(crate) hooks: Mutex<hooks::Memory>,
}

/// Who is told of what agents do, where that was asked for.
#[derive(Clone, Default)]
pub(crate) struct Observers {
    pub(crate) metrics: Option<Arc<Metrics>>,
    pub(crate) hooks: Option<Arc<Hooks>>,
}

/// The last of the kills that were asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Kill {
    /// How many there were, with this one.
    pub(crate) number: u64,
    pub(crate) signal: String,
    pub(crate) escalate: bool,
    pub(crate) uid: u32,
    pub(crate) at_ms: u64,
}

/// What is known of an agent at one moment.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Snapshot {
    pub(crate) view: AgentView,
    /// How often its state has changed.
    pub(crate) changes: u64,
    /// Where in its stdout the line ends that brought the state about, or how much it had written in all when it
    /// fell silent; absent for other causes.
    pub(crate) changed_at: Option<u64>,
    /// Stdout offset that precedes the state: subscribers get output up to it, then the state, then the rest.
    pub(crate) precedes: u64,
    /// Number of stdout bytes that were parsed for events.
    pub(crate) parsed: u64,
    /// Stdout offset at which the run begins.
    pub(crate) run_from: u64,
    pub(crate) kill: Option<Kill>,
    pub(crate) stdout: u64,
    pub(crate) stderr: u64,
    pub(crate) stalled: Option<String>,
    /// The next run is waited for: why, and how long.
    pub(crate) waiting: Option<String>,
    /// The first process, while it is there.
    pub(crate) pid: Option<i32>,
    /// Number of the run, from 1.
    pub(crate) run: u32,
    pub(crate) exit: Option<ExitRecord>,
}

impl Entry {
    /// What hooks know of it.
    pub(crate) fn hooks(&self) -> MutexGuard<'_, hooks::Memory> {
        self.hooks.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A reader of one of its journals.
    pub(crate) fn journal(&self, stream: wire::Stream) -> JournalReader {
        JournalReader::new(&self.directory.join(match stream {
            wire::Stream::Stdout => layout::STDOUT,
            wire::Stream::Stderr => layout::STDERR,
        }))
    }

    /// As it is shown on the wire.
    pub(crate) fn to_wire(&self) -> wire::Agent {
        let latest = self.latest.borrow();
        let config = &self.spec.config;
        let ended = latest.exit.as_ref();
        wire::Agent {
            id: self.spec.id.to_string(),
            name: config.name.clone(),
            state: latest.view.state,
            pid: latest.pid.filter(|_| ended.is_none()),
            program: config.program.clone(),
            args: config.args.clone(),
            cwd: config.cwd.clone(),
            jail: config.jail.clone(),
            warnings: self.spec.warnings.clone(),
            runtime: self.runtime,
            restart: config.restart.clone(),
            run: latest.run,
            started_at: times::from_ns(self.spec.created_at_ns),
            exited_at: ended.map(|exit| times::from_ns(exit.exited_at_ns)),
            exit: ended.map(ExitRecord::exit),
            exit_note: self
                .spec
                .exit_note
                .clone()
                // The note is about failures; a success is exact.
                .filter(|_| ended.is_some_and(|record| !record.exit().is_success())),
            error: match ended {
                Some(exit) => exit.error.clone(),
                None => latest.stalled.clone().or_else(|| latest.waiting.clone()),
            },
            stdout_bytes: latest.stdout,
            stderr_bytes: latest.stderr,
            last_event_at: latest.view.last_activity.map(times::from_ms),
            view: (self.runtime != AgentRuntime::Generic).then(|| latest.view.clone()),
        }
    }
}

/// How many agents an adoption found.
#[derive(Debug, Default, Clone, Copy)]
pub(crate) struct Adopted {
    pub(crate) running: usize,
    pub(crate) ended: usize,
}

/// All agents, and what starts and ends them.
pub(crate) struct Registry {
    /// As the daemon was started; see [`Registry::spawner_now`]. Shared by all that supervise an agent.
    pub(crate) spawner: Arc<Spawner>,
    /// What a reload has changed: the shim, and how output is kept.
    live: RwLock<(PathBuf, JournalOptions)>,
    pub(crate) observers: Observers,
    agents: Arc<RwLock<Agents>>,
    changes: broadcast::Sender<Change>,
    /// Which ended agents are kept.
    pub(crate) retention: Keeper,
    /// Serializes removals.
    removing: tokio::sync::Mutex<()>,
}

#[derive(Default)]
struct Agents {
    by_id: BTreeMap<AgentId, Arc<Entry>>,
    /// Those of them that run, and for a moment those that have just ended: a state directory is full of ended
    /// agents, and who looks for running ones walks these only.
    running: BTreeMap<AgentId, Arc<Entry>>,
    /// How many there have ever been.
    count: u64,
    /// Spawns in progress, by reservation number.
    starting: BTreeMap<u64, Starting>,
    /// Number of the next reservation.
    reservations: u64,
}

impl Registry {
    /// A registry of what the state directory holds.
    pub(crate) async fn adopt(
        spawner: Spawner,
        observers: Observers,
    ) -> Result<(Arc<Self>, Adopted), SpawnError> {
        let registry = Arc::new(Self {
            live: RwLock::new((spawner.shim.clone(), spawner.journal)),
            spawner: Arc::new(spawner),
            observers,
            agents: Arc::default(),
            changes: broadcast::channel(CHANGES).0,
            retention: Keeper::default(),
            removing: tokio::sync::Mutex::default(),
        });
        let mut adopted = Adopted::default();
        for found in registry.spawner.adopt().await? {
            match found {
                Ok(Found::Running(agent)) => {
                    adopted.running += 1;
                    registry.add(agent, true);
                }
                Ok(Found::Ended { spec, exit }) => {
                    adopted.ended += 1;
                    registry.add_ended(spec, exit);
                }
                Err((id, error)) => tracing::error!(%id, %error, "agent not adopted"),
            }
        }
        Ok((registry, adopted))
    }

    /// Starts an agent.
    pub(crate) async fn spawn(
        self: &Arc<Self>,
        config: &AgentSpawnConfig,
    ) -> Result<Arc<Entry>, SpawnError> {
        let asked = Instant::now();
        // Held until the agent is in the registry, or the spawn has failed.
        let (_reservation, spawned) = match self.reserve(config) {
            Ok((reservation, others)) => {
                let spawned = self.spawner_now().spawn(config, &others).await;
                (Some(reservation), spawned)
            }
            Err(error @ SpawnError::AutostartInUse { .. }) => return Err(error),
            Err(error) => (None, Err(error)),
        };
        if let Some(metrics) = &self.observers.metrics {
            metrics.spawned(asked.elapsed(), spawned.as_ref().err().map(handlers::kind));
        }
        self.start_ahead();
        Ok(self.add(spawned?, false))
    }

    /// Has a shim ready for the next agent, when the one before has come up.
    pub(crate) fn start_ahead(&self) {
        let spawner = self.spawner_now();
        tokio::spawn(async move {
            tokio::time::sleep(AHEAD).await;
            spawner.start_ahead().await;
        });
    }

    /// What starts an agent now.
    pub(crate) fn spawner_now(&self) -> Spawner {
        let (shim, journal) = self
            .live
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .clone();
        Spawner {
            shim,
            journal,
            ..Spawner::clone(&self.spawner)
        }
    }

    /// Agents that are started from now on have this shim, and keep their output so.
    pub(crate) fn start_from_now_on_with(&self, shim: PathBuf, journal: JournalOptions) {
        *self.live.write().unwrap_or_else(PoisonError::into_inner) = (shim, journal);
    }

    fn add(self: &Arc<Self>, agent: Agent, adopted: bool) -> Arc<Entry> {
        let runtime = agent.spec.config.runtime.unwrap_or_default();
        let pane = Glasspane::new(runtime, agent.spec.created_at_ns / 1_000_000);
        let status = agent.link.state().borrow().status.clone();
        let snapshot = supervision::snapshot(&pane, &status, None);
        let entry = self.insert(|number| Entry {
            spec: agent.spec.clone(),
            runtime,
            directory: agent.directory.clone(),
            agent: Some(agent.clone()),
            latest: watch::channel(snapshot).0,
            adopted,
            number,
            hooks: Mutex::default(),
        });
        // On its own, so that this task does not hold it twice: as what it waits for, and as what it began with.
        let supervised = Box::pin(supervision::supervise(
            entry.clone(),
            agent,
            pane,
            self.spawner.clone(),
            self.observers.clone(),
        ));
        let (registry, id) = (Arc::downgrade(self), entry.spec.id.clone());
        tokio::spawn(async move {
            supervised.await;
            let Some(registry) = registry.upgrade() else {
                return;
            };
            let mut agents = registry
                .agents
                .write()
                .unwrap_or_else(PoisonError::into_inner);
            agents.running.remove(&id);
            drop(agents);
            registry.retention.wake();
        });
        entry
    }

    pub(crate) fn add_ended(&self, spec: Arc<AgentSpec>, exit: ExitRecord) {
        let runtime = spec.config.runtime.unwrap_or_default();
        let ended_ms = exit.exited_at_ns / 1_000_000;
        let directory = self.spawner.state.agent(&spec.id);
        let mut pane = Glasspane::new(runtime, spec.created_at_ns / 1_000_000);
        pane.record_exit(&exit.exit(), exit.error.as_deref(), ended_ms);
        let reads = pane.needs_output();
        let kept = reads.then(|| supervision::kept_view(&directory)).flatten();
        let unread = reads && kept.is_none();
        let snapshot = Snapshot {
            view: kept.unwrap_or_else(|| pane.view().clone()),
            changes: pane.state_changes(),
            changed_at: None,
            precedes: u64::MAX,
            parsed: u64::MAX,
            run_from: 0,
            kill: None,
            stdout: exit.stdout_bytes,
            stderr: exit.stderr_bytes,
            stalled: None,
            waiting: None,
            pid: None,
            run: exit.run,
            exit: Some(exit),
        };
        let entry = self.insert(|number| Entry {
            spec,
            runtime,
            directory,
            agent: None,
            latest: watch::channel(snapshot.clone()).0,
            adopted: true,
            number,
            hooks: Mutex::default(),
        });
        if let Some(hooks) = &self.observers.hooks {
            hooks.published(&entry, None, &snapshot);
        }
        if unread {
            tokio::spawn(supervision::review(entry));
        }
    }

    fn insert(&self, make: impl FnOnce(u64) -> Entry) -> Arc<Entry> {
        let mut agents = self.agents.write().unwrap_or_else(PoisonError::into_inner);
        let entry = Arc::new(make(agents.count));
        agents.count += 1;
        agents.by_id.insert(entry.spec.id.clone(), entry.clone());
        if !has_ended(&entry) {
            agents.running.insert(entry.spec.id.clone(), entry.clone());
        }
        // Under the lock, so that whoever lists and listens misses nobody.
        let _ = self.changes.send(Change::Appeared(entry.clone()));
        entry
    }

    /// One agent.
    pub(crate) fn get(&self, id: &AgentId) -> Option<Arc<Entry>> {
        self.agents
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .by_id
            .get(id)
            .cloned()
    }

    /// The first so many agents behind `after`, by id; only those that run, or those that have ended too.
    pub(crate) fn list(
        &self,
        after: Option<&AgentId>,
        running: bool,
        at_most: usize,
    ) -> Vec<Arc<Entry>> {
        use std::ops::Bound::{Excluded, Unbounded};
        let from = after.map_or(Unbounded, Excluded);
        let agents = self.agents.read().unwrap_or_else(PoisonError::into_inner);
        let listed = match running {
            true => &agents.running,
            false => &agents.by_id,
        };
        listed
            .range::<AgentId, _>((from, Unbounded))
            .map(|(_, entry)| entry)
            .filter(|entry| !running || !has_ended(entry))
            .take(at_most)
            .cloned()
            .collect()
    }

    /// All agents that run.
    pub(crate) fn list_running(&self) -> Vec<Arc<Entry>> {
        self.list(None, true, usize::MAX)
    }

    /// Looks at all agents. Nobody comes or goes meanwhile.
    pub(crate) fn each(&self, look: impl FnMut(&Entry)) {
        let agents = self.agents.read().unwrap_or_else(PoisonError::into_inner);
        agents.by_id.values().map(|entry| &**entry).for_each(look);
    }

    /// Returns all ended agents with their end times, in nanoseconds since 1970.
    pub(crate) fn ended(&self) -> Vec<(u64, AgentId)> {
        let agents = self.agents.read().unwrap_or_else(PoisonError::into_inner);
        let ended = agents.by_id.values().filter_map(|entry| {
            let exit = entry.latest.borrow().exit.as_ref()?.exited_at_ns;
            Some((exit, entry.spec.id.clone()))
        });
        ended.collect()
    }

    /// All agents, the number of the next one, and what changes from now on.
    pub(crate) fn follow(&self) -> (Vec<Arc<Entry>>, u64, broadcast::Receiver<Change>) {
        let agents = self.agents.read().unwrap_or_else(PoisonError::into_inner);
        let changes = self.changes.subscribe();
        let present = agents.by_id.values().cloned().collect();
        (present, agents.count, changes)
    }

    /// Forgets an agent that has ended, and deletes what is kept of it.
    ///
    /// # Errors
    /// The agent runs, or its directory cannot be deleted.
    pub(crate) async fn remove(&self, id: &AgentId) -> Result<(), SpawnError> {
        // One removal at a time: a second removal of the same agent then reports an unknown agent.
        let _one_at_a_time = self.removing.lock().await;
        let Some(entry) = self.get(id) else {
            return Ok(());
        };
        if entry.latest.borrow().exit.is_none() {
            return Err(SpawnError::Running(id.to_string()));
        }
        let removed = entry.clone();
        let outcome = pool::long(move || remove_directory(&removed)).await;
        outcome.flatten().map_err(|source| SpawnError::File {
            path: entry.directory.clone(),
            source,
        })?;
        self.forget(id);
        Ok(())
    }

    /// Removes an agent from the registry, and notifies subscribers.
    pub(crate) fn forget(&self, id: &AgentId) {
        let mut agents = self.agents.write().unwrap_or_else(PoisonError::into_inner);
        agents.running.remove(id);
        if agents.by_id.remove(id).is_some() {
            let _ = self.changes.send(Change::Removed(id.clone()));
        }
    }

    /// How many agents run.
    pub(crate) fn running(&self) -> usize {
        let agents = self.agents.read().unwrap_or_else(PoisonError::into_inner);
        let all = agents.running.values();
        all.filter(|entry| is_running(entry)).count()
    }
}

/// Deletes an agent's directory.
fn remove_directory(entry: &Entry) -> std::io::Result<()> {
    entry.hooks().set_removed(true);
    // In this order: an interrupted removal leaves either a complete ended agent, or an incomplete spawn, which the
    // next daemon removes.
    let removed = remove_file(&entry.directory.join(layout::SHIM))
        .and_then(|()| remove_file(&entry.directory.join(layout::EXIT)))
        .and_then(|()| match std::fs::remove_dir_all(&entry.directory) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
            // `view.json` may be written concurrently.
            Err(error) if error.kind() == std::io::ErrorKind::DirectoryNotEmpty => {
                std::fs::remove_dir_all(&entry.directory)
            }
            other => other,
        });
    if removed.is_err() {
        entry.hooks().set_removed(false);
    }
    removed
}

/// A file that is gone already is removed.
fn remove_file(path: &Path) -> std::io::Result<()> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

fn has_ended(entry: &Entry) -> bool {
    entry.latest.borrow().exit.is_some()
}

fn is_running(entry: &Entry) -> bool {
    !matches!(
        entry.latest.borrow().view.state,
        AgentState::Done | AgentState::Error
    )
}

#[cfg(test)]
pub(crate) mod tests;
