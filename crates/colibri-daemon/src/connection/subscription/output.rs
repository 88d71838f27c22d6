//! Sends the output of one agent to one subscriber.

use std::sync::Arc;
use std::time::Duration;

use colibri_proto::{Notification, OutputData, OutputEvent};

use super::Subscriber;
use super::cursor::{Cursor, JournalLengths, OutputBlock, StreamMerge};
use crate::agent::{AgentSnapshot, RegisteredAgent, StreamOffset, SubscriberPosition};
use crate::{pool, times};

/// Delay after a failed read of a journal, for example without free descriptors.
pub(super) const READ_RETRY_DELAY: Duration = Duration::from_millis(200);
/// Maximum number of consecutive failed reads (about a minute); then the subscription continues without that output.
const MAX_READ_ATTEMPTS: u32 = 300;

pub(super) struct OutputSender<'a> {
    agent: &'a Arc<RegisteredAgent>,
    subscriber: &'a Subscriber,
    position: Arc<SubscriberPosition>,
    /// Absent while a pool thread reads from it.
    merge: Option<StreamMerge>,
}

impl<'a> OutputSender<'a> {
    pub(super) fn new(
        agent: &'a Arc<RegisteredAgent>,
        subscriber: &'a Subscriber,
        from: &[StreamOffset],
    ) -> Self {
        let cursors = from.iter().map(|from| {
            let journal = agent.journal(from.stream);
            Cursor::new(from.stream, journal, from.offset, subscriber.params.timed)
        });
        Self {
            agent,
            subscriber,
            position: agent.subscribe(from),
            merge: Some(StreamMerge::new(cursors.collect())),
        }
    }

    /// Sends output up to the lengths in the snapshot, and stops when stdout has been sent up to `stdout_end`. Returns
    /// `false` if the connection is closed.
    pub(super) async fn send_until(&mut self, snapshot: &AgentSnapshot, stdout_end: u64) -> bool {
        let ends = JournalLengths {
            stdout: snapshot
                .status
                .stdout
                .min(snapshot.parsed_bytes)
                .min(stdout_end),
            stderr: snapshot.status.stderr,
        };
        let mut failures = 0;
        loop {
            // Output after `stdout_end` waits for the event, and so does stderr when stdout has reached it.
            let has_more = |merge: &&StreamMerge| {
                merge.has_more(ends) && (stdout_end == u64::MAX || merge.is_before(ends.stdout))
            };
            if self.merge.as_ref().filter(has_more).is_none() {
                break;
            }
            let Ok(room) = self.subscriber.frames.reserve().await else {
                return false;
            };
            let Some(mut merge) = self.merge.take() else {
                return false;
            };
            let (merge, next) = pool::run(move || {
                let next = merge.next(ends);
                (merge, next)
            })
            .await;
            self.merge = Some(merge);
            match next {
                Ok(Some(block)) => {
                    failures = 0;
                    let (stream, end) = (block.stream, block.end());
                    match self.event(block).encode() {
                        Ok(frame) => room.send(frame),
                        Err(error) => tracing::error!(%error, "cannot send notification"),
                    }
                    self.position.advance(stream, end);
                }
                Ok(None) => break,
                Err(error) => {
                    drop(room);
                    failures += 1;
                    let id = &self.agent.spec.id;
                    if failures > MAX_READ_ATTEMPTS {
                        tracing::error!(%id, %error, "cannot read journal; a subscriber misses output");
                        return true;
                    }
                    tracing::warn!(%id, %error, "cannot read journal; trying again");
                    tokio::select! {
                        () = tokio::time::sleep(READ_RETRY_DELAY) => {}
                        () = self.subscriber.frames.closed() => return false,
                    }
                }
            }
        }
        // A subscription to all agents would keep too many files open.
        if self.subscriber.params.id.is_none()
            && let Some(merge) = &mut self.merge
        {
            merge.close_files();
        }
        true
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
