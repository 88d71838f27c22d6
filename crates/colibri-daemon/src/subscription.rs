//! Subscriptions: a cursor into each journal, and a watch on the agent.
//!
//! Nothing is buffered for a subscriber: what it has not read is in the journal, and states that it was
//! too slow for are replaced by the latest. Room in the connection's queue comes first, then the read: whoever
//! waits for room holds no bytes.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use colibri_proto::{
    ExitEvent, Notification, OutputData, OutputEvent, RemovedEvent, StateEvent, Stream,
    StreamChoice,
};
use colibri_spawner::AgentId;
use tokio::sync::broadcast::error::RecvError;
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use crate::cursor::{Cursor, Piece};
use crate::registry::{Change, Entry, Registry, Snapshot, exit_to_wire, failed};
use crate::times;

/// After a journal could not be read (no descriptors left, say), before it is tried again.
const TRY_AGAIN: Duration = Duration::from_millis(200);

/// What a subscriber wants of an agent.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Wanted {
    pub(crate) subscription: u64,
    pub(crate) stream: Option<StreamChoice>,
    pub(crate) from_offset: Option<u64>,
    pub(crate) timed: bool,
    /// It is one of many: no file is kept open for it while there is nothing to send.
    pub(crate) rests: bool,
}

/// Sends frames; fails when the connection has ended.
pub(crate) type Frames = mpsc::Sender<Vec<u8>>;

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
    let mut cursors: Vec<(Stream, Cursor)> = streams
        .iter()
        .map(|stream| {
            let from = wanted
                .from_offset
                .unwrap_or_else(|| length(&snapshot, *stream));
            let cursor = Cursor::new(entry.journal(*stream), from, wanted.timed);
            (*stream, cursor)
        })
        .collect();
    let mut told = None;
    loop {
        let event = Notification::AgentState(state_event(&entry, wanted.subscription, &snapshot));
        if told.as_ref() != Some(&event) {
            if !send(&frames, &event).await {
                return;
            }
            told = Some(event);
        }
        for (stream, cursor) in &mut cursors {
            let end = length(&snapshot, *stream);
            if !outputs(&entry, wanted.subscription, *stream, cursor, end, &frames).await {
                return;
            }
            if wanted.rests {
                cursor.rest();
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
    let (mut present, mut changes) = registry.follow();
    let mut removed: Vec<AgentId> = Vec::new();
    loop {
        for id in removed.drain(..) {
            known.remove(&id);
            let event = RemovedEvent {
                subscription: wanted.subscription,
                id: id.to_string(),
            };
            if !send(&frames, &Notification::AgentRemoved(event)).await {
                return;
            }
        }
        for entry in present.drain(..) {
            // What ended before is history: it can be listed and read.
            if known.insert(entry.spec.id.clone()) && entry.latest.borrow().exit.is_none() {
                streams.spawn(one(entry, wanted, frames.clone()));
            }
        }
        tokio::select! {
            change = changes.recv() => match change {
                Ok(Change::Appeared(entry)) => present.push(entry),
                Ok(Change::Removed(id)) => removed.push(id),
                Err(RecvError::Lagged(_)) => {
                    (present, changes) = registry.follow();
                    let there: HashSet<_> = present.iter().map(|entry| &entry.spec.id).collect();
                    removed.extend(known.iter().filter(|id| !there.contains(id)).cloned());
                }
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

/// Sends what the journal holds between the cursor and `end`, all of it, however often it must be tried;
/// `false` where the connection has ended.
async fn outputs(
    entry: &Entry,
    subscription: u64,
    stream: Stream,
    cursor: &mut Cursor,
    end: u64,
    frames: &Frames,
) -> bool {
    while cursor.has_more(end) {
        let Ok(room) = frames.reserve().await else {
            return false;
        };
        match cursor.next(end) {
            Ok(Some(Piece {
                offset,
                bytes,
                at_ns,
            })) => {
                let event = Notification::AgentOutput(OutputEvent {
                    subscription,
                    id: entry.spec.id.to_string(),
                    stream,
                    offset,
                    data: OutputData::from_bytes(&bytes),
                    time: at_ns.map(times::from_ns),
                });
                match event.encode() {
                    Ok(frame) => room.send(frame),
                    Err(error) => tracing::error!(%error, "notification not sent"),
                }
            }
            // Shorter than it was: somebody truncated it.
            Ok(None) => return true,
            Err(error) => {
                drop(room);
                tracing::warn!(id = %entry.spec.id, %error, "journal not read, trying again");
                tokio::select! {
                    () = tokio::time::sleep(TRY_AGAIN) => {}
                    () = frames.closed() => return false,
                }
            }
        }
    }
    true
}

fn state_event(entry: &Entry, subscription: u64, snapshot: &Snapshot) -> StateEvent {
    StateEvent {
        subscription,
        id: entry.spec.id.to_string(),
        state: snapshot.view.state,
        since: times::from_ms(snapshot.view.since),
        current_tool: snapshot.view.current_tool.clone(),
        last_error: snapshot
            .stalled
            .clone()
            .or_else(|| snapshot.view.last_error.clone()),
    }
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::times::now_ms;
    use colibri_glasspane::{AgentRuntime, Glasspane};
    use colibri_journal::{JournalOptions, JournalWriter};
    use colibri_shim::record::{ExitRecord, ExitStatus};
    use serde_json::{Value, json};
    use std::time::SystemTime;

    async fn next(queue: &mut mpsc::Receiver<Vec<u8>>) -> Value {
        let frame = tokio::time::timeout(Duration::from_secs(20), queue.recv()).await;
        serde_json::from_slice(&frame.unwrap().unwrap()).unwrap()
    }

    #[tokio::test]
    async fn the_exit_waits_for_bytes_that_cannot_be_read_now() {
        let dir = tempfile::tempdir().unwrap();
        let journal = dir.path().join("stdout");
        let mut writer = JournalWriter::open(&journal, JournalOptions::default()).unwrap();
        writer.append(b"last words", SystemTime::now()).unwrap();
        let log = journal.join("00000000000000000000.log");
        let aside = dir.path().join("aside");
        std::fs::rename(&log, &aside).unwrap();
        // A link in its place is not followed: an error as any other.
        std::os::unix::fs::symlink(&aside, &log).unwrap();
        let exit = ExitRecord {
            exit: Some(ExitStatus::Code(0)),
            error: None,
            exited_at_ns: 0,
            stdout_bytes: 10,
            stderr_bytes: 0,
            run: 1,
        };
        let snapshot = Snapshot {
            view: Glasspane::new(AgentRuntime::Generic, now_ms())
                .view()
                .clone(),
            stdout: 10,
            stderr: 0,
            stalled: None,
            waiting: None,
            pid: None,
            run: 1,
            exit: Some(exit),
        };
        let spec = json!({"id": "k3x9abcdef", "program": "x", "engine": "bubblewrap",
            "privilege": "none", "created_at_ns": 0});
        let entry = Arc::new(Entry {
            spec: serde_json::from_value(spec).unwrap(),
            runtime: AgentRuntime::Generic,
            directory: dir.path().to_owned(),
            agent: None,
            latest: tokio::sync::watch::channel(snapshot).0,
        });
        let wanted = Wanted {
            subscription: 1,
            stream: None,
            from_offset: Some(0),
            timed: false,
            rests: false,
        };
        let (frames, mut queue) = mpsc::channel(8);
        let task = tokio::spawn(one(entry, wanted, frames));
        assert_eq!(next(&mut queue).await["method"], "agent-state");
        let early = tokio::time::timeout(TRY_AGAIN * 2, queue.recv()).await;
        assert!(early.is_err(), "{early:?}");
        std::fs::rename(&aside, &log).unwrap();
        assert_eq!(next(&mut queue).await["params"]["data"], "last words");
        assert_eq!(next(&mut queue).await["method"], "agent-exit");
        task.await.unwrap();
    }
}
