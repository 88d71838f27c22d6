//! One task an agent: what its shim says and what its journal holds become the latest snapshot.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use colibri_glasspane::{AgentState, Glasspane, View};
use colibri_journal::{JournalError, JournalReader};
use colibri_proto::Stream;
use colibri_shim::record::{self, Durability, ExitRecord};
use colibri_spawner::{Agent, Seen, ShimState, Spawner};

use crate::metrics::Metrics;
use crate::registry::{Entry, Observers, Snapshot, outcome};
use crate::times::now_ms;

/// How long the first word of a shim that was there before is waited for: it says where the run began.
const FIRST_WORD: Duration = Duration::from_secs(1);
/// Between two looks at how long output takes to get here.
const SAMPLE: Duration = Duration::from_secs(1);

/// What the events of an ended agent said; in its directory.
const VIEW: &str = "view.json";

/// Follows an agent to its end.
pub(crate) async fn supervise(
    entry: Arc<Entry>,
    agent: Agent,
    mut pane: Glasspane,
    spawner: Arc<Spawner>,
    observers: Observers,
) {
    let mut states = agent.link.state();
    let mut publisher = Publisher::new(entry.clone(), observers);
    let mut events = pane
        .needs_bytes()
        .then(|| (entry.journal(Stream::Stdout), 0));
    let mut seen = 0;
    // What the runs of an adopted agent have written is read as they wrote it, one after the other.
    let mut run = match entry.adopted {
        true => 1,
        false => states.borrow().status.run,
    };
    let mut found = entry.adopted;
    if found {
        let _ = tokio::time::timeout(FIRST_WORD, states.changed()).await;
    }
    let mut waiting = None;
    loop {
        let state = states.borrow_and_update().clone();
        let now = now_ms();
        let written = state.status.stdout + state.status.stderr;
        if state.status.run > run
            || (state.status.waiting.is_some() && state.status.waiting != waiting)
        {
            // What the run before has written last must not mix with the first line of this one.
            if let Some((journal, cursor)) = &mut events {
                let end = if state.status.run > run {
                    state.status.run_from
                } else {
                    state.status.stdout
                };
                publisher.read_events(journal, cursor, end, &mut pane, now);
            }
            pane.restarting(state.status.waiting.as_deref(), now);
            if !found {
                seen = written;
            }
        }
        run = run.max(state.status.run);
        waiting.clone_from(&state.status.waiting);
        if let Some((journal, cursor)) = &mut events {
            publisher.read_events(journal, cursor, u64::MAX, &mut pane, now);
        } else if written > seen {
            let last = Some(now).filter(|_| !found);
            pane.active(last.unwrap_or_else(|| last_written(&entry, &state, now)));
        }
        found = false;
        seen = written;
        pane.stalled(state.status.stalled.is_some(), now);
        pane.tick(now);
        if state.exit.is_some() || state.closed {
            let exit = match state.exit.clone() {
                Some(exit) => exit,
                // Rare, and long: what it holds is not kept ready for each agent.
                None => Box::pin(lost(&entry, &spawner)).await,
            };
            if let Some((journal, cursor)) = &mut events {
                publisher.read_events(journal, cursor, u64::MAX, &mut pane, now);
            }
            pane.exited(&outcome(&exit), exit.exited_at_ns / 1_000_000);
            keep_view(&entry, &pane);
            tracing::info!(id = %entry.spec.id, exit = ?exit.exit, error = exit.error, "agent ended");
            publisher.publish(&pane, &state, Some(exit));
            return;
        }
        publisher.publish(&pane, &state, None);
        let changed = states.changed();
        match pane.deadline() {
            None => drop(changed.await),
            Some(at) => {
                let left = Duration::from_millis(at.saturating_sub(now_ms()));
                let _ = tokio::time::timeout(left, changed).await;
            }
        }
    }
}

/// What the events of an agent said up to its end, as an earlier daemon kept it.
pub(crate) fn kept_view(directory: &Path) -> Option<View> {
    let path = directory.join(VIEW);
    record::read(&path).unwrap_or_else(|error| {
        tracing::warn!(path = %path.display(), %error, "what an agent said is read again");
        None
    })
}

fn keep_view(entry: &Entry, pane: &Glasspane) {
    let path = entry.directory.join(VIEW);
    if pane.needs_bytes()
        && let Err(error) = record::replace(&path, pane.view(), Durability::Process)
    {
        tracing::warn!(path = %path.display(), %error, "what an agent said is not kept, and is read again by the next daemon");
    }
}

/// Reads what an agent wrote that ended while no daemon was there.
pub(crate) fn review(entry: &Arc<Entry>) {
    let Some(exit) = entry.latest.borrow().exit.clone() else {
        return;
    };
    let mut pane = Glasspane::new(entry.runtime, entry.spec.created_at_ns / 1_000_000);
    let ended_ms = exit.exited_at_ns / 1_000_000;
    let mut publisher = Publisher::new(entry.clone(), Observers::default());
    let mut journal = entry.journal(Stream::Stdout);
    publisher.read_events(&mut journal, &mut 0, u64::MAX, &mut pane, ended_ms);
    pane.exited(&outcome(&exit), ended_ms);
    keep_view(entry, &pane);
    entry
        .latest
        .send_modify(|latest| latest.view = pane.view().clone());
}

/// When an agent that was there before last wrote something, in milliseconds since 1970; `now` where nobody knows.
fn last_written(entry: &Entry, state: &ShimState, now: u64) -> u64 {
    let outputs = [
        (Stream::Stdout, state.status.stdout),
        (Stream::Stderr, state.status.stderr),
    ];
    let last = outputs.into_iter().filter_map(|(stream, end)| {
        let at_ns = entry.journal(stream).time_at(end.checked_sub(1)?);
        Some(at_ns.ok()?? / 1_000_000)
    });
    last.max().map_or(now, |last| last.min(now))
}

/// Makes the latest of an agent known.
struct Publisher {
    entry: Arc<Entry>,
    observers: Observers,
    /// Where the last line ends that changed the state.
    changed_at: Option<u64>,
    first: bool,
    sampled: Option<Instant>,
}

impl Publisher {
    fn new(entry: Arc<Entry>, observers: Observers) -> Self {
        Self {
            entry,
            observers,
            changed_at: None,
            first: true,
            sampled: None,
        }
    }

    /// Shows the pane what is new in the journal, up to that offset or its end.
    fn read_events(
        &mut self,
        journal: &mut JournalReader,
        cursor: &mut u64,
        end: u64,
        pane: &mut Glasspane,
        now: u64,
    ) {
        let id = &self.entry.spec.id;
        let mut buffer = vec![0; 64 * 1024];
        while *cursor < end {
            let room =
                usize::try_from(end - *cursor).map_or(buffer.len(), |left| left.min(buffer.len()));
            match journal.read(*cursor, buffer.get_mut(..room).unwrap_or_default()) {
                Ok(0) => return,
                Ok(count) => {
                    let bytes = buffer.get(..count).unwrap_or_default();
                    for line in bytes.split_inclusive(|byte| *byte == b'\n') {
                        let before = pane.changes();
                        pane.output(line, now);
                        *cursor += line.len() as u64;
                        if pane.changes() != before {
                            self.changed_at = Some(*cursor);
                        }
                    }
                }
                // Retention was faster: a state goes by what is left.
                Err(JournalError::BelowOldest { oldest, .. }) if oldest > *cursor => {
                    *cursor = oldest;
                }
                Err(error) => return tracing::warn!(%id, %error, "events not read"),
            }
        }
    }

    fn publish(&mut self, pane: &Glasspane, state: &ShimState, exit: Option<ExitRecord>) {
        let mut snapshot = snapshot(pane, state, exit);
        snapshot.changed_at = match (snapshot.view.state, pane.needs_bytes()) {
            (AgentState::Starting | AgentState::Stalled, _) => None,
            (_, true) => self.changed_at,
            (AgentState::Idle, false) => Some(snapshot.stdout + snapshot.stderr),
            (_, false) => None,
        };
        if let Some(metrics) = self.observers.metrics.clone() {
            self.sample(&metrics, &snapshot);
        }
        let mut before = None;
        self.entry.latest.send_if_modified(|latest| {
            // What was asked for meanwhile is known there only.
            snapshot.kill.clone_from(&latest.kill);
            let changed = *latest != snapshot;
            if changed {
                before = Some(std::mem::replace(latest, snapshot.clone()));
            }
            changed
        });
        if let (Some(metrics), Some(before)) = (&self.observers.metrics, &before) {
            metrics.published(before, &snapshot);
        }
        if let Some(hooks) = &self.observers.hooks {
            if self.first {
                hooks.published(&self.entry, None, &snapshot);
            } else if before.is_some() {
                hooks.published(&self.entry, before.as_ref(), &snapshot);
            }
        }
        self.first = false;
    }

    /// Looks how long the first of the new bytes took to get here, if its time is its own: bytes that came nearly
    /// together have one time.
    fn sample(&mut self, metrics: &Metrics, now: &Snapshot) {
        let from = self.entry.latest.borrow().stdout;
        let recently = self.sampled.is_some_and(|at| at.elapsed() < SAMPLE);
        if recently || now.stdout <= from || (self.first && self.entry.adopted) {
            return;
        }
        if let Ok(Some(chunk)) = self.entry.journal(Stream::Stdout).chunk_at(from)
            && chunk.start == from
        {
            metrics.publishes(chunk.at_ns);
            self.sampled = Some(Instant::now());
        }
    }
}

/// The shim went without a word: it was killed, or its last word was lost with the connection.
async fn lost(entry: &Entry, spawner: &Spawner) -> ExitRecord {
    loop {
        match spawner.record_lost(&entry.spec.id, Seen::AtOnce).await {
            Ok(exit) => return exit,
            Err(error) => {
                tracing::error!(id = %entry.spec.id, %error, "the end of an agent is not recorded yet");
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
        }
    }
}

/// What is known now.
pub(crate) fn snapshot(pane: &Glasspane, state: &ShimState, exit: Option<ExitRecord>) -> Snapshot {
    let status = &state.status;
    let (stdout, stderr) = match &exit {
        Some(exit) => (exit.stdout_bytes, exit.stderr_bytes),
        None => (status.stdout, status.stderr),
    };
    Snapshot {
        view: pane.view().clone(),
        changes: pane.changes(),
        changed_at: None,
        kill: None,
        stdout,
        stderr,
        stalled: status.stalled.clone(),
        waiting: status.waiting.clone(),
        pid: status.pid,
        run: exit.as_ref().map_or(status.run, |exit| exit.run),
        exit,
    }
}
