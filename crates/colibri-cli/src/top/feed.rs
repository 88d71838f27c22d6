//! Receives updates from the daemon: a subscription to all agents, renewed after each lost connection, and the results of
//! requests.

use std::time::Duration;

use colibri_client::glasspane::{AgentCommand, PromptDelivery};
use colibri_client::{
    Agent, Client, ClientError, ConnectionEvent, Endpoint, Events, KillParams, Notification,
    StreamChoice, SubscribeParams, UsageResult,
};
use tokio::sync::mpsc;

use crate::commands::{INPUT_TIMEOUT, kill_message};

/// Interval between attempts after a failed reconnect.
const RETRY_INTERVAL: Duration = Duration::from_millis(500);

/// A change of the table.
pub(super) enum Update {
    /// The connection to the next daemon, and all its agents.
    Connected(Client, Vec<Agent>),
    /// The connection is lost; the reason.
    Disconnected(String),
    Event(Notification),
    Agent(Box<Agent>),
    /// A measurement, unless it failed.
    Usage(Option<UsageResult>),
    /// The result of a command.
    Message(String),
}

/// A subscription to all agents, and the agents at its start.
pub(super) struct Feed {
    pub(super) events: Events,
    pub(super) agents: Vec<Agent>,
}

/// Subscribes to all agents and lists them.
pub(super) async fn subscribe(client: &Client) -> Result<Feed, ClientError> {
    let params = SubscribeParams {
        stream: Some(StreamChoice::None),
        ..SubscribeParams::default()
    };
    // Subscribed before listed, so that each agent is in the list or in an event.
    let events = client.subscribe(params).await?;
    let agents = client.list_agents().await?;
    Ok(Feed { events, agents })
}

/// Sends updates, and returns `None` when the receiver is dropped. `events` is the first subscription.
pub(super) async fn follow(
    endpoint: Endpoint,
    mut events: Events,
    updates: mpsc::Sender<Update>,
) -> Option<()> {
    loop {
        while let Some(event) = events.next().await {
            updates.send(Update::Event(event)).await.ok()?;
        }
        let mut reason = "the connection has ended".to_owned();
        let (client, feed) = loop {
            updates.send(Update::Disconnected(reason)).await.ok()?;
            match resubscribe(&endpoint, &updates).await {
                Ok(subscribed) => break subscribed,
                Err(error) => reason = error.to_string(),
            }
            tokio::time::sleep(RETRY_INTERVAL).await;
        };
        events = feed.events;
        let update = Update::Connected(client, feed.agents);
        updates.send(update).await.ok()?;
    }
}

/// Subscribes to the events of the next daemon.
async fn resubscribe(
    endpoint: &Endpoint,
    updates: &mpsc::Sender<Update>,
) -> Result<(Client, Feed), ClientError> {
    let report = |event: ConnectionEvent| async move {
        if matches!(event, ConnectionEvent::Waiting(_)) {
            let _ = updates.send(Update::Disconnected(event.to_string())).await;
        }
    };
    let client = endpoint.reconnect(report).await?;
    let feed = subscribe(&client).await?;
    Ok((client, feed))
}

/// Requests an agent; `None` if it was removed meanwhile.
pub(super) async fn get_agent(client: Client, id: String) -> Option<Update> {
    let agent = client.get_agent(&id).await.ok()?;
    Some(Update::Agent(Box::new(agent)))
}

pub(super) async fn measure(client: Client, ids: Vec<String>) -> Option<Update> {
    Some(Update::Usage(client.get_usage(Some(ids)).await.ok()))
}

pub(super) async fn kill(client: Client, id: String) -> Option<Update> {
    let killed = client.kill_agent(KillParams::new(&id)).await;
    Some(Update::Message(match killed {
        Ok(result) => kill_message(&id, "TERM", result.outcome),
        Err(error) => format!("cannot kill {id}: {error}"),
    }))
}

/// Sends a prompt in the form that the agent's runtime expects.
pub(super) async fn prompt(client: Client, id: String, text: String) -> Option<Update> {
    let sent = async {
        let agent = client.get_agent(&id).await?;
        let delivery = PromptDelivery::earliest(agent.runtime);
        let command = AgentCommand::Prompt(&text, delivery);
        client.command(&agent, &command, INPUT_TIMEOUT).await
    };
    Some(Update::Message(match sent.await {
        Ok(_) => format!("sent to {id}"),
        Err(error) => format!("cannot send to {id}: {error}"),
    }))
}
