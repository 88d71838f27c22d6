//! `colibri events`: prints a line for each event of agents, as text or JSON.

mod line;
mod tracker;

use colibri_client::{
    Agent, Client, ClientError, Endpoint, OutputReader, Stream, StreamChoice, StreamRange,
    SubscribeParams,
};
use tokio::sync::mpsc;

use self::line::{EventKind, EventLine};
use self::tracker::Tracker;
use crate::args::{EventsArgs, Global};
use crate::connect::{connect_to, endpoint};
use crate::error::CliError;
use crate::output;
use crate::sink::watch_stdout_reader;

/// Capacity of the queue of events; when it is full, backpressure leaves further events in the daemon.
const QUEUE: usize = 16;

/// Prints events until all named agents have ended or the reader has closed stdout. When the daemon ends, continues
/// with the next one.
pub(crate) async fn events(global: &Global, options: EventsArgs) -> Result<u8, CliError> {
    let endpoint = endpoint(global)?;
    let client = connect_to(&endpoint).await?;
    let mut ids = Vec::new();
    for id in &options.ids {
        ids.push(client.find_agent(id).await?.id);
    }
    ids.sort();
    ids.dedup();
    let mut printer = EventPrinter {
        options,
        ids,
        tracker: Tracker::default(),
        is_first_daemon: true,
    };
    let stdout_closed = watch_stdout_reader()?;
    tokio::select! {
        result = printer.run(&endpoint, client) => result.map(|()| 0),
        // A write would report this only with the next event.
        _ = stdout_closed => Ok(0),
    }
}

/// Prints events, across several daemons.
struct EventPrinter {
    options: EventsArgs,
    /// The named agents that have not ended.
    ids: Vec<String>,
    tracker: Tracker,
    is_first_daemon: bool,
}

impl EventPrinter {
    /// Prints events until all named agents have ended. When the daemon ends, continues with the next one.
    async fn run(&mut self, endpoint: &Endpoint, mut client: Client) -> Result<(), CliError> {
        loop {
            match self.print_events(&client).await {
                Err(CliError::Client(error)) if error.is_lost_connection() => {}
                other => return other,
            }
            self.is_first_daemon = false;
            let reason = "the daemon ended; events until the next daemon runs are missing";
            self.print(&EventLine::gap(reason, None))?;
            client = endpoint.reconnect(output::connection_event).await?;
        }
    }

    /// Prints the events from one daemon.
    async fn print_events(&mut self, client: &Client) -> Result<(), CliError> {
        let has_named_agents = !self.options.ids.is_empty();
        let mut events = self.subscribe(client).await?;
        // Listed after the subscription, so that each agent is in the list or in an event.
        let agents = client.list_agents().await?;
        self.tracker.add_names(&agents);
        if self.options.output && !has_named_agents && !self.is_first_daemon {
            self.print_missed_output(client, &agents).await?;
        }
        for line in self.tracker.missed_ends(&agents, has_named_agents) {
            self.ids.retain(|id| line.id.as_ref() != Some(id));
            self.print(&line)?;
        }
        while !has_named_agents || !self.ids.is_empty() {
            let event = events.recv().await.ok_or(ClientError::Closed)?;
            let Some(line) = self.tracker.line(event)? else {
                continue;
            };
            if matches!(line.event, EventKind::Exit { .. }) {
                self.ids.retain(|id| line.id.as_ref() != Some(id));
            }
            self.print(&line)?;
        }
        Ok(())
    }

    /// Subscribes to the named agents, or to all agents. Named agents are followed from their first byte, and after a
    /// reconnect from the next byte.
    async fn subscribe(
        &mut self,
        client: &Client,
    ) -> Result<mpsc::Receiver<colibri_client::Notification>, ClientError> {
        let (sender, receiver) = mpsc::channel(QUEUE);
        let with_output = self.options.output;
        let subscriptions: Vec<Option<String>> = match self.options.ids.is_empty() {
            true => vec![None],
            false => self.ids.iter().cloned().map(Some).collect(),
        };
        for id in subscriptions {
            let mut offset = |stream| {
                let id = id.as_deref().filter(|_| with_output)?;
                Some(*self.tracker.next_offset(id, stream))
            };
            let params = SubscribeParams {
                stream: (!with_output).then_some(StreamChoice::None),
                from_offset: offset(Stream::Stdout),
                stderr_from_offset: offset(Stream::Stderr),
                id,
                timed: with_output,
                lifecycle: true,
                terminal: None,
            };
            let mut events = match client.subscribe(params).await {
                // The agent was removed while no daemon ran: `missed_ends` reports it.
                Err(ClientError::Rpc(_)) if !self.is_first_daemon => continue,
                result => result?,
            };
            let sender = sender.clone();
            tokio::spawn(async move {
                while let Some(event) = events.next().await {
                    if sender.send(event).await.is_err() {
                        return;
                    }
                }
            });
        }
        Ok(receiver)
    }

    /// Prints the output that known agents wrote while no daemon ran.
    async fn print_missed_output(
        &mut self,
        client: &Client,
        agents: &[Agent],
    ) -> Result<(), CliError> {
        for agent in agents {
            if !self.tracker.offsets.contains_key(&agent.id) {
                continue;
            }
            let ranges = agent.written().map(|(stream, end)| {
                let start = *self.tracker.next_offset(&agent.id, stream);
                StreamRange { stream, start, end }
            });
            let mut reader = OutputReader::new(client, &agent.id, &ranges, true);
            loop {
                let chunk = match reader.next().await {
                    Ok(Some(chunk)) => chunk,
                    Err(error) if error.is_lost_connection() => return Err(error.into()),
                    // The agent was removed meanwhile.
                    Ok(None) | Err(ClientError::Rpc(_)) => break,
                    Err(error) => return Err(error.into()),
                };
                let line = self.tracker.output_line(&agent.id, chunk);
                self.print(&line)?;
            }
        }
        Ok(())
    }

    fn print(&self, line: &EventLine) -> Result<(), CliError> {
        let text = match self.options.json {
            true => output::json_line(line)?,
            false => line.to_text(),
        };
        output::print_while_read(text.as_bytes())
    }
}
