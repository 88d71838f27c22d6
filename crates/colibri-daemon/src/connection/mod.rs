//! Connections: accept, read frames, call handlers, and send answers and notifications through a bounded queue.
//!
//! Fast calls are answered in order. Calls that wait for an agent run concurrently, up to a limit for each connection.

pub(crate) mod server;
mod subscription;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use colibri_proto::{
    Call, Empty, ErrorKind, FrameDecoder, FrameError, RawResult, Request, RequestId,
    RequestRefusal, ResizeParams, Response, RpcError, SubscribeParams, Subscription,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::net::unix::OwnedWriteHalf;
use tokio::sync::{Semaphore, mpsc};
use tokio::task::JoinHandle;

use crate::daemon::DaemonState;
use crate::daemon::audit::Peer;
use crate::errors::CallError;
use crate::handlers::{self, find_agent, to_result};
use crate::metrics::MetricsEvent;
use crate::terminal::TerminalClaim;
use subscription::{Closed, FrameQueue, Subscriber};

/// Maximum number of frames that wait for a slow client; then senders wait for room before they read output. With the frame
/// that is being written, all subscriptions of a connection hold at most 5 frames: of 64 KiB of output each, which are
/// 384 KiB if every byte needs an escape, so less than 2 MiB.
const FRAME_QUEUE_LENGTH: usize = 4;
/// Maximum number of concurrent calls of a connection; then it is not read.
const MAX_CONCURRENT_CALLS: usize = 64;
/// Maximum number of subscriptions of a connection.
const MAX_SUBSCRIPTIONS: usize = 64;
/// Size of one read from the socket, in bytes.
const READ_BYTES: usize = 16 * 1024;
/// Name of the method in the metrics if a request names none that exists.
const UNKNOWN_METHOD: &str = "unknown";

/// Serves one client until it disconnects or the daemon shuts down.
async fn serve_connection(daemon: Arc<DaemonState>, stream: UnixStream, peer: Peer, allowed: bool) {
    let (mut reader, writer) = stream.into_split();
    let (frames, queue) = mpsc::channel(FRAME_QUEUE_LENGTH);
    let writer = tokio::spawn(write_frames(writer, queue));
    let mut shutdown = daemon.shutdown.subscribe();
    let mut connection = ClientConnection {
        daemon,
        peer,
        frames,
        calls: Arc::new(Semaphore::new(MAX_CONCURRENT_CALLS)),
        subscriptions: HashMap::new(),
        next_subscription: 0,
    };
    if !allowed {
        let error = RpcError::new(
            ErrorKind::PeerRefused,
            format!("user {} may not use this daemon", peer.uid),
        )
        .hint("run as the daemon's user, or set socket_group in the daemon's settings file");
        answer(&connection.frames, Some(RequestId::null()), Err(error)).await;
    } else {
        let mut decoder = FrameDecoder::default();
        let mut buffer = vec![0; READ_BYTES];
        'reading: loop {
            let count = tokio::select! {
                read = reader.read(&mut buffer) => match read {
                    Ok(count @ 1..) => count,
                    _ => break,
                },
                _ = shutdown.wait_for(|shutdown| *shutdown) => break,
                () = connection.frames.closed() => break,
            };
            decoder.push(buffer.get(..count).unwrap_or_default());
            while let Some(frame) = decoder.next_frame() {
                if !connection.handle_frame(frame).await {
                    break 'reading;
                }
            }
        }
    }
    for (_, subscription) in connection.subscriptions.drain() {
        subscription.task.abort();
    }
    // Calls in progress keep the queue open until they are answered.
    drop(connection);
    let _ = writer.await;
}

async fn write_frames(mut writer: OwnedWriteHalf, mut queue: mpsc::Receiver<Vec<u8>>) {
    while let Some(frame) = queue.recv().await {
        if writer.write_all(&frame).await.is_err() {
            return;
        }
    }
}

/// A subscription of a connection.
struct ConnectionSubscription {
    task: JoinHandle<Result<(), Closed>>,
    /// The size of the subscriber's terminal, if it has sent one.
    terminal: Option<TerminalClaim>,
}

struct ClientConnection {
    daemon: Arc<DaemonState>,
    peer: Peer,
    frames: FrameQueue,
    calls: Arc<Semaphore>,
    subscriptions: HashMap<u64, ConnectionSubscription>,
    next_subscription: u64,
}

impl ClientConnection {
    /// Handles one frame; returns `false` if the connection must be closed.
    async fn handle_frame(&mut self, frame: Result<&[u8], FrameError>) -> bool {
        let is_endless = frame == Err(FrameError::Endless);
        let frame = frame.map_err(|error| RequestRefusal {
            id: RequestId::null(),
            error: RpcError::new(ErrorKind::FrameTooLong, error.to_string()),
        });
        let (id, method, call) = match frame.and_then(Request::read) {
            Ok(request) => (request.id.clone(), request.known_method(), request.call()),
            Err(RequestRefusal { id, error }) => (Some(id), None, Err(error)),
        };
        let mut new = None;
        let result = match call {
            Err(error) => Err(error.into()),
            Ok(Call::Subscribe(params)) => {
                self.new_subscription(params)
                    .and_then(|(subscriber, terminal)| {
                        let subscription = subscriber.number;
                        new = Some((subscriber, terminal));
                        to_result(&Subscription { subscription })
                    })
            }
            Ok(Call::Unsubscribe(subscription)) => self.unsubscribe(subscription),
            Ok(Call::ResizeTerminal(params)) => self.resize_terminal(params),
            Ok(
                call @ (Call::SpawnAgent(_)
                | Call::KillAgent(_)
                | Call::RestartAgent(_)
                | Call::RemoveAgent(_)
                | Call::WaitAgent(_)
                | Call::ReloadConfig(_)
                | Call::GetUsage(_)
                | Call::Doctor(_)),
            ) => return self.spawn_call(id, call).await,
            Ok(call) => {
                let result = handlers::handle(&self.daemon, self.peer, call).await;
                return answer(&self.frames, id, result).await;
            }
        };
        let result = result.map_err(|error| error.to_rpc_error());
        let observers = &self.daemon.registry.observers;
        observers.record(MetricsEvent::Request {
            method: method.unwrap_or(UNKNOWN_METHOD),
            took: Duration::ZERO,
            error: result.as_ref().err(),
        });
        // The answer precedes the first notification.
        let is_open = answer(&self.frames, id, result).await;
        if let Some((mut subscriber, terminal)) = new {
            let (number, registry) = (subscriber.number, self.daemon.registry.clone());
            let task = match subscriber.agent.take() {
                Some(agent) => tokio::spawn(subscription::follow(agent, subscriber, None)),
                None => tokio::spawn(subscription::follow_all(registry, subscriber)),
            };
            let subscription = ConnectionSubscription { task, terminal };
            self.subscriptions.insert(number, subscription);
        }
        is_open && !is_endless
    }

    /// Runs a call concurrently with later ones; waits while too many run.
    async fn spawn_call(&self, id: Option<RequestId>, call: Call) -> bool {
        // Never closed.
        let permit = self.calls.clone().acquire_owned().await;
        let (daemon, peer, frames) = (self.daemon.clone(), self.peer, self.frames.clone());
        tokio::spawn(async move {
            let is_wait = matches!(call, Call::WaitAgent(_));
            let handled = handlers::handle(&daemon, peer, call);
            let result = tokio::select! {
                result = handled => result,
                // Every other call is completed even if its client has disconnected.
                () = frames.closed(), if is_wait => return,
            };
            answer(&frames, id, result).await;
            drop(permit);
        });
        true
    }

    /// Creates a subscription that sends nothing yet, and the claim of its terminal's size.
    fn new_subscription(
        &mut self,
        params: SubscribeParams,
    ) -> Result<(Subscriber, Option<TerminalClaim>), CallError> {
        self.subscriptions
            .retain(|_, subscription| !subscription.task.is_finished());
        if self.subscriptions.len() >= MAX_SUBSCRIPTIONS {
            return Err(CallError::new(
                ErrorKind::ResourceExhausted,
                format!(
                    "this connection has {MAX_SUBSCRIPTIONS} subscriptions; unsubscribe one, or open another connection"
                ),
            ));
        }
        let registry = &self.daemon.registry;
        let find = |id: &String| find_agent(registry, id);
        let agent = params.id.as_ref().map(find).transpose()?;
        let terminal = match (&agent, params.terminal) {
            (_, None) => None,
            (Some(agent), Some(size)) => Some(TerminalClaim::new(agent, size)?),
            (None, Some(_)) => {
                return Err(CallError::invalid_params(
                    "`terminal` is the size for one agent; give its `id`",
                ));
            }
        };
        let number = self.next_subscription;
        self.next_subscription += 1;
        let subscriber = Subscriber {
            number,
            agent,
            params,
            frames: self.frames.clone(),
            observers: registry.observers.clone(),
        };
        Ok((subscriber, terminal))
    }

    fn resize_terminal(&mut self, params: ResizeParams) -> Result<RawResult, CallError> {
        let number = params.subscription;
        let Some(subscription) = self.subscriptions.get_mut(&number) else {
            return Err(unknown_subscription(number));
        };
        match &subscription.terminal {
            Some(claim) => claim.resize(params.terminal),
            None => {
                return Err(CallError::new(
                    ErrorKind::NoTerminal,
                    format!("subscription {number} has no terminal; subscribe with a size"),
                ));
            }
        }
        to_result(&Empty {})
    }

    fn unsubscribe(
        &mut self,
        Subscription { subscription }: Subscription,
    ) -> Result<RawResult, CallError> {
        let Some(removed) = self.subscriptions.remove(&subscription) else {
            return Err(unknown_subscription(subscription));
        };
        removed.task.abort();
        to_result(&Empty {})
    }
}

fn unknown_subscription(number: u64) -> CallError {
    CallError::new(
        ErrorKind::UnknownSubscription,
        format!("no subscription {number} on this connection"),
    )
}

/// Answers a request, unless it has no id; returns `false` if the connection is closed.
async fn answer(
    frames: &FrameQueue,
    id: Option<RequestId>,
    result: Result<RawResult, RpcError>,
) -> bool {
    let Some(id) = id else { return true };
    let frame = Response::new(id.clone(), result).encode().or_else(|error| {
        let refusal = RpcError::new(
            ErrorKind::FrameTooLong,
            format!("cannot send the answer: {error}"),
        );
        Response::new(id, Err(refusal)).encode()
    });
    match frame {
        Ok(frame) => frames.send(frame).await.is_ok(),
        Err(_) => false,
    }
}
