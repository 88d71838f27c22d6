//! One task an agent: what its shim says and what its journal holds become the latest snapshot.

mod parser;

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use colibri_glasspane::{AgentState, AgentView, Glasspane};
use colibri_proto::Stream;
use colibri_shim::control::ShimStatus;
use colibri_shim::record::{self, Durability, ExitRecord};
use colibri_spawner::{Agent, Seen, ShimState, Spawner};
use tokio::sync::Semaphore;

use crate::metrics::Metrics;
use crate::pool;
use crate::registry::{Entry, Observers, Snapshot};
use crate::times::now_ms;
use parser::{BACKLOG, LAST_BACKLOG, Parser};

/// How long the first word of a shim that was there before is waited for: it says where the run began.
const FIRST_WORD: Duration = Duration::from_secs(1);
/// Between two looks at how long output takes to get here.
const SAMPLE: Duration = Duration::from_secs(1);

/// Limits how many ended agents are parsed at the same time.
static REVIEWING: Semaphore = Semaphore::const_new(1);

/// What the events of an ended agent said; in its directory.
const VIEW: &str = "view.json";

/// Follows an agent to its end.
pub(crate) async fn supervise(
    entry: Arc<Entry>,
    agent: Agent,
    pane: Glasspane,
    spawner: Arc<Spawner>,
    observers: Observers,
) {
    let id = entry.spec.id.clone();
    // Fails only while the daemon is shutting down: the next daemon parses again.
    if let Err(error) = follow(entry, agent, pane, spawner, observers).await {
        tracing::debug!(%id, %error, "agent not followed any more");
    }
}

async fn follow(
    entry: Arc<Entry>,
    agent: Agent,
    pane: Glasspane,
    spawner: Arc<Spawner>,
    observers: Observers,
) -> io::Result<()> {
    let mut states = agent.link.state();
    let mut publisher = Publisher::new(entry.clone(), observers);
    let reads = pane.needs_output();
    let mut parser = Parser::new(entry.clone(), pane);
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
        let ended = state.exit.is_some() || state.closed;
        let status = &state.status;
        let now = now_ms();
        let written = status.stdout + status.stderr;
        let mut is_behind = false;
        if status.run > run || (status.waiting.is_some() && status.waiting != waiting) {
            // What the run before has written last must not mix with the first line of this one.
            let before = match status.run > run {
                true => status.run_from,
                false => status.stdout,
            };
            if ended {
                parser = parser.all(before, LAST_BACKLOG, now).await?;
            } else {
                parser.skip_backlog(before, BACKLOG);
                parser = parser.slice(before, now).await?;
                is_behind = parser.is_behind(before);
            }
            if !is_behind {
                parser.pane.record_restart(status.waiting.as_deref(), now);
                if !found {
                    seen = written;
                }
            }
        }
        if !is_behind {
            run = run.max(status.run);
            waiting.clone_from(&status.waiting);
            if reads && !ended {
                parser.skip_backlog(status.stdout, BACKLOG);
                parser = parser.slice(status.stdout, now).await?;
                is_behind = parser.is_behind(status.stdout);
            } else if !reads && written > seen {
                let last = match found {
                    true => last_written(&entry, &state, now).await?,
                    false => now,
                };
                parser.pane.record_activity(last);
            }
            seen = written;
        }
        found = false;
        parser.pane.set_stalled(status.stalled.is_some(), now);
        parser.pane.tick(now);
        if ended {
            let exit = match state.exit.clone() {
                Some(exit) => exit,
                // Rare, and long: what it holds is not kept ready for each agent.
                None => Box::pin(lost(&entry, &spawner)).await,
            };
            parser = parser.all(exit.stdout_bytes, LAST_BACKLOG, now).await?;
            parser.pane.record_exit(
                &exit.exit(),
                exit.error.as_deref(),
                exit.exited_at_ns / 1_000_000,
            );
            keep_view(&entry, &parser.pane).await?;
            tracing::info!(id = %entry.spec.id, exit = ?exit.exit, error = exit.error, "agent ended");
            publisher.publish(&parser, &state, Some(exit)).await?;
            return Ok(());
        }
        publisher.publish(&parser, &state, None).await?;
        if is_behind {
            // Requesting the next slice queues behind other agents.
            continue;
        }
        let changed = states.changed();
        match parser.pane.deadline() {
            None => drop(changed.await),
            Some(at) => {
                let left = Duration::from_millis(at.saturating_sub(now_ms()));
                let _ = tokio::time::timeout(left, changed).await;
            }
        }
    }
}

/// What the events of an agent said up to its end, as an earlier daemon kept it.
pub(crate) fn kept_view(directory: &Path) -> Option<AgentView> {
    let path = directory.join(VIEW);
    record::read(&path).unwrap_or_else(|error| {
        tracing::warn!(path = %path.display(), %error, "what an agent said is read again");
        None
    })
}

async fn keep_view(entry: &Entry, pane: &Glasspane) -> io::Result<()> {
    if !pane.needs_output() {
        return Ok(());
    }
    let (path, view) = (entry.directory.join(VIEW), pane.view().clone());
    pool::short(move || {
        if let Err(error) = record::replace(&path, &view, Durability::Process) {
            tracing::warn!(path = %path.display(), %error, "what an agent said is not kept, and is read again by the next daemon");
        }
    })
    .await
}

/// Reads what an agent wrote that ended while no daemon was there.
pub(crate) async fn review(entry: Arc<Entry>) {
    let Some(exit) = entry.latest.borrow().exit.clone() else {
        return;
    };
    // Running agents have priority: only one ended agent is parsed at a time.
    let Ok(_slot) = REVIEWING.acquire().await else {
        return;
    };
    let pane = Glasspane::new(entry.runtime, entry.spec.created_at_ns / 1_000_000);
    let ended_ms = exit.exited_at_ns / 1_000_000;
    let parser = Parser::new(entry.clone(), pane);
    let Ok(mut parser) = parser.all(exit.stdout_bytes, BACKLOG, ended_ms).await else {
        return;
    };
    parser
        .pane
        .record_exit(&exit.exit(), exit.error.as_deref(), ended_ms);
    if keep_view(&entry, &parser.pane).await.is_ok() {
        entry
            .latest
            .send_modify(|latest| latest.view = parser.pane.view().clone());
    }
}

/// When an agent that was there before last wrote something, in milliseconds since 1970; `now` where nobody knows.
async fn last_written(entry: &Arc<Entry>, state: &ShimState, now: u64) -> io::Result<u64> {
    let outputs = [
        (Stream::Stdout, state.status.stdout),
        (Stream::Stderr, state.status.stderr),
    ];
    let entry = entry.clone();
    pool::short(move || {
        let last = outputs.into_iter().filter_map(|(stream, end)| {
            let at_ns = entry.journal(stream).time_at(end.checked_sub(1)?);
            Some(at_ns.ok()?? / 1_000_000)
        });
        last.max().map_or(now, |last| last.min(now))
    })
    .await
}

/// Makes the latest of an agent known.
struct Publisher {
    entry: Arc<Entry>,
    observers: Observers,
    first: bool,
    sampled: Option<Instant>,
}

impl Publisher {
    fn new(entry: Arc<Entry>, observers: Observers) -> Self {
        Self {
            entry,
            observers,
            first: true,
            sampled: None,
        }
    }

    async fn publish(
        &mut self,
        parser: &Parser,
        state: &ShimState,
        exit: Option<ExitRecord>,
    ) -> io::Result<()> {
        let pane = &parser.pane;
        let mut snapshot = snapshot(pane, &state.status, exit);
        snapshot.parsed = match snapshot.exit {
            Some(_) => u64::MAX,
            None => parser.parsed(),
        };
        snapshot.changed_at = match (snapshot.view.state, pane.needs_output()) {
            (AgentState::Starting | AgentState::Stalled, _) => None,
            (_, true) => parser.changed_at,
            (AgentState::Idle, false) => Some(snapshot.stdout + snapshot.stderr),
            (_, false) => None,
        };
        snapshot.precedes = match snapshot.view.state {
            _ if snapshot.exit.is_some() => u64::MAX,
            AgentState::Starting if snapshot.waiting.is_none() => snapshot.run_from,
            AgentState::Idle | AgentState::Working | AgentState::Blocked if pane.needs_output() => {
                parser.noted_at.unwrap_or(u64::MAX)
            }
            _ => u64::MAX,
        };
        if let Some(metrics) = self.observers.metrics.clone() {
            self.sample(&metrics, &snapshot).await?;
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
        Ok(())
    }

    /// Looks how long the first of the new bytes took to get here, if its time is its own: bytes that came nearly
    /// together have one time.
    async fn sample(&mut self, metrics: &Metrics, now: &Snapshot) -> io::Result<()> {
        let from = self.entry.latest.borrow().stdout;
        let recently = self.sampled.is_some_and(|at| at.elapsed() < SAMPLE);
        if recently || now.stdout <= from || (self.first && self.entry.adopted) {
            return Ok(());
        }
        let entry = self.entry.clone();
        let chunk = pool::short(move || entry.journal(Stream::Stdout).chunk_at(from)).await?;
        if let Ok(Some(chunk)) = chunk
            && chunk.start == from
        {
            metrics.publishes(chunk.at_ns);
            self.sampled = Some(Instant::now());
        }
        Ok(())
    }
}

/// The shim went without a word: it was killed, or its last word was lost with the connection.
async fn lost(entry: &Entry, spawner: &Spawner) -> ExitRecord {
    loop {
        match spawner.record_lost(&entry.spec, Seen::AtOnce).await {
            Ok(exit) => return exit,
            Err(error) => {
                tracing::error!(id = %entry.spec.id, %error, "the end of an agent is not recorded yet");
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
        }
    }
}

/// What is known now.
pub(crate) fn snapshot(
    pane: &Glasspane,
    status: &ShimStatus,
    exit: Option<ExitRecord>,
) -> Snapshot {
    let (stdout, stderr) = match &exit {
        Some(exit) => (exit.stdout_bytes, exit.stderr_bytes),
        None => (status.stdout, status.stderr),
    };
    Snapshot {
        view: pane.view().clone(),
        changes: pane.state_changes(),
        changed_at: None,
        precedes: u64::MAX,
        parsed: match pane.needs_output() {
            true => 0,
            false => u64::MAX,
        },
        run_from: status.run_from,
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
