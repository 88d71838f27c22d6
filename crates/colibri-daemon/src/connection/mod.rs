//! One connection: frames in, calls, frames out through a bounded queue.
//!
//! Quick calls are answered in order; those that wait for an agent run beside, a bounded number of them.

pub(crate) mod server;
mod subscription;

pub(crate) use subscription::bytes_at;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use colibri_proto::{
    Answer, Call, Empty, ErrorKind, FrameDecoder, FrameError, Refusal, Request, RequestId,
    Response, RpcError, Subscription,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::net::unix::OwnedWriteHalf;
use tokio::sync::{Semaphore, mpsc};
use tokio::task::JoinHandle;

use crate::connection::server::Server;
use crate::daemon::audit::Peer;
use crate::handlers::{self, reply};
use subscription::{Frames, Wanted};

/// Frames that wait for a slow peer; then whoever wants to send waits, and holds nothing meanwhile. With the
/// one that is being written, subscriptions hold at most 5 frames a connection, however many they are: of
/// 64 KiB of output each, which are 384 KiB where every byte needs an escape, so below 2 MiB.
const FRAMES: usize = 4;
/// Calls of one connection that run beside each other; then it is not read.
const CALLS: usize = 64;
/// Subscriptions of one connection.
const SUBSCRIPTIONS: usize = 64;

/// Serves one peer until it hangs up or the daemon ends.
pub(crate) async fn serve(server: Arc<Server>, stream: UnixStream, peer: Peer, allowed: bool) {
    let (mut reader, writer) = stream.into_split();
    let (frames, queue) = mpsc::channel(FRAMES);
    let sender = tokio::spawn(write(writer, queue));
    let mut ending = server.ending.subscribe();
    let mut connection = Connection {
        server,
        peer,
        frames,
        calls: Arc::new(Semaphore::new(CALLS)),
        subscriptions: HashMap::new(),
        next_subscription: 0,
    };
    if !allowed {
        let error = RpcError::new(
            ErrorKind::PeerRefused,
            format!("user {} may not use this daemon", peer.uid),
        )
        .hint("run as the daemon's user, or have a socket_group configured");
        connection.answer(RequestId::null(), Err(error)).await;
    } else {
        let mut decoder = FrameDecoder::default();
        let mut buffer = vec![0; 16 * 1024];
        'reading: loop {
            let count = tokio::select! {
                read = reader.read(&mut buffer) => match read {
                    Ok(count @ 1..) => count,
                    _ => break,
                },
                _ = ending.wait_for(|ending| *ending) => break,
                () = connection.frames.closed() => break,
            };
            decoder.push(buffer.get(..count).unwrap_or_default());
            while let Some(frame) = decoder.next_frame() {
                if !connection.frame(frame).await {
                    break 'reading;
                }
            }
        }
    }
    for (_, task) in connection.subscriptions.drain() {
        task.abort();
    }
    // Calls on their way keep the queue open until they are answered.
    drop(connection);
    let _ = sender.await;
}

async fn write(mut writer: OwnedWriteHalf, mut queue: mpsc::Receiver<Vec<u8>>) {
    while let Some(frame) = queue.recv().await {
        if writer.write_all(&frame).await.is_err() {
            return;
        }
    }
}

/// A subscription's work.
type Stream = std::pin::Pin<Box<dyn Future<Output = ()> + Send>>;

struct Connection {
    server: Arc<Server>,
    peer: Peer,
    frames: Frames,
    calls: Arc<Semaphore>,
    subscriptions: HashMap<u64, JoinHandle<()>>,
    next_subscription: u64,
}

impl Connection {
    /// Handles one frame; `false` where the connection must end.
    async fn frame(&mut self, frame: Result<&[u8], FrameError>) -> bool {
        let frame = match frame {
            Ok(frame) => frame,
            Err(error) => {
                let refusal = RpcError::new(ErrorKind::FrameTooLong, error.to_string());
                self.count("unknown", Some(&refusal));
                self.answer(RequestId::null(), Err(refusal)).await;
                return error == FrameError::TooLong;
            }
        };
        let request = match Request::read(frame) {
            Ok(request) => request,
            Err(Refusal { id, error }) => {
                self.count("unknown", Some(&error));
                return self.answer(id, Err(error)).await;
            }
        };
        let id = request.id.clone();
        let method = request.known_method().unwrap_or("unknown");
        match request.call() {
            Ok(call) => self.call(id, method, call).await,
            Err(error) => {
                self.count(method, Some(&error));
                self.answer_if_wanted(id, Err(error)).await
            }
        }
    }

    async fn call(&mut self, id: Option<RequestId>, method: &'static str, call: Call) -> bool {
        match call {
            Call::Subscribe(params) => {
                let started = self.subscribe(&params);
                self.count(method, started.as_ref().err());
                match started {
                    Ok((number, task)) => {
                        let told = self
                            .answer_if_wanted(
                                id,
                                reply(&Subscription {
                                    subscription: number,
                                }),
                            )
                            .await;
                        self.subscriptions.insert(number, tokio::spawn(task));
                        told
                    }
                    Err(error) => self.answer_if_wanted(id, Err(error)).await,
                }
            }
            Call::Unsubscribe(Subscription { subscription }) => {
                let outcome = match self.subscriptions.remove(&subscription) {
                    Some(task) => {
                        task.abort();
                        reply(&Empty {})
                    }
                    None => Err(RpcError::new(
                        ErrorKind::UnknownSubscription,
                        format!("subscription {subscription} is not one of this connection"),
                    )),
                };
                self.count(method, outcome.as_ref().err());
                self.answer_if_wanted(id, outcome).await
            }
            Call::SpawnAgent(_)
            | Call::KillAgent(_)
            | Call::RestartAgent(_)
            | Call::RemoveAgent(_)
            | Call::WaitAgent(_)
            | Call::ReloadConfig(_)
            | Call::GetUsage(_)
            | Call::Doctor(_) => {
                let Ok(permit) = self.calls.clone().acquire_owned().await else {
                    return false;
                };
                let (server, peer, frames) = (self.server.clone(), self.peer, self.frames.clone());
                tokio::spawn(async move {
                    let gone = frames.clone();
                    let outcome = match call {
                        // Nobody waits any more when the connection has ended.
                        Call::WaitAgent(_) => tokio::select! {
                            outcome = handlers::perform(&server, peer, method, call) => outcome,
                            () = gone.closed() => return,
                        },
                        call => handlers::perform(&server, peer, method, call).await,
                    };
                    answer(&frames, id, outcome).await;
                    drop(permit);
                });
                true
            }
            call => {
                let outcome = handlers::perform(&self.server, self.peer, method, call).await;
                self.answer_if_wanted(id, outcome).await
            }
        }
    }

    fn subscribe(
        &mut self,
        params: &colibri_proto::SubscribeParams,
    ) -> Result<(u64, Stream), RpcError> {
        self.subscriptions.retain(|_, task| !task.is_finished());
        if self.subscriptions.len() >= SUBSCRIPTIONS {
            return Err(RpcError::new(
                ErrorKind::ResourceExhausted,
                format!(
                    "this connection has {SUBSCRIPTIONS} subscriptions; end one, or open another connection"
                ),
            ));
        }
        let number = self.next_subscription;
        let wanted = Wanted {
            subscription: number,
            stream: params.stream,
            from_offset: params.from_offset,
            stderr_from_offset: params.stderr_from_offset,
            timed: params.timed,
            lifecycle: params.lifecycle,
            rests: params.id.is_none(),
        };
        let registry = self.server.registry.clone();
        let frames = self.frames.clone();
        let task: Stream = match &params.id {
            Some(id) => Box::pin(subscription::one(
                handlers::find(&registry, id)?,
                wanted,
                frames,
                registry.observers.metrics.clone(),
            )),
            None => Box::pin(subscription::all(registry, wanted, frames)),
        };
        self.next_subscription += 1;
        Ok((number, task))
    }

    /// Counts what was answered here, at once.
    fn count(&self, method: &'static str, error: Option<&RpcError>) {
        if let Some(metrics) = &self.server.registry.observers.metrics {
            metrics.answered(method, Duration::ZERO, error);
        }
    }

    async fn answer(&self, id: RequestId, outcome: Result<Answer, RpcError>) -> bool {
        answer(&self.frames, Some(id), outcome).await
    }

    async fn answer_if_wanted(
        &self,
        id: Option<RequestId>,
        outcome: Result<Answer, RpcError>,
    ) -> bool {
        answer(&self.frames, id, outcome).await
    }
}

/// Answers; without an id nobody wants to hear. `false` where the connection has ended.
async fn answer(frames: &Frames, id: Option<RequestId>, outcome: Result<Answer, RpcError>) -> bool {
    let Some(id) = id else { return true };
    let frame = Response::new(id.clone(), outcome)
        .encode()
        .or_else(|error| {
            let refusal = RpcError::new(
                ErrorKind::FrameTooLong,
                format!("the answer does not fit: {error}"),
            );
            Response::new(id, Err(refusal)).encode()
        });
    match frame {
        Ok(frame) => frames.send(frame).await.is_ok(),
        Err(_) => false,
    }
}
