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
    MissedEvent, Notification, RemovedEvent, SpawnedEvent, StreamChoice, SubscribeParams,
};
use colibri_shim::control::ShimStatus;
use colibri_types::AgentId;
use tokio::sync::broadcast::error::RecvError;
use tokio::sync::mpsc::error::SendError;
use tokio::sync::mpsc::{self, Permit};
use tokio::task::JoinSet;

use crate::agent::{AgentSnapshot, RegisteredAgent, StreamOffsets, new_pane};
use crate::metrics::MetricsEvent;
use crate::registry::{Registry, RegistryChange, RegistryFeed};
use crate::supervision::Observers;
use crate::times;
use events::SnapshotChange;
use output::OutputSender;

/// The connection's queue of encoded frames; sending fails if the connection is closed.
pub(super) type FrameQueue = mpsc::Sender<Vec<u8>>;

/// The connection is closed.
pub(super) type Closed = SendError<()>;

/// A subscription and its connection.
#[derive(Clone)]
pub(super) struct Subscriber {
    /// Number of the subscription.
    pub(super) number: u64,
    /// The agent to follow; absent for a subscription to all agents.
    pub(super) agent: Option<Arc<RegisteredAgent>>,
    pub(super) params: SubscribeParams,
    pub(super) frames: FrameQueue,
    pub(super) observers: Observers,
}

impl Subscriber {
    /// Sends a notification.
    ///
    /// # Errors
    /// The connection is closed.
    async fn send(&self, notification: &Notification) -> Result<(), Closed> {
        send_in(self.frames.reserve().await?, notification);
        Ok(())
    }

    /// Returns the offsets from which the streams are sent.
    fn start_offsets(&self, snapshot: &AgentSnapshot) -> StreamOffsets {
        let params = &self.params;
        let stderr_from = params.stderr_from_offset.or(params.from_offset);
        let mut offsets = StreamOffsets {
            stdout: params.from_offset.unwrap_or(snapshot.status.stdout),
            stderr: stderr_from.unwrap_or(snapshot.status.stderr),
        };
        if let Some(StreamChoice::Stderr | StreamChoice::None) = params.stream {
            offsets.stdout = u64::MAX;
        }
        if let Some(StreamChoice::Stdout | StreamChoice::None) = params.stream {
            offsets.stderr = u64::MAX;
        }
        offsets
    }
}

/// Encodes a notification and puts it into the queue.
fn send_in(room: Permit<'_, Vec<u8>>, notification: &Notification) {
    match notification.encode() {
        Ok(frame) => room.send(frame),
        Err(error) => tracing::error!(%error, "cannot send notification"),
    }
}

/// Follows an agent that was added after the subscription, from its first byte.
async fn follow_new(agent: Arc<RegisteredAgent>, mut subscriber: Subscriber) -> Result<(), Closed> {
    subscriber.params.from_offset.get_or_insert(0);
    if subscriber.params.lifecycle {
        let spawned = SpawnedEvent {
            subscription: subscriber.number,
            id: agent.spec.id.to_string(),
            name: agent.spec.config.name.clone(),
            program: agent.spec.config.program.clone(),
            runtime: agent.runtime(),
            started_at: times::format_ns(agent.spec.created_at_ns),
        };
        subscriber
            .send(&Notification::AgentSpawned(spawned))
            .await?;
    }
    let before = AgentSnapshot::new(&new_pane(&agent.spec), &ShimStatus::default(), None);
    follow(agent, subscriber, Some(before)).await
}

/// Sends the events and the output of an agent until its end or the connection's: the events after `before`, or after the
/// latest snapshot.
pub(super) async fn follow(
    agent: Arc<RegisteredAgent>,
    subscriber: Subscriber,
    before: Option<AgentSnapshot>,
) -> Result<(), Closed> {
    let mut latest = agent.latest.subscribe();
    let mut now = latest.borrow_and_update().clone();
    let mut before = before.unwrap_or_else(|| now.clone());
    let mut output = OutputSender::new(&agent, &subscriber, subscriber.start_offsets(&now));
    let mut is_first = true;
    loop {
        let change = SnapshotChange {
            subscriber: &subscriber,
            agent: &agent,
            before: &before,
            now: &now,
            is_first,
        };
        let observers = &subscriber.observers;
        observers.record(MetricsEvent::MergedStates(change.merged_states()));
        let lifecycle = subscriber.params.lifecycle;
        if let Some(kill) = change.kill().filter(|_| lifecycle) {
            subscriber.send(&kill).await?;
        }
        if lifecycle {
            for event in change.network() {
                subscriber.send(&event).await?;
            }
        }
        let mut state = change.state();
        // The state at the time of the subscription is sent first, others after the line that caused them.
        if let Some(state) = state.take_if(|_| is_first && change.state_changes() == 0) {
            subscriber.send(&state).await?;
        }
        if let Some(run) = change.run().filter(|_| lifecycle) {
            output.send_until(&now, now.status.run_from).await?;
            subscriber.send(&run).await?;
        }
        if let Some(state) = state {
            output.send_until(&now, now.state_offset).await?;
            subscriber.send(&state).await?;
        }
        if let Some(terminal) = change.terminal() {
            subscriber.send(&terminal).await?;
        }
        output.send_until(&now, u64::MAX).await?;
        if let Some(exit) = change.exit() {
            return subscriber.send(&exit).await;
        }
        tokio::select! {
            _ = latest.changed() => {}
            () = subscriber.frames.closed() => return Ok(()),
        }
        before = std::mem::replace(&mut now, latest.borrow_and_update().clone());
        is_first = false;
    }
}

/// Follows all running agents, and those that are added later.
pub(super) async fn follow_all(
    registry: Arc<Registry>,
    subscriber: Subscriber,
) -> Result<(), Closed> {
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
            tasks.spawn(follow(agent, subscriber.clone(), None));
        }
    }
    loop {
        let change = tokio::select! {
            change = changes.recv() => change,
            Some(_) = tasks.join_next() => continue,
            () = subscriber.frames.closed() => return Ok(()),
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
            Err(RecvError::Closed) => return Ok(()),
        }
        for agent in added {
            known.insert(agent.spec.id.clone());
            tasks.spawn(follow_new(agent, subscriber.clone()));
        }
        let number = subscriber.number;
        if missed > 0 && subscriber.params.lifecycle {
            let missed = MissedEvent {
                subscription: number,
                agents: missed,
            };
            subscriber.send(&Notification::AgentsMissed(missed)).await?;
        }
        for id in removed {
            known.remove(&id);
            let removed = RemovedEvent {
                subscription: number,
                id: id.to_string(),
            };
            subscriber
                .send(&Notification::AgentRemoved(removed))
                .await?;
        }
    }
}

#[cfg(test)]
mod tests;
