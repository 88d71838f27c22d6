//! The client: one method a call of the protocol.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use colibri_proto::{
    Agent, Call, DoctorResult, Empty, ErrorKind, ExplainResult, IdParams, InputParams, InputResult,
    KillParams, KillResult, ListParams, ListResult, Notification, OutputData, ProfilesResult,
    ReadParams, ReadResult, ReloadResult, RestartAgentParams, RestartResult, Run, RunsResult,
    SpawnRequest, SpawnResult, SubscribeParams, Subscription, UsageParams, UsageResult,
    VersionResult,
};
use serde::de::DeserializeOwned;
use tokio::io::AsyncWriteExt;
use tokio::net::UnixStream;
use tokio::net::unix::OwnedWriteHalf;
use tokio::sync::{Mutex, mpsc};

use crate::connection::{self, Answer, Shared, with};
use crate::peer::own_uid;
use crate::{ClientError, ResolveError, TrustedUsers, is_blank, resolve};

/// Notifications that wait for a slow consumer before their connection is not read any more.
const EVENTS: usize = 64;

/// A connection to a daemon, shared by cloning.
#[derive(Clone)]
pub struct Client {
    socket: Arc<Path>,
    trusted: TrustedUsers,
    writer: Arc<Mutex<OwnedWriteHalf>>,
    shared: Shared,
    next_id: Arc<AtomicU64>,
}

/// Returns the parameters of a call about one agent. An empty id is refused: it is usually an unset shell variable.
fn id(id: &str) -> Result<IdParams, ClientError> {
    if is_blank(id) {
        return Err(ResolveError::Blank.into());
    }
    Ok(IdParams { id: id.to_owned() })
}

impl Client {
    /// Connects to the daemon of root or of this user that listens at `socket`.
    ///
    /// # Errors
    /// [`ClientError::NoDaemon`] if no process listens, [`ClientError::UntrustedPeer`] if its user is not trusted.
    pub async fn connect(socket: &Path) -> Result<Self, ClientError> {
        Self::connect_trusting(socket, TrustedUsers::default()).await
    }

    /// Connects to the daemon at `socket` if it runs as one of the trusted users.
    ///
    /// # Errors
    /// As [`Client::connect`].
    pub async fn connect_trusting(
        socket: &Path,
        trusted: TrustedUsers,
    ) -> Result<Self, ClientError> {
        Self::open(socket.into(), trusted, None).await
    }

    /// Returns whether the connection has ended.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        with(&self.shared, |waiting| waiting.is_closed())
    }

    async fn open(
        socket: Arc<Path>,
        trusted: TrustedUsers,
        events: Option<mpsc::Sender<Notification>>,
    ) -> Result<Self, ClientError> {
        let failed = |source| ClientError::NoDaemon {
            path: socket.to_path_buf(),
            source,
        };
        let stream = UnixStream::connect(&socket).await.map_err(failed)?;
        // Checked before the first byte is sent, because requests may contain secrets.
        let uid = stream.peer_cred().map_err(failed)?.uid();
        if !trusted.trusts(uid) {
            return Err(ClientError::UntrustedPeer {
                path: socket.to_path_buf(),
                uid,
                own: own_uid(),
            });
        }
        let (reader, writer) = stream.into_split();
        let shared = Shared::default();
        tokio::spawn(connection::read(reader, shared.clone(), events));
        Ok(Self {
            socket,
            trusted,
            writer: Arc::new(Mutex::new(writer)),
            shared,
            next_id: Arc::default(),
        })
    }

    /// Who answers.
    ///
    /// # Errors
    /// See [`ClientError`]; so for all calls.
    pub async fn version(&self) -> Result<VersionResult, ClientError> {
        self.call("version", Call::Version(Empty {})).await
    }

    /// Starts an agent.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn spawn_agent(&self, params: SpawnRequest) -> Result<SpawnResult, ClientError> {
        self.call("spawn-agent", Call::SpawnAgent(params)).await
    }

    /// What `spawn_agent` would execute.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn explain_spawn(&self, params: SpawnRequest) -> Result<ExplainResult, ClientError> {
        self.call("explain-spawn", Call::ExplainSpawn(params)).await
    }

    /// All agents, however many pages that takes.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn list_agents(&self) -> Result<Vec<Agent>, ClientError> {
        self.list(false).await
    }

    /// All agents that run: what it costs does not grow with those that have ended.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn list_running(&self) -> Result<Vec<Agent>, ClientError> {
        let mut agents = self.list(true).await?;
        // A daemon of an earlier version lists all.
        agents.retain(|agent| agent.exited_at.is_none());
        Ok(agents)
    }

    async fn list(&self, running: bool) -> Result<Vec<Agent>, ClientError> {
        let mut agents = Vec::new();
        let mut after = None;
        loop {
            let params = ListParams {
                after,
                limit: None,
                running,
            };
            let page: ListResult = self.call("list-agents", Call::ListAgents(params)).await?;
            agents.extend(page.agents);
            after = page.next;
            if after.is_none() {
                return Ok(agents);
            }
        }
    }

    /// One agent.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn get_agent(&self, agent: &str) -> Result<Agent, ClientError> {
        self.call("get-agent", Call::GetAgent(id(agent)?)).await
    }

    /// Returns the agent that a user means by `wanted`; see [`resolve`].
    ///
    /// # Errors
    /// [`ClientError::Resolve`] where no agent is selected, or more than one; else see [`ClientError`].
    pub async fn find_agent(&self, wanted: &str) -> Result<Agent, ClientError> {
        match self.get_agent(wanted).await {
            Err(ClientError::Rpc(error)) if error.data.kind == ErrorKind::UnknownAgent => {}
            other => return other,
        }
        let agents = self.list_agents().await?;
        Ok(resolve(&agents, wanted)?.clone())
    }

    /// One agent, once it has ended.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn wait_agent(&self, agent: &str) -> Result<Agent, ClientError> {
        self.call("wait-agent", Call::WaitAgent(id(agent)?)).await
    }

    /// The runs of an agent that was started again.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn list_runs(&self, agent: &str) -> Result<Vec<Run>, ClientError> {
        let result: RunsResult = self.call("list-runs", Call::ListRuns(id(agent)?)).await?;
        Ok(result.runs)
    }

    /// What these agents use, or all that run.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn get_usage(&self, ids: Option<Vec<String>>) -> Result<UsageResult, ClientError> {
        self.call("get-usage", Call::GetUsage(UsageParams { ids }))
            .await
    }

    /// Forgets an agent that has ended, and deletes its journals.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn remove_agent(&self, agent: &str) -> Result<(), ClientError> {
        self.call("remove-agent", Call::RemoveAgent(id(agent)?))
            .await
            .map(|Empty {}| ())
    }

    /// Ends an agent.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn kill_agent(&self, params: KillParams) -> Result<KillResult, ClientError> {
        id(&params.id)?;
        self.call("kill-agent", Call::KillAgent(params)).await
    }

    /// Restarts an agent, whatever its restart policy, and returns the id of the agent that runs then: the same one if
    /// it was running, else a new one. `grace` is the time between TERM and KILL for a running agent.
    ///
    /// # Errors
    /// See [`ClientError`]; [`ErrorKind::EnvironmentNotKept`](crate::ErrorKind::EnvironmentNotKept) for an ended agent
    /// with environment variables, whose values are not kept.
    pub async fn restart_agent(
        &self,
        agent: &str,
        grace: Option<Duration>,
    ) -> Result<String, ClientError> {
        let params = RestartAgentParams {
            id: agent.to_owned(),
            grace_ms: grace.map(|grace| u64::try_from(grace.as_millis()).unwrap_or(u64::MAX)),
        };
        let result: RestartResult = self
            .call("restart-agent", Call::RestartAgent(params))
            .await?;
        Ok(result.id)
    }

    /// Offers bytes to an agent's stdin; returns how many were taken, which may be fewer while the agent
    /// does not read. At most 512 KiB are sent at once.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn send_input(&self, agent: &str, bytes: &[u8]) -> Result<usize, ClientError> {
        let bytes = bytes.get(..512 * 1024).unwrap_or(bytes);
        let params = InputParams {
            id: id(agent)?.id,
            data: OutputData::from_bytes(bytes),
        };
        let result: InputResult = self.call("send-input", Call::SendInput(params)).await?;
        Ok(usize::try_from(result.written).unwrap_or(usize::MAX))
    }

    /// Closes an agent's stdin behind what was sent.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn close_input(&self, agent: &str) -> Result<(), ClientError> {
        self.call("close-input", Call::CloseInput(id(agent)?))
            .await
            .map(|Empty {}| ())
    }

    /// Reads what an agent has written.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn read_journal(&self, params: ReadParams) -> Result<ReadResult, ClientError> {
        id(&params.id)?;
        self.call("read-journal", Call::ReadJournal(params)).await
    }

    /// Looks whether agents can be run.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn doctor(&self) -> Result<DoctorResult, ClientError> {
        self.call("doctor", Call::Doctor(Empty {})).await
    }

    /// The profiles that a spawn may name.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn list_profiles(&self) -> Result<ProfilesResult, ClientError> {
        self.call("list-profiles", Call::ListProfiles(Empty {}))
            .await
    }

    /// Has the daemon read its settings file again.
    ///
    /// # Errors
    /// See [`ClientError`]; the file is not valid, and nothing has changed.
    pub async fn reload_config(&self) -> Result<ReloadResult, ClientError> {
        self.call("reload-config", Call::ReloadConfig(Empty {}))
            .await
    }

    /// Ends the daemon. Agents go on under their shims.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn shutdown(&self) -> Result<(), ClientError> {
        self.call("shutdown", Call::Shutdown(Empty {}))
            .await
            .map(|Empty {}| ())
    }

    /// Subscribes, over a connection of its own: events that are not taken wait in the daemon's journal, and hold
    /// up no calls and no other subscription.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn subscribe(&self, params: SubscribeParams) -> Result<Events, ClientError> {
        params.id.as_deref().map(id).transpose()?;
        let (sender, events) = mpsc::channel(EVENTS);
        let connection = Self::open(self.socket.clone(), self.trusted, Some(sender)).await?;
        let Subscription { .. } = connection
            .call("subscribe", Call::Subscribe(params))
            .await?;
        Ok(Events {
            _connection: connection,
            events,
        })
    }

    async fn call<T: DeserializeOwned>(
        &self,
        method: &'static str,
        call: Call,
    ) -> Result<T, ClientError> {
        let number = self.next_id.fetch_add(1, Ordering::Relaxed);
        let answer =
            with(&self.shared, |waiting| waiting.call(number)).ok_or(ClientError::Closed)?;
        self.send(&call, number).await?;
        decode(method, answer.await.map_err(|_| ClientError::Closed)?)
    }

    async fn send(&self, call: &Call, number: u64) -> Result<(), ClientError> {
        let frame = call.encode(number)?;
        // In a task of its own: a caller that gives up must not leave half a frame on the wire.
        let writer = self.writer.clone();
        tokio::spawn(async move { writer.lock_owned().await.write_all(&frame).await })
            .await
            .map_err(|_| ClientError::Closed)?
            .map_err(|_| ClientError::Closed)
    }
}

fn decode<T: DeserializeOwned>(method: &'static str, answer: Answer) -> Result<T, ClientError> {
    serde_json::from_str(answer?.get()).map_err(|error| ClientError::Protocol {
        method,
        message: error.to_string(),
    })
}

/// What a subscription brings, in order. Dropping it ends the subscription.
pub struct Events {
    _connection: Client,
    events: mpsc::Receiver<Notification>,
}

impl Events {
    /// The next event; `None` when the connection has ended. A subscription to one agent brings nothing
    /// after its [`Notification::AgentExit`].
    pub async fn next(&mut self) -> Option<Notification> {
        self.events.recv().await
    }
}
