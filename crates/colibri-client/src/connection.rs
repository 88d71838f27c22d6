//! One connection: callers write frames, and one task reads frames and passes responses to the waiting calls.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use colibri_proto::{FrameDecoder, Notification, RawResult, Response, RpcError, ServerMessage};
use tokio::io::AsyncReadExt;
use tokio::net::unix::OwnedReadHalf;
use tokio::sync::{mpsc, oneshot};

type CallResult = Result<RawResult, RpcError>;

/// The calls that wait for a response, by request id.
#[derive(Default)]
pub(crate) struct PendingCalls {
    calls: HashMap<u64, oneshot::Sender<CallResult>>,
    closed: bool,
}

pub(crate) type SharedCalls = Arc<Mutex<PendingCalls>>;

pub(crate) fn lock(calls: &SharedCalls) -> MutexGuard<'_, PendingCalls> {
    calls.lock().unwrap_or_else(PoisonError::into_inner)
}

impl PendingCalls {
    /// Registers a call; returns `None` if the connection has ended.
    pub(crate) fn register(&mut self, id: u64) -> Option<oneshot::Receiver<CallResult>> {
        if self.closed {
            return None;
        }
        let (sender, receiver) = oneshot::channel();
        self.calls.insert(id, sender);
        Some(receiver)
    }

    pub(crate) fn is_closed(&self) -> bool {
        self.closed
    }

    fn complete(&mut self, response: Response) {
        let id = response.id.as_u64();
        if let Some(call) = id.and_then(|id| self.calls.remove(&id)) {
            // Fails if the caller was cancelled.
            let _ = call.send(response.into_result());
        }
    }
}

/// Reads until the connection ends or the receiver of `events` is dropped. A slow receiver gets backpressure: further
/// output stays in the journals.
pub(crate) async fn read(
    mut reader: OwnedReadHalf,
    calls: SharedCalls,
    events: Option<mpsc::Sender<Notification>>,
) {
    let mut decoder = FrameDecoder::default();
    let mut buffer = vec![0; 64 * 1024];
    'connection: while let Ok(count @ 1..) = reader.read(&mut buffer).await {
        decoder.push(buffer.get(..count).unwrap_or_default());
        while let Some(frame) = decoder.next_frame() {
            let Ok(frame) = frame else { break 'connection };
            match ServerMessage::parse(frame) {
                Ok(ServerMessage::Response(response)) => lock(&calls).complete(response),
                Ok(ServerMessage::Notification(notification)) => {
                    if let Some(events) = &events
                        && events.send(notification).await.is_err()
                    {
                        break 'connection;
                    }
                }
                // A notification of a later version.
                Err(_) => {}
            }
        }
    }
    *lock(&calls) = PendingCalls {
        closed: true,
        ..PendingCalls::default()
    };
}
