//! One task an agent: what its shim says and what its journal holds become the latest snapshot.

use std::sync::Arc;
use std::time::Duration;

use colibri_glasspane::Glasspane;
use colibri_journal::JournalReader;
use colibri_proto::Stream;
use colibri_shim::record::ExitRecord;
use colibri_spawner::{Agent, ShimState, Spawner};

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
    loop {
        let state = states.borrow_and_update().clone();
        let now = now_ms();
        let written = state.status.stdout + state.status.stderr;
        if let Some((journal, cursor)) = &mut events {
            read_events(&entry, journal, cursor, &mut pane, now);
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
                read_events(&entry, journal, cursor, &mut pane, now);
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

/// Shows the pane what is new in the journal, up to its end.
fn read_events(
    entry: &Entry,
    journal: &mut JournalReader,
    cursor: &mut u64,
    pane: &mut Glasspane,
    now: u64,
) {
    let mut buffer = vec![0; 64 * 1024];
    loop {
        match journal.read(*cursor, &mut buffer) {
            Ok(0) => return,
            Ok(count) => {
                pane.output(buffer.get(..count).unwrap_or_default(), now);
                *cursor += count as u64;
            }
            Err(error) => return tracing::warn!(id = %entry.spec.id, %error, "events not read"),
        }
    }
}

/// The shim went without a word: it was killed, or its last word was lost with the connection.
async fn lost(entry: &Entry, spawner: &Spawner) -> ExitRecord {
    loop {
        match spawner.record_lost(&entry.spec.id).await {
            Ok(exit) => return exit,
            Err(error) => {
                tracing::error!(id = %entry.spec.id, %error, "the end of an agent is not recorded yet");
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
        }
    }
}

fn publish(entry: &Entry, pane: &Glasspane, state: &ShimState, exit: Option<ExitRecord>) {
    let (stdout, stderr) = match &exit {
        Some(exit) => (exit.stdout_bytes, exit.stderr_bytes),
        None => (state.status.stdout, state.status.stderr),
    };
    let snapshot = Snapshot {
        view: pane.view().clone(),
        stdout,
        stderr,
        stalled: state.status.stalled.clone(),
        exit,
    };
    entry.latest.send_if_modified(|latest| {
        let changed = *latest != snapshot;
        *latest = snapshot;
        changed
    });
}
