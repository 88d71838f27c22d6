//! All metrics of the daemon, their names and help texts.

use std::borrow::Cow;
use std::fmt;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use colibri_glasspane::AgentState;
use colibri_proto::{ErrorKind, KillOutcome};
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, prometheus_text};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;

use super::positions::Positions;
use super::{HookOutcome, LiveCounts, LiveSource, MetricsEvent, MetricsServer, SubscriberPosition};
use crate::agent::{AgentSnapshot, RegisteredAgent, StreamOffset};

/// Upper bounds of the request duration buckets, in seconds: from a lookup in memory to a kill with its grace period.
const REQUEST_BUCKETS: [f64; 10] = [0.0005, 0.002, 0.005, 0.02, 0.05, 0.2, 0.5, 2.0, 5.0, 20.0];
/// Upper bounds of the spawn duration buckets, in seconds.
const SPAWN_BUCKETS: [f64; 9] = [0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 2.0, 5.0];
/// Upper bounds of the publish delay buckets, in seconds.
const PUBLISH_BUCKETS: [f64; 9] = [0.001, 0.002, 0.005, 0.01, 0.05, 0.2, 0.5, 2.0, 10.0];

const STATES: [AgentState; 7] = [
    AgentState::Starting,
    AgentState::Idle,
    AgentState::Working,
    AgentState::Blocked,
    AgentState::Stalled,
    AgentState::Done,
    AgentState::Error,
];

type Labels<const N: usize> = [(&'static str, Cow<'static, str>); N];
type Counters<const N: usize> = Family<Labels<N>, Counter>;

/// The daemon's metrics.
pub(crate) struct Metrics {
    registry: prometheus_client::registry::Registry,
    live: Arc<OnceLock<LiveSource>>,
    positions: Arc<Positions>,
    spawns: Counter,
    spawn_failures: Counters<1>,
    spawn_seconds: Histogram,
    kills: Counters<1>,
    restarts: Counter,
    ends: Counters<1>,
    state_changes: Counter,
    output: Counters<1>,
    publish_seconds: Histogram,
    connections: Gauge,
    connections_refused: Counter,
    connections_made: Counter,
    requests: Counters<2>,
    request_seconds: Family<Labels<1>, Histogram>,
    merged_states: Counter,
    hook_runs: Counters<1>,
    merged_hooks: Counter,
}

impl Metrics {
    /// Creates all metrics for a server that serves them; counters start at zero.
    pub(crate) fn new(_server: &MetricsServer) -> Self {
        let request_seconds = Family::<Labels<1>, Histogram>::new_with_constructor(|| {
            Histogram::new(REQUEST_BUCKETS)
        });
        let mut metrics = Self {
            registry: prometheus_client::registry::Registry::default(),
            live: Arc::default(),
            positions: Arc::default(),
            spawns: Counter::default(),
            spawn_failures: Family::default(),
            spawn_seconds: Histogram::new(SPAWN_BUCKETS),
            kills: Family::default(),
            restarts: Counter::default(),
            ends: Family::default(),
            state_changes: Counter::default(),
            output: Family::default(),
            publish_seconds: Histogram::new(PUBLISH_BUCKETS),
            connections: Gauge::default(),
            connections_refused: Counter::default(),
            connections_made: Counter::default(),
            requests: Family::default(),
            request_seconds,
            merged_states: Counter::default(),
            hook_runs: Family::default(),
            merged_hooks: Counter::default(),
        };
        metrics.register();
        metrics
    }

    /// Registers all metrics with their names and help texts. The text format adds `_total` to the name of a counter.
    #[rustfmt::skip]
    fn register(&mut self) {
        let registry = &mut self.registry;
        let started = Gauge::<f64, std::sync::atomic::AtomicU64>::default();
        started.set(SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |since| since.as_secs_f64()));
        registry.register("process_start_time_seconds", "Start time of the daemon, in seconds since 1970", started);
        let build = Family::<Labels<1>, Gauge>::default();
        build.get_or_create(&[("version", env!("CARGO_PKG_VERSION").into())]).set(1);
        registry.register("colibri_build_info", "Always 1; the label is the version of the daemon", build);
        registry.register("colibri_spawns", "Agents that were started", self.spawns.clone());
        registry.register("colibri_spawn_failures", "Spawns that failed, by kind of error", self.spawn_failures.clone());
        registry.register("colibri_spawn_duration_seconds", "Time from the spawn request to the execution of the program, for successful spawns", self.spawn_seconds.clone());
        registry.register("colibri_kills", "Kills, by outcome", self.kills.clone());
        registry.register("colibri_agent_restarts", "Restarts of agents by their restart policy or by request", self.restarts.clone());
        registry.register("colibri_agent_ends", "Agents that ended, by final state", self.ends.clone());
        registry.register("colibri_agent_state_changes", "State changes of agents, including those that were merged for subscribers", self.state_changes.clone());
        registry.register("colibri_output_bytes", "Bytes of output that agents wrote", self.output.clone());
        registry.register("colibri_publish_delay_seconds", "Time from the shim's read of output to its publication to subscribers; sampled at most once a second for each agent", self.publish_seconds.clone());
        registry.register("colibri_connections", "Open client connections", self.connections.clone());
        registry.register("colibri_connections_made", "Accepted client connections", self.connections_made.clone());
        registry.register("colibri_connections_refused", "Client connections of users who may not use the daemon", self.connections_refused.clone());
        registry.register("colibri_requests", "Answered requests, by method and result: ok, or the kind of error", self.requests.clone());
        registry.register("colibri_request_duration_seconds", "Time from a complete request to its answer; without wait-agent, which lasts as long as its agent", self.request_seconds.clone());
        registry.register("colibri_subscription_merged_states", "State changes that subscribers got merged into a later one, because they or the daemon were too slow", self.merged_states.clone());
        registry.register("colibri_hook_runs", "Hook runs, by result", self.hook_runs.clone());
        registry.register("colibri_hook_merged", "State changes for which no hook was run, because a later change of the same agent replaced them", self.merged_hooks.clone());
        registry.register_collector(Box::new(LiveCollector { source: self.live.clone(), positions: self.positions.clone() }));
        // Series with known labels exist from the start: a rate needs a first value.
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

    /// Sets the source of the values that are read at each collection.
    pub(crate) fn set_live_source(&self, source: LiveSource) {
        let _ = self.live.set(source);
    }

    /// Measures how far a subscriber is behind in the outputs of an agent, until the result is dropped.
    pub(crate) fn follow(
        &self,
        agent: Arc<RegisteredAgent>,
        from: &[StreamOffset],
    ) -> SubscriberPosition {
        SubscriberPosition::new(&self.positions, agent, from)
    }

    /// Returns all metrics in Prometheus' text format.
    ///
    /// # Errors
    /// A value cannot be encoded.
    pub(super) fn text(&self) -> Result<String, fmt::Error> {
        let mut text = String::new();
        prometheus_text::encode(&mut text, &self.registry)?;
        Ok(text)
    }

    /// Counts an event.
    pub(crate) fn record(&self, event: MetricsEvent<'_>) {
        match event {
            MetricsEvent::Spawn { took, error: None } => {
                self.spawns.inc();
                self.spawn_seconds.observe(took.as_secs_f64());
            }
            MetricsEvent::Spawn {
                error: Some(kind), ..
            } => increment(&self.spawn_failures, "kind", kind_name(kind)),
            MetricsEvent::Kill(outcome) => increment(&self.kills, "outcome", kill_label(outcome)),
            MetricsEvent::Snapshot { before, now } => self.record_snapshot(before, now),
            MetricsEvent::Output { at_ns } => {
                let now = SystemTime::now().duration_since(UNIX_EPOCH).ok();
                // Absent if the clock was set back since.
                let delay = now.and_then(|now| now.checked_sub(Duration::from_nanos(at_ns)));
                if let Some(delay) = delay {
                    self.publish_seconds.observe(delay.as_secs_f64());
                }
            }
            MetricsEvent::ConnectionOpened { allowed } => {
                self.connections.inc();
                self.connections_made.inc();
                if !allowed {
                    self.connections_refused.inc();
                }
            }
            MetricsEvent::ConnectionClosed => {
                self.connections.dec();
            }
            MetricsEvent::Request {
                method,
                took,
                error,
            } => {
                let result = error.map_or("ok".into(), |error| kind_name(error.data.kind));
                let labels = [("method", method.into()), ("result", result)];
                self.requests.get_or_create(&labels).inc();
                if method != "wait-agent" {
                    self.request_seconds
                        .get_or_create(&[("method", method.into())])
                        .observe(took.as_secs_f64());
                }
            }
            MetricsEvent::MergedStates(changes) => {
                self.merged_states.inc_by(changes);
            }
            MetricsEvent::Hook(outcome) => {
                let result = match outcome {
                    HookOutcome::Ok => "ok",
                    HookOutcome::Failed => "failed",
                    HookOutcome::TimedOut => "timeout",
                };
                increment(&self.hook_runs, "result", result.into());
            }
            MetricsEvent::MergedHook => {
                self.merged_hooks.inc();
            }
        }
    }

    fn record_snapshot(&self, before: &AgentSnapshot, now: &AgentSnapshot) {
        for (stream, before, now) in [
            ("stdout", before.stdout_bytes, now.stdout_bytes),
            ("stderr", before.stderr_bytes, now.stderr_bytes),
        ] {
            if now > before {
                let labels = [("stream", stream.into())];
                self.output.get_or_create(&labels).inc_by(now - before);
            }
        }
        self.state_changes
            .inc_by(now.state_changes.saturating_sub(before.state_changes));
        self.restarts
            .inc_by(u64::from(now.run.saturating_sub(before.run)));
        if now.exit.is_some() && before.exit.is_none() {
            let state = match now.view.state {
                AgentState::Done => "done",
                _ => "error",
            };
            increment(&self.ends, "state", state.into());
        }
    }
}

fn increment(family: &Counters<1>, label: &'static str, value: Cow<'static, str>) {
    family.get_or_create(&[(label, value)]).inc();
}

fn kill_label(outcome: Result<KillOutcome, ErrorKind>) -> Cow<'static, str> {
    let label = match outcome {
        Ok(KillOutcome::Terminated) => "terminated",
        Ok(KillOutcome::Killed) => "killed",
        Ok(KillOutcome::AlreadyExited) => "already-exited",
        Ok(KillOutcome::Signalled) => "signalled",
        Err(ErrorKind::KillUnverified) => "unverified",
        Err(_) => "failed",
    };
    label.into()
}

/// Returns the name of an error kind on the wire.
fn kind_name(kind: ErrorKind) -> Cow<'static, str> {
    match serde_json::to_value(kind) {
        Ok(serde_json::Value::String(name)) => name.into(),
        _ => "unknown".into(),
    }
}

/// Reads values at the time of a collection: agents by state, and how far subscribers are behind.
struct LiveCollector {
    source: Arc<OnceLock<LiveSource>>,
    positions: Arc<Positions>,
}

impl fmt::Debug for LiveCollector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("LiveCollector")
    }
}

impl Collector for LiveCollector {
    #[rustfmt::skip]
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let counts = self.source.get().map_or_else(LiveCounts::default, |source| source());
        let help = "Agents in the registry, by state; output of a stalled agent cannot be stored.";
        let mut family = encoder.encode_descriptor("colibri_agents", help, None, MetricType::Gauge)?;
        for state in STATES {
            let count = counts.states.iter().filter(|of| **of == state).count();
            let labels = [("state", state.to_string())];
            family.encode_family(&labels)?.encode_gauge(&i64::try_from(count).unwrap_or(i64::MAX))?;
        }
        let behind = self.positions.bytes_behind();
        let waiting = behind.iter().filter(|bytes| **bytes > 0).count() as u64;
        for (name, help, value) in [
            ("colibri_subscriptions", "Followed agents, counted once for each subscriber.", behind.len() as u64),
            ("colibri_subscriptions_behind", "Followed agents with output in the journal that the subscriber has not been sent.", waiting),
            ("colibri_subscriptions_behind_bytes", "Bytes in the journals that subscribers have not been sent.", behind.iter().sum()),
            ("colibri_hooks_waiting", "Agents with a state change that no hook has handled yet.", counts.hooks.waiting),
            ("colibri_hooks_running", "Agents for which hooks run.", counts.hooks.running),
        ] {
            encoder
                .encode_descriptor(name, help, None, MetricType::Gauge)?
                .encode_gauge(&i64::try_from(value).unwrap_or(i64::MAX))?;
        }
        Ok(())
    }
}
