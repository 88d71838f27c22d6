//! Follows one agent from byte offsets on, over the lives of several daemons, without gap or repeat.

use colibri_proto::{ExitEvent, Notification, StateEvent, Stream, StreamChoice, SubscribeParams};
use tokio::sync::{mpsc, watch};

use crate::{Client, ClientError, Endpoint, LinkNote};

/// Events that wait for a slow consumer here; all others wait in the daemon's journals.
const WAITING: usize = 8;

/// What is followed.
#[derive(Debug, Clone)]
pub struct Follow {
    /// The agent's full id.
    pub id: String,
    /// One output; absent: both.
    pub stream: Option<StreamChoice>,
    /// Where standard output begins.
    pub stdout: u64,
    /// Where standard error begins.
    pub stderr: u64,
    /// Each output comes with its time.
    pub timed: bool,
}

/// Bytes that an agent has written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Output {
    /// Which output.
    pub stream: Stream,
    /// Where they begin.
    pub offset: u64,
    /// The bytes.
    pub bytes: Vec<u8>,
    /// So many bytes before them are no longer kept.
    pub gap: u64,
    /// When they came (RFC 3339), if that was asked for and is known.
    pub time: Option<String>,
}

/// What following an agent brings.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Followed {
    /// It wrote something.
    Output(Output),
    /// Its state changed, or is told again by the next daemon.
    State(StateEvent),
    /// It has ended, and this is the last of it.
    Exit(ExitEvent),
    /// The connection changed.
    Link(LinkNote),
}

/// A followed agent. Dropping it ends that.
pub struct Following {
    events: mpsc::Receiver<Result<Followed, ClientError>>,
    client: watch::Receiver<Client>,
}

impl Following {
    /// Returns what comes next; `None` after the agent's end or an error. Cancel safe.
    pub async fn next(&mut self) -> Option<Result<Followed, ClientError>> {
        self.events.recv().await
    }

    /// Returns the present connection for calls; it changes when a daemon is replaced.
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

/// Where the next byte of each output is.
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

    /// Turns a notification into what is told of it; bytes that were told already are left out.
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
    fn output_is_told_once_and_gaps_are_counted() {
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
