//! One connection: callers write frames, and one task reads frames and passes responses to the waiting calls.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use colibri_proto::{FrameDecoder, Notification, RawResult, RpcError, ServerMessage};
use tokio::io::AsyncReadExt;
use tokio::net::unix::OwnedReadHalf;
use tokio::sync::{mpsc, oneshot};

type CallResult = Result<RawResult, RpcError>;

/// The calls that wait for a response, by request id; `None` after the connection has ended.
pub(crate) type PendingCalls = Option<HashMap<u64, oneshot::Sender<CallResult>>>;

pub(crate) type SharedCalls = Arc<Mutex<PendingCalls>>;

pub(crate) fn lock(calls: &SharedCalls) -> MutexGuard<'_, PendingCalls> {
    calls.lock().unwrap_or_else(PoisonError::into_inner)
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
                Ok(ServerMessage::Response(response)) => {
                    let id = response.id.as_u64();
                    let call = id.and_then(|id| lock(&calls).as_mut()?.remove(&id));
                    // Fails if the caller was cancelled.
                    let _ = call.map(|call| call.send(response.into_result()));
                }
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
    *lock(&calls) = None;
}
