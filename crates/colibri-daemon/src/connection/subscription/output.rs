//! Sends the output of one agent to one subscriber.

use std::sync::Arc;
use std::time::Duration;

use colibri_proto::{Notification, OutputData, OutputEvent, Stream};
use parking_lot::Mutex;

use super::cursor::{Cursor, OutputBlock, StreamMerge};
use super::{Closed, Subscriber, send_in};
use crate::agent::{AgentSnapshot, RegisteredAgent, StreamOffsets};
use crate::{pool, times};

/// Delay after a failed read of a journal, for example without free descriptors.
pub(super) const READ_RETRY_DELAY: Duration = Duration::from_millis(200);
/// Maximum number of consecutive failed reads (about a minute); then the subscription continues without that output.
const MAX_READ_ATTEMPTS: u32 = 300;

pub(super) struct OutputSender<'a> {
    agent: &'a Arc<RegisteredAgent>,
    subscriber: &'a Subscriber,
    position: Arc<Mutex<StreamOffsets>>,
    /// Shared with the pool thread that reads from it.
    merge: Arc<Mutex<StreamMerge>>,
}

impl<'a> OutputSender<'a> {
    pub(super) fn new(
        agent: &'a Arc<RegisteredAgent>,
        subscriber: &'a Subscriber,
        from: StreamOffsets,
    ) -> Self {
        let cursor = |stream, offset| {
            Cursor::new(
                stream,
                agent.journal(stream),
                offset,
                subscriber.params.timed,
            )
        };
        let merge = StreamMerge {
            stdout: cursor(Stream::Stdout, from.stdout),
            stderr: cursor(Stream::Stderr, from.stderr),
        };
        Self {
            agent,
            subscriber,
            position: agent.subscribe(from),
            merge: Arc::new(Mutex::new(merge)),
        }
    }

    /// Sends output up to the lengths in the snapshot, and stops when stdout has been sent up to `stdout_end`.
    ///
    /// # Errors
    /// The connection is closed.
    pub(super) async fn send_until(
        &mut self,
        snapshot: &AgentSnapshot,
        stdout_end: u64,
    ) -> Result<(), Closed> {
        let status = &snapshot.status;
        let ends = StreamOffsets {
            stdout: status.stdout.min(snapshot.parsed_bytes).min(stdout_end),
            stderr: status.stderr,
        };
        let mut failures = 0;
        while self.has_more(ends, stdout_end) {
            let room = self.subscriber.frames.reserve().await?;
            let merge = self.merge.clone();
            match pool::run(move || merge.lock().next(ends)).await {
                Ok(Some(block)) => {
                    failures = 0;
                    send_in(room, &self.event(block));
                    *self.position.lock() = self.merge.lock().offsets();
                }
                Ok(None) => break,
                Err(error) => {
                    drop(room);
                    failures += 1;
                    let id = &self.agent.spec.id;
                    if failures > MAX_READ_ATTEMPTS {
                        tracing::error!(%id, %error, "cannot read journal; a subscriber misses output");
                        return Ok(());
                    }
                    tracing::warn!(%id, %error, "cannot read journal; trying again");
                    let closed = self.subscriber.frames.closed();
                    // The next reservation reports a closed connection.
                    let _ = tokio::time::timeout(READ_RETRY_DELAY, closed).await;
                }
            }
        }
        // A subscription to all agents would keep too many files open.
        if self.subscriber.params.id.is_none() {
            self.merge.lock().close_files();
        }
        Ok(())
    }

    /// Reports whether output is left to send. Output after `stdout_end` waits for the event, and so does stderr when
    /// stdout has reached it.
    fn has_more(&self, ends: StreamOffsets, stdout_end: u64) -> bool {
        let merge = self.merge.lock();
        merge.has_more(ends) && (stdout_end == u64::MAX || merge.offsets().stdout < ends.stdout)
    }

    fn event(&self, block: OutputBlock) -> Notification {
        Notification::AgentOutput(OutputEvent {
            subscription: self.subscriber.number,
            id: self.agent.spec.id.to_string(),
            stream: block.stream,
            offset: block.offset,
            data: OutputData::from(block.bytes),
            time: block.at_ns.map(times::format_ns),
        })
    }
}
