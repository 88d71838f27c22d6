//! One task an agent: what its shim says and what its journal holds become the latest snapshot.

use std::sync::Arc;
use std::time::Duration;

use colibri_glasspane::Glasspane;
use colibri_journal::{JournalError, JournalReader};
use colibri_proto::Stream;
use colibri_shim::record::ExitRecord;
use colibri_spawner::{Agent, Seen, ShimState, Spawner};

use crate::registry::{Entry, Snapshot, outcome};
use crate::times::now_ms;

/// Follows an agent to its end.
pub(crate) async fn supervise(
    entry: Arc<Entry>,
    agent: Agent,
    mut pane: Glasspane,
    spawner: Spawner,
) {
    let mut states = agent.link.state();
    let mut events = pane
        .needs_bytes()
        .then(|| (entry.journal(Stream::Stdout), 0));
    let mut seen = 0;
    let mut run = states.borrow().status.run;
    let mut waiting = None;
    loop {
        let state = states.borrow_and_update().clone();
        let now = now_ms();
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
                read_events(&entry, journal, cursor, end, &mut pane, now);
            }
            pane.restarting(state.status.waiting.as_deref(), now);
            seen = state.status.stdout + state.status.stderr;
        }
        run = run.max(state.status.run);
        waiting.clone_from(&state.status.waiting);
        let written = state.status.stdout + state.status.stderr;
        if let Some((journal, cursor)) = &mut events {
            read_events(&entry, journal, cursor, u64::MAX, &mut pane, now);
        } else if written > seen {
            pane.active(now);
        }
        seen = written;
        pane.stalled(state.status.stalled.is_some(), now);
        pane.tick(now);
        if state.exit.is_some() || state.closed {
            let exit = match state.exit.clone() {
                Some(exit) => exit,
                None => lost(&entry, &spawner).await,
            };
            if let Some((journal, cursor)) = &mut events {
                read_events(&entry, journal, cursor, u64::MAX, &mut pane, now);
            }
            pane.exited(&outcome(&exit), exit.exited_at_ns / 1_000_000);
            tracing::info!(id = %entry.spec.id, exit = ?exit.exit, error = exit.error, "agent ended");
            publish(&entry, &pane, &state, Some(exit));
            return;
        }
        publish(&entry, &pane, &state, None);
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

/// Shows the pane what is new in the journal, up to that offset or its end.
fn read_events(
    entry: &Entry,
    journal: &mut JournalReader,
    cursor: &mut u64,
    end: u64,
    pane: &mut Glasspane,
    now: u64,
) {
    let mut buffer = vec![0; 64 * 1024];
    while *cursor < end {
        let room =
            usize::try_from(end - *cursor).map_or(buffer.len(), |left| left.min(buffer.len()));
        match journal.read(*cursor, buffer.get_mut(..room).unwrap_or_default()) {
            Ok(0) => return,
            Ok(count) => {
                pane.output(buffer.get(..count).unwrap_or_default(), now);
                *cursor += count as u64;
            }
            // Retention was faster: a state goes by what is left.
            Err(JournalError::BelowOldest { oldest, .. }) if oldest > *cursor => *cursor = oldest,
            Err(error) => return tracing::warn!(id = %entry.spec.id, %error, "events not read"),
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

fn publish(entry: &Entry, pane: &Glasspane, state: &ShimState, exit: Option<ExitRecord>) {
    let snapshot = snapshot(pane, state, exit);
    entry.latest.send_if_modified(|latest| {
        let changed = *latest != snapshot;
        *latest = snapshot;
        changed
    });
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
        stdout,
        stderr,
        stalled: status.stalled.clone(),
        waiting: status.waiting.clone(),
        pid: status.pid,
        run: exit.as_ref().map_or(status.run, |exit| exit.run),
        exit,
    }
}
