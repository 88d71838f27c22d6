//! Counters, gauges and histograms of the daemon, in Prometheus' text format: docs/metrics.md has them all.
//!
//! No label holds an agent's name, id or words, so there are only so many series. What can be counted when
//! somebody asks is counted then ([`live`]); without a place to serve metrics none of this is there.

mod live;
mod serve;

use std::borrow::Cow;
use std::sync::{Arc, OnceLock, Weak};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use colibri_glasspane::AgentState;
use colibri_proto::{ErrorKind, KillOutcome, RpcError};
use prometheus_client::encoding::prometheus_text;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;

pub(crate) use live::{Following, Place};
pub(crate) use serve::{MetricsError, Served};

use crate::hooks::HookEnd;
use crate::registry::{Registry, Snapshot};

/// Seconds: from what a table in memory takes to what a kill with its grace takes.
const REQUEST: [f64; 10] = [0.0005, 0.002, 0.005, 0.02, 0.05, 0.2, 0.5, 2.0, 5.0, 20.0];
const SPAWN: [f64; 9] = [0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 2.0, 5.0];
const PUBLISH: [f64; 9] = [0.001, 0.002, 0.005, 0.01, 0.05, 0.2, 0.5, 2.0, 10.0];

type Labels<const N: usize> = [(&'static str, Cow<'static, str>); N];
type Counters<const N: usize> = Family<Labels<N>, Counter>;

/// What the daemon counts.
pub(crate) struct Metrics {
    registry: prometheus_client::registry::Registry,
    agents: Arc<OnceLock<Weak<Registry>>>,
    pub(crate) places: Arc<live::Places>,
    spawns: Counter,
    spawn_failures: Counters<1>,
    spawn_seconds: Histogram,
    kills: Counters<1>,
    restarts: Counter,
    ends: Counters<1>,
    changes: Counter,
    output: Counters<1>,
    publish_seconds: Histogram,
    pub(crate) connections: Gauge,
    connections_refused: Counter,
    connections_made: Counter,
    requests: Counters<2>,
    request_seconds: Family<Labels<1>, Histogram>,
    merged: Counter,
    hook_runs: Counters<1>,
    hook_merged: Counter,
}

impl Metrics {
    /// Everything at zero, but the start of the daemon.
    pub(crate) fn new() -> Self {
        let request_seconds =
            Family::<Labels<1>, Histogram>::new_with_constructor(|| Histogram::new(REQUEST));
        let mut metrics = Self {
            registry: prometheus_client::registry::Registry::default(),
            agents: Arc::default(),
            places: Arc::default(),
            spawns: Counter::default(),
            spawn_failures: Family::default(),
            spawn_seconds: Histogram::new(SPAWN),
            kills: Family::default(),
            restarts: Counter::default(),
            ends: Family::default(),
            changes: Counter::default(),
            output: Family::default(),
            publish_seconds: Histogram::new(PUBLISH),
            connections: Gauge::default(),
            connections_refused: Counter::default(),
            connections_made: Counter::default(),
            requests: Family::default(),
            request_seconds,
            merged: Counter::default(),
            hook_runs: Family::default(),
            hook_merged: Counter::default(),
        };
        metrics.register();
        let live = live::Live {
            agents: metrics.agents.clone(),
            places: metrics.places.clone(),
        };
        metrics.registry.register_collector(Box::new(live));
        metrics
    }

    /// Names and explains them. A counter's name gets `_total` behind it.
    #[rustfmt::skip]
    fn register(&mut self) {
        let registry = &mut self.registry;
        let started = Gauge::<f64, std::sync::atomic::AtomicU64>::default();
        started.set(SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |since| since.as_secs_f64()));
        registry.register("process_start_time_seconds", "When the daemon was started, in seconds since 1970", started);
        let build = Family::<Labels<1>, Gauge>::default();
        build.get_or_create(&[("version", env!("CARGO_PKG_VERSION").into())]).set(1);
        registry.register("colibri_build_info", "Always 1; the label says which daemon it is", build);
        registry.register("colibri_spawns", "Agents that were started", self.spawns.clone());
        registry.register("colibri_spawn_failures", "Agents that could not be started, by the kind of the error", self.spawn_failures.clone());
        registry.register("colibri_spawn_duration_seconds", "From the request to the executed program, of agents that were started", self.spawn_seconds.clone());
        registry.register("colibri_kills", "Kills, by how they went", self.kills.clone());
        registry.register("colibri_agent_restarts", "Runs of agents that were started again", self.restarts.clone());
        registry.register("colibri_agent_ends", "Agents that ended, by the state that they ended in", self.ends.clone());
        registry.register("colibri_agent_state_changes", "Changes of the state of agents, also those that nobody was told of", self.changes.clone());
        registry.register("colibri_output_bytes", "Bytes that agents wrote", self.output.clone());
        registry.register("colibri_publish_delay_seconds", "From the moment at which the shim read output to the moment at which subscribers hear of it; looked at once a second for each agent", self.publish_seconds.clone());
        registry.register("colibri_connections", "Clients that are connected now", self.connections.clone());
        registry.register("colibri_connections_made", "Clients that connected", self.connections_made.clone());
        registry.register("colibri_connections_refused", "Clients whose user may not use the daemon", self.connections_refused.clone());
        registry.register("colibri_requests", "Requests that were answered, by method and result: ok, or the kind of the error", self.requests.clone());
        registry.register("colibri_request_duration_seconds", "From the whole request to its answer, without wait-agent, which lasts as long as its agent", self.request_seconds.clone());
        registry.register("colibri_subscription_merged_states", "Changes of state that a subscriber was not told one by one, because it or the daemon was too slow for them", self.merged.clone());
        registry.register("colibri_hook_runs", "Hooks that were run, by how they went", self.hook_runs.clone());
        registry.register("colibri_hook_merged", "Changes of state for which no hook was run, because a later one of the same agent took their place", self.hook_merged.clone());
        // Those whose labels are known are there from the beginning: a rate needs a first value.
        for stream in ["stdout", "stderr"] {
            let _ = self.output.get_or_create(&[("stream", stream.into())]);
        }
        for state in ["done", "error"] {
            let _ = self.ends.get_or_create(&[("state", state.into())]);
        }
        for outcome in ["terminated", "killed", "already-exited", "signalled", "unverified", "failed"] {
            let _ = self.kills.get_or_create(&[("outcome", outcome.into())]);
        }
        for result in ["ok", "failed", "timeout"] {
            let _ = self.hook_runs.get_or_create(&[("result", result.into())]);
        }
    }

    /// From now on what agents and subscribers do now is there too.
    pub(crate) fn watch(&self, agents: &Arc<Registry>) {
        let _ = self.agents.set(Arc::downgrade(agents));
    }

    /// All of it, as Prometheus reads it.
    pub(crate) fn text(&self) -> Result<String, std::fmt::Error> {
        let mut text = String::new();
        prometheus_text::encode(&mut text, &self.registry)?;
        Ok(text)
    }

    /// An agent was asked for.
    pub(crate) fn spawned(&self, took: Duration, failed: Option<ErrorKind>) {
        match failed {
            None => {
                self.spawns.inc();
                self.spawn_seconds.observe(took.as_secs_f64());
            }
            Some(kind) => {
                let labels = [("kind", word(kind))];
                self.spawn_failures.get_or_create(&labels).inc();
            }
        }
    }

    /// A kill has ended.
    pub(crate) fn killed(&self, outcome: Result<KillOutcome, ErrorKind>) {
        let outcome = match outcome {
            Ok(KillOutcome::Terminated) => "terminated",
            Ok(KillOutcome::Killed) => "killed",
            Ok(KillOutcome::AlreadyExited) => "already-exited",
            Ok(KillOutcome::Signalled) => "signalled",
            Err(ErrorKind::KillUnverified) => "unverified",
            Err(_) => "failed",
        };
        self.kills
            .get_or_create(&[("outcome", outcome.into())])
            .inc();
    }

    /// An agent's snapshot is replaced by another one.
    pub(crate) fn published(&self, before: &Snapshot, now: &Snapshot) {
        for (stream, before, now) in [
            ("stdout", before.stdout, now.stdout),
            ("stderr", before.stderr, now.stderr),
        ] {
            if now > before {
                let labels = [("stream", stream.into())];
                self.output.get_or_create(&labels).inc_by(now - before);
            }
        }
        self.changes
            .inc_by(now.changes.saturating_sub(before.changes));
        self.restarts
            .inc_by(u64::from(now.run.saturating_sub(before.run)));
        if now.exit.is_some() && before.exit.is_none() {
            let state = match now.view.state {
                AgentState::Done => "done",
                _ => "error",
            };
            let _ = self.ends.get_or_create(&[("state", state.into())]).inc();
        }
    }

    /// Output that the shim read at that time, in nanoseconds since 1970, is published now.
    pub(crate) fn publishes(&self, at_ns: u64) {
        let now = SystemTime::now().duration_since(UNIX_EPOCH);
        // A clock that was set back says nothing.
        if let Some(took) = now
            .ok()
            .and_then(|now| now.checked_sub(Duration::from_nanos(at_ns)))
        {
            self.publish_seconds.observe(took.as_secs_f64());
        }
    }

    /// Somebody connected, and may or may not use the daemon.
    pub(crate) fn connected(&self, allowed: bool) {
        self.connections_made.inc();
        if !allowed {
            self.connections_refused.inc();
        }
    }

    /// A request is answered.
    pub(crate) fn answered(&self, method: &'static str, took: Duration, error: Option<&RpcError>) {
        let result = error.map_or("ok".into(), |error| word(error.data.kind));
        let labels = [("method", method.into()), ("result", result)];
        self.requests.get_or_create(&labels).inc();
        if method != "wait-agent" {
            self.request_seconds
                .get_or_create(&[("method", method.into())])
                .observe(took.as_secs_f64());
        }
    }

    /// A subscriber was not told of so many changes.
    pub(crate) fn merged(&self, changes: u64) {
        self.merged.inc_by(changes);
    }

    /// A hook has ended.
    pub(crate) fn hooked(&self, end: HookEnd) {
        let result = match end {
            HookEnd::Ok => "ok",
            HookEnd::Failed => "failed",
            HookEnd::Timeout => "timeout",
        };
        self.hook_runs
            .get_or_create(&[("result", result.into())])
            .inc();
    }

    /// A hook is not run for a change.
    pub(crate) fn hook_merged(&self) {
        self.hook_merged.inc();
    }
}

/// The name of an error's kind, as the wire has it.
fn word(kind: ErrorKind) -> Cow<'static, str> {
    match serde_json::to_value(kind) {
        Ok(serde_json::Value::String(word)) => word.into(),
        _ => "unknown".into(),
    }
}
