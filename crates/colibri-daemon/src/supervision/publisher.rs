//! Publishes an agent's snapshots to its subscribers, the hooks and the metrics.

use std::time::{Duration, Instant};

use colibri_glasspane::AgentState;
use colibri_proto::Stream;
use colibri_shim::record::ExitRecord;
use colibri_spawner::ShimState;

use super::AgentSupervisor;
use super::parser::EventParser;
use crate::agent::AgentSnapshot;
use crate::metrics::MetricsEvent;
use crate::pool;

/// Minimum interval between two measurements of the publish delay of an agent.
const SAMPLE_INTERVAL: Duration = Duration::from_secs(1);

impl AgentSupervisor {
    /// Publishes the snapshot that follows from the parsed events, the shim's state and the exit.
    pub(super) async fn publish(&mut self, state: &ShimState, exit: Option<ExitRecord>) {
        let agent = self.parser.agent.clone();
        let mut snapshot = snapshot(&self.parser, state, exit);
        if self.observers.metrics.is_some() {
            self.sample_delay(&snapshot).await;
        }
        let mut before = None;
        agent.latest.send_if_modified(|latest| {
            // A kill request is recorded in the published snapshot only.
            snapshot.kill.clone_from(&latest.kill);
            let changed = *latest != snapshot;
            if changed {
                before = Some(std::mem::replace(latest, snapshot.clone()));
            }
            changed
        });
        if let Some(before) = &before {
            let now = &snapshot;
            self.observers
                .record(MetricsEvent::Snapshot { before, now });
        }
        if let Some(hooks) = &self.observers.hooks
            && (self.is_first || before.is_some())
        {
            let before = before.as_ref().filter(|_| !self.is_first);
            hooks.publish(&agent, before, &snapshot);
        }
        self.is_first = false;
    }

    /// Measures the delay between the shim's read of the first new bytes and now, if the journal has an exact time for
    /// them: one time covers all bytes of a chunk.
    async fn sample_delay(&mut self, now: &AgentSnapshot) {
        let agent = self.parser.agent.clone();
        let from = agent.latest.borrow().status.stdout;
        let is_recent = self
            .sampled
            .is_some_and(|at| at.elapsed() < SAMPLE_INTERVAL);
        if is_recent || now.status.stdout <= from || self.is_first_of_adopted() {
            return;
        }
        let chunk = pool::run(move || agent.journal(Stream::Stdout).chunk_at(from)).await;
        if let Ok(Some(chunk)) = chunk
            && chunk.start == from
        {
            let at_ns = chunk.at_ns;
            self.observers.record(MetricsEvent::Output { at_ns });
            self.sampled = Some(Instant::now());
        }
    }
}

fn snapshot(parser: &EventParser, state: &ShimState, exit: Option<ExitRecord>) -> AgentSnapshot {
    let has_events = parser.pane.needs_output();
    let mut snapshot = AgentSnapshot::new(&parser.pane, &state.status, exit);
    snapshot.network = state.network.clone();
    if snapshot.exit.is_none() {
        snapshot.parsed_bytes = parser.parsed_bytes();
    }
    snapshot.cause_offset = match (snapshot.view.state, has_events) {
        (AgentState::Starting | AgentState::Stalled, _) => None,
        (_, true) => parser.state_offset,
        (AgentState::Idle, false) => Some(snapshot.status.stdout + snapshot.status.stderr),
        (_, false) => None,
    };
    snapshot.state_offset = match snapshot.view.state {
        _ if snapshot.exit.is_some() => u64::MAX,
        AgentState::Starting if snapshot.status.restart_message.is_none() => {
            snapshot.status.run_from
        }
        AgentState::Idle | AgentState::Working | AgentState::Blocked if has_events => {
            parser.view_offset.unwrap_or(u64::MAX)
        }
        _ => u64::MAX,
    };
    snapshot
}
