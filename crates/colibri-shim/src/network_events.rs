//! Reports of the agent's proxy: read from its pipe at a limited rate, stored in `network.jsonl`, and passed on.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::time::{Duration, Instant};

use colibri_jail_core::printable_ascii;
use colibri_shim::layout;
use colibri_shim::record;
use colibri_types::{NetworkAction, NetworkRecord, NetworkSummary};
use rustix::io::Errno;

/// Maximum length of a line, in bytes. The proxy writes lines of at most PIPE_BUF bytes (pipe(7)).
const MAX_LINE: usize = 4096;
/// Maximum length of a host or a reason, in bytes.
const MAX_TEXT: usize = 300;
/// Maximum length of a time, in bytes.
const MAX_TIME: usize = 40;
/// Maximum size of `network.jsonl`, in bytes.
const MAX_FILE: usize = 1 << 20;
/// Maximum number of lines without a delay. The proxy has a lower limit, and drops what the pipe does not take.
const BURST: u32 = 400;
/// Time after which one more line is read.
const INTERVAL: Duration = Duration::from_millis(50);

/// The reports of all runs.
pub(crate) struct NetworkEvents {
    /// The read end of the pipe of the current run.
    pipe: Option<OwnedFd>,
    received: Vec<u8>,
    /// The rest of a line that is too long follows.
    skips_line: bool,
    tokens: u32,
    refilled: Instant,
    /// Number of bytes in the file.
    stored: usize,
    is_full: bool,
    summary: NetworkSummary,
}

impl NetworkEvents {
    pub(crate) fn new() -> Self {
        Self {
            pipe: None,
            received: Vec::new(),
            skips_line: false,
            tokens: BURST,
            refilled: Instant::now(),
            stored: 0,
            is_full: false,
            summary: NetworkSummary::default(),
        }
    }

    /// Takes over the pipe of a new run.
    pub(crate) fn connect(&mut self, pipe: Option<OwnedFd>) {
        self.pipe = pipe;
        self.received.clear();
        self.skips_line = false;
    }

    /// Returns what was refused so far; `None` if nothing was.
    pub(crate) fn summary(&self) -> Option<NetworkSummary> {
        (self.summary.refused > 0).then(|| self.summary.clone())
    }

    /// Returns the pipe to poll, if the rate limit permits a line.
    pub(crate) fn readable(&self) -> Option<BorrowedFd<'_>> {
        let pipe = self.pipe.as_ref().filter(|_| self.tokens > 0);
        pipe.map(AsFd::as_fd)
    }

    /// Returns when the rate limit permits a line.
    pub(crate) fn deadline(&self) -> Option<Instant> {
        let waits = self.pipe.is_some() && self.tokens == 0;
        waits.then(|| self.refilled + INTERVAL)
    }

    /// Reads and stores lines as the rate limit permits. The others stay in the pipe.
    pub(crate) fn receive(&mut self, now: Instant) -> Vec<NetworkRecord> {
        let intervals =
            now.saturating_duration_since(self.refilled).as_millis() / INTERVAL.as_millis();
        if let Ok(intervals @ 1..) = u32::try_from(intervals.min(u128::from(BURST))) {
            self.tokens = self.tokens.saturating_add(intervals).min(BURST);
            self.refilled = now;
        }
        self.read_lines()
    }

    /// Reads and stores what is left in the pipe after the end of a run, and closes it.
    pub(crate) fn finish(&mut self) -> Vec<NetworkRecord> {
        // More than the lines that a pipe can contain, so that the rest is bounded too.
        self.tokens = self.tokens.saturating_add(BURST);
        let records = self.read_lines();
        self.tokens = self.tokens.min(BURST);
        self.connect(None);
        records
    }

    fn read_lines(&mut self) -> Vec<NetworkRecord> {
        let mut records = Vec::new();
        loop {
            while self.tokens > 0
                && let Some(end) = self.received.iter().position(|byte| *byte == b'\n')
            {
                self.tokens -= 1;
                let line: Vec<u8> = self.received.drain(..=end).collect();
                if !std::mem::take(&mut self.skips_line)
                    && let Some(record) = parse(&line)
                {
                    self.summary.add(&record);
                    self.store(&record);
                    records.push(record);
                }
            }
            if self.tokens == 0 {
                return records;
            }
            if self.received.len() > MAX_LINE {
                self.received.clear();
                self.skips_line = true;
                // A line without an end uses up the rate limit too.
                self.tokens -= 1;
            }
            let Some(pipe) = &self.pipe else {
                return records;
            };
            let mut buffer = [0; MAX_LINE];
            match rustix::io::read(pipe, &mut buffer) {
                Ok(count @ 1..) => self.received.extend(buffer.iter().take(count)),
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => return records,
                Ok(0) | Err(_) => {
                    self.pipe = None;
                    return records;
                }
            }
        }
    }

    /// Appends a record to the file, up to its maximum size. A failed write loses the record in the file only.
    fn store(&mut self, record: &NetworkRecord) {
        if self.is_full {
            return;
        }
        let length = serde_json::to_vec(record).map_or(0, |text| text.len() + 1);
        if self.stored + length <= MAX_FILE {
            if append(record).is_ok() {
                self.stored += length;
            }
            return;
        }
        self.is_full = true;
        let _ = append(&NetworkRecord {
            at: record.at.clone(),
            action: NetworkAction::Full,
            host: None,
            port: None,
            reason: None,
            count: None,
        });
    }
}

fn append(record: &NetworkRecord) -> io::Result<()> {
    record::append(Path::new(layout::NETWORK), record)
}

/// Parses a line; `None` if it is malformed. The proxy parses the agent's bytes, so its texts are not trusted.
fn parse(line: &[u8]) -> Option<NetworkRecord> {
    let record: NetworkRecord = serde_json::from_slice(line).ok()?;
    let is_time = record.at.len() <= MAX_TIME
        && record
            .at
            .bytes()
            .all(|byte| byte.is_ascii_digit() || b"-:.TZ".contains(&byte));
    let is_complete = match record.action {
        NetworkAction::Refused => record.host.is_some() && record.port.is_some(),
        NetworkAction::Dropped => record.count.is_some(),
        NetworkAction::Full => false,
    };
    let refusal = record.action == NetworkAction::Refused;
    (is_time && is_complete).then(|| NetworkRecord {
        at: record.at,
        action: record.action,
        host: record
            .host
            .filter(|_| refusal)
            .as_deref()
            .map(|text| printable_ascii(text, MAX_TEXT)),
        port: record.port.filter(|_| refusal),
        reason: record
            .reason
            .filter(|_| refusal)
            .as_deref()
            .map(|text| printable_ascii(text, MAX_TEXT)),
        count: record.count.filter(|_| !refusal),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{PipeWriter, Write};

    fn events() -> (NetworkEvents, PipeWriter) {
        let (reader, writer) = io::pipe().unwrap();
        rustix::io::ioctl_fionbio(&reader, true).unwrap();
        let mut events = NetworkEvents::new();
        // The tests do not write to the file.
        events.is_full = true;
        events.connect(Some(reader.into()));
        (events, writer)
    }

    fn refused(host: &str) -> String {
        format!(
            "{{\"action\":\"refused\",\"at\":\"2026-01-01T00:00:00.1Z\",\"host\":\"{host}\",\"port\":443,\"reason\":\"r\"}}\n"
        )
    }

    #[test]
    fn lines_are_parsed_or_dropped() {
        let at = "\"at\":\"2026-01-01T00:00:00Z\"";
        for (line, expected) in [
            (refused("a"), Some("a")),
            (refused("a\\u001b[2J\\u200b\\udb40\\udc41"), Some("a?[2J??")),
            (refused(&"x".repeat(400)), Some(&*"x".repeat(MAX_TEXT))),
            (String::new(), None),
            ("[]".to_owned(), None),
            ("\u{0}{".to_owned(), None),
            (format!("{{{at},\"action\":\"refused\"}}"), None),
            (format!("{{{at},\"action\":\"full\"}}"), None),
            (
                format!("{{{at},\"action\":\"other\",\"host\":\"a\",\"port\":1}}"),
                None,
            ),
            (
                "{\"at\":\"\\u001b\",\"action\":\"refused\",\"host\":\"a\",\"port\":1}".to_owned(),
                None,
            ),
            (
                format!("{{{at},\"action\":\"refused\",\"host\":\"a\",\"port\":65536}}"),
                None,
            ),
        ] {
            let found = parse(line.as_bytes()).map(|record| record.host.unwrap());
            assert_eq!(found.as_deref(), expected, "{line}");
        }
        let dropped = format!("{{{at},\"action\":\"dropped\",\"count\":7,\"host\":\"a\"}}");
        let dropped = parse(dropped.as_bytes()).unwrap();
        assert_eq!((dropped.count, dropped.host), (Some(7), None));
    }

    #[test]
    fn split_malformed_and_long_lines_lose_no_other_line() {
        let (mut events, mut writer) = events();
        let now = Instant::now();
        let first = refused("a");
        let (start, end) = first.split_at(10);
        writer.write_all(start.as_bytes()).unwrap();
        assert_eq!(events.receive(now), []);
        writer.write_all(end.as_bytes()).unwrap();
        writer.write_all(b"\xff\n").unwrap();
        writer.write_all(&vec![b'x'; 3 * MAX_LINE]).unwrap();
        writer
            .write_all(format!("\n{}", refused("b")).as_bytes())
            .unwrap();
        let hosts: Vec<_> = events
            .receive(now)
            .into_iter()
            .filter_map(|record| record.host)
            .collect();
        assert_eq!(hosts, ["a", "b"]);
        let summary = events.summary().unwrap();
        assert_eq!(
            (summary.refused, summary.last.unwrap().host.as_deref()),
            (2, Some("b"))
        );
        drop(writer);
        assert_eq!(events.receive(now), []);
        assert!(events.readable().is_none() && events.deadline().is_none());
    }

    #[test]
    fn fast_writer_is_read_at_a_limited_rate() {
        let (mut events, mut writer) = events();
        let now = Instant::now();
        for _ in 0..BURST + 50 {
            writer.write_all(refused("a").as_bytes()).unwrap();
        }
        assert_eq!(events.receive(now).len(), BURST as usize);
        assert!(events.readable().is_none() && events.deadline().is_some());
        assert_eq!(events.receive(now).len(), 0);
        assert_eq!(events.receive(now + INTERVAL * 3).len(), 3);
        // The end of a run.
        assert_eq!(events.finish().len(), 47);
        assert_eq!(events.summary().unwrap().refused, u64::from(BURST) + 50);
    }
}
