//! Subscriptions: each follows one agent, or all agents, and sends notifications.
//!
//! The daemon buffers no output for a subscriber: unsent output is read from the journal, and a later state replaces
//! unsent ones. A subscription reserves room in the connection's queue before it reads, so it holds no output while it
//! waits for a slow client.

mod cursor;
mod events;
mod output;

use std::collections::HashSet;
use std::sync::Arc;

use colibri_proto::{
    ExitEvent, MissedEvent, Notification, RemovedEvent, SpawnedEvent, Stream, StreamChoice,
    SubscribeParams,
};
use colibri_shim::record::ExitRecord;
use colibri_types::AgentId;
use tokio::sync::broadcast::error::RecvError;
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use crate::agent::{AgentSnapshot, RegisteredAgent, StreamOffset};
use crate::metrics::MetricsEvent;
use crate::registry::{Registry, RegistryChange, RegistryFeed};
use crate::supervision::Observers;
use crate::times;
use events::{PendingEvent, SentEvents};
use output::OutputSender;

/// The connection's queue of encoded frames; sending fails if the connection is closed.
pub(super) type FrameQueue = mpsc::Sender<Vec<u8>>;

/// A subscription and its connection.
#[derive(Clone)]
pub(super) struct Subscriber {
    /// Number of the subscription.
    pub(super) number: u64,
    pub(super) params: SubscribeParams,
    pub(super) frames: FrameQueue,
    pub(super) observers: Observers,
}

impl Subscriber {
    /// Sends a notification; returns `false` if the connection is closed.
    async fn send(&self, notification: &Notification) -> bool {
        match notification.encode() {
            Ok(frame) => self.frames.send(frame).await.is_ok(),
            Err(error) => {
                tracing::error!(%error, "cannot send notification");
                true
            }
        }
    }

    /// Returns the streams to send, each with its start offset.
    fn start_offsets(&self, snapshot: &AgentSnapshot) -> Vec<StreamOffset> {
        let streams: &[Stream] = match self.params.stream {
            None => &[Stream::Stdout, Stream::Stderr],
            Some(StreamChoice::Stdout) => &[Stream::Stdout],
            Some(StreamChoice::Stderr) => &[Stream::Stderr],
            Some(StreamChoice::None) => &[],
        };
        let start = |stream: &Stream| {
            let (from, end) = match stream {
                Stream::Stdout => (self.params.from_offset, snapshot.status.stdout),
                Stream::Stderr => {
                    let from = self.params.stderr_from_offset.or(self.params.from_offset);
                    (from, snapshot.status.stderr)
                }
            };
            StreamOffset {
                stream: *stream,
                offset: from.unwrap_or(end),
            }
        };
        streams.iter().map(start).collect()
    }
}

/// Follows an agent that was in the registry before the subscription, until its end or the connection's.
pub(super) async fn follow_present(agent: Arc<RegisteredAgent>, subscriber: Subscriber) {
    let sent = SentEvents::up_to(&agent.latest.borrow());
    follow(agent, subscriber, sent).await;
}

/// Follows an agent that was added after the subscription, from its first byte.
async fn follow_new(agent: Arc<RegisteredAgent>, mut subscriber: Subscriber) {
    subscriber.params.from_offset.get_or_insert(0);
    let spawned = SpawnedEvent {
        subscription: subscriber.number,
        id: agent.spec.id.to_string(),
        name: agent.spec.config.name.clone(),
        program: agent.spec.config.program.clone(),
        runtime: agent.runtime(),
        started_at: times::format_ns(agent.spec.created_at_ns),
    };
    if !subscriber.params.lifecycle || subscriber.send(&Notification::AgentSpawned(spawned)).await {
        follow(agent, subscriber, SentEvents::spawned()).await;
    }
}

async fn follow(agent: Arc<RegisteredAgent>, subscriber: Subscriber, mut sent: SentEvents) {
    let mut latest = agent.latest.subscribe();
    let mut snapshot = latest.borrow_and_update().clone();
    let offsets = subscriber.start_offsets(&snapshot);
    let mut output = OutputSender::new(&agent, &subscriber, &offsets);
    loop {
        let events = sent.next(&agent, &subscriber, &snapshot);
        let merged = events.iter().map(PendingEvent::merged_states).sum();
        let observers = &subscriber.observers;
        observers.record(MetricsEvent::MergedStates(merged));
        for event in events {
            if let Some(offset) = event.after_output
                && !output.send_until(&snapshot, offset).await
            {
                return;
            }
            if !subscriber.send(&event.notification).await {
                return;
            }
        }
        if !output.send_until(&snapshot, u64::MAX).await {
            return;
        }
        if let Some(exit) = &snapshot.exit {
            let event = exit_event(&agent, subscriber.number, &snapshot, exit);
            subscriber.send(&Notification::AgentExit(event)).await;
            return;
        }
        tokio::select! {
            changed = latest.changed() => if changed.is_err() { return },
            () = subscriber.frames.closed() => return,
        }
        snapshot = latest.borrow_and_update().clone();
    }
}

fn exit_event(
    agent: &RegisteredAgent,
    subscription: u64,
    snapshot: &AgentSnapshot,
    exit: &ExitRecord,
) -> ExitEvent {
    ExitEvent {
        subscription,
        id: agent.spec.id.to_string(),
        state: snapshot.view.state,
        exit: Some(exit.exit()),
        exit_note: agent.exit_note(exit),
        error: exit.error.clone(),
        exited_at: times::format_ns(exit.exited_at_ns),
    }
}

/// Follows all running agents, and those that are added later.
pub(super) async fn follow_all(registry: Arc<Registry>, subscriber: Subscriber) {
    let mut tasks = JoinSet::new();
    let RegistryFeed {
        present,
        mut next_number,
        mut changes,
    } = registry.feed();
    // Agents whose removal this subscription reports.
    let mut known: HashSet<AgentId> = HashSet::new();
    for agent in present {
        known.insert(agent.spec.id.clone());
        // Agents that have already ended can be listed and read.
        if !agent.has_ended() {
            tasks.spawn(follow_present(agent, subscriber.clone()));
        }
    }
    loop {
        let change = tokio::select! {
            change = changes.recv() => change,
            Some(_) = tasks.join_next() => continue,
            () = subscriber.frames.closed() => return,
        };
        let (mut added, mut removed, mut missed) = (Vec::new(), Vec::new(), 0);
        match change {
            Ok(RegistryChange::Added(agent)) => {
                next_number = agent.number + 1;
                added.push(agent);
            }
            Ok(RegistryChange::Removed(id)) => removed.push(id),
            // The subscription compares the whole list, and counts agents that were both added and removed since.
            Err(RecvError::Lagged(_)) => {
                let feed = registry.feed();
                let present: HashSet<&AgentId> =
                    feed.present.iter().map(|agent| &agent.spec.id).collect();
                removed.extend(known.iter().filter(|id| !present.contains(id)).cloned());
                let is_new = |agent: &&Arc<RegisteredAgent>| agent.number >= next_number;
                added.extend(feed.present.iter().filter(is_new).cloned());
                missed = feed.next_number - next_number - added.len() as u64;
                next_number = feed.next_number;
                changes = feed.changes;
            }
            Err(RecvError::Closed) => return,
        }
        for agent in added {
            known.insert(agent.spec.id.clone());
            tasks.spawn(follow_new(agent, subscriber.clone()));
        }
        let mut events = Vec::new();
        if missed > 0 && subscriber.params.lifecycle {
            events.push(Notification::AgentsMissed(MissedEvent {
                subscription: subscriber.number,
                agents: missed,
            }));
        }
        for id in removed {
            known.remove(&id);
            events.push(Notification::AgentRemoved(RemovedEvent {
                subscription: subscriber.number,
                id: id.to_string(),
            }));
        }
        for event in events {
            if !subscriber.send(&event).await {
                return;
            }
        }
    }
}

#[cfg(test)]
mod tests;
