//! Follows the output of one agent from given offsets, across restarts of the daemon, without gap or repeat.

use colibri_proto::{ExitEvent, Notification, StateEvent, Stream, StreamChoice, SubscribeParams};
use tokio::sync::{mpsc, watch};

use crate::{Client, ClientError, Endpoint, LinkNote};

/// Capacity of the event queue; when it is full, backpressure leaves further output in the journals.
const WAITING: usize = 8;

/// Which agent and output to follow, and from where.
#[derive(Debug, Clone)]
pub struct Follow {
    /// The agent's full id.
    pub id: String,
    /// The stream to follow; absent: both.
    pub stream: Option<StreamChoice>,
    /// First offset in standard output.
    pub stdout: u64,
    /// First offset in standard error.
    pub stderr: u64,
    /// Whether each [`Output`] has its time.
    pub timed: bool,
}

/// Bytes that an agent has written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Output {
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
pub enum Followed {
    /// The agent wrote output.
    Output(Output),
    /// Its state changed, or the next daemon reports it again.
    State(StateEvent),
    /// It has ended; the last event.
    Exit(ExitEvent),
    /// The connection changed.
    Link(LinkNote),
}

/// The event stream of a followed agent. Dropping it unsubscribes.
pub struct Following {
    events: mpsc::Receiver<Result<Followed, ClientError>>,
    client: watch::Receiver<Client>,
}

impl Following {
    /// Returns the next event; `None` after the agent's end or an error. Cancel safe.
    pub async fn next(&mut self) -> Option<Result<Followed, ClientError>> {
        self.events.recv().await
    }

    /// Returns the current connection for calls; it changes after a reconnect.
    #[must_use]
    pub fn client(&self) -> watch::Receiver<Client> {
        self.client.clone()
    }
}

impl Endpoint {
    /// Follows an agent until its end. `client` is the first connection.
    #[must_use]
    pub fn follow(&self, client: Client, wanted: Follow) -> Following {
        let (sender, events) = mpsc::channel(WAITING);
        let (clients, present) = watch::channel(client);
        let endpoint = self.clone();
        tokio::spawn(async move {
            let mut places = Places::new(&wanted);
            if let Err(error) = endpoint
                .bring(&clients, &wanted, &mut places, &sender)
                .await
            {
                let _ = sender.send(Err(error)).await;
            }
        });
        Following {
            events,
            client: present,
        }
    }

    async fn bring(
        &self,
        clients: &watch::Sender<Client>,
        wanted: &Follow,
        places: &mut Places,
        sender: &mpsc::Sender<Result<Followed, ClientError>>,
    ) -> Result<(), ClientError> {
        loop {
            let client = clients.borrow().clone();
            match client.subscribe(places.params(wanted)).await {
                Err(error) if error.is_lost_connection() => {}
                Err(error) => return Err(error),
                Ok(mut events) => {
                    while let Some(event) = events.next().await {
                        let Some(followed) = places.take(event)? else {
                            continue;
                        };
                        let ended = matches!(followed, Followed::Exit(_));
                        if sender.send(Ok(followed)).await.is_err() || ended {
                            return Ok(());
                        }
                    }
                }
            }
            let (notes, mut told) = mpsc::unbounded_channel();
            let reconnecting = self.reconnect(move |note| drop(notes.send(note)));
            tokio::pin!(reconnecting);
            let client = loop {
                tokio::select! {
                    biased;
                    Some(note) = told.recv() => {
                        if sender.send(Ok(Followed::Link(note))).await.is_err() {
                            return Ok(());
                        }
                    }
                    client = &mut reconnecting => break client?,
                    () = sender.closed() => return Ok(()),
                }
            };
            while let Ok(note) = told.try_recv() {
                if sender.send(Ok(Followed::Link(note))).await.is_err() {
                    return Ok(());
                }
            }
            clients.send_replace(client);
        }
    }
}

/// Offset of the next byte of each stream.
struct Places {
    stdout: u64,
    stderr: u64,
}

impl Places {
    fn new(wanted: &Follow) -> Self {
        Self {
            stdout: wanted.stdout,
            stderr: wanted.stderr,
        }
    }

    fn params(&self, wanted: &Follow) -> SubscribeParams {
        SubscribeParams {
            id: Some(wanted.id.clone()),
            stream: wanted.stream,
            from_offset: Some(self.stdout),
            stderr_from_offset: Some(self.stderr),
            timed: wanted.timed,
            ..SubscribeParams::default()
        }
    }

    /// Converts a notification into an event, without bytes that were already delivered.
    fn take(&mut self, event: Notification) -> Result<Option<Followed>, ClientError> {
        let chunk = match event {
            Notification::AgentOutput(chunk) => chunk,
            Notification::AgentState(state) => return Ok(Some(Followed::State(state))),
            Notification::AgentExit(exit) => return Ok(Some(Followed::Exit(exit))),
            _ => return Ok(None),
        };
        let mut bytes = chunk
            .data
            .into_bytes()
            .map_err(|error| ClientError::Protocol {
                method: "subscribe",
                message: error.to_string(),
            })?;
        let place = match chunk.stream {
            Stream::Stdout => &mut self.stdout,
            Stream::Stderr => &mut self.stderr,
        };
        let known = place.saturating_sub(chunk.offset);
        let known = usize::try_from(known)
            .unwrap_or(usize::MAX)
            .min(bytes.len());
        bytes.drain(..known);
        if bytes.is_empty() {
            return Ok(None);
        }
        let offset = chunk.offset + known as u64;
        let gap = offset.saturating_sub(*place);
        *place = offset + bytes.len() as u64;
        Ok(Some(Followed::Output(Output {
            stream: chunk.stream,
            offset,
            bytes,
            gap,
            time: chunk.time,
        })))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use colibri_proto::{OutputData, OutputEvent};

    #[test]
    fn output_is_delivered_once_and_gaps_are_counted() {
        let wanted = Follow {
            id: "a".into(),
            stream: None,
            stdout: 10,
            stderr: 0,
            timed: false,
        };
        let mut places = Places::new(&wanted);
        let mut take = |stream, offset: u64, text: &str| {
            let event = Notification::AgentOutput(OutputEvent {
                subscription: 0,
                id: "a".into(),
                stream,
                offset,
                data: OutputData::from_bytes(text.as_bytes()),
                time: None,
            });
            match places.take(event).unwrap() {
                Some(Followed::Output(output)) => Some((
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
            assert_eq!(take(stream, offset, text), expected, "{offset} {text}");
        }
        assert_eq!(places.params(&wanted).from_offset, Some(21));
        assert_eq!(places.params(&wanted).stderr_from_offset, Some(4));
    }
}
