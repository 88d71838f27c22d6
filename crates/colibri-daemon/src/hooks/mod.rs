//! Hooks: commands that are run when an agent comes into one of the states that they wait for.
//!
//! Whoever publishes a state leaves it here and goes on; one task looks at what was left. For each agent at most one
//! change waits, the latest that some hook wants, so a flood of them costs no memory and no more than one command
//! a second for each agent. What the hooks have seen last of an agent is in its directory, so that the next
//! daemon reports what happened meanwhile, once, and nothing twice.

mod command;

use std::collections::{BTreeMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use colibri_config::Hook;
use colibri_glasspane::AgentState;
use colibri_shim::record::{self, Durability};
use colibri_types::AgentId;
use serde::{Deserialize, Serialize};
use tokio::sync::{Notify, Semaphore};

use crate::metrics::Metrics;
use crate::pool;
use crate::registry::{Entry, Snapshot};

pub(crate) use command::HookEnd;

/// Agents for which hooks run at a time.
const AT_ONCE: usize = 4;
/// From the start of an agent's hook to the start of its next one at least.
const PAUSE: Duration = Duration::from_secs(1);
/// What the hooks have seen last of an agent; in its directory.
const RECORD: &str = "hook.json";

/// A state, and what makes it another one than the next of the same name: where in the journal the line ends
/// that says so, how much was written when it fell silent, or when it ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Seen {
    pub(crate) state: AgentState,
    pub(crate) at: Option<u64>,
}

impl Seen {
    pub(crate) fn of(snapshot: &Snapshot) -> Self {
        Self {
            state: snapshot.view.state,
            at: match &snapshot.exit {
                Some(exit) => Some(exit.exited_at_ns),
                None => snapshot.changed_at,
            },
        }
    }
}

/// What hooks are told of.
struct Change {
    snapshot: Snapshot,
    previous: Option<AgentState>,
}

/// What waits for an agent.
struct Waiting {
    entry: Arc<Entry>,
    latest: Seen,
    wanted: Option<Change>,
    /// So many wanted changes are not told, as `wanted` took their place.
    merged: u64,
    /// The daemon has just started, and found the agent.
    found: bool,
}

#[derive(Default)]
struct Queue {
    agents: BTreeMap<AgentId, Waiting>,
    /// Those whose hooks run, or have just run.
    busy: HashSet<AgentId>,
    running: u64,
}

/// The hooks that there are, and what they have not looked at yet.
pub(crate) struct Hooks {
    hooks: Vec<Hook>,
    queue: Mutex<Queue>,
    news: Notify,
    slots: Arc<Semaphore>,
    environment: Vec<(String, String)>,
    metrics: Option<Arc<Metrics>>,
}

impl Hooks {
    /// Hooks that are run with this environment and what tells them of the change.
    pub(crate) fn new(
        hooks: Vec<Hook>,
        environment: Vec<(String, String)>,
        metrics: Option<Arc<Metrics>>,
    ) -> Arc<Self> {
        let hooks = Arc::new(Self {
            hooks,
            queue: Mutex::default(),
            news: Notify::new(),
            slots: Arc::new(Semaphore::new(AT_ONCE)),
            environment,
            metrics,
        });
        tokio::spawn(look(hooks.clone()));
        hooks
    }

    /// Agents that wait, and those whose hooks run.
    pub(crate) fn counts(&self) -> (u64, u64) {
        let queue = self.queue();
        (queue.agents.len() as u64, queue.running)
    }

    /// Waits for the hooks that run; none is started from now on.
    pub(crate) async fn end(&self, patience: Duration) {
        let all = u32::try_from(AT_ONCE).unwrap_or(u32::MAX);
        let idle = tokio::time::timeout(patience, self.slots.acquire_many(all)).await;
        if idle.is_err() {
            tracing::warn!("hooks are cut off by the end of the daemon");
        }
        self.slots.close();
    }

    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wants(&self, state: AgentState) -> bool {
        self.hooks.iter().any(|hook| waits_for(hook, state))
    }

    /// The agent is in another state than before; `before` is absent for the first that is known of it.
    pub(crate) fn published(&self, entry: &Arc<Entry>, before: Option<&Snapshot>, now: &Snapshot) {
        let latest = Seen::of(now);
        if before.is_some_and(|before| Seen::of(before) == latest) {
            return;
        }
        let mut queue = self.queue();
        let waiting = queue
            .agents
            .entry(entry.spec.id.clone())
            .or_insert_with(|| Waiting {
                entry: entry.clone(),
                latest,
                wanted: None,
                merged: 0,
                found: before.is_none() && entry.adopted,
            });
        waiting.latest = latest;
        if self.wants(latest.state) {
            let change = Change {
                snapshot: now.clone(),
                previous: match before {
                    Some(before) => Some(before.view.state),
                    None if entry.adopted => None,
                    None => Some(AgentState::Starting).filter(|state| *state != latest.state),
                },
            };
            if waiting.wanted.replace(change).is_some() {
                waiting.merged += 1;
                if let Some(metrics) = &self.metrics {
                    metrics.hook_merged();
                }
            }
        }
        drop(queue);
        self.news.notify_one();
    }

    /// The next agent with a change whose hooks do not run just now.
    fn next(&self) -> Option<(AgentId, Waiting)> {
        let mut queue = self.queue();
        let free = |id: &&AgentId| !queue.busy.contains(*id);
        let id = queue.agents.keys().find(free)?.clone();
        let waiting = queue.agents.remove(&id)?;
        queue.busy.insert(id.clone());
        queue.running += 1;
        Some((id, waiting))
    }

    /// Looks at one change, and runs what it takes; whether something was run.
    async fn handle(&self, id: &AgentId, waiting: Waiting) -> bool {
        let Waiting {
            entry,
            latest,
            wanted,
            merged,
            found,
        } = waiting;
        let known = match found {
            true => read(&entry).await,
            false => entry.hooks().seen,
        };
        let Some(mut known) = known else {
            if found {
                // It is from a time without hooks: what it does is no news.
                keep(&entry, latest).await;
                return false;
            }
            return self.run(id, &entry, wanted, merged, None, latest).await;
        };
        if found {
            entry.hooks().seen = Some(known);
        }
        let wanted = wanted.filter(|change| Seen::of(&change.snapshot) != known);
        if wanted.is_none() {
            // Written where it makes a difference: a state that is told has been left.
            if self.wants(known.state) && known != latest {
                known = latest;
                keep(&entry, known).await;
            }
            return false;
        }
        self.run(id, &entry, wanted, merged, Some(known.state), latest)
            .await
    }

    async fn run(
        &self,
        id: &AgentId,
        entry: &Arc<Entry>,
        wanted: Option<Change>,
        merged: u64,
        known: Option<AgentState>,
        latest: Seen,
    ) -> bool {
        let Some(change) = wanted else {
            keep(entry, latest).await;
            return false;
        };
        let told = command::Told::new(entry, &change.snapshot, change.previous.or(known), merged);
        let state = change.snapshot.view.state;
        let mut kept = false;
        for hook in self.hooks.iter().filter(|hook| waits_for(hook, state)) {
            let started = command::start(hook, &self.environment, &told);
            if !kept {
                // Not before it was tried: a daemon that is killed here tells it again, and does not lose it.
                keep(entry, latest).await;
                kept = true;
            }
            let end = match started {
                Ok(running) => running.end(id, hook, &told).await,
                Err(error) => {
                    let program = hook.program.display();
                    tracing::error!(%id, %program, %error, "hook cannot be run");
                    HookEnd::Failed
                }
            };
            if let Some(metrics) = &self.metrics {
                metrics.hooked(end);
            }
        }
        true
    }
}

fn waits_for(hook: &Hook, state: AgentState) -> bool {
    let word = state.to_string();
    hook.on.contains(&word)
}

/// Takes what was left, again and again.
async fn look(hooks: Arc<Hooks>) {
    while let Ok(slot) = hooks.slots.clone().acquire_owned().await {
        let Some((id, waiting)) = hooks.next() else {
            drop(slot);
            hooks.news.notified().await;
            continue;
        };
        let hooks = hooks.clone();
        tokio::spawn(async move {
            let started = tokio::time::Instant::now();
            let ran = hooks.handle(&id, waiting).await;
            drop(slot);
            hooks.queue().running -= 1;
            if ran {
                tokio::time::sleep_until(started + PAUSE).await;
            }
            hooks.queue().busy.remove(&id);
            hooks.news.notify_one();
        });
    }
}

/// What is remembered of an agent for the hooks.
#[derive(Default)]
pub(crate) struct Memory {
    seen: Option<Seen>,
    /// Its directory is about to go: nothing is written there any more.
    removed: bool,
}

impl Memory {
    /// Whether the agent's directory is about to go.
    pub(crate) fn set_removed(&mut self, removed: bool) {
        self.removed = removed;
    }
}

/// What hooks have seen of an agent, by an earlier daemon.
async fn read(entry: &Entry) -> Option<Seen> {
    let path = entry.directory.join(RECORD);
    let read = pool::short(move || {
        record::read(&path).unwrap_or_else(|error| {
            tracing::warn!(path = %path.display(), %error, "what hooks have seen is not known");
            None
        })
    });
    read.await.ok().flatten()
}

/// Remembers what hooks have seen of an agent, for this daemon and the next.
async fn keep(entry: &Arc<Entry>, seen: Seen) {
    let entry = entry.clone();
    let kept = pool::short(move || {
        let mut memory = entry.hooks();
        memory.seen = Some(seen);
        let path = entry.directory.join(RECORD);
        if !memory.removed
            && let Err(error) = record::replace(&path, &seen, Durability::Process)
        {
            tracing::warn!(path = %path.display(), %error, "what hooks have seen is not kept, and may be told again");
        }
    });
    // Fails only while the daemon is shutting down: the next one runs the hook again.
    let _ = kept.await;
}
