//! All metrics of the daemon, their names and help texts.

use std::borrow::Cow;
use std::fmt;
use std::time::Duration;

use colibri_proto::ErrorKind;
use colibri_shim::record::now_ns;
use prometheus_client::encoding::prometheus_text;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::{Metric, Registry};
use serde::Serialize;

use super::{LiveCounts, MetricsEvent};
use crate::agent::AgentSnapshot;

/// Upper bounds of the request duration buckets, in seconds: from a lookup in memory to a kill with its grace period.
const REQUEST_BUCKETS: [f64; 10] = [0.0005, 0.002, 0.005, 0.02, 0.05, 0.2, 0.5, 2.0, 5.0, 20.0];
/// Upper bounds of the spawn duration buckets, in seconds.
const SPAWN_BUCKETS: [f64; 9] = [0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 2.0, 5.0];
/// Upper bounds of the publish delay buckets, in seconds.
const PUBLISH_BUCKETS: [f64; 9] = [0.001, 0.002, 0.005, 0.01, 0.05, 0.2, 0.5, 2.0, 10.0];

type Labels<const N: usize> = [(&'static str, Cow<'static, str>); N];
type Counters<const N: usize> = Family<Labels<N>, Counter>;

/// The daemon's metrics.
pub(crate) struct Metrics {
    registry: Registry,
    spawns: Counter,
    spawn_failures: Counters<1>,
    spawn_seconds: Histogram,
    kills: Counters<1>,
    restarts: Counter,
    ends: Counters<1>,
    state_changes: Counter,
    refusals: Counter,
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
    /// Creates and registers all metrics; counters start at zero. The text format adds `_total` to the name of a counter.
    #[rustfmt::skip]
    pub(super) fn new() -> Self {
        let mut all = Registry::default();
        let registry = &mut all;
        let started = Gauge::<f64, std::sync::atomic::AtomicU64>::default();
        started.set(Duration::from_nanos(now_ns()).as_secs_f64());
        registry.register("process_start_time_seconds", "Start time of the daemon, in seconds since 1970", started);
        let build = Family::<Labels<1>, Gauge>::default();
        build.get_or_create(&[("version", env!("CARGO_PKG_VERSION").into())]).set(1);
        registry.register("colibri_build_info", "Always 1; the label is the version of the daemon", build);
        let metrics = Self {
            spawns: register(registry, "colibri_spawns", "Agents that were started", Default::default()),
            spawn_failures: register(registry, "colibri_spawn_failures", "Spawns that failed, by kind of error", Default::default()),
            spawn_seconds: register(registry, "colibri_spawn_duration_seconds", "Time from the spawn request to the execution of the program, for successful spawns", Histogram::new(SPAWN_BUCKETS)),
            kills: register(registry, "colibri_kills", "Kills, by outcome", Default::default()),
            restarts: register(registry, "colibri_agent_restarts", "Restarts of agents by their restart policy or by request", Default::default()),
            ends: register(registry, "colibri_agent_ends", "Agents that ended, by final state", Default::default()),
            state_changes: register(registry, "colibri_agent_state_changes", "State changes of agents, including those that were merged for subscribers", Default::default()),
            refusals: register(registry, "colibri_network_refusals", "Connections and requests of agents that their proxies refused", Default::default()),
            output: register(registry, "colibri_output_bytes", "Bytes of output that agents wrote", Default::default()),
            publish_seconds: register(registry, "colibri_publish_delay_seconds", "Time from the shim's read of output to its publication to subscribers; sampled at most once a second for each agent", Histogram::new(PUBLISH_BUCKETS)),
            connections: register(registry, "colibri_connections", "Open client connections", Default::default()),
            connections_made: register(registry, "colibri_connections_made", "Accepted client connections", Default::default()),
            connections_refused: register(registry, "colibri_connections_refused", "Client connections of users who may not use the daemon", Default::default()),
            requests: register(registry, "colibri_requests", "Answered requests, by method and result: ok, or the kind of error", Default::default()),
            request_seconds: register(registry, "colibri_request_duration_seconds", "Time from a complete request to its answer; without wait-agent, which lasts as long as its agent", Family::new_with_constructor(|| Histogram::new(REQUEST_BUCKETS))),
            merged_states: register(registry, "colibri_subscription_merged_states", "State changes that subscribers got merged into a later one, because they or the daemon were too slow", Default::default()),
            hook_runs: register(registry, "colibri_hook_runs", "Hook runs, by result", Default::default()),
            merged_hooks: register(registry, "colibri_hook_merged", "State changes for which no hook was run, because a later change of the same agent replaced them", Default::default()),
            registry: all,
        };
        // Series with known labels exist from the start: a rate needs a first value.
        for (family, label, values) in [
            (&metrics.output, "stream", &["stdout", "stderr"][..]),
            (&metrics.ends, "state", &["done", "error"]),
            (&metrics.kills, "outcome", &["terminated", "killed", "already-exited", "signalled", "unverified", "failed"]),
            (&metrics.hook_runs, "result", &["ok", "failed", "timeout"]),
        ] {
            for value in values {
                let _ = family.get_or_create(&[(label, (*value).into())]);
            }
        }
        metrics
    }

    /// Returns all metrics in Prometheus' text format.
    ///
    /// # Errors
    /// A value cannot be encoded.
    pub(super) fn text(&self, counts: &LiveCounts) -> Result<String, fmt::Error> {
        let mut text = String::new();
        prometheus_text::encode(&mut text, &self.registry)?;
        prometheus_text::encode(&mut text, &live_registry(counts))?;
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
            } => increment(&self.spawn_failures, "kind", wire_name(kind)),
            MetricsEvent::Kill(outcome) => {
                let outcome = match outcome {
                    Ok(outcome) => wire_name(outcome),
                    Err(ErrorKind::KillUnverified) => "unverified".into(),
                    Err(_) => "failed".into(),
                };
                increment(&self.kills, "outcome", outcome);
            }
            MetricsEvent::Snapshot { before, now } => self.record_snapshot(before, now),
            MetricsEvent::Output { at_ns } => {
                // Absent if the clock was set back since.
                if let Some(delay) = now_ns().checked_sub(at_ns) {
                    let delay = Duration::from_nanos(delay);
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
                let result = error.map_or("ok".into(), |error| wire_name(error.data.kind));
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
                increment(&self.hook_runs, "result", wire_name(outcome));
            }
            MetricsEvent::MergedHook => {
                self.merged_hooks.inc();
            }
        }
    }

    fn record_snapshot(&self, before: &AgentSnapshot, now: &AgentSnapshot) {
        for (stream, before, now) in [
            ("stdout", before.status.stdout, now.status.stdout),
            ("stderr", before.status.stderr, now.status.stderr),
        ] {
            if now > before {
                let labels = [("stream", stream.into())];
                self.output.get_or_create(&labels).inc_by(now - before);
            }
        }
        self.state_changes
            .inc_by(now.state_changes.saturating_sub(before.state_changes));
        self.restarts
            .inc_by(u64::from(now.status.run.saturating_sub(before.status.run)));
        let refused = |snapshot: &AgentSnapshot| {
            let network = snapshot.status.network.as_ref();
            network.map_or(0, |network| network.refused)
        };
        self.refusals
            .inc_by(refused(now).saturating_sub(refused(before)));
        if now.exit.is_some() && before.exit.is_none() {
            increment(&self.ends, "state", wire_name(now.view.state));
        }
    }
}

/// Returns the metrics of values that are read at the time of a collection: agents by state, and how far subscribers and
/// hooks are behind.
#[rustfmt::skip]
fn live_registry(counts: &LiveCounts) -> Registry {
    let mut registry = Registry::default();
    let gauge_value = |count: u64| i64::try_from(count).unwrap_or(i64::MAX);
    let agents = register(&mut registry, "colibri_agents", "Agents in the registry, by state; output of a stalled agent cannot be stored", Family::<Labels<1>, Gauge>::default());
    for state in ["starting", "idle", "working", "blocked", "stalled", "done", "error"] {
        let _ = agents.get_or_create(&[("state", state.into())]);
    }
    for state in &counts.states {
        agents.get_or_create(&[("state", wire_name(state))]).inc();
    }
    let behind = &counts.behind;
    let waiting = behind.iter().filter(|bytes| **bytes > 0).count() as u64;
    for (name, help, value) in [
        ("colibri_subscriptions", "Followed agents, counted once for each subscriber", behind.len() as u64),
        ("colibri_subscriptions_behind", "Followed agents with output in the journal that the subscriber has not been sent", waiting),
        ("colibri_subscriptions_behind_bytes", "Bytes in the journals that subscribers have not been sent", behind.iter().sum()),
        ("colibri_hooks_waiting", "Agents with a state change that no hook has handled yet", counts.hooks.waiting),
        ("colibri_hooks_running", "Agents for which hooks run", counts.hooks.running),
    ] {
        register(&mut registry, name, help, Gauge::<i64>::default()).set(gauge_value(value));
    }
    registry
}

fn register<M: Metric + Clone>(registry: &mut Registry, name: &str, help: &str, metric: M) -> M {
    registry.register(name, help, metric.clone());
    metric
}

fn increment(family: &Counters<1>, label: &'static str, value: Cow<'static, str>) {
    family.get_or_create(&[(label, value)]).inc();
}

/// Returns the name of a kind or an outcome on the wire.
fn wire_name(value: impl Serialize) -> Cow<'static, str> {
    match serde_json::to_value(value) {
        Ok(serde_json::Value::String(name)) => name.into(),
        _ => "unknown".into(),
    }
}
