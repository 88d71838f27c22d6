//! All connections to the control socket: who is told what, and how often.

use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use colibri_shim::control::{Event, Message, Op, Reply, Request, Status, clock_ms};
use colibri_shim::record::ExitRecord;
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use crate::peer::{self, Peer};

/// Connections beyond this many wait in the listener's backlog.
const MAX_PEERS: usize = 16;
/// Between two statuses in the long run: each of them wakes whoever watches, and a fast writer would have the machine
/// do nothing else.
const PACE: Duration = Duration::from_millis(1);
/// How far statuses may be ahead of that: so many come at once before any has to wait.
const AHEAD: Duration = PACE.saturating_mul(32);

/// Who asked, and the number of the request.
pub(crate) type Asker = (u64, u64);

pub(crate) struct Watchers {
    listener: OwnedFd,
    peers: Vec<(u64, Peer)>,
    next: u64,
    pace: Pace,
    /// One of them waits to be.
    untold: bool,
}

impl Watchers {
    pub(crate) fn new(listener: OwnedFd) -> Self {
        Self {
            listener,
            peers: Vec::new(),
            next: 0,
            pace: Pace(Instant::now()),
            untold: false,
        }
    }

    pub(crate) fn add(&mut self, peer: Peer) {
        self.peers.push((self.next, peer));
        self.next += 1;
    }

    /// What to wait for before [`Watchers::receive`] has something to do.
    pub(crate) fn wanted(&self) -> impl Iterator<Item = PollFd<'_>> {
        let listener =
            (self.peers.len() < MAX_PEERS).then(|| PollFd::new(&self.listener, PollFlags::IN));
        let peers = self.peers.iter().map(|(_, peer)| {
            let wanted = if peer.has_unsent() {
                PollFlags::IN | PollFlags::OUT
            } else {
                PollFlags::IN
            };
            PollFd::from_borrowed_fd(peer.fd(), wanted)
        });
        listener.into_iter().chain(peers)
    }

    /// When [`Watchers::want_status`] is to be asked again, if nothing happens before.
    pub(crate) fn due(&self) -> Option<Instant> {
        self.untold.then(|| self.pace.next())
    }

    /// Requests that have come. Those that could not be read, and `watch`, are answered here.
    pub(crate) fn receive(&mut self) -> Vec<(Asker, Request, Vec<u8>)> {
        while self.peers.len() < MAX_PEERS
            && let Ok(Some(peer)) = peer::accept(&self.listener)
        {
            self.add(peer);
        }
        let mut requests = Vec::new();
        for (id, peer) in &mut self.peers {
            peer.flush();
            for request in peer.receive() {
                match request {
                    Ok((request, _)) if request.op == Op::Watch => {
                        peer.watching = true;
                        peer.outdated = true;
                        peer.send(&Message::Reply {
                            seq: request.seq,
                            reply: Reply::Ok,
                        });
                    }
                    Ok((request, _)) if request.expires_ms.is_some_and(|at| clock_ms() >= at) => {
                        peer.send(&Message::Reply {
                            seq: request.seq,
                            reply: Reply::Expired,
                        });
                    }
                    Ok((request, payload)) => {
                        requests.push(((*id, request.seq), request, payload));
                    }
                    Err(reason) => peer.send(&Message::Reply {
                        seq: 0,
                        reply: Reply::Refused(reason),
                    }),
                }
            }
        }
        requests
    }

    /// Returns whether no peer is connected.
    pub(crate) fn is_alone(&self) -> bool {
        self.peers.is_empty()
    }

    /// Forgets those that have hung up.
    pub(crate) fn drop_gone(&mut self) {
        self.peers.retain(|(_, peer)| !peer.gone);
    }

    pub(crate) fn reply(&mut self, (id, seq): Asker, reply: Reply) {
        if let Some((_, peer)) = self.peers.iter_mut().find(|(peer, _)| *peer == id) {
            peer.send(&Message::Reply { seq, reply });
        }
    }

    /// Something has changed that watchers are to know.
    pub(crate) fn outdate(&mut self) {
        for (_, peer) in &mut self.peers {
            peer.outdated = true;
        }
    }

    /// Whether [`Watchers::publish`] has anybody to tell now.
    pub(crate) fn want_status(&mut self) -> bool {
        self.untold = self.peers.iter().any(|(_, peer)| waits(peer));
        self.untold && Instant::now() >= self.pace.next()
    }

    /// Sends the latest status to watchers that can take it; the others get a later one.
    pub(crate) fn publish(&mut self, status: Status) {
        self.untold = false;
        self.pace.spend(Instant::now());
        let status = Message::Event(Event::Status(status));
        for (_, peer) in self.peers.iter_mut().filter(|(_, peer)| waits(peer)) {
            peer.outdated = false;
            peer.send(&status);
        }
    }

    /// Tells every watcher of the end, waiting a little for those that are slow to read.
    pub(crate) fn farewell(&mut self, record: ExitRecord) {
        let message = Message::Event(Event::Exit(record));
        let until = Instant::now() + Duration::from_secs(1);
        for (_, peer) in self.peers.iter_mut().filter(|(_, peer)| peer.watching) {
            peer.send(&message);
        }
        while Instant::now() < until {
            let unsent = self
                .peers
                .iter()
                .filter(|(_, peer)| peer.has_unsent() && !peer.gone);
            let mut fds: Vec<PollFd<'_>> = unsent
                .map(|(_, peer)| PollFd::from_borrowed_fd(peer.fd(), PollFlags::OUT))
                .collect();
            if fds.is_empty() {
                return;
            }
            let tenth = Timespec {
                tv_sec: 0,
                tv_nsec: 100_000_000,
            };
            let _ = poll(&mut fds, Some(&tenth));
            self.peers.iter_mut().for_each(|(_, peer)| peer.flush());
        }
    }
}

/// Whether it is to be told of something, and has taken what it was told before.
fn waits(peer: &Peer) -> bool {
    peer.watching && peer.outdated && !peer.has_unsent()
}

/// When the next status would be sent if all kept their distance.
struct Pace(Instant);

impl Pace {
    /// When the next one may be sent.
    fn next(&self) -> Instant {
        self.0.checked_sub(AHEAD).unwrap_or(self.0)
    }

    fn spend(&mut self, now: Instant) {
        self.0 = self.0.max(now) + PACE;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn some_statuses_come_at_once_and_many_keep_their_distance() {
        let start = Instant::now() + AHEAD;
        let mut pace = Pace(start);
        // Somebody who writes without end: how many are told at once, then one in each millisecond.
        let mut told = 0;
        while pace.next() <= start {
            pace.spend(start);
            told += 1;
        }
        assert_eq!(told, 33);
        for ms in 1..=10 {
            let now = start + PACE * ms;
            assert!(pace.next() <= now, "{ms}");
            pace.spend(now);
            assert!(pace.next() > now, "{ms}");
        }
        // Somebody who rests may have as many again, and no more for a longer rest.
        let rested = start + Duration::from_secs(3600);
        let mut told = 0;
        while pace.next() <= rested {
            pace.spend(rested);
            told += 1;
        }
        assert_eq!(told, 33);
    }
}
