//! Follows the output of one agent from given offsets, across restarts of the daemon, without gap or repetition.

use colibri_proto::{
    ExitEvent, Notification, OutputData, OutputEvent, StateEvent, Stream, SubscribeParams,
    TerminalSize,
};
use tokio::sync::{mpsc, watch};

use crate::{Client, ClientError, ConnectionEvent, CurrentClient, Endpoint, Events};

/// Capacity of the event queue; when it is full, backpressure leaves further output in the journals.
const QUEUE: usize = 8;

/// A part of an agent's output.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OutputChunk {
    /// The stream.
    pub stream: Stream,
    /// Offset of the first byte.
    pub offset: u64,
    /// The bytes.
    pub bytes: Vec<u8>,
    /// Number of bytes directly before these that are no longer kept.
    pub gap: u64,
    /// Time of the first byte (RFC 3339), if it was requested and is known.
    pub time: Option<String>,
}

/// An event of a followed agent.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum FollowEvent {
    /// The agent wrote output.
    Output(OutputChunk),
    /// Its state changed, or the next daemon reports it again.
    State(StateEvent),
    /// The size of its terminal, at first and after each change.
    Terminal(TerminalSize),
    /// It has ended; the last event.
    Exit(ExitEvent),
    /// The connection changed.
    Connection(ConnectionEvent),
}

type FollowSender = mpsc::Sender<Result<FollowEvent, ClientError>>;

/// The events of a followed agent. Dropping it unsubscribes.
pub struct FollowStream {
    events: mpsc::Receiver<Result<FollowEvent, ClientError>>,
    client: CurrentClient,
    terminal: watch::Sender<Option<TerminalSize>>,
}

impl FollowStream {
    /// Returns the next event; `None` after the agent's end or an error. Cancel safe.
    pub async fn next(&mut self) -> Option<Result<FollowEvent, ClientError>> {
        self.events.recv().await
    }

    /// Tells the daemon, and each later one, the size of this subscriber's terminal. For a subscription with a size.
    pub fn resize(&self, terminal: TerminalSize) {
        self.terminal.send_replace(Some(terminal));
    }

    /// Returns the current connection, for calls.
    #[must_use]
    pub fn client(&self) -> CurrentClient {
        self.client.clone()
    }
}

impl Endpoint {
    /// Follows an agent until its end. `client` is the first connection. `params` selects the streams and their first
    /// offsets; an absent `from_offset` is 0.
    #[must_use]
    pub fn follow(&self, client: Client, id: &str, mut params: SubscribeParams) -> FollowStream {
        params.id = Some(id.to_owned());
        let start = *params.from_offset.get_or_insert(0);
        params.stderr_from_offset.get_or_insert(start);
        let (events, receiver) = mpsc::channel(QUEUE);
        let (clients, current) = watch::channel(client);
        let (terminal, mut sizes) = watch::channel(params.terminal);
        let endpoint = self.clone();
        tokio::spawn(async move {
            tokio::select! {
                Err(error) = endpoint.send_events(params, clients, &mut sizes, &events) => {
                    let _ = events.send(Err(error)).await;
                }
                () = events.closed() => {}
                else => {}
            }
        });
        FollowStream {
            events: receiver,
            client: CurrentClient(current),
            terminal,
        }
    }

    /// Sends the events of a [`FollowStream`], and reconnects after each lost connection.
    async fn send_events(
        &self,
        mut params: SubscribeParams,
        clients: watch::Sender<Client>,
        sizes: &mut watch::Receiver<Option<TerminalSize>>,
        events: &FollowSender,
    ) -> Result<(), ClientError> {
        loop {
            let client = clients.borrow().clone();
            match send_events_of(&client, &mut params, sizes, events).await {
                Err(error) if error.is_lost_connection() => {}
                other => return other,
            }
            let report = |event| async move {
                let _ = events.send(Ok(FollowEvent::Connection(event))).await;
            };
            clients.send_replace(self.reconnect(report).await?);
        }
    }
}

/// Sends the events from one daemon until the agent's end. `params` contains the offsets of the next bytes.
async fn send_events_of(
    client: &Client,
    params: &mut SubscribeParams,
    sizes: &mut watch::Receiver<Option<TerminalSize>>,
    events: &FollowSender,
) -> Result<(), ClientError> {
    params.terminal = *sizes.borrow_and_update();
    let notifications = client.subscribe(params.clone()).await?;
    let subscribed = notifications.subscribed();
    let resizing = async {
        while sizes.changed().await.is_ok() {
            let size = *sizes.borrow_and_update();
            if let Some(size) = size {
                // Fails if the agent or the daemon has ended, which the other branch handles.
                let _ = subscribed.resize_terminal(size).await;
            }
        }
        std::future::pending().await
    };
    tokio::select! {
        result = forward_events(notifications, params, events) => result,
        result = resizing => result,
    }
}

async fn forward_events(
    mut notifications: Events,
    params: &mut SubscribeParams,
    events: &FollowSender,
) -> Result<(), ClientError> {
    while let Some(notification) = notifications.next().await {
        let Some(event) = advance(params, notification)? else {
            continue;
        };
        let is_end = matches!(event, FollowEvent::Exit(_));
        if events.send(Ok(event)).await.is_err() || is_end {
            return Ok(());
        }
    }
    Err(ClientError::Closed)
}

/// Converts a notification into an event without bytes before the offsets in `params`, and advances the offsets.
fn advance(
    params: &mut SubscribeParams,
    event: Notification,
) -> Result<Option<FollowEvent>, ClientError> {
    Ok(match event {
        Notification::AgentOutput(output) => {
            let next = match output.stream {
                Stream::Stdout => &mut params.from_offset,
                Stream::Stderr => &mut params.stderr_from_offset,
            };
            new_output(output, next.get_or_insert(0))?.map(FollowEvent::Output)
        }
        Notification::AgentState(state) => Some(FollowEvent::State(state)),
        Notification::AgentTerminal(event) => Some(FollowEvent::Terminal(event.terminal)),
        Notification::AgentExit(exit) => Some(FollowEvent::Exit(exit)),
        _ => None,
    })
}

/// Returns the part of an output event from offset `next` on, and advances `next` to its end; `None` if all of it is
/// before `next`.
///
/// # Errors
/// [`ClientError::Protocol`] if the data cannot be decoded.
pub fn new_output(event: OutputEvent, next: &mut u64) -> Result<Option<OutputChunk>, ClientError> {
    let mut bytes = output_bytes(event.data)?;
    let known = usize::try_from(next.saturating_sub(event.offset))
        .unwrap_or(usize::MAX)
        .min(bytes.len());
    bytes.drain(..known);
    if bytes.is_empty() {
        return Ok(None);
    }
    let offset = event.offset + known as u64;
    let gap = offset.saturating_sub(*next);
    *next = offset + bytes.len() as u64;
    Ok(Some(OutputChunk {
        stream: event.stream,
        offset,
        bytes,
        gap,
        time: event.time,
    }))
}

/// Decodes the output in a message of the daemon.
///
/// # Errors
/// [`ClientError::Protocol`].
pub fn output_bytes(data: OutputData) -> Result<Vec<u8>, ClientError> {
    data.into_bytes().map_err(|error| ClientError::Protocol {
        method: "output",
        message: error.to_string(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn output_is_delivered_once_and_gaps_are_counted() {
        let mut params = SubscribeParams {
            from_offset: Some(10),
            ..SubscribeParams::default()
        };
        let mut advance = |stream, offset: u64, text: &str| {
            let event = Notification::AgentOutput(OutputEvent {
                subscription: 0,
                id: "a".into(),
                stream,
                offset,
                data: OutputData::from(text.as_bytes().to_vec()),
                time: None,
            });
            match super::advance(&mut params, event).unwrap() {
                Some(FollowEvent::Output(output)) => Some((
                    output.offset,
                    String::from_utf8(output.bytes).unwrap(),
                    output.gap,
                )),
                _ => None,
            }
        };
        for (stream, offset, text, expected) in [
            (Stream::Stdout, 0, "0123456789", None),
            (Stream::Stdout, 8, "89ab", Some((10, "ab", 0))),
            (Stream::Stderr, 0, "err", Some((0, "err", 0))),
            (Stream::Stdout, 12, "cd", Some((12, "cd", 0))),
            (Stream::Stdout, 12, "cd", None),
            (Stream::Stdout, 20, "k", Some((20, "k", 6))),
            (Stream::Stderr, 1, "rr!", Some((3, "!", 0))),
        ] {
            let expected = expected.map(|(offset, text, gap)| (offset, text.to_owned(), gap));
            assert_eq!(advance(stream, offset, text), expected, "{offset} {text}");
        }
        assert_eq!(params.from_offset, Some(21));
        assert_eq!(params.stderr_from_offset, Some(4));
    }
}
