//! Supervision: one task for each running agent turns its shim's status and its journal into the latest snapshot.
//!
//! ```text
//! shim status ──┐
//!               ├─> parser ─> snapshot ─> subscribers, hooks, metrics
//! journal ──────┘
//! ```

mod ended;
mod parser;
mod publisher;

use std::sync::Arc;
use std::time::{Duration, Instant};

use colibri_glasspane::Glasspane;
use colibri_proto::Stream;
use colibri_shim::record::ExitRecord;
use colibri_spawner::{AgentHandle, LossDetection, ShimState, Spawner};

use crate::agent::RegisteredAgent;
use crate::hooks::Hooks;
use crate::metrics::{Metrics, MetricsEvent};
use crate::pool;
use crate::times::now_ms;

pub(crate) use ended::{parse_ended, read_view};
use parser::{EventParser, LAST_BACKLOG_BYTES, MAX_BACKLOG_BYTES};

/// Timeout for the first status of an adopted agent's shim, which contains the offset at which the run starts.
const FIRST_STATUS_TIMEOUT: Duration = Duration::from_secs(1);
/// Delay before another attempt to record the end of an agent whose shim was killed.
const RECORD_RETRY_DELAY: Duration = Duration::from_secs(1);

/// The configured observers of snapshots.
#[derive(Clone, Default)]
pub(crate) struct Observers {
    pub(crate) metrics: Option<Arc<Metrics>>,
    pub(crate) hooks: Option<Arc<Hooks>>,
}

impl Observers {
    /// Reports an event to the metrics, if they are on.
    pub(crate) fn record(&self, event: MetricsEvent<'_>) {
        if let Some(metrics) = &self.metrics {
            metrics.record(event);
        }
    }
}

/// Supervises an agent until it ends.
pub(crate) async fn supervise(
    registered: Arc<RegisteredAgent>,
    agent: AgentHandle,
    pane: Glasspane,
    spawner: Arc<Spawner>,
    observers: Observers,
) {
    let supervisor = AgentSupervisor {
        observers,
        parser: EventParser::new(registered.clone(), pane),
        // The output of an adopted agent is parsed from its first run on.
        run: match registered.adopted {
            true => 1,
            false => agent.shim.state().borrow().status.run,
        },
        restart_message: None,
        active_bytes: 0,
        is_first: true,
        sampled: None,
    };
    supervisor.run(agent, &spawner).await;
}

struct AgentSupervisor {
    observers: Observers,
    parser: EventParser,
    /// Number of the run whose output is parsed.
    run: u32,
    /// The pending restart that the glasspane has recorded: how the previous run ended, and when the next one starts.
    restart_message: Option<String>,
    /// Number of output bytes whose activity the glasspane has recorded; used for agents without events.
    active_bytes: u64,
    /// No snapshot has been published yet.
    is_first: bool,
    /// Time of the last measurement of the publish delay.
    sampled: Option<Instant>,
}

impl AgentSupervisor {
    async fn run(mut self, agent: AgentHandle, spawner: &Spawner) {
        let mut states = agent.shim.state();
        if self.is_first_of_adopted() {
            let _ = tokio::time::timeout(FIRST_STATUS_TIMEOUT, states.changed()).await;
        }
        loop {
            let state = states.borrow_and_update().clone();
            self = self.parse(&state, now_ms()).await;
            if state.exit.is_some() || state.closed {
                return self.finish(state, spawner).await;
            }
            self.publish(&state, None).await;
            if self.parser.is_behind(state.status.stdout) {
                // The next slice queues after the slices of other agents.
                continue;
            }
            let changed = states.changed();
            match self.parser.pane.deadline() {
                None => drop(changed.await),
                Some(at) => {
                    let left = Duration::from_millis(at.saturating_sub(now_ms()));
                    let _ = tokio::time::timeout(left, changed).await;
                }
            }
        }
    }

    /// Reports whether no snapshot of an adopted agent has been published yet.
    fn is_first_of_adopted(&self) -> bool {
        self.is_first && self.parser.agent.adopted
    }

    /// Parses new output according to a status, at most one slice while the agent runs.
    async fn parse(mut self, state: &ShimState, now: u64) -> Self {
        let has_ended = state.exit.is_some() || state.closed;
        let status = &state.status;
        let written = status.stdout + status.stderr;
        let mut is_behind = false;
        if status.run > self.run
            || (status.restart_message.is_some() && status.restart_message != self.restart_message)
        {
            // The last line of the previous run must not be joined with the first line of this one.
            let run_end = match status.run > self.run {
                true => status.run_from,
                false => status.stdout,
            };
            if has_ended {
                let parsing = self.parser.parse_all(run_end, LAST_BACKLOG_BYTES, now);
                self.parser = parsing.await;
            } else {
                self.parser = self
                    .parser
                    .parse_some(run_end, MAX_BACKLOG_BYTES, now)
                    .await;
                is_behind = self.parser.is_behind(run_end);
            }
            if !is_behind {
                let restart_message = status.restart_message.as_deref();
                self.parser.pane.record_restart(restart_message, now);
                if !self.is_first_of_adopted() {
                    self.active_bytes = written;
                }
            }
        }
        if !is_behind {
            self.run = self.run.max(status.run);
            self.restart_message.clone_from(&status.restart_message);
            if self.parser.pane.needs_output() && !has_ended {
                self.parser = self
                    .parser
                    .parse_some(status.stdout, MAX_BACKLOG_BYTES, now)
                    .await;
            }
            if self.parser.pane.needs_activity() && written > self.active_bytes {
                let last = match self.is_first_of_adopted() {
                    true => last_write_ms(&self.parser.agent, state, now).await,
                    false => now,
                };
                self.parser.pane.record_activity(last);
            }
            self.active_bytes = written;
        }
        self.parser.pane.set_stalled(status.stalled.is_some(), now);
        self.parser.pane.tick(now);
        self
    }

    /// Parses the rest of the output of an ended agent, and publishes its exit.
    async fn finish(mut self, state: ShimState, spawner: &Spawner) {
        let exit = match state.exit.clone() {
            Some(exit) => exit,
            // Boxed, because it is rare and would enlarge the task of every agent.
            None => Box::pin(record_lost(&self.parser.agent, spawner)).await,
        };
        let parsing = ended::parse_rest(self.parser, &exit, LAST_BACKLOG_BYTES, now_ms());
        self.parser = parsing.await;
        tracing::info!(id = %self.parser.agent.spec.id, exit = ?exit.exit, error = exit.error, "agent ended");
        self.publish(&state, Some(exit)).await;
    }
}

/// Returns the time of the last output of an adopted agent, in milliseconds since 1970; `now` if it is unknown.
async fn last_write_ms(agent: &Arc<RegisteredAgent>, state: &ShimState, now: u64) -> u64 {
    let outputs = [
        (Stream::Stdout, state.status.stdout),
        (Stream::Stderr, state.status.stderr),
    ];
    let agent = agent.clone();
    pool::run(move || {
        let last = outputs.into_iter().filter_map(|(stream, end)| {
            let chunk = agent.journal(stream).chunk_at(end.checked_sub(1)?);
            Some(chunk.ok()??.at_ns / 1_000_000)
        });
        last.max().map_or(now, |last| last.min(now))
    })
    .await
}

/// Records the end of an agent whose shim closed its connection without an exit: the shim was killed, or its last message
/// was lost. Retries until it succeeds.
async fn record_lost(agent: &RegisteredAgent, spawner: &Spawner) -> ExitRecord {
    loop {
        match spawner.record_lost(&agent.spec, LossDetection::Live).await {
            Ok(exit) => return exit,
            Err(error) => {
                tracing::error!(id = %agent.spec.id, %error, "cannot record the end of an agent; trying again");
                tokio::time::sleep(RECORD_RETRY_DELAY).await;
            }
        }
    }
}
