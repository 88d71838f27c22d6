//! The agents that a server has started. Only these are visible to its client, and the end of the connection ends them.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use colibri_client::{Agent, Client, Endpoint, KillParams};
use tokio::task::JoinSet;
use tokio::time::timeout;

use crate::args::{Global, Spawn, milliseconds};
use crate::connect::{connect_to, endpoint};
use crate::error::CliError;
use crate::output;

/// Maximum time until the daemon has started an agent.
const SPAWN_TIMEOUT: Duration = Duration::from_secs(60);
/// Time between TERM and KILL at the end of the connection. Editors wait for a few seconds.
const GRACE: Duration = Duration::from_secs(1);
/// Maximum time to kill all agents.
const KILL_TIMEOUT: Duration = Duration::from_secs(20);
/// Maximum time to wait for a spawn in progress at the end of the connection.
const LAST_SPAWN_TIMEOUT: Duration = Duration::from_secs(5);
/// Maximum number of agents that one server starts, ended ones included.
const MAX_STARTED: usize = 1000;

/// The agents of one server.
pub(crate) struct OwnAgents {
    global: Global,
    endpoint: Endpoint,
    client: tokio::sync::Mutex<Client>,
    max_running: usize,
    spawning: Arc<tokio::sync::Mutex<SpawnGate>>,
    ids: Arc<Mutex<Vec<String>>>,
}

/// Serializes spawns, so that each counts the earlier ones.
#[derive(Default)]
struct SpawnGate {
    is_closed: bool,
}

fn lock(ids: &Mutex<Vec<String>>) -> MutexGuard<'_, Vec<String>> {
    ids.lock().unwrap_or_else(PoisonError::into_inner)
}

impl OwnAgents {
    /// Connects to the daemon.
    pub(crate) async fn connect(global: &Global, max_running: usize) -> Result<Self, CliError> {
        let endpoint = endpoint(global)?;
        let client = connect_to(&endpoint).await?;
        Ok(Self {
            global: global.clone(),
            endpoint,
            client: tokio::sync::Mutex::new(client),
            max_running,
            spawning: Arc::default(),
            ids: Arc::default(),
        })
    }

    pub(crate) fn endpoint(&self) -> &Endpoint {
        &self.endpoint
    }

    /// Returns the connection to the daemon; a new one if the last has ended.
    pub(crate) async fn client(&self) -> Result<Client, CliError> {
        let mut client = self.client.lock().await;
        if client.is_closed() {
            *client = connect_to(&self.endpoint).await?;
        }
        Ok(client.clone())
    }

    /// Returns the ids of all agents that were started, in the order of their start.
    pub(crate) fn ids(&self) -> Vec<String> {
        lock(&self.ids).clone()
    }

    /// Starts an agent, and returns its id.
    pub(crate) async fn spawn(&self, options: Spawn) -> Result<String, CliError> {
        let client = self.client().await?;
        let params = crate::config::spawn_params(&self.global, &client, options).await?;
        let (gate, ids, max_running) = (self.spawning.clone(), self.ids.clone(), self.max_running);
        // A task, because an agent must be recorded even if its client no longer waits for it.
        let spawn = tokio::spawn(async move {
            let gate = gate.lock_owned().await;
            let own = lock(&ids).clone();
            if gate.is_closed {
                return Err(refused("the connection has ended"));
            }
            if own.len() >= MAX_STARTED {
                return Err(refused(&format!(
                    "this server has started {MAX_STARTED} agents, the maximum; start it again"
                )));
            }
            let agents = client.list_running().await?;
            let running = agents.iter().filter(|agent| own.contains(&agent.id));
            if running.count() >= max_running {
                return Err(refused(&format!(
                    "{max_running} agents of this server run, the maximum; kill one first"
                )));
            }
            let agent = timeout(SPAWN_TIMEOUT, client.spawn_agent(params))
                .await
                .map_err(|_| refused("the daemon did not answer in time"))??;
            lock(&ids).push(agent.id.clone());
            output::warnings(&agent.warnings);
            Ok(agent.id)
        });
        spawn
            .await
            .map_err(|error| CliError::io("cannot start the agent")(error.into()))?
    }

    /// Returns the agent with this full id, if this server has started it.
    pub(crate) async fn get(&self, id: &str) -> Result<Agent, CliError> {
        if !lock(&self.ids).iter().any(|own| own == id) {
            let id = output::sanitize(id, 64);
            return Err(CliError::Message(format!(
                "{id:?} is not an agent of this server; list its agents"
            )));
        }
        Ok(self.client().await?.get_agent(id).await?)
    }

    /// Kills all agents, and refuses to start further ones.
    pub(crate) async fn kill_all(&self) {
        if let Ok(mut gate) = timeout(LAST_SPAWN_TIMEOUT, self.spawning.lock()).await {
            gate.is_closed = true;
        }
        let client = match self.client().await {
            Ok(client) => client,
            Err(error) => return output::message(&error.message()),
        };
        let mut kills = JoinSet::new();
        for id in self.ids() {
            let client = client.clone();
            kills.spawn(async move { (kill(&client, &id).await, id) });
        }
        let killed = async {
            while let Some(Ok((result, id))) = kills.join_next().await {
                if let Err(error) = result {
                    output::message(&format!("cannot kill agent {id}: {}", error.message()));
                }
            }
        };
        if timeout(KILL_TIMEOUT, killed).await.is_err() {
            output::message(
                "the daemon did not confirm the end of all agents; check with colibri ps",
            );
        }
    }
}

/// Kills an agent, and gives it a second to end itself.
pub(crate) async fn kill(client: &Client, id: &str) -> Result<(), CliError> {
    let params = KillParams {
        grace_ms: Some(milliseconds(GRACE)),
        ..KillParams::new(id)
    };
    match client.kill_agent(params).await.map_err(CliError::from) {
        // Another client has removed it.
        Err(error) if error.is_unknown_agent() => Ok(()),
        other => other.map(drop),
    }
}

fn refused(problem: &str) -> CliError {
    CliError::Message(format!("cannot start an agent: {problem}"))
}
