//! Subscriptions: a cursor into each journal, and a watch on the agent.
//!
//! Nothing is buffered for a subscriber: what it has not read is in the journal, and states that it was
//! too slow for are replaced by the latest. Room in the connection's queue comes first, then the read: whoever
//! waits for room holds no bytes.

mod cursor;

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use colibri_glasspane::AgentState;
use colibri_proto::{
    ExitEvent, KillEvent, MissedEvent, Notification, OutputData, OutputEvent, RemovedEvent,
    RunEvent, SpawnedEvent, StateEvent, Stream, StreamChoice,
};
use colibri_types::AgentId;
use tokio::sync::broadcast::error::RecvError;
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use crate::metrics::{Following, Metrics, Place};
use crate::registry::{Change, Entry, Registry, Snapshot};
use crate::{pool, times};
pub(crate) use cursor::bytes_at;
use cursor::{Cursor, Ends, Merge, Piece};

/// After a journal could not be read (no descriptors left, say), before it is tried again.
const TRY_AGAIN: Duration = Duration::from_millis(200);
/// Maximum number of consecutive failed reads (about a minute) before the subscriber continues without that output.
const ATTEMPTS: u32 = 300;

/// What a subscriber wants of an agent.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Wanted {
    pub(crate) subscription: u64,
    pub(crate) stream: Option<StreamChoice>,
    pub(crate) from_offset: Option<u64>,
    /// First offset in standard error, if it differs from `from_offset`.
    pub(crate) stderr_from_offset: Option<u64>,
    pub(crate) timed: bool,
    /// Spawns, runs and kills are wanted too.
    pub(crate) lifecycle: bool,
    /// It is one of many: no file is kept open for it while there is nothing to send.
    pub(crate) rests: bool,
}

/// Sends frames; fails when the connection has ended.
pub(crate) type Frames = mpsc::Sender<Vec<u8>>;

/// What a subscriber has been told of an agent.
struct Told {
    state: Option<AgentState>,
    /// Its tool, and its last error.
    words: [Option<String>; 2],
    changes: u64,
    run: u32,
    kills: u64,
}

impl Told {
    fn all_of(snapshot: &Snapshot) -> Self {
        Self {
            state: None,
            words: [None, None],
            changes: snapshot.changes,
            run: snapshot.run,
            kills: kills(snapshot),
        }
    }

    /// That it was started.
    fn spawn() -> Self {
        Self {
            state: None,
            words: [None, None],
            changes: 0,
            run: 1,
            kills: 0,
        }
    }
}

fn kills(snapshot: &Snapshot) -> u64 {
    snapshot.kill.as_ref().map_or(0, |kill| kill.number)
}

/// Streams one agent that was there before the subscription, until its end or the connection's.
pub(crate) async fn one(
    entry: Arc<Entry>,
    wanted: Wanted,
    frames: Frames,
    metrics: Option<Arc<Metrics>>,
) {
    let told = Told::all_of(&entry.latest.borrow());
    follow(entry, wanted, frames, metrics, told).await;
}

/// Streams one that was not.
async fn new(entry: Arc<Entry>, mut wanted: Wanted, frames: Frames, metrics: Option<Arc<Metrics>>) {
    // From now on means all of it.
    wanted.from_offset = wanted.from_offset.or(Some(0));
    let spawned = SpawnedEvent {
        subscription: wanted.subscription,
        id: entry.spec.id.to_string(),
        name: entry.spec.config.name.clone(),
        program: entry.spec.config.program.clone(),
        runtime: entry.runtime,
        started_at: times::from_ns(entry.spec.created_at_ns),
    };
    if !wanted.lifecycle || send(&frames, &Notification::AgentSpawned(spawned)).await {
        follow(entry, wanted, frames, metrics, Told::spawn()).await;
    }
}

async fn follow(
    entry: Arc<Entry>,
    wanted: Wanted,
    frames: Frames,
    metrics: Option<Arc<Metrics>>,
    mut told: Told,
) {
    let mut latest = entry.latest.subscribe();
    let mut snapshot = latest.borrow_and_update().clone();
    let streams: &[Stream] = match wanted.stream {
        None => &[Stream::Stdout, Stream::Stderr],
        Some(StreamChoice::Stdout) => &[Stream::Stdout],
        Some(StreamChoice::Stderr) => &[Stream::Stderr],
        Some(StreamChoice::None) => &[],
    };
    let places: Vec<(Stream, u64)> = streams
        .iter()
        .map(|stream| {
            let from = match stream {
                Stream::Stdout => wanted.from_offset,
                Stream::Stderr => wanted.stderr_from_offset.or(wanted.from_offset),
            };
            (*stream, from.unwrap_or_else(|| length(&snapshot, *stream)))
        })
        .collect();
    let following = metrics
        .as_ref()
        .map(|metrics| Following::new(&metrics.places, entry.clone(), &places));
    let place = following.as_ref().map(|following| &*following.place);
    let cursors = places.iter().map(|(stream, from)| {
        let cursor = Cursor::new(entry.journal(*stream), *from, wanted.timed);
        (*stream, cursor)
    });
    let mut sender = Sender {
        entry: &entry,
        wanted,
        frames: &frames,
        place,
        merge: Some(Merge::new(cursors.collect())),
    };
    loop {
        let first = told.state.is_none() && snapshot.changes == told.changes;
        let News { kill, run, state } = news(&entry, wanted, &snapshot, &mut told);
        if let (Some(Notification::AgentState(state)), Some(metrics)) = (&state, &metrics) {
            metrics.merged(state.merged);
        }
        // Order: a run event follows the output of the previous run, and a state follows the line that caused it. The
        // state at the time of the subscription comes first.
        let state_first = first && state.is_some();
        let steps = [
            (0, kill, false),
            (0, state.clone().filter(|_| state_first), false),
            (snapshot.run_from, run, true),
            (snapshot.precedes, state.filter(|_| !state_first), true),
        ];
        for (precedes, event, after_output) in steps {
            let Some(event) = event else { continue };
            if after_output && !sender.outputs(&snapshot, precedes).await {
                return;
            }
            if !send(&frames, &event).await {
                return;
            }
        }
        if !sender.outputs(&snapshot, u64::MAX).await {
            return;
        }
        if let Some(exit) = &snapshot.exit {
            let event = ExitEvent {
                subscription: wanted.subscription,
                id: entry.spec.id.to_string(),
                state: snapshot.view.state,
                exit: Some(exit.exit()),
                exit_note: entry
                    .spec
                    .exit_note
                    .clone()
                    .filter(|_| !exit.exit().is_success()),
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

/// Events other than output, to send in this order.
#[derive(Default)]
struct News {
    kill: Option<Notification>,
    run: Option<Notification>,
    state: Option<Notification>,
}

/// What has happened since the last look, besides output: what came faster than this is counted.
fn news(entry: &Entry, wanted: Wanted, snapshot: &Snapshot, told: &mut Told) -> News {
    let mut news = News::default();
    let subscription = wanted.subscription;
    let id = || entry.spec.id.to_string();
    if let Some(kill) = snapshot
        .kill
        .as_ref()
        .filter(|kill| kill.number > told.kills)
    {
        news.kill = Some(Notification::AgentKill(KillEvent {
            subscription,
            id: id(),
            signal: kill.signal.clone(),
            escalate: kill.escalate,
            uid: kill.uid,
            merged: kill.number - told.kills - 1,
            at: times::from_ms(kill.at_ms),
        }));
        told.kills = kill.number;
    }
    if snapshot.run > told.run {
        news.run = Some(Notification::AgentRun(RunEvent {
            subscription,
            id: id(),
            run: snapshot.run,
            merged: u64::from(snapshot.run - told.run - 1),
            error: snapshot.view.last_error.clone(),
            at: times::from_ms(times::now_ms()),
        }));
        told.run = snapshot.run;
    }
    if !wanted.lifecycle {
        news = News::default();
    }
    let view = &snapshot.view;
    let since = snapshot.changes.saturating_sub(told.changes);
    let reason = snapshot.stalled.as_ref().or(view.last_error.as_ref());
    let words = [view.current_tool.clone(), reason.cloned()];
    if told.state.is_none() || since > 0 || told.words != words {
        // An agent begins with `starting`, which is told with the next state.
        let began = (since > 0).then_some(AgentState::Starting);
        let previous = told.state.or(began);
        news.state = Some(Notification::AgentState(StateEvent {
            subscription,
            id: id(),
            state: view.state,
            previous,
            merged: since.saturating_sub(1),
            since: times::from_ms(view.since),
            current_tool: words[0].clone(),
            last_error: words[1].clone(),
        }));
        told.state = Some(view.state);
        told.words = words;
        told.changes = snapshot.changes;
    }
    news
}

/// Streams all agents, also those to come.
pub(crate) async fn all(registry: Arc<Registry>, wanted: Wanted, frames: Frames) {
    let metrics = registry.observers.metrics.clone();
    let mut streams = JoinSet::new();
    let (present, mut next, mut changes) = registry.follow();
    // Those of which it was told, or that were there before, so that it is told when they are forgotten.
    let mut known: HashSet<AgentId> = HashSet::new();
    for entry in present {
        known.insert(entry.spec.id.clone());
        // What ended before is history: it can be listed and read.
        if entry.latest.borrow().exit.is_none() {
            streams.spawn(one(entry, wanted, frames.clone(), metrics.clone()));
        }
    }
    loop {
        let change = tokio::select! {
            change = changes.recv() => change,
            Some(_) = streams.join_next() => continue,
            () = frames.closed() => return,
        };
        let (mut appeared, mut removed, mut missed) = (Vec::new(), Vec::new(), 0);
        match change {
            Ok(Change::Appeared(entry)) => {
                next = entry.number + 1;
                appeared.push(entry);
            }
            Ok(Change::Removed(id)) => removed.push(id),
            Err(RecvError::Lagged(_)) => {
                let (present, count, again) = registry.follow();
                changes = again;
                let there: HashSet<&AgentId> = present.iter().map(|entry| &entry.spec.id).collect();
                removed.extend(known.iter().filter(|id| !there.contains(id)).cloned());
                appeared.extend(present.iter().filter(|entry| entry.number >= next).cloned());
                missed = count - next - appeared.len() as u64;
                next = count;
            }
            Err(RecvError::Closed) => return,
        }
        for entry in appeared {
            known.insert(entry.spec.id.clone());
            streams.spawn(new(entry, wanted, frames.clone(), metrics.clone()));
        }
        let mut events = Vec::new();
        if missed > 0 && wanted.lifecycle {
            events.push(Notification::AgentsMissed(MissedEvent {
                subscription: wanted.subscription,
                agents: missed,
            }));
        }
        for id in removed {
            known.remove(&id);
            events.push(Notification::AgentRemoved(RemovedEvent {
                subscription: wanted.subscription,
                id: id.to_string(),
            }));
        }
        for event in events {
            if !send(&frames, &event).await {
                return;
            }
        }
    }
}

fn length(snapshot: &Snapshot, stream: Stream) -> u64 {
    match stream {
        Stream::Stdout => snapshot.stdout,
        Stream::Stderr => snapshot.stderr,
    }
}

/// Sends the outputs of one agent to one subscriber.
struct Sender<'a> {
    entry: &'a Arc<Entry>,
    wanted: Wanted,
    frames: &'a Frames,
    place: Option<&'a Place>,
    /// Absent while a pool thread reads from it.
    merge: Option<Merge>,
}

impl Sender<'_> {
    /// Sends output up to the lengths in the snapshot, stopping when stdout has been sent up to `precedes`; returns
    /// `false` if the connection has ended.
    async fn outputs(&mut self, snapshot: &Snapshot, precedes: u64) -> bool {
        let ends = Ends {
            stdout: snapshot.stdout.min(snapshot.parsed).min(precedes),
            stderr: snapshot.stderr,
        };
        let mut attempts = 0;
        loop {
            // Output after `precedes` waits for the event, and so does stderr once stdout has reached it.
            let wanted = |merge: &&Merge| {
                merge.has_more(ends) && (precedes == u64::MAX || merge.is_before(ends.stdout))
            };
            if self.merge.as_ref().filter(wanted).is_none() {
                break;
            }
            let Ok(room) = self.frames.reserve().await else {
                return false;
            };
            let Some(mut merge) = self.merge.take() else {
                return false;
            };
            let read = pool::short(move || {
                let next = merge.next(ends);
                (merge, next)
            });
            // Fails only while the daemon is shutting down.
            let Ok((merge, next)) = read.await else {
                return false;
            };
            self.merge = Some(merge);
            match next {
                Ok(Some((stream, piece))) => {
                    attempts = 0;
                    let next = piece.offset + piece.bytes.len() as u64;
                    match self.event(stream, piece).encode() {
                        Ok(frame) => room.send(frame),
                        Err(error) => tracing::error!(%error, "notification not sent"),
                    }
                    if let Some(place) = self.place {
                        place.at(stream, next);
                    }
                }
                Ok(None) => break,
                Err(error) => {
                    drop(room);
                    attempts += 1;
                    let id = &self.entry.spec.id;
                    if attempts > ATTEMPTS {
                        tracing::error!(%id, %error, "journal not read; its subscriber misses output");
                        return true;
                    }
                    tracing::warn!(%id, %error, "journal not read, trying again");
                    tokio::select! {
                        () = tokio::time::sleep(TRY_AGAIN) => {}
                        () = self.frames.closed() => return false,
                    }
                }
            }
        }
        if let Some(merge) = self.merge.as_mut().filter(|_| self.wanted.rests) {
            merge.rest();
        }
        true
    }

    fn event(&self, stream: Stream, piece: Piece) -> Notification {
        Notification::AgentOutput(OutputEvent {
            subscription: self.wanted.subscription,
            id: self.entry.spec.id.to_string(),
            stream,
            offset: piece.offset,
            data: OutputData::from(piece.bytes),
            time: piece.at_ns.map(times::from_ns),
        })
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
    use crate::registry::Observers;
    use crate::registry::tests::{exit, spawner_in, spec};
    use crate::times::now_ms;
    use colibri_glasspane::{AgentRuntime, Glasspane};
    use colibri_journal::{JournalOptions, JournalWriter};
    use colibri_shim::record::ExitRecord;
    use colibri_spawner::AgentSpec;
    use colibri_types::ExitStatus;
    use serde_json::Value;
    use std::collections::BTreeMap;
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
            reason: None,
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
            changes: 0,
            changed_at: None,
            precedes: u64::MAX,
            parsed: u64::MAX,
            run_from: 0,
            kill: None,
            stdout: 10,
            stderr: 0,
            stalled: None,
            waiting: None,
            pid: None,
            run: 1,
            exit: Some(exit),
        };
        let entry = Arc::new(Entry {
            spec: Arc::new(serde_json::from_value(spec("k3x9abcdef")).unwrap()),
            runtime: AgentRuntime::Generic,
            directory: dir.path().to_owned(),
            agent: None,
            latest: tokio::sync::watch::channel(snapshot).0,
            adopted: true,
            number: 0,
            hooks: Default::default(),
        });
        let wanted = Wanted {
            subscription: 1,
            stream: None,
            from_offset: Some(0),
            stderr_from_offset: None,
            timed: false,
            lifecycle: false,
            rests: false,
        };
        let (frames, mut queue) = mpsc::channel(8);
        let task = tokio::spawn(one(entry, wanted, frames, None));
        assert_eq!(next(&mut queue).await["method"], "agent-state");
        let early = tokio::time::timeout(TRY_AGAIN * 2, queue.recv()).await;
        assert!(early.is_err(), "{early:?}");
        std::fs::rename(&aside, &log).unwrap();
        assert_eq!(next(&mut queue).await["params"]["data"], "last words");
        assert_eq!(next(&mut queue).await["method"], "agent-exit");
        task.await.unwrap();
    }

    #[tokio::test]
    async fn of_agents_that_come_and_go_before_anybody_looks_none_is_passed_over() {
        let dir = tempfile::tempdir().unwrap();
        let (registry, _) = Registry::adopt(spawner_in(dir.path()), Observers::default())
            .await
            .unwrap();
        let add = |number: u32| {
            let spec = spec(&format!("agent{number:05}"));
            let spec: AgentSpec = serde_json::from_value(spec).unwrap();
            std::fs::create_dir(registry.spawner.state.agent(&spec.id)).unwrap();
            registry.add_ended(Arc::new(spec), serde_json::from_value(exit()).unwrap());
        };
        add(0);
        let wanted = Wanted {
            subscription: 1,
            stream: Some(StreamChoice::None),
            from_offset: None,
            stderr_from_offset: None,
            timed: false,
            lifecycle: true,
            rests: true,
        };
        let (frames, mut queue) = mpsc::channel(2);
        tokio::spawn(all(registry.clone(), wanted, frames));
        tokio::task::yield_now().await;
        // More than it may be behind, and the first of them have gone again.
        (1..=300).for_each(add);
        for number in 1..=10 {
            let id = format!("agent{number:05}").parse().unwrap();
            registry.forget(&id);
        }
        let mut told: BTreeMap<String, Vec<String>> = BTreeMap::new();
        let (mut exits, mut missed) = (0, 0);
        while exits + missed < 300 {
            let event = next(&mut queue).await;
            let params = &event["params"];
            missed += params["agents"].as_u64().unwrap_or(0);
            if let Some(id) = params["id"].as_str() {
                let method = event["method"].as_str().unwrap().to_owned();
                exits += u64::from(method == "agent-exit");
                told.entry(id.to_owned()).or_default().push(method);
            }
        }
        assert_eq!((exits, missed), (290, 10));
        assert!(!told.contains_key("agent00000"), "it was there before");
        for (id, methods) in told {
            assert_eq!(
                methods,
                ["agent-spawned", "agent-state", "agent-exit"],
                "{id}"
            );
        }
    }
}
