//! Metrics in Prometheus' text format; docs/metrics.md lists all of them.
//!
//! The daemon reports [`MetricsEvent`]s. They are counted if the cargo feature `metrics` is built in and an address for metrics is
//! configured. No label contains an agent's name, id or output, so the number of series is bounded.

// Without the feature nothing reads the events.
#![cfg_attr(not(feature = "metrics"), allow(dead_code))]

#[cfg(feature = "metrics")]
mod counters;
#[cfg(feature = "metrics")]
mod serve;
#[cfg(feature = "metrics")]
pub(crate) use {counters::Metrics, serve::MetricsServer};

#[cfg(not(feature = "metrics"))]
mod disabled;
#[cfg(not(feature = "metrics"))]
pub(crate) use disabled::{Metrics, MetricsServer};

use std::sync::Arc;
use std::time::Duration;

use colibri_glasspane::AgentState;
use colibri_proto::{ErrorKind, KillOutcome, RpcError};
use serde::Serialize;

use crate::agent::AgentSnapshot;

/// What the daemon reports to its metrics.
pub(crate) enum MetricsEvent<'a> {
    /// A spawn has succeeded, or failed with this kind of error.
    Spawn {
        took: Duration,
        error: Option<ErrorKind>,
    },
    /// A kill has succeeded, or failed with this kind of error.
    Kill(Result<KillOutcome, ErrorKind>),
    /// A snapshot has replaced another one.
    Snapshot {
        before: &'a AgentSnapshot,
        now: &'a AgentSnapshot,
    },
    /// Output that the shim read at this time, in nanoseconds since 1970, is being published.
    Output { at_ns: u64 },
    /// A client has connected, and its user may or may not use the daemon.
    ConnectionOpened { allowed: bool },
    /// A client has disconnected.
    ConnectionClosed,
    /// A request has been answered.
    Request {
        method: &'static str,
        took: Duration,
        error: Option<&'a RpcError>,
    },
    /// A subscriber got one notification in place of this many additional state changes.
    MergedStates(u64),
    /// A hook has ended.
    Hook(HookOutcome),
    /// A state change replaced an earlier one that no hook has run for.
    MergedHook,
}

/// How a hook ended; serialized as the label of a metric.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum HookOutcome {
    Ok,
    Failed,
    Timeout,
}

/// Values that are read when metrics are collected.
#[derive(Default)]
pub(crate) struct LiveCounts {
    /// States of all registered agents.
    pub(crate) states: Vec<AgentState>,
    /// Number of bytes that have not been sent, for each subscriber of each agent.
    pub(crate) behind: Vec<u64>,
    pub(crate) hooks: HookCounts,
}

/// Number of agents in the queue of the hooks.
#[derive(Debug, Default, Clone, Copy)]
pub(crate) struct HookCounts {
    /// Agents with a state change that no hook has handled yet.
    pub(crate) waiting: u64,
    /// Agents for which hooks run.
    pub(crate) running: u64,
}

/// Reads the current values; see [`MetricsServer::serve`].
pub(crate) type LiveSource = Arc<dyn Fn() -> LiveCounts + Send + Sync>;
