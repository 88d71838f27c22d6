//! One connection: frames out under a lock, frames in by a task that hands them to whoever waits.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use colibri_proto::{FrameDecoder, Notification, Response, RpcError, ServerMessage, Subscription};
use serde_json::Value;
use tokio::io::AsyncReadExt;
use tokio::net::unix::OwnedReadHalf;
use tokio::sync::{mpsc, oneshot};

/// Notifications that wait for a slow consumer before the connection is not read any more.
const EVENTS: usize = 64;

pub(crate) type Answer = Result<Value, RpcError>;

/// Who waits for what.
#[derive(Default)]
pub(crate) struct Waiting {
    calls: HashMap<u64, Call>,
    subscriptions: HashMap<u64, mpsc::Sender<Notification>>,
    closed: bool,
}

struct Call {
    answer: oneshot::Sender<Answer>,
    /// A subscription starts with this answer: its channel must be there before the next frame is read.
    events: Option<mpsc::Sender<Notification>>,
}

pub(crate) type Shared = Arc<Mutex<Waiting>>;

pub(crate) fn with<T>(shared: &Shared, act: impl FnOnce(&mut Waiting) -> T) -> T {
    act(&mut shared.lock().unwrap_or_else(PoisonError::into_inner))
}

impl Waiting {
    /// Registers a call; `None` where the connection has ended.
    pub(crate) fn call(&mut self, id: u64) -> Option<oneshot::Receiver<Answer>> {
        self.register(id, None)
    }

    /// Registers a call whose answer starts a subscription.
    pub(crate) fn subscribe(
        &mut self,
        id: u64,
    ) -> Option<(oneshot::Receiver<Answer>, mpsc::Receiver<Notification>)> {
        let (events, receiver) = mpsc::channel(EVENTS);
        Some((self.register(id, Some(events))?, receiver))
    }

    fn register(
        &mut self,
        id: u64,
        events: Option<mpsc::Sender<Notification>>,
    ) -> Option<oneshot::Receiver<Answer>> {
        if self.closed {
            return None;
        }
        let (answer, receiver) = oneshot::channel();
        self.calls.insert(id, Call { answer, events });
        Some(receiver)
    }

    pub(crate) fn forget(&mut self, subscription: u64) {
        self.subscriptions.remove(&subscription);
    }

    fn answer(&mut self, response: Response) {
        let Some(call) = response.id.as_u64().and_then(|id| self.calls.remove(&id)) else {
            return;
        };
        let answer = response.into_result();
        if let (Ok(value), Some(events)) = (&answer, call.events)
            && let Ok(Subscription { subscription }) = serde_json::from_value(value.clone())
        {
            self.subscriptions.insert(subscription, events);
        }
        // Whoever asked may have given up.
        let _ = call.answer.send(answer);
    }
}

/// Reads until the end of the connection. A subscription whose consumer is slow slows the whole
/// connection: what it has not read must wait somewhere, and that is the daemon's journal.
pub(crate) async fn read(mut reader: OwnedReadHalf, shared: Shared) {
    let mut decoder = FrameDecoder::default();
    let mut buffer = vec![0; 64 * 1024];
    'connection: while let Ok(count @ 1..) = reader.read(&mut buffer).await {
        decoder.push(buffer.get(..count).unwrap_or_default());
        while let Some(frame) = decoder.next_frame() {
            let Ok(frame) = frame else { break 'connection };
            match serde_json::from_slice(&frame) {
                Ok(ServerMessage::Response(response)) => {
                    with(&shared, |waiting| waiting.answer(response))
                }
                Ok(ServerMessage::Notification(notification)) => {
                    let number = notification.subscription();
                    let events = with(&shared, |waiting| {
                        waiting.subscriptions.get(&number).cloned()
                    });
                    if let Some(events) = events
                        && events.send(notification).await.is_err()
                    {
                        with(&shared, |waiting| waiting.forget(number));
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
