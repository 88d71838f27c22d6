//! Subscriptions: a cursor into each journal, and a watch on the agent.
//!
//! Nothing is buffered for a subscriber: what it has not read is in the journal, and states that it was
//! too slow for are replaced by the latest.

use std::collections::HashSet;
use std::sync::Arc;

use colibri_glasspane::AgentState;
use colibri_journal::{JournalError, JournalReader};
use colibri_proto::{
    ExitEvent, Notification, OutputEvent, StateEvent, Stream, StreamChoice, text_boundary,
};
use tokio::sync::broadcast::error::RecvError;
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use crate::registry::{Entry, Registry, Snapshot, exit_to_wire, failed};
use crate::times;

/// Most bytes of output in one notification; six times as many fit into a frame, as escapes may need.
const CHUNK: usize = 64 * 1024;

/// What a subscriber wants of an agent.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Wanted {
    pub(crate) subscription: u64,
    pub(crate) stream: Option<StreamChoice>,
    pub(crate) from_offset: Option<u64>,
}

/// Sends frames; fails when the connection has ended.
pub(crate) type Frames = mpsc::Sender<Vec<u8>>;

struct Cursor {
    stream: Stream,
    journal: JournalReader,
    offset: u64,
}

/// Streams one agent until its end or the connection's.
pub(crate) async fn one(entry: Arc<Entry>, wanted: Wanted, frames: Frames) {
    let mut latest = entry.latest.subscribe();
    let mut snapshot = latest.borrow_and_update().clone();
    let streams: &[Stream] = match wanted.stream {
        None => &[Stream::Stdout, Stream::Stderr],
        Some(StreamChoice::Stdout) => &[Stream::Stdout],
        Some(StreamChoice::Stderr) => &[Stream::Stderr],
        Some(StreamChoice::None) => &[],
    };
    let mut cursors: Vec<Cursor> = streams
        .iter()
        .map(|stream| Cursor {
            stream: *stream,
            journal: entry.journal(*stream),
            offset: wanted
                .from_offset
                .unwrap_or_else(|| length(&snapshot, *stream)),
        })
        .collect();
    let mut told: Option<AgentState> = None;
    loop {
        if told != Some(snapshot.view.state) {
            told = Some(snapshot.view.state);
            if !send(
                &frames,
                &state_event(&entry, wanted.subscription, &snapshot),
            )
            .await
            {
                return;
            }
        }
        for cursor in &mut cursors {
            if !outputs(&entry, wanted.subscription, cursor, &snapshot, &frames).await {
                return;
            }
        }
        if let Some(exit) = &snapshot.exit {
            let event = ExitEvent {
                subscription: wanted.subscription,
                id: entry.spec.id.to_string(),
                state: snapshot.view.state,
                exit: exit.exit.map(exit_to_wire),
                exit_note: entry.spec.exit_note.clone().filter(|_| failed(exit)),
                error: exit.error.clone(),
                exited_at: times::from_ns(exit.exited_at_ns),
            };
            send(&frames, &Notification::AgentExit(event)).await;
            return;
        }
        tokio::select! {
            changed = latest.changed() => if changed.is_err() { return },
            () = frames.closed() => return,
        }
        snapshot = latest.borrow_and_update().clone();
    }
}

/// Streams all agents, also those to come.
pub(crate) async fn all(registry: Arc<Registry>, wanted: Wanted, frames: Frames) {
    let mut streams = JoinSet::new();
    let mut known = HashSet::new();
    let (mut present, mut appeared) = registry.follow();
    loop {
        for entry in present.drain(..) {
            // What ended before is history: it can be listed and read.
            if known.insert(entry.spec.id.clone()) && entry.latest.borrow().exit.is_none() {
                streams.spawn(one(entry, wanted, frames.clone()));
            }
        }
        tokio::select! {
            entry = appeared.recv() => match entry {
                Ok(entry) => present.push(entry),
                Err(RecvError::Lagged(_)) => (present, appeared) = registry.follow(),
                Err(RecvError::Closed) => return,
            },
            Some(_) = streams.join_next() => {}
            () = frames.closed() => return,
        }
    }
}

fn length(snapshot: &Snapshot, stream: Stream) -> u64 {
    match stream {
        Stream::Stdout => snapshot.stdout,
        Stream::Stderr => snapshot.stderr,
    }
}

/// Sends what the journal holds beyond the cursor, up to what the snapshot knows of.
async fn outputs(
    entry: &Entry,
    subscription: u64,
    cursor: &mut Cursor,
    snapshot: &Snapshot,
    frames: &Frames,
) -> bool {
    let end = length(snapshot, cursor.stream);
    let mut buffer = Vec::new();
    while cursor.offset < end {
        buffer.resize(
            CHUNK.min(usize::try_from(end - cursor.offset).unwrap_or(CHUNK)),
            0,
        );
        let count = match cursor.journal.read(cursor.offset, &mut buffer) {
            Ok(0) => return true,
            Ok(count) => count,
            Err(JournalError::BelowOldest { oldest, .. }) => {
                // The gap shows in the offsets.
                cursor.offset = oldest;
                continue;
            }
            Err(error) => {
                tracing::error!(id = %entry.spec.id, %error, "journal not read");
                return true;
            }
        };
        let bytes = buffer.get(..count).unwrap_or_default();
        let bytes = bytes.get(..text_boundary(bytes)).unwrap_or(bytes);
        let event = OutputEvent {
            subscription,
            id: entry.spec.id.to_string(),
            stream: cursor.stream,
            offset: cursor.offset,
            data: colibri_proto::OutputData::from_bytes(bytes),
        };
        if !send(frames, &Notification::AgentOutput(event)).await {
            return false;
        }
        cursor.offset += bytes.len() as u64;
    }
    true
}

fn state_event(entry: &Entry, subscription: u64, snapshot: &Snapshot) -> Notification {
    Notification::AgentState(StateEvent {
        subscription,
        id: entry.spec.id.to_string(),
        state: snapshot.view.state,
        since: times::from_ms(snapshot.view.since),
        current_tool: snapshot.view.current_tool.clone(),
        last_error: snapshot
            .stalled
            .clone()
            .or_else(|| snapshot.view.last_error.clone()),
    })
}

async fn send(frames: &Frames, notification: &Notification) -> bool {
    match notification.encode() {
        Ok(frame) => frames.send(frame).await.is_ok(),
        Err(error) => {
            tracing::error!(%error, "notification not sent");
            true
        }
    }
}
