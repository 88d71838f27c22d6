//! What comes from the daemon: a subscription to all agents, again and again where it ends, and the answers to calls.

use std::time::Duration;

use colibri_client::glasspane::{Command, Delivery};
use colibri_client::{
    Agent, Client, ClientError, Endpoint, Events, KillOutcome, KillParams, LinkNote, Notification,
    StreamChoice, SubscribeParams, UsageResult,
};
use tokio::sync::mpsc;

use crate::commands::PATIENCE;

/// Between two tries to reach a daemon that has gone.
const TRY_AGAIN: Duration = Duration::from_millis(500);

/// What has come.
pub(super) enum News {
    /// A connection, and all agents.
    Live(Client, Vec<Agent>),
    Lost(String),
    Told(Notification),
    Agent(Box<Agent>),
    Measured(UsageResult),
    /// Nothing was measured.
    Unmeasured,
    Said(String),
}

/// Subscribes to all agents and lists them.
pub(super) async fn link(calls: &Client) -> Result<(Events, Vec<Agent>), ClientError> {
    let params = SubscribeParams {
        stream: Some(StreamChoice::None),
        ..SubscribeParams::default()
    };
    // Told before listed, so that nobody is missed between the two.
    let events = calls.subscribe(params).await?;
    let agents = calls.list_agents().await?;
    Ok((events, agents))
}

/// Brings what is told, and a new connection whenever the old one has ended.
pub(super) async fn follow(endpoint: Endpoint, mut events: Events, news: mpsc::Sender<News>) {
    loop {
        while let Some(event) = events.next().await {
            if news.send(News::Told(event)).await.is_err() {
                return;
            }
        }
        let mut why = "the connection has ended".to_owned();
        events = loop {
            if news.send(News::Lost(why)).await.is_err() {
                return;
            }
            match next(&endpoint, &news).await {
                Ok((calls, events, agents)) => {
                    if news.send(News::Live(calls, agents)).await.is_err() {
                        return;
                    }
                    break events;
                }
                Err(error) => why = error.to_string(),
            }
            tokio::time::sleep(TRY_AGAIN).await;
        };
    }
}

/// Connects to the next daemon.
async fn next(
    endpoint: &Endpoint,
    news: &mpsc::Sender<News>,
) -> Result<(Client, Events, Vec<Agent>), ClientError> {
    let tell = |note: LinkNote| {
        if matches!(note, LinkNote::Waiting { .. }) {
            // If the channel is full, the notice is dropped: the next attempt sends it again.
            let _ = news.try_send(News::Lost(note.to_string()));
        }
    };
    let calls = endpoint.reconnect(tell).await?;
    let (events, agents) = link(&calls).await?;
    Ok((calls, events, agents))
}

/// `get-agent`. One that has gone meanwhile is no news.
pub(super) async fn ask(client: Client, id: String) -> Option<News> {
    let agent = client.get_agent(&id).await.ok()?;
    Some(News::Agent(Box::new(agent)))
}

pub(super) async fn measure(client: Client, ids: Vec<String>) -> Option<News> {
    let measured = client.get_usage(Some(ids)).await;
    Some(measured.map_or(News::Unmeasured, News::Measured))
}

pub(super) async fn kill(client: Client, id: String) -> Option<News> {
    let params = KillParams {
        id: id.clone(),
        ..KillParams::default()
    };
    Some(News::Said(match client.kill_agent(params).await {
        Ok(result) => match result.outcome {
            KillOutcome::Killed => format!("{id} needed KILL; no process is left"),
            KillOutcome::AlreadyExited => format!("{id} had already ended"),
            _ => format!("{id} ended at TERM; no process is left"),
        },
        Err(error) => format!("{id} not killed: {error}"),
    }))
}

/// Tells an agent what a person wrote, in its own words; one that works hears it as `attach` would say it.
pub(super) async fn prompt(client: Client, id: String, text: String) -> Option<News> {
    let told = async {
        let agent = client.get_agent(&id).await?;
        let delivery = Delivery::while_watching(agent.runtime);
        client
            .command(&agent, &Command::Prompt(&text, delivery), PATIENCE)
            .await
    };
    Some(News::Said(match told.await {
        Ok(()) => format!("sent to {id}"),
        Err(error) => format!("not sent to {id}: {error}"),
    }))
}
