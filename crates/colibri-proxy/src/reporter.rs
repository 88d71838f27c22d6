//! Reports refusals: lines on the agent's standard error, and events for the daemon.

use std::io::{self, IsTerminal, Write};
use std::os::fd::OwnedFd;
use std::sync::mpsc::{SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use colibri_jail_core::{Destination, printable_ascii};
use serde::Serialize;

/// Maximum length of a line on standard error, in bytes.
const MAX_LINE: usize = 500;
/// Maximum length of a host or a reason in an event, in bytes. With both, a line is shorter than the least PIPE_BUF, 512.
const MAX_FIELD: usize = 180;
/// Number of lines that wait while the reader of standard error is slow.
const QUEUE: usize = 64;
/// Maximum number of lines without a delay, and of events.
const BURST: u32 = 200;
/// Time after which one more line is permitted.
const INTERVAL: Duration = Duration::from_millis(100);
/// Delay until dropped lines are reported.
const DROPPED_DELAY: Duration = Duration::from_secs(1);

/// A rate limit: a token bucket.
#[derive(Debug)]
struct RateLimit {
    tokens: u32,
    refilled: Instant,
}

impl RateLimit {
    fn new(now: Instant) -> Self {
        Self {
            tokens: BURST,
            refilled: now,
        }
    }

    /// Returns whether a line is permitted now.
    fn permit(&mut self, now: Instant) -> bool {
        let intervals =
            now.saturating_duration_since(self.refilled).as_millis() / INTERVAL.as_millis();
        let intervals = u32::try_from(intervals).unwrap_or(u32::MAX);
        if intervals > 0 {
            self.tokens = self.tokens.saturating_add(intervals).min(BURST);
            self.refilled = now;
        }
        match self.tokens.checked_sub(1) {
            Some(tokens) => {
                self.tokens = tokens;
                true
            }
            None => false,
        }
    }
}

#[derive(Debug)]
struct State {
    lines: RateLimit,
    dropped_lines: u64,
    events: RateLimit,
    dropped_events: u64,
    /// A task reports the dropped ones soon.
    reporting: bool,
}

/// Reports refusals and other problems of clients, at a limited rate.
#[derive(Debug)]
pub(crate) struct Reporter {
    state: Mutex<State>,
    /// To the thread that writes to standard error, whose pipe the agent can fill.
    lines: SyncSender<String>,
    /// A descriptor that does not block.
    events: Option<OwnedFd>,
}

/// An event, one line of JSON.
#[derive(Debug, Serialize)]
#[serde(tag = "action", rename_all = "kebab-case")]
enum Event<'a> {
    /// The policy refused a connection or a request.
    Refused {
        at: String,
        host: &'a str,
        port: u16,
        reason: &'a str,
    },
    /// This number of events was not written.
    Dropped { at: String, count: u64 },
}

/// Returns the time in RFC 3339, with milliseconds.
fn now() -> String {
    let now = jiff::Timestamp::now();
    now.round(jiff::Unit::Millisecond)
        .unwrap_or(now)
        .to_string()
}

impl Reporter {
    /// Starts a thread that writes to standard error, unless that is a terminal and `events` are read.
    ///
    /// # Errors
    /// The thread cannot be started.
    pub(crate) fn new(events: Option<OwnedFd>) -> io::Result<Arc<Self>> {
        let now = Instant::now();
        let (lines, queued) = sync_channel::<String>(QUEUE);
        let (started, ready) = sync_channel(1);
        // A line on the screen of a full-screen program would damage it, and the events have the refusals too.
        let shows_lines = events.is_none() || !io::stderr().is_terminal();
        thread::Builder::new().stack_size(64 << 10).spawn(move || {
            let _ = started.send(());
            queued
                .iter()
                .filter(|_| shows_lines)
                .for_each(|line| write_line(&line));
        })?;
        // The start of a thread needs system calls that the process gives up next.
        ready.recv().map_err(io::Error::other)?;
        Ok(Arc::new(Self {
            lines,
            state: Mutex::new(State {
                lines: RateLimit::new(now),
                dropped_lines: 0,
                events: RateLimit::new(now),
                dropped_events: 0,
                reporting: false,
            }),
            events,
        }))
    }

    /// Reports that the policy refuses a destination.
    pub(crate) fn refused(self: &Arc<Self>, destination: &Destination, reason: &str) {
        self.notice(&format!("refused a connection to {destination}: {reason}"));
        if self.events.is_none() {
            return;
        }
        let host = printable_ascii(&destination.host().to_string(), MAX_FIELD);
        let event = Event::Refused {
            at: now(),
            host: &host,
            port: destination.port(),
            reason: &printable_ascii(reason, MAX_FIELD),
        };
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if !state.events.permit(Instant::now()) || self.write_event(&event).is_err() {
            state.dropped_events += 1;
            self.report_dropped_later(&mut state);
        }
    }

    /// Writes one line to standard error, which is the agent's.
    pub(crate) fn notice(self: &Arc<Self>, message: &str) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if !state.lines.permit(Instant::now()) || self.lines.try_send(message.to_owned()).is_err() {
            state.dropped_lines += 1;
            self.report_dropped_later(&mut state);
        }
    }

    fn write_event(&self, event: &Event) -> io::Result<()> {
        let Some(events) = &self.events else {
            return Ok(());
        };
        let mut line = serde_json::to_vec(event)?;
        line.push(b'\n');
        // A line is shorter than PIPE_BUF, so it is written as a whole or not at all (pipe(7)).
        match rustix::io::write(events, &line)? == line.len() {
            true => Ok(()),
            false => Err(io::ErrorKind::WriteZero.into()),
        }
    }

    fn report_dropped_later(self: &Arc<Self>, state: &mut State) {
        if !std::mem::replace(&mut state.reporting, true) {
            let reporter = self.clone();
            tokio::spawn(async move {
                while reporter.state_after_report() {
                    tokio::time::sleep(DROPPED_DELAY).await;
                }
            });
        }
    }

    /// Reports dropped lines and events if permitted. Returns whether some remain, or were just reported.
    fn state_after_report(&self) -> bool {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let now_instant = Instant::now();
        let lines = state.dropped_lines;
        let mut busy = lines > 0 || state.dropped_events > 0;
        if lines > 0 && state.lines.permit(now_instant) {
            let line = format!("{lines} lines like these were not shown");
            if self.lines.try_send(line).is_ok() {
                state.dropped_lines = 0;
            }
        }
        let count = state.dropped_events;
        if count > 0 && state.events.permit(now_instant) {
            let event = Event::Dropped { at: now(), count };
            match self.write_event(&event) {
                Ok(()) => state.dropped_events = 0,
                // The reader has gone: nothing can be reported.
                Err(error) if error.kind() != io::ErrorKind::WouldBlock => state.dropped_events = 0,
                Err(_) => {}
            }
        }
        busy |= state.dropped_lines > 0;
        state.reporting = busy;
        busy
    }
}

/// Writes one line of printable ASCII and limited length to standard error.
pub(crate) fn write_line(message: &str) {
    let message = printable_ascii(message, MAX_LINE);
    let _ = io::stderr().write_all(format!("colibri-proxy: {message}\n").as_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{BufRead, BufReader};
    use std::os::unix::net::UnixStream;

    #[test]
    fn rate_limit_permits_a_burst_and_refills() {
        let start = Instant::now();
        let mut limit = RateLimit::new(start);
        let burst = (0..1000).filter(|_| limit.permit(start)).count();
        assert_eq!(burst, BURST as usize);
        assert!(!limit.permit(start + INTERVAL / 2));
        assert!(limit.permit(start + INTERVAL));
        assert!(!limit.permit(start + INTERVAL));
        let later = start + INTERVAL * 1_000_000;
        let burst = (0..1000).filter(|_| limit.permit(later)).count();
        assert_eq!(burst, BURST as usize);
    }

    #[tokio::test]
    async fn refusals_become_events_until_the_reader_is_slow() {
        let (reader, writer) = UnixStream::pair().unwrap();
        writer.set_nonblocking(true).unwrap();
        let reporter = Reporter::new(Some(writer.into())).unwrap();
        let destination = "a.example:443".parse().unwrap();
        for _ in 0..BURST + 50 {
            reporter.refused(&destination, "it is \u{7}not in the allow list");
        }
        let dropped = reporter.state.lock().unwrap().dropped_events;
        assert!(dropped >= 40, "{dropped}");
        drop(reporter);
        let mut lines = BufReader::new(reader).lines();
        let first: serde_json::Value =
            serde_json::from_str(&lines.next().unwrap().unwrap()).unwrap();
        assert_eq!(first["action"], "refused");
        assert_eq!(first["host"], "a.example");
        assert_eq!(first["port"], 443);
        assert_eq!(first["reason"], "it is ?not in the allow list");
        let at: jiff::Timestamp = first["at"].as_str().unwrap().parse().unwrap();
        assert!(at <= jiff::Timestamp::now());
    }
}
