//! What is counted at the moment at which somebody asks: agents by state, and how far behind subscribers are.

use std::collections::HashMap;
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError, Weak};

use colibri_glasspane::AgentState;
use colibri_proto::Stream;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::DescriptorEncoder;
use prometheus_client::metrics::MetricType;

use crate::registry::{Entry, Registry};

const STATES: [AgentState; 7] = [
    AgentState::Starting,
    AgentState::Idle,
    AgentState::Working,
    AgentState::Blocked,
    AgentState::Stalled,
    AgentState::Done,
    AgentState::Error,
];

/// How far subscribers have come.
#[derive(Default)]
pub(crate) struct Places {
    next: AtomicU64,
    all: Mutex<HashMap<u64, Arc<Place>>>,
}

/// How far one has come in the outputs of one agent.
pub(crate) struct Place {
    entry: Arc<Entry>,
    streams: Vec<(Stream, AtomicU64)>,
}

impl Place {
    /// It has been sent all bytes before `offset`.
    pub(crate) fn at(&self, stream: Stream, offset: u64) {
        if let Some((_, at)) = self.streams.iter().find(|(of, _)| *of == stream) {
            at.store(offset, Ordering::Relaxed);
        }
    }

    fn behind(&self) -> u64 {
        let (stdout, stderr) = {
            let latest = self.entry.latest.borrow();
            (latest.stdout, latest.stderr)
        };
        let behind = self.streams.iter().map(|(stream, at)| {
            let end = match stream {
                Stream::Stdout => stdout,
                Stream::Stderr => stderr,
            };
            end.saturating_sub(at.load(Ordering::Relaxed))
        });
        behind.sum()
    }
}

/// A subscriber that follows an agent, until this is dropped.
pub(crate) struct Following {
    places: Arc<Places>,
    number: u64,
    pub(crate) place: Arc<Place>,
}

impl Following {
    /// Follows these outputs, from these offsets on.
    pub(crate) fn new(places: &Arc<Places>, entry: Arc<Entry>, from: &[(Stream, u64)]) -> Self {
        let streams = from
            .iter()
            .map(|(stream, at)| (*stream, AtomicU64::new(*at)));
        let place = Arc::new(Place {
            entry,
            streams: streams.collect(),
        });
        let number = places.next.fetch_add(1, Ordering::Relaxed);
        let mut all = places.all.lock().unwrap_or_else(PoisonError::into_inner);
        all.insert(number, place.clone());
        Self {
            places: places.clone(),
            number,
            place,
        }
    }
}

impl Drop for Following {
    fn drop(&mut self) {
        let mut all = self
            .places
            .all
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        all.remove(&self.number);
    }
}

/// Counts when it is asked.
pub(crate) struct Live {
    pub(crate) agents: Arc<OnceLock<Weak<Registry>>>,
    pub(crate) places: Arc<Places>,
}

impl fmt::Debug for Live {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Live")
    }
}

fn gauge(
    encoder: &mut DescriptorEncoder<'_>,
    name: &str,
    help: &str,
    value: u64,
) -> Result<(), fmt::Error> {
    let value = i64::try_from(value).unwrap_or(i64::MAX);
    encoder
        .encode_descriptor(name, help, None, MetricType::Gauge)?
        .encode_gauge(&value)
}

impl Collector for Live {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let mut states = [0_i64; STATES.len()];
        let mut hooks = (0, 0);
        if let Some(agents) = self.agents.get().and_then(Weak::upgrade) {
            agents.each(|entry| {
                let state = entry.latest.borrow().view.state;
                let known = STATES.iter().zip(&mut states);
                for (_, count) in known.filter(|(known, _)| **known == state) {
                    *count += 1;
                }
            });
            hooks = agents
                .observers
                .hooks
                .as_ref()
                .map_or(hooks, |hooks| hooks.counts());
        }
        let help =
            "Agents that the daemon knows, by state; those that are stalled wait for a disk.";
        let mut family =
            encoder.encode_descriptor("colibri_agents", help, None, MetricType::Gauge)?;
        for (state, count) in STATES.iter().zip(&states) {
            let labels = [("state", state.to_string())];
            family.encode_family(&labels)?.encode_gauge(count)?;
        }
        let behind: Vec<u64> = {
            let all = self
                .places
                .all
                .lock()
                .unwrap_or_else(PoisonError::into_inner);
            let places: Vec<_> = all.values().cloned().collect();
            drop(all);
            places.iter().map(|place| place.behind()).collect()
        };
        let encoder = &mut encoder;
        gauge(
            encoder,
            "colibri_subscriptions",
            "Agents that are followed, each as often as somebody follows it.",
            behind.len() as u64,
        )?;
        gauge(
            encoder,
            "colibri_subscriptions_behind",
            "Of these, those for which output waits in the journal.",
            behind.iter().filter(|bytes| **bytes > 0).count() as u64,
        )?;
        gauge(
            encoder,
            "colibri_subscriptions_behind_bytes",
            "How much output waits for them in the journal.",
            behind.iter().sum(),
        )?;
        gauge(
            encoder,
            "colibri_hooks_waiting",
            "Agents with a change of state that the hooks have not looked at yet.",
            hooks.0,
        )?;
        gauge(
            encoder,
            "colibri_hooks_running",
            "Agents for which hooks run now.",
            hooks.1,
        )
    }
}
