//! Hooks: commands that run when an agent enters one of their states.
//!
//! A publisher puts the latest wanted state change of an agent into a queue and continues; one task runs the hooks. A
//! later change of the same agent replaces a queued one, so a burst of changes costs constant memory, and hooks of one
//! agent start at most once a second. The last handled state of an agent is stored in its directory: the next daemon
//! reports a change that happened while no daemon ran exactly once.

mod command;

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use colibri_config::Hook;
use colibri_glasspane::AgentState;
use colibri_shim::record::{self, Durability};
use colibri_types::AgentId;
use parking_lot::Mutex;
use tokio::sync::{Notify, Semaphore};

use crate::agent::{AgentSnapshot, RegisteredAgent, StateOccurrence};
use crate::metrics::{HookCounts, HookOutcome, Metrics, MetricsEvent};
use crate::pool;

/// Maximum number of agents for which hooks run concurrently.
const MAX_CONCURRENT_AGENTS: u32 = 4;
/// Minimum interval between the starts of two hook runs of an agent.
const MIN_RUN_INTERVAL: Duration = Duration::from_secs(1);
/// File in an agent's directory: the last state that hooks have handled.
const MEMORY_FILE: &str = "hook.json";

/// A state change that some hook wants.
struct WantedChange {
    snapshot: AgentSnapshot,
    previous: Option<AgentState>,
}

/// An agent in the queue.
struct QueuedAgent {
    agent: Arc<RegisteredAgent>,
    latest: StateOccurrence,
    wanted: Option<WantedChange>,
    /// Number of earlier wanted changes that `wanted` replaced.
    merged: u64,
    /// The daemon has just adopted the agent.
    is_adoption: bool,
}

#[derive(Default)]
struct Queue {
    agents: BTreeMap<AgentId, QueuedAgent>,
    /// Agents whose hooks run, or started less than [`MIN_RUN_INTERVAL`] ago.
    busy: HashSet<AgentId>,
    running: u64,
}

/// The configured hooks and their queue.
pub(crate) struct Hooks {
    hooks: Vec<Hook>,
    queue: Mutex<Queue>,
    queue_changed: Notify,
    slots: Arc<Semaphore>,
    environment: Vec<(String, String)>,
    metrics: Option<Arc<Metrics>>,
}

impl Hooks {
    /// Creates the queue and starts the task that runs hooks. `environment` is what every hook gets besides the variables
    /// of the change.
    pub(crate) fn start(
        hooks: Vec<Hook>,
        environment: Vec<(String, String)>,
        metrics: Option<Arc<Metrics>>,
    ) -> Arc<Self> {
        let hooks = Arc::new(Self {
            hooks,
            queue: Mutex::default(),
            queue_changed: Notify::new(),
            slots: Arc::new(Semaphore::new(MAX_CONCURRENT_AGENTS as usize)),
            environment,
            metrics,
        });
        tokio::spawn(run_queue(hooks.clone()));
        hooks
    }

    /// Returns the number of queued agents and of agents whose hooks run.
    pub(crate) fn counts(&self) -> HookCounts {
        let queue = self.queue.lock();
        HookCounts {
            waiting: queue.agents.len() as u64,
            running: queue.running,
        }
    }

    /// Starts no further hooks, and waits until the running ones have ended or the timeout has expired.
    pub(crate) async fn shut_down(&self, timeout: Duration) {
        let all = self.slots.acquire_many(MAX_CONCURRENT_AGENTS);
        let idle = tokio::time::timeout(timeout, all).await;
        if idle.is_err() {
            tracing::warn!("shutting down while hooks run; they are killed");
        }
        self.slots.close();
    }

    fn record(&self, event: MetricsEvent<'_>) {
        if let Some(metrics) = &self.metrics {
            metrics.record(event);
        }
    }

    /// Returns the hooks that want a state.
    fn hooks_for(&self, state: AgentState) -> impl Iterator<Item = &Hook> {
        let hooks = self.hooks.iter();
        hooks.filter(move |hook| hook.on.contains(&state))
    }

    fn wants(&self, state: AgentState) -> bool {
        self.hooks_for(state).next().is_some()
    }

    /// Queues a state change of an agent; `before` is absent for the first snapshot of the agent.
    pub(crate) fn publish(
        &self,
        agent: &Arc<RegisteredAgent>,
        before: Option<&AgentSnapshot>,
        now: &AgentSnapshot,
    ) {
        let latest = StateOccurrence::of(now);
        if before.is_some_and(|before| StateOccurrence::of(before) == latest) {
            return;
        }
        let mut queue = self.queue.lock();
        let queued = queue
            .agents
            .entry(agent.spec.id.clone())
            .or_insert_with(|| QueuedAgent {
                agent: agent.clone(),
                latest,
                wanted: None,
                merged: 0,
                is_adoption: before.is_none() && agent.adopted,
            });
        queued.latest = latest;
        if self.wants(latest.state) {
            let change = WantedChange {
                snapshot: now.clone(),
                previous: match before {
                    Some(before) => Some(before.view.state),
                    None if agent.adopted => None,
                    None => Some(AgentState::Starting).filter(|state| *state != latest.state),
                },
            };
            if queued.wanted.replace(change).is_some() {
                queued.merged += 1;
                self.record(MetricsEvent::MergedHook);
            }
        }
        drop(queue);
        self.queue_changed.notify_one();
    }

    /// Takes the next agent whose hooks do not run out of the queue.
    fn dequeue(&self) -> Option<QueuedAgent> {
        let mut queue = self.queue.lock();
        let is_free = |id: &&AgentId| !queue.busy.contains(*id);
        let id = queue.agents.keys().find(is_free)?.clone();
        let queued = queue.agents.remove(&id)?;
        queue.busy.insert(id);
        queue.running += 1;
        Some(queued)
    }

    /// Handles the state change of an agent: runs all hooks that want it, one after the other. Returns whether hooks were
    /// run.
    async fn handle(&self, queued: &QueuedAgent) -> bool {
        let agent = &queued.agent;
        if queued.is_adoption {
            let stored = read_memory(agent).await;
            agent.hook_memory.lock().handled = stored;
            if stored.is_none() {
                // The agent is older than the first hook: its current state is not reported.
                write_memory(agent, queued.latest).await;
                return false;
            }
        }
        let handled = agent.hook_memory.lock().handled;
        let is_new =
            |change: &&WantedChange| Some(StateOccurrence::of(&change.snapshot)) != handled;
        let Some(change) = queued.wanted.as_ref().filter(is_new) else {
            // Written only if the hooks have handled this state: entering it again is a new change.
            let must_write = match handled {
                None => true,
                Some(handled) => self.wants(handled.state) && handled != queued.latest,
            };
            if must_write {
                write_memory(agent, queued.latest).await;
            }
            return false;
        };
        let previous = change.previous.or(handled.map(|handled| handled.state));
        let event = command::HookEvent::new(agent, &change.snapshot, previous, queued.merged);
        let (id, state) = (&agent.spec.id, change.snapshot.view.state);
        let mut is_stored = false;
        for hook in self.hooks_for(state) {
            let started = command::start(hook, &self.environment, &event);
            if !is_stored {
                // After the start: a daemon that is killed here reports the change again rather than never.
                write_memory(agent, queued.latest).await;
                is_stored = true;
            }
            let outcome = match started {
                Ok(running) => running.wait(id, hook, &event).await,
                Err(error) => {
                    let program = hook.program.display();
                    tracing::error!(%id, %program, %error, "cannot run hook");
                    HookOutcome::Failed
                }
            };
            self.record(MetricsEvent::Hook(outcome));
        }
        true
    }
}

/// Takes agents out of the queue and runs their hooks, until the daemon shuts down.
async fn run_queue(hooks: Arc<Hooks>) {
    while let Ok(slot) = hooks.slots.clone().acquire_owned().await {
        let Some(queued) = hooks.dequeue() else {
            drop(slot);
            hooks.queue_changed.notified().await;
            continue;
        };
        let hooks = hooks.clone();
        tokio::spawn(async move {
            let started = tokio::time::Instant::now();
            let has_run = hooks.handle(&queued).await;
            drop(slot);
            hooks.queue.lock().running -= 1;
            if has_run {
                tokio::time::sleep_until(started + MIN_RUN_INTERVAL).await;
            }
            hooks.queue.lock().busy.remove(&queued.agent.spec.id);
            hooks.queue_changed.notify_one();
        });
    }
}

/// Reads the state that the hooks of an earlier daemon have handled last.
async fn read_memory(agent: &RegisteredAgent) -> Option<StateOccurrence> {
    let path = agent.directory.join(MEMORY_FILE);
    pool::run(move || {
        record::read(&path).unwrap_or_else(|error| {
            tracing::warn!(path = %path.display(), %error, "cannot read which state hooks have handled");
            None
        })
    })
    .await
}

/// Stores the state that hooks have handled, for this daemon and the next.
async fn write_memory(agent: &Arc<RegisteredAgent>, handled: StateOccurrence) {
    let agent = agent.clone();
    pool::run(move || {
        let mut memory = agent.hook_memory.lock();
        memory.handled = Some(handled);
        let path = agent.directory.join(MEMORY_FILE);
        if !memory.removed
            && let Err(error) = record::replace(&path, &handled, Durability::Process)
        {
            tracing::warn!(path = %path.display(), %error, "cannot store which state hooks have handled; the next daemon may run them again");
        }
    })
    .await;
}
