//! Follows the output of one agent from given offsets, across restarts of the daemon, without gap or repetition.

use std::ops::ControlFlow;

use colibri_proto::{
    ExitEvent, Notification, OutputData, OutputEvent, StateEvent, Stream, StreamChoice,
    SubscribeParams,
};
use tokio::sync::{mpsc, watch};

use crate::reconnect::unless_lost;
use crate::{Client, ClientError, ConnectionEvent, CurrentClient, Endpoint, Session};

/// Capacity of the event queue; when it is full, backpressure leaves further output in the journals.
const QUEUE: usize = 8;

/// The agent and output to follow, and the first offsets.
#[derive(Debug, Clone, Default)]
pub struct FollowParams {
    /// The agent's full id.
    pub id: String,
    /// The stream to follow; absent: both.
    pub stream: Option<StreamChoice>,
    /// First offset in standard output.
    pub stdout: u64,
    /// First offset in standard error.
    pub stderr: u64,
    /// Whether each [`OutputChunk`] has its time.
    pub timed: bool,
}

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
    /// It has ended; the last event.
    Exit(ExitEvent),
    /// The connection changed.
    Connection(ConnectionEvent),
}

/// The events of a followed agent. Dropping it unsubscribes.
pub struct FollowStream {
    events: mpsc::Receiver<Result<FollowEvent, ClientError>>,
    client: CurrentClient,
}

impl FollowStream {
    /// Returns the next event; `None` after the agent's end or an error. Cancel safe.
    pub async fn next(&mut self) -> Option<Result<FollowEvent, ClientError>> {
        self.events.recv().await
    }

    /// Returns the current connection, for calls.
    #[must_use]
    pub fn client(&self) -> CurrentClient {
        self.client.clone()
    }
}

impl Endpoint {
    /// Follows an agent until its end. `client` is the first connection.
    #[must_use]
    pub fn follow(&self, client: Client, params: FollowParams) -> FollowStream {
        let (events, receiver) = mpsc::channel(QUEUE);
        let (clients, current) = watch::channel(client.clone());
        let endpoint = self.clone();
        tokio::spawn(async move {
            let mut session = FollowSession {
                params,
                clients,
                events: events.clone(),
            };
            tokio::select! {
                Err(error) = endpoint.stay_connected(client, &mut session) => {
                    let _ = events.send(Err(error)).await;
                }
                () = events.closed() => {}
                else => {}
            }
        });
        FollowStream {
            events: receiver,
            client: CurrentClient(current),
        }
    }
}

/// The session that sends the events of a [`FollowStream`].
struct FollowSession {
    /// The agent, and the offsets of the next bytes.
    params: FollowParams,
    clients: watch::Sender<Client>,
    events: mpsc::Sender<Result<FollowEvent, ClientError>>,
}

impl FollowSession {
    async fn send_events(&mut self, client: Client) -> Result<(), ClientError> {
        self.clients.send_replace(client.clone());
        let mut events = client.subscribe(self.params.subscription()).await?;
        while let Some(event) = events.next().await {
            let Some(event) = self.params.advance(event)? else {
                continue;
            };
            let is_end = matches!(event, FollowEvent::Exit(_));
            if self.events.send(Ok(event)).await.is_err() || is_end {
                return Ok(());
            }
        }
        Err(ClientError::Closed)
    }
}

impl Session for FollowSession {
    type Output = ();
    type Error = ClientError;

    async fn run(&mut self, client: Client) -> ControlFlow<Result<(), ClientError>> {
        unless_lost(self.send_events(client).await)
    }

    async fn report(&mut self, event: ConnectionEvent) {
        let _ = self.events.send(Ok(FollowEvent::Connection(event))).await;
    }
}

impl FollowParams {
    fn subscription(&self) -> SubscribeParams {
        SubscribeParams {
            id: Some(self.id.clone()),
            stream: self.stream,
            from_offset: Some(self.stdout),
            stderr_from_offset: Some(self.stderr),
            timed: self.timed,
            ..SubscribeParams::default()
        }
    }

    /// Converts a notification into an event without bytes before the current offsets, and advances the offsets.
    fn advance(&mut self, event: Notification) -> Result<Option<FollowEvent>, ClientError> {
        Ok(match event {
            Notification::AgentOutput(output) => {
                let next = match output.stream {
                    Stream::Stdout => &mut self.stdout,
                    Stream::Stderr => &mut self.stderr,
                };
                new_output(output, next)?.map(FollowEvent::Output)
            }
            Notification::AgentState(state) => Some(FollowEvent::State(state)),
            Notification::AgentExit(exit) => Some(FollowEvent::Exit(exit)),
            _ => None,
        })
    }
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
        method: "output".to_owned(),
        message: error.to_string(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn output_is_delivered_once_and_gaps_are_counted() {
        let mut params = FollowParams {
            id: "a".into(),
            stream: None,
            stdout: 10,
            stderr: 0,
            timed: false,
        };
        let mut advance = |stream, offset: u64, text: &str| {
            let event = Notification::AgentOutput(OutputEvent {
                subscription: 0,
                id: "a".into(),
                stream,
                offset,
                data: OutputData::from_bytes(text.as_bytes()),
                time: None,
            });
            match params.advance(event).unwrap() {
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
        assert_eq!(params.subscription().from_offset, Some(21));
        assert_eq!(params.subscription().stderr_from_offset, Some(4));
    }
}
