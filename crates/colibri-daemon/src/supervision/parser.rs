//! Parses an agent's events from its journal, in slices of bounded size on the thread pool.
//!
//! ```text
//! journal: |---- parsed ----|---------------- backlog ----------------|
//!                           cursor        (skipped if too long)        end
//! ```

use std::sync::Arc;

use colibri_glasspane::Glasspane;
use colibri_journal::{JournalError, JournalReader};
use colibri_proto::Stream;

use crate::agent::RegisteredAgent;
use crate::pool;

/// Maximum size of a slice, in bytes; between slices other agents get a turn.
const SLICE_BYTES: u64 = 256 * 1024;
/// Size of one read within a slice, in bytes.
const READ_BYTES: usize = 64 * 1024;
/// Maximum backlog that is parsed completely, in bytes; only the end of a longer one is parsed.
pub(super) const MAX_BACKLOG_BYTES: u64 = 64 << 20;
/// Maximum backlog that is parsed before the end of an agent is published, in bytes.
pub(super) const LAST_BACKLOG_BYTES: u64 = 1 << 20;
/// Number of bytes at the end of a longer backlog that are parsed.
const BACKLOG_TAIL_BYTES: u64 = 1 << 20;

/// An agent's glasspane, and the offset up to which its journal has been parsed.
pub(super) struct EventParser {
    pub(super) pane: Glasspane,
    pub(super) agent: Arc<RegisteredAgent>,
    journal: JournalReader,
    cursor: u64,
    /// End offset of the last line that changed the state.
    pub(super) state_offset: Option<u64>,
    /// End offset of the last line that changed the state or the tool.
    pub(super) view_offset: Option<u64>,
    /// The journal cannot be read further: it was truncated or removed.
    is_truncated: bool,
    /// A read failed; the parser reads again with the next status of the shim.
    read_failed: bool,
    skip_logged: bool,
}

impl EventParser {
    pub(super) fn new(agent: Arc<RegisteredAgent>, pane: Glasspane) -> Self {
        Self {
            pane,
            journal: agent.journal(Stream::Stdout),
            agent,
            cursor: 0,
            state_offset: None,
            view_offset: None,
            is_truncated: false,
            read_failed: false,
            skip_logged: false,
        }
    }

    /// Returns the number of parsed bytes of stdout; `u64::MAX` if none need parsing or none can be read.
    pub(super) fn parsed_bytes(&self) -> u64 {
        match self.pane.needs_output() && !self.is_truncated && !self.read_failed {
            true => self.cursor,
            false => u64::MAX,
        }
    }

    /// Reports whether bytes before `end` can be parsed now.
    pub(super) fn is_behind(&self, end: u64) -> bool {
        self.parsed_bytes() < end
    }

    fn skip_to(&mut self, offset: u64) {
        let skipped = offset.saturating_sub(self.cursor);
        self.cursor = offset;
        self.pane.skip_output(skipped);
        if !std::mem::replace(&mut self.skip_logged, true) {
            let id = &self.agent.spec.id;
            tracing::warn!(%id, skipped, "skipping events: the agent writes faster than the daemon parses; see skipped_bytes");
        }
    }

    /// Parses one slice of the output before `end`. Skips a backlog that is longer than `limit`, except its end. The
    /// incomplete line at the start of that end is skipped too.
    pub(super) async fn parse_some(mut self, end: u64, limit: u64, now: u64) -> Self {
        self.read_failed = false;
        if !self.is_behind(end) {
            return self;
        }
        if end - self.cursor > limit {
            self.skip_to(end.saturating_sub(BACKLOG_TAIL_BYTES.min(limit)));
        }
        pool::run_in(&pool::PARSE_SLOTS, move || {
            self.parse(end.min(self.cursor.saturating_add(SLICE_BYTES)), now);
            self
        })
        .await
    }

    /// Parses all output before `end`, slice by slice, until a read fails. `limit` is that of [`Self::parse_some`].
    pub(super) async fn parse_all(mut self, end: u64, limit: u64, now: u64) -> Self {
        self.read_failed = false;
        while self.is_behind(end) {
            self = self.parse_some(end, limit, now).await;
        }
        self
    }

    fn parse(&mut self, end: u64, now: u64) {
        let mut buffer = vec![0; READ_BYTES];
        while self.cursor < end && self.pane.needs_output() {
            let left = usize::try_from(end - self.cursor).unwrap_or(READ_BYTES);
            let room = buffer.get_mut(..left.min(READ_BYTES)).unwrap_or_default();
            let id = &self.agent.spec.id;
            match self.journal.read(self.cursor, room) {
                Ok(0) | Err(JournalError::BeyondEnd { .. }) => {
                    tracing::warn!(%id, offset = self.cursor, "cannot parse events: the journal was truncated or removed");
                    self.is_truncated = true;
                    return;
                }
                Ok(count) => self.parse_lines(buffer.get(..count).unwrap_or_default(), now),
                // Retention has dropped these bytes: continue with the oldest kept one.
                Err(JournalError::BelowOldest { oldest, .. }) if oldest > self.cursor => {
                    self.skip_to(oldest);
                }
                Err(error) => {
                    tracing::warn!(%id, %error, "cannot read events; trying again with the next status");
                    self.read_failed = true;
                    return;
                }
            }
        }
    }

    fn parse_lines(&mut self, bytes: &[u8], now: u64) {
        for line in bytes.split_inclusive(|byte| *byte == b'\n') {
            let before = (self.pane.state_changes(), self.pane.tool_changes());
            self.pane.push_output(line, now);
            self.cursor += line.len() as u64;
            if self.pane.state_changes() != before.0 {
                self.state_offset = Some(self.cursor);
            }
            if (self.pane.state_changes(), self.pane.tool_changes()) != before {
                self.view_offset = Some(self.cursor);
            }
        }
    }
}
