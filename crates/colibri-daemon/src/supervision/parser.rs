//! Parses an agent's events from its journal, in slices of bounded size on the thread pool.
//!
//! ```text
//! journal: |---- parsed ----|---------------- backlog ----------------|
//!                           cursor        (skipped if too long)        end
//! ```

use std::io;
use std::sync::Arc;

use colibri_glasspane::Glasspane;
use colibri_journal::{JournalError, JournalReader};
use colibri_proto::Stream;

use crate::pool;
use crate::registry::Entry;

/// Maximum size of a slice, in bytes; between slices other agents get a turn.
const SLICE: u64 = 256 * 1024;
/// Size of one read within a slice, in bytes.
const READ: usize = 64 * 1024;
/// Maximum backlog that is parsed completely, in bytes; of a longer one only the end is parsed.
pub(crate) const BACKLOG: u64 = 64 << 20;
/// Maximum backlog that is parsed before the end of an agent is published, in bytes.
pub(crate) const LAST_BACKLOG: u64 = 1 << 20;
/// Part of a backlog over the maximum that is still parsed: its last bytes.
const KEPT: u64 = 1 << 20;

/// An agent's pane, and how far its journal has been parsed.
pub(crate) struct Parser {
    pub(crate) pane: Glasspane,
    entry: Arc<Entry>,
    journal: JournalReader,
    cursor: u64,
    /// End offset of the last line that changed the state.
    pub(crate) changed_at: Option<u64>,
    /// Where the line ends that last changed the state or the tool.
    pub(crate) noted_at: Option<u64>,
    /// The journal cannot be read further: it was truncated or removed.
    gone: bool,
    /// A read failed; it is retried with the next status of the shim.
    failed: bool,
    skip_logged: bool,
}

impl Parser {
    pub(crate) fn new(entry: Arc<Entry>, pane: Glasspane) -> Self {
        Self {
            pane,
            journal: entry.journal(Stream::Stdout),
            entry,
            cursor: 0,
            changed_at: None,
            noted_at: None,
            gone: false,
            failed: false,
            skip_logged: false,
        }
    }

    /// Returns the number of parsed bytes of stdout; `u64::MAX` if none need parsing or none can be read.
    pub(crate) fn parsed(&self) -> u64 {
        match self.pane.needs_output() && !self.gone && !self.failed {
            true => self.cursor,
            false => u64::MAX,
        }
    }

    /// Returns whether bytes before `end` can be parsed now.
    pub(crate) fn is_behind(&self, end: u64) -> bool {
        self.parsed() < end
    }

    /// Skips a backlog that is longer than `limit`, except its end. A line that is cut at the start of the rest is
    /// skipped too.
    pub(crate) fn skip_backlog(&mut self, end: u64, limit: u64) {
        if self.is_behind(end) && end - self.cursor > limit {
            self.skip_to(end.saturating_sub(KEPT.min(limit)));
        }
    }

    fn skip_to(&mut self, offset: u64) {
        let skipped = offset.saturating_sub(self.cursor);
        self.cursor = offset;
        self.pane.skip_output(skipped);
        if !std::mem::replace(&mut self.skip_logged, true) {
            let id = &self.entry.spec.id;
            tracing::warn!(%id, skipped, "events skipped: the agent writes faster than they are parsed; see skipped_bytes");
        }
    }

    /// Parses one slice, at most up to `end`.
    ///
    /// # Errors
    /// The daemon is shutting down.
    pub(crate) async fn slice(mut self, end: u64, now: u64) -> io::Result<Self> {
        self.failed = false;
        if !self.is_behind(end) {
            return Ok(self);
        }
        pool::parse(move || {
            self.parse(end.min(self.cursor.saturating_add(SLICE)), now);
            self
        })
        .await
    }

    /// Parses all up to `end`, slice by slice, with a backlog of at most `limit`.
    ///
    /// # Errors
    /// The daemon is shutting down.
    pub(crate) async fn all(mut self, end: u64, limit: u64, now: u64) -> io::Result<Self> {
        self.failed = false;
        self.skip_backlog(end, limit);
        while self.is_behind(end) {
            self = self.slice(end, now).await?;
            if self.failed {
                break;
            }
        }
        Ok(self)
    }

    fn parse(&mut self, end: u64, now: u64) {
        let mut buffer = vec![0; READ];
        while self.cursor < end {
            let left = usize::try_from(end - self.cursor).unwrap_or(READ);
            let room = buffer.get_mut(..left.min(READ)).unwrap_or_default();
            let id = &self.entry.spec.id;
            match self.journal.read(self.cursor, room) {
                Ok(0) | Err(JournalError::BeyondEnd { .. }) => {
                    tracing::warn!(%id, offset = self.cursor, "events not parsed: the journal is shorter than it was, or was removed");
                    self.gone = true;
                    return;
                }
                Ok(count) => self.lines(buffer.get(..count).unwrap_or_default(), now),
                // Retention has dropped these bytes: continue with the oldest kept one.
                Err(JournalError::BelowOldest { oldest, .. }) if oldest > self.cursor => {
                    self.skip_to(oldest);
                }
                Err(error) => {
                    tracing::warn!(%id, %error, "events not read");
                    self.failed = true;
                    return;
                }
            }
        }
    }

    fn lines(&mut self, bytes: &[u8], now: u64) {
        for line in bytes.split_inclusive(|byte| *byte == b'\n') {
            let before = (self.pane.state_changes(), self.pane.tool_changes());
            self.pane.push_output(line, now);
            self.cursor += line.len() as u64;
            if self.pane.state_changes() != before.0 {
                self.changed_at = Some(self.cursor);
            }
            if (self.pane.state_changes(), self.pane.tool_changes()) != before {
                self.noted_at = Some(self.cursor);
            }
        }
    }
}
