//! One connection: frames out under a lock, frames in by a task that hands them to whoever waits.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use colibri_proto::{FrameDecoder, Notification, Response, RpcError, ServerMessage};
use tokio::io::AsyncReadExt;
use tokio::net::unix::OwnedReadHalf;
use tokio::sync::{mpsc, oneshot};

pub(crate) type Answer = Result<colibri_proto::Answer, RpcError>;

/// Who waits for what.
#[derive(Default)]
pub(crate) struct Waiting {
    calls: HashMap<u64, oneshot::Sender<Answer>>,
    closed: bool,
}

pub(crate) type Shared = Arc<Mutex<Waiting>>;

pub(crate) fn with<T>(shared: &Shared, act: impl FnOnce(&mut Waiting) -> T) -> T {
    act(&mut shared.lock().unwrap_or_else(PoisonError::into_inner))
}

impl Waiting {
    /// Registers a call; `None` where the connection has ended.
    pub(crate) fn call(&mut self, id: u64) -> Option<oneshot::Receiver<Answer>> {
        if self.closed {
            return None;
        }
        let (answer, receiver) = oneshot::channel();
        self.calls.insert(id, answer);
        Some(receiver)
    }

    pub(crate) fn is_closed(&self) -> bool {
        self.closed
    }

    fn answer(&mut self, response: Response) {
        let id = response.id.as_u64();
        if let Some(answer) = id.and_then(|id| self.calls.remove(&id)) {
            // Whoever asked may have given up.
            let _ = answer.send(response.into_result());
        }
    }
}

/// Reads until the end of the connection, or until nobody takes its events any more. A slow consumer slows the
/// connection: what it has not read must wait somewhere, and that is the daemon's journal.
pub(crate) async fn read(
    mut reader: OwnedReadHalf,
    shared: Shared,
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
                    with(&shared, |waiting| waiting.answer(response));
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
    with(&shared, |waiting| {
        *waiting = Waiting {
            closed: true,
            ..Waiting::default()
        }
    });
}
