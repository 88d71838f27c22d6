//! The server side of the control socket: all connections, and the rate limit of status events.

use std::os::unix::net::UnixListener;
use std::time::{Duration, Instant};

use colibri_shim::control::{ShimEvent, ShimMessage, ShimOp, ShimReply, ShimStatus, clock_ms};
use colibri_shim::record::ExitRecord;
use colibri_types::NetworkRecord;
use rustix::event::{PollFd, PollFlags};

use crate::connection::{Connection, Received};
use crate::poll::poll_until;

/// Maximum number of connections; further ones wait in the listener's backlog.
const MAX_CONNECTIONS: usize = 16;
/// Average interval between status events. Each event wakes all watchers, so a fast writer must not cause one per write.
const STATUS_INTERVAL: Duration = Duration::from_millis(1);
/// Number of status events that may be sent back to back before [`STATUS_INTERVAL`] applies, as a time credit.
const STATUS_BURST: Duration = STATUS_INTERVAL.saturating_mul(32);
/// Maximum time to send the exit event to slow watchers.
const EXIT_TIMEOUT: Duration = Duration::from_secs(1);

/// Identifies a request: its connection and its sequence number there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct ShimRequestId {
    connection: u64,
    seq: u64,
}

pub(crate) struct ControlServer {
    listener: UnixListener,
    connections: Vec<Connection>,
    next_connection: u64,
    status_limit: RateLimit,
    /// A watcher needs a status event; set by [`ControlServer::is_status_due`].
    status_pending: bool,
}

impl ControlServer {
    pub(crate) fn new(listener: UnixListener) -> Self {
        Self {
            listener,
            connections: Vec::new(),
            next_connection: 0,
            status_limit: RateLimit(Instant::now()),
            status_pending: false,
        }
    }

    pub(crate) fn add(&mut self, mut connection: Connection) {
        connection.id = self.next_connection;
        self.connections.push(connection);
        self.next_connection += 1;
    }

    /// Returns the descriptors to poll before [`ControlServer::receive`].
    pub(crate) fn poll_fds(&self) -> impl Iterator<Item = PollFd<'_>> {
        let accepts = self.connections.len() < MAX_CONNECTIONS;
        let listener = accepts.then(|| PollFd::new(&self.listener, PollFlags::IN));
        let connections = self.connections.iter().map(|connection| {
            let mut events = PollFlags::IN;
            events.set(PollFlags::OUT, connection.has_unsent());
            PollFd::new(&connection.socket, events)
        });
        listener.into_iter().chain(connections)
    }

    /// Returns when the rate limit permits the pending status event.
    pub(crate) fn deadline(&self) -> Option<Instant> {
        self.status_pending.then(|| self.status_limit.next())
    }

    /// Accepts connections and reads requests. Answers invalid and expired requests, and `watch`; returns the others.
    pub(crate) fn receive(&mut self) -> Vec<(ShimRequestId, Received)> {
        while self.connections.len() < MAX_CONNECTIONS
            && let Ok(connection) = Connection::accept(&self.listener)
        {
            self.add(connection);
        }
        let mut requests = Vec::new();
        for connection in &mut self.connections {
            connection.flush();
            for received in connection.receive() {
                let Received { request, .. } = &received;
                let seq = request.seq;
                if let ShimOp::Watch { network } = request.op {
                    connection.watching = true;
                    connection.watches_network = network;
                    connection.outdated = true;
                    connection.reply(seq, ShimReply::Ok);
                } else if request.expires_ms.is_some_and(|at| clock_ms() >= at) {
                    connection.reply(seq, ShimReply::Expired);
                } else {
                    let connection = connection.id;
                    requests.push((ShimRequestId { connection, seq }, received));
                }
            }
        }
        requests
    }

    pub(crate) fn has_connections(&self) -> bool {
        !self.connections.is_empty()
    }

    pub(crate) fn remove_closed(&mut self) {
        self.connections.retain(|connection| !connection.closed);
    }

    /// Answers a request, unless its connection is closed.
    pub(crate) fn reply(&mut self, request: ShimRequestId, reply: ShimReply) {
        if let Some(connection) = self
            .connections
            .iter_mut()
            .find(|connection| connection.id == request.connection)
        {
            connection.reply(request.seq, reply);
        }
    }

    /// Marks the last status of every watcher as outdated.
    pub(crate) fn mark_status_outdated(&mut self) {
        for connection in &mut self.connections {
            connection.outdated = true;
        }
    }

    /// Returns whether a watcher needs a status event and the rate limit permits it.
    pub(crate) fn is_status_due(&mut self) -> bool {
        self.status_pending = self.connections.iter().any(Connection::needs_status);
        self.status_pending && Instant::now() >= self.status_limit.next()
    }

    /// Sends the status to the watchers that have received their previous messages; slower ones get a later status.
    pub(crate) fn publish(&mut self, status: ShimStatus) {
        self.status_pending = false;
        self.status_limit.spend(Instant::now());
        let message = ShimMessage::Event(ShimEvent::Status(status));
        for connection in &mut self.connections {
            if connection.needs_status() {
                connection.outdated = false;
                connection.send(&message);
            }
        }
    }

    /// Sends a report of the agent's proxy to the watchers that requested them.
    pub(crate) fn publish_network(&mut self, record: NetworkRecord) {
        let message = ShimMessage::Event(ShimEvent::Network(record));
        for connection in &mut self.connections {
            if connection.takes_network_events() {
                connection.send(&message);
            }
        }
    }

    /// Sends the exit event to every watcher and waits up to [`EXIT_TIMEOUT`] until it is sent.
    pub(crate) fn publish_exit(&mut self, record: ExitRecord) {
        let message = ShimMessage::Event(ShimEvent::Exit(record));
        let deadline = Instant::now() + EXIT_TIMEOUT;
        let connections = &mut self.connections;
        for watcher in connections.iter_mut().filter(|client| client.watching) {
            watcher.send(&message);
        }
        while Instant::now() < deadline {
            let mut fds: Vec<PollFd<'_>> = self
                .connections
                .iter()
                .filter(|connection| connection.has_unsent() && !connection.closed)
                .map(|connection| PollFd::new(&connection.socket, PollFlags::OUT))
                .collect();
            if fds.is_empty() {
                return;
            }
            let _ = poll_until(&mut fds, Some(deadline));
            for connection in &mut self.connections {
                connection.flush();
            }
        }
    }
}

/// A rate limit of one event per [`STATUS_INTERVAL`] with bursts of [`STATUS_BURST`]. Holds the time of the next event
/// if all events kept the interval.
struct RateLimit(Instant);

impl RateLimit {
    /// Returns when the next event is permitted.
    fn next(&self) -> Instant {
        self.0.checked_sub(STATUS_BURST).unwrap_or(self.0)
    }

    fn spend(&mut self, now: Instant) {
        self.0 = self.0.max(now) + STATUS_INTERVAL;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Spends as many events as are permitted at one time and returns their number.
    fn burst(limit: &mut RateLimit, now: Instant) -> usize {
        let mut count = 0;
        while limit.next() <= now {
            limit.spend(now);
            count += 1;
        }
        count
    }

    #[test]
    fn rate_limit_permits_a_burst_then_one_event_per_interval() {
        let start = Instant::now() + STATUS_BURST;
        let mut limit = RateLimit(start);
        assert_eq!(burst(&mut limit, start), 33);
        for ms in 1..=10 {
            let now = start + STATUS_INTERVAL * ms;
            assert_eq!(burst(&mut limit, now), 1, "{ms}");
        }
        let idle = start + Duration::from_secs(3600);
        assert_eq!(burst(&mut limit, idle), 33, "idle time adds no credit");
    }
}
