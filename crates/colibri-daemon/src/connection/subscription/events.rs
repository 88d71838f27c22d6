//! Which events a subscription sends for a snapshot. Events that the subscription was too slow for are merged into the
//! latest one.

use colibri_glasspane::AgentState;
use colibri_proto::{KillEvent, Notification, RunEvent, StateEvent};
use colibri_types::AgentId;

use super::Subscriber;
use crate::agent::{AgentSnapshot, RegisteredAgent};
use crate::times;

/// The events of an agent that a subscription has sent.
#[derive(Default)]
pub(super) struct SentEvents {
    state: Option<AgentState>,
    current_tool: Option<String>,
    last_error: Option<String>,
    state_changes: u64,
    run: u32,
    kills: u64,
}

/// An event to send.
pub(super) struct PendingEvent {
    pub(super) notification: Notification,
    /// Stdout offset up to which output precedes the event; absent if no output must precede it.
    pub(super) after_output: Option<u64>,
}

impl PendingEvent {
    /// Returns the number of state changes that were merged into this event.
    pub(super) fn merged_states(&self) -> u64 {
        match &self.notification {
            Notification::AgentState(state) => state.merged,
            _ => 0,
        }
    }
}

impl SentEvents {
    /// Treats all events before a snapshot as sent, except its state.
    pub(super) fn up_to(snapshot: &AgentSnapshot) -> Self {
        Self {
            state_changes: snapshot.state_changes,
            run: snapshot.status.run,
            kills: snapshot.kill.as_ref().map_or(0, |kill| kill.number),
            ..Self::spawned()
        }
    }

    /// Treats only the spawn of the agent as sent.
    pub(super) fn spawned() -> Self {
        Self {
            run: 1,
            ..Self::default()
        }
    }

    /// Returns the events to send for a snapshot, in order, and records them as sent.
    ///
    /// A run event follows the output of the previous run, and a state follows the line that caused it. The state at the
    /// time of the subscription is sent first.
    pub(super) fn next(
        &mut self,
        agent: &RegisteredAgent,
        subscriber: &Subscriber,
        snapshot: &AgentSnapshot,
    ) -> Vec<PendingEvent> {
        let (number, id) = (subscriber.number, &agent.spec.id);
        let is_initial = self.state.is_none() && snapshot.state_changes == self.state_changes;
        let kill = self.next_kill(number, id, snapshot);
        let run = self.next_run(number, id, snapshot);
        let state = self.next_state(number, id, snapshot);
        let mut events = Vec::new();
        let mut push = |event: Option<Notification>, after_output| {
            events.extend(event.map(|notification| PendingEvent {
                notification,
                after_output,
            }));
        };
        if subscriber.params.lifecycle {
            push(kill, None);
        }
        if is_initial {
            push(state.clone(), None);
        }
        if subscriber.params.lifecycle {
            push(run, Some(snapshot.status.run_from));
        }
        if !is_initial {
            push(state, Some(snapshot.state_offset));
        }
        events
    }

    fn next_kill(
        &mut self,
        subscription: u64,
        id: &AgentId,
        snapshot: &AgentSnapshot,
    ) -> Option<Notification> {
        let kill = snapshot.kill.as_ref()?;
        let earlier = std::mem::replace(&mut self.kills, kill.number);
        (kill.number > earlier).then(|| {
            Notification::AgentKill(KillEvent {
                subscription,
                id: id.to_string(),
                signal: kill.signal.clone(),
                escalate: kill.escalate,
                uid: kill.uid,
                merged: kill.number - earlier - 1,
                at: times::format_ms(kill.at_ms),
            })
        })
    }

    fn next_run(
        &mut self,
        subscription: u64,
        id: &AgentId,
        snapshot: &AgentSnapshot,
    ) -> Option<Notification> {
        if snapshot.status.run <= self.run {
            return None;
        }
        let earlier = std::mem::replace(&mut self.run, snapshot.status.run);
        Some(Notification::AgentRun(RunEvent {
            subscription,
            id: id.to_string(),
            run: snapshot.status.run,
            merged: u64::from(snapshot.status.run - earlier - 1),
            error: snapshot.view.last_error.clone(),
            at: times::format_ms(times::now_ms()),
        }))
    }

    fn next_state(
        &mut self,
        subscription: u64,
        id: &AgentId,
        snapshot: &AgentSnapshot,
    ) -> Option<Notification> {
        let view = &snapshot.view;
        let changes = snapshot.state_changes.saturating_sub(self.state_changes);
        let last_error = snapshot
            .status
            .stalled
            .as_ref()
            .or(view.last_error.as_ref());
        if self.state.is_some()
            && changes == 0
            && self.current_tool == view.current_tool
            && self.last_error.as_ref() == last_error
        {
            return None;
        }
        // The first state of an agent, `starting`, is sent with the next one.
        let initial = (changes > 0).then_some(AgentState::Starting);
        let previous = self.state.or(initial);
        self.state = Some(view.state);
        self.current_tool.clone_from(&view.current_tool);
        self.last_error = last_error.cloned();
        self.state_changes = snapshot.state_changes;
        Some(Notification::AgentState(StateEvent {
            subscription,
            id: id.to_string(),
            state: view.state,
            previous,
            merged: changes.saturating_sub(1),
            since: times::format_ms(view.since),
            current_tool: self.current_tool.clone(),
            last_error: self.last_error.clone(),
        }))
    }
}
