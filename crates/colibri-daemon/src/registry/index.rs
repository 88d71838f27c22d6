//! The index of agents: by id, running agents, and spawns in progress.

use std::collections::BTreeMap;
use std::sync::Arc;

use colibri_types::{AgentId, AgentSpec};
use tokio::sync::broadcast;

use crate::agent::RegisteredAgent;

#[derive(Default)]
pub(super) struct Agents {
    pub(super) by_id: BTreeMap<AgentId, Arc<RegisteredAgent>>,
    /// The running agents, and for a moment those that have just ended. A lookup of running agents does not walk all the
    /// ended agents in the state directory.
    pub(super) running: BTreeMap<AgentId, Arc<RegisteredAgent>>,
    /// Number of agents that were ever added.
    pub(super) count: u64,
    /// Specifications of spawns in progress, as far as known.
    pub(super) pending: Vec<Arc<AgentSpec>>,
}

/// An agent was added or removed.
#[derive(Clone)]
pub(crate) enum RegistryChange {
    Added(Arc<RegisteredAgent>),
    Removed(AgentId),
}

/// All agents at one moment, and the changes after it.
pub(crate) struct RegistryFeed {
    pub(crate) present: Vec<Arc<RegisteredAgent>>,
    /// Sequence number of the next agent that is added.
    pub(crate) next_number: u64,
    pub(crate) changes: broadcast::Receiver<RegistryChange>,
}

/// An ended agent; ordered by end time.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct EndedAgent {
    /// End time, in nanoseconds since 1970.
    pub(crate) ended_at_ns: u64,
    pub(crate) id: AgentId,
}
