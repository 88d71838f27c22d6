//! Offsets that subscribers have reached in the outputs that they follow.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use colibri_proto::Stream;
use parking_lot::Mutex;

use crate::agent::{RegisteredAgent, StreamOffset};

/// The positions of all subscribers.
#[derive(Default)]
pub(crate) struct Positions {
    next: AtomicU64,
    by_number: Mutex<HashMap<u64, Arc<Position>>>,
}

/// Offsets that one subscriber has reached in the outputs of one agent.
struct Position {
    agent: Arc<RegisteredAgent>,
    streams: Vec<(Stream, AtomicU64)>,
}

impl Position {
    fn bytes_behind(&self) -> u64 {
        let (stdout, stderr) = {
            let latest = self.agent.latest.borrow();
            (latest.stdout_bytes, latest.stderr_bytes)
        };
        let behind = self.streams.iter().map(|(stream, offset)| {
            let end = match stream {
                Stream::Stdout => stdout,
                Stream::Stderr => stderr,
            };
            end.saturating_sub(offset.load(Ordering::Relaxed))
        });
        behind.sum()
    }
}

impl Positions {
    /// Returns for each subscriber the number of bytes that it has not been sent yet.
    pub(super) fn bytes_behind(&self) -> Vec<u64> {
        let positions: Vec<_> = self.by_number.lock().values().cloned().collect();
        let behind = positions.iter().map(|position| position.bytes_behind());
        behind.collect()
    }
}

/// The position of one subscriber in the outputs of one agent. Dropping it ends its measurement.
pub(crate) struct SubscriberPosition {
    positions: Arc<Positions>,
    number: u64,
    position: Arc<Position>,
}

impl SubscriberPosition {
    /// Registers a subscriber that starts at these offsets.
    pub(super) fn new(
        positions: &Arc<Positions>,
        agent: Arc<RegisteredAgent>,
        from: &[StreamOffset],
    ) -> Self {
        let streams = from
            .iter()
            .map(|from| (from.stream, AtomicU64::new(from.offset)));
        let position = Arc::new(Position {
            agent,
            streams: streams.collect(),
        });
        let number = positions.next.fetch_add(1, Ordering::Relaxed);
        positions.by_number.lock().insert(number, position.clone());
        Self {
            positions: positions.clone(),
            number,
            position,
        }
    }

    /// Records that all bytes before `offset` have been sent.
    pub(crate) fn advance(&self, stream: Stream, offset: u64) {
        let mut streams = self.position.streams.iter();
        if let Some((_, reached)) = streams.find(|(of, _)| *of == stream) {
            reached.store(offset, Ordering::Relaxed);
        }
    }
}

impl Drop for SubscriberPosition {
    fn drop(&mut self) {
        self.positions.by_number.lock().remove(&self.number);
    }
}
