//! The events that a subscription sends for a snapshot. Events that the subscription was too slow for are merged into the
//! latest one.

use std::sync::Arc;

use colibri_proto::{
    ExitEvent, KillEvent, NetworkEvent, Notification, RunEvent, StateEvent, TerminalEvent,
};

use colibri_types::NetworkRecord;

use super::Subscriber;
use crate::agent::{AgentSnapshot, RegisteredAgent};
use crate::times;

/// Two snapshots of an agent, between which a subscription has sent nothing.
pub(super) struct SnapshotChange<'a> {
    pub(super) subscriber: &'a Subscriber,
    pub(super) agent: &'a RegisteredAgent,
    pub(super) before: &'a AgentSnapshot,
    pub(super) now: &'a AgentSnapshot,
    /// The subscription has not sent a state yet.
    pub(super) is_first: bool,
}

impl SnapshotChange<'_> {
    /// Returns the number of state changes.
    pub(super) fn state_changes(&self) -> u64 {
        let before = self.before.state_changes;
        self.now.state_changes.saturating_sub(before)
    }

    /// Returns the number of state changes that are merged into the last one.
    pub(super) fn merged_states(&self) -> u64 {
        self.state_changes().saturating_sub(1)
    }

    /// Returns the last event of an agent that has ended. It follows all output.
    pub(super) fn exit(&self) -> Option<Notification> {
        let exit = self.now.exit.as_ref()?;
        Some(Notification::AgentExit(ExitEvent {
            subscription: self.subscriber.number,
            id: self.agent.spec.id.to_string(),
            state: self.now.view.state,
            exit: Some(exit.exit()),
            error: self.now.end_error(exit),
            exited_at: times::format_ns(exit.exited_at_ns),
        }))
    }

    /// Returns the event for kill requests.
    pub(super) fn kill(&self) -> Option<Notification> {
        let kill = self.now.kill.as_ref()?;
        let before = self.before.kill.as_ref().map_or(0, |kill| kill.number);
        (kill.number > before).then(|| {
            Notification::AgentKill(KillEvent {
                subscription: self.subscriber.number,
                id: self.agent.spec.id.to_string(),
                signal: kill.signal.clone(),
                escalate: kill.escalate,
                uid: kill.uid,
                merged: kill.number - before - 1,
                at: times::format_ms(kill.at_ms),
            })
        })
    }

    /// Returns the events for new reports of the proxy. The first one has the number of those that are not kept.
    pub(super) fn network(&self) -> Vec<Notification> {
        let new = self.now.network.since(&self.before.network);
        let mut missed = new.missed;
        let event = |record: Arc<NetworkRecord>| {
            Notification::AgentNetwork(NetworkEvent {
                subscription: self.subscriber.number,
                id: self.agent.spec.id.to_string(),
                record: NetworkRecord::clone(&record),
                merged: std::mem::take(&mut missed),
            })
        };
        new.records.into_iter().map(event).collect()
    }

    /// Returns the event for new runs.
    pub(super) fn run(&self) -> Option<Notification> {
        // The shim of a new agent has not reported its first run yet.
        let (before, run) = (self.before.status.run.max(1), self.now.status.run);
        (run > before).then(|| {
            Notification::AgentRun(RunEvent {
                subscription: self.subscriber.number,
                id: self.agent.spec.id.to_string(),
                run,
                merged: u64::from(run - before - 1),
                error: self.now.view.last_error.clone(),
                at: times::format_ms(times::now_ms()),
            })
        })
    }

    /// Returns the event for the size of the agent's terminal, at first and after a change.
    pub(super) fn terminal(&self) -> Option<Notification> {
        self.subscriber.params.terminal?;
        let terminal = self.now.status.terminal?;
        (self.is_first || self.before.status.terminal != Some(terminal)).then(|| {
            Notification::AgentTerminal(TerminalEvent {
                subscription: self.subscriber.number,
                id: self.agent.spec.id.to_string(),
                terminal,
            })
        })
    }

    /// Returns the event for a new state, tool or error.
    pub(super) fn state(&self) -> Option<Notification> {
        let (before, now) = (self.before, self.now);
        let changes = self.state_changes();
        if !self.is_first
            && changes == 0
            && before.view.current_tool == now.view.current_tool
            && before.last_error() == now.last_error()
        {
            return None;
        }
        // The first state of an agent, `starting`, is sent with the next one.
        let has_previous = !self.is_first || changes > 0;
        Some(Notification::AgentState(StateEvent {
            subscription: self.subscriber.number,
            id: self.agent.spec.id.to_string(),
            state: now.view.state,
            previous: has_previous.then_some(before.view.state),
            merged: self.merged_states(),
            since: times::format_ms(now.view.since),
            current_tool: now.view.current_tool.clone(),
            last_error: now.last_error().map(str::to_owned),
        }))
    }
}
