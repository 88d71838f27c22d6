//! The client: one method for each call of the protocol.

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use colibri_proto::{
    Agent, AgentState, Call, DoctorResult, Empty, ErrorKind, ExplainResult, IdParams, InputParams,
    InputResult, KillParams, KillResult, ListParams, ListResult, Notification, OutputData,
    ProfilesResult, ReadParams, ReadResult, ReloadResult, ResizeParams, RestartAgentParams,
    RestartResult, Run, RunsResult, SpawnRequest, SpawnResult, Stream, SubscribeParams,
    Subscription, TerminalSize, UsageParams, UsageResult, VersionResult,
};
use serde::de::DeserializeOwned;
use tokio::io::AsyncWriteExt;
use tokio::net::UnixStream;
use tokio::net::unix::OwnedWriteHalf;
use tokio::sync::{Mutex, mpsc, oneshot};

use crate::connection::{self, SharedCalls, lock};
use crate::peer::own_uid;
use crate::{ClientError, TrustedUsers, refuse_blank, resolve};

/// Capacity of the notification queue of a subscription; when it is full, its connection is not read.
const EVENT_QUEUE: usize = 64;
/// Maximum number of bytes in one `send-input` request.
const MAX_INPUT: usize = 512 * 1024;

/// A connection to a daemon. Clones share the connection.
#[derive(Clone)]
pub struct Client {
    socket: Arc<Path>,
    trusted: TrustedUsers,
    writer: Arc<Mutex<OwnedWriteHalf>>,
    calls: SharedCalls,
    next_id: Arc<AtomicU64>,
}

/// Returns the parameters of a call about one agent. An empty id is refused: it is usually an unset shell variable.
fn id_params(id: &str) -> Result<IdParams, ClientError> {
    refuse_blank(id)?;
    Ok(IdParams { id: id.to_owned() })
}

impl Client {
    /// Connects to the daemon at `socket` if it runs as root or as the user of this process.
    ///
    /// # Errors
    /// [`ClientError::NoDaemon`] if no process listens, [`ClientError::UntrustedPeer`] if its user is not trusted.
    pub async fn connect(socket: &Path) -> Result<Self, ClientError> {
        Self::open(socket.into(), TrustedUsers::default(), None).await
    }

    /// Returns whether the connection has ended.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        lock(&self.calls).is_none()
    }

    pub(crate) async fn open(
        socket: Arc<Path>,
        trusted: TrustedUsers,
        events: Option<mpsc::Sender<Notification>>,
    ) -> Result<Self, ClientError> {
        let no_daemon = |source| ClientError::NoDaemon {
            path: socket.to_path_buf(),
            source,
        };
        let stream = UnixStream::connect(&socket).await.map_err(no_daemon)?;
        // Checked before the first byte is sent, because requests may contain secrets.
        let uid = stream.peer_cred().map_err(no_daemon)?.uid();
        if !trusted.trusts(uid) {
            return Err(ClientError::UntrustedPeer {
                path: socket.to_path_buf(),
                uid,
                own: own_uid(),
            });
        }
        let (reader, writer) = stream.into_split();
        let calls = SharedCalls::new(Some(HashMap::new()).into());
        tokio::spawn(connection::read(reader, calls.clone(), events));
        Ok(Self {
            socket,
            trusted,
            writer: Arc::new(Mutex::new(writer)),
            calls,
            next_id: Arc::default(),
        })
    }

    /// Returns the name, version and protocol version of the daemon.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn version(&self) -> Result<VersionResult, ClientError> {
        self.call(Call::Version(Empty {})).await
    }

    /// Starts an agent.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn spawn_agent(&self, params: SpawnRequest) -> Result<SpawnResult, ClientError> {
        self.call(Call::SpawnAgent(params)).await
    }

    /// Returns the command line that [`Client::spawn_agent`] would execute.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn explain_spawn(&self, params: SpawnRequest) -> Result<ExplainResult, ClientError> {
        self.call(Call::ExplainSpawn(params)).await
    }

    /// Returns all agents. Requests as many pages as necessary.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn list_agents(&self) -> Result<Vec<Agent>, ClientError> {
        self.list(false).await
    }

    /// Returns all running agents, and the ended ones that wait to be resumed (state `blocked`). The cost does not depend on the
    /// number of other ended agents.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn list_running(&self) -> Result<Vec<Agent>, ClientError> {
        let mut agents = self.list(true).await?;
        // Daemons of earlier versions ignore the filter.
        agents.retain(|agent| agent.exited_at.is_none() || agent.state == AgentState::Blocked);
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
            let page: ListResult = self.call(Call::ListAgents(params)).await?;
            agents.extend(page.agents);
            after = page.next;
            if after.is_none() {
                return Ok(agents);
            }
        }
    }

    /// Returns the agent with this full id.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn get_agent(&self, agent: &str) -> Result<Agent, ClientError> {
        self.call(Call::GetAgent(id_params(agent)?)).await
    }

    /// Returns the agent with this id, name or id prefix; see [`resolve`].
    ///
    /// # Errors
    /// [`ClientError::Resolve`] if no agent is selected, or more than one; otherwise see [`ClientError`].
    pub async fn find_agent(&self, selector: &str) -> Result<Agent, ClientError> {
        match self.get_agent(selector).await {
            Err(ClientError::Rpc(error)) if error.data.kind == ErrorKind::UnknownAgent => {}
            other => return other,
        }
        let agents = self.list_agents().await?;
        Ok(resolve(&agents, selector)?.clone())
    }

    /// Waits until an agent has ended, and returns it.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn wait_agent(&self, agent: &str) -> Result<Agent, ClientError> {
        self.call(Call::WaitAgent(id_params(agent)?)).await
    }

    /// Returns the runs of an agent with a restart policy, oldest first.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn list_runs(&self, agent: &str) -> Result<Vec<Run>, ClientError> {
        let result: RunsResult = self.call(Call::ListRuns(id_params(agent)?)).await?;
        Ok(result.runs)
    }

    /// Measures the resource usage of these agents; absent: of all running agents.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn get_usage(&self, ids: Option<Vec<String>>) -> Result<UsageResult, ClientError> {
        self.call(Call::GetUsage(UsageParams { ids })).await
    }

    /// Deletes an ended agent and its journals.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn remove_agent(&self, agent: &str) -> Result<(), ClientError> {
        let Empty {} = self.call(Call::RemoveAgent(id_params(agent)?)).await?;
        Ok(())
    }

    /// Ends an agent, or sends it a signal.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn kill_agent(&self, params: KillParams) -> Result<KillResult, ClientError> {
        refuse_blank(&params.id)?;
        self.call(Call::KillAgent(params)).await
    }

    /// Restarts an agent regardless of its restart policy. Returns the id of the restarted agent: unchanged if it was
    /// running, otherwise new.
    ///
    /// # Errors
    /// See [`ClientError`]; [`ErrorKind::EnvironmentNotKept`](crate::ErrorKind::EnvironmentNotKept) for an ended agent
    /// with environment variables, whose values are not kept.
    pub async fn restart_agent(
        &self,
        params: RestartAgentParams,
    ) -> Result<RestartResult, ClientError> {
        refuse_blank(&params.id)?;
        self.call(Call::RestartAgent(params)).await
    }

    /// Sends bytes to an agent's stdin, at most 512 KiB, and returns how many bytes the agent's pipe accepted, which
    /// is less while the agent does not read.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn send_input(&self, agent: &str, bytes: &[u8]) -> Result<usize, ClientError> {
        let bytes = bytes.get(..MAX_INPUT).unwrap_or(bytes);
        let params = InputParams {
            id: id_params(agent)?.id,
            data: OutputData::from(bytes.to_vec()),
        };
        let result: InputResult = self.call(Call::SendInput(params)).await?;
        Ok(usize::try_from(result.written).unwrap_or(usize::MAX))
    }

    /// Closes an agent's stdin after the bytes that were accepted.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn close_input(&self, agent: &str) -> Result<(), ClientError> {
        let Empty {} = self.call(Call::CloseInput(id_params(agent)?)).await?;
        Ok(())
    }

    /// Reads a range of an agent's journal.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn read_journal(&self, params: ReadParams) -> Result<ReadResult, ClientError> {
        refuse_blank(&params.id)?;
        self.call(Call::ReadJournal(params)).await
    }

    /// Returns the offset of the oldest byte of an agent's journal that retention has kept.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn oldest_offset(&self, agent: &str, stream: Stream) -> Result<u64, ClientError> {
        let probe = ReadParams {
            id: agent.to_owned(),
            stream,
            offset: 0,
            limit: 0,
            since: None,
            timed: false,
        };
        match self.read_journal(probe).await {
            Ok(_) => Ok(0),
            Err(error) => error.oldest_offset().ok_or(error),
        }
    }

    /// Checks whether the daemon's host can run agents.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn doctor(&self) -> Result<DoctorResult, ClientError> {
        self.call(Call::Doctor(Empty {})).await
    }

    /// Returns the profiles of the daemon's settings file.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn list_profiles(&self) -> Result<ProfilesResult, ClientError> {
        self.call(Call::ListProfiles(Empty {})).await
    }

    /// Makes the daemon read its settings file again.
    ///
    /// # Errors
    /// See [`ClientError`]. An invalid file is an error, and changes nothing.
    pub async fn reload_config(&self) -> Result<ReloadResult, ClientError> {
        self.call(Call::ReloadConfig(Empty {})).await
    }

    /// Stops the daemon. Agents keep running under their shims.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn shutdown(&self) -> Result<(), ClientError> {
        self.call(Call::Shutdown(Empty {})).await.map(|Empty {}| ())
    }

    /// Subscribes to events, over a separate connection: a slow consumer gets backpressure, and delays neither calls nor
    /// other subscriptions.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn subscribe(&self, params: SubscribeParams) -> Result<Events, ClientError> {
        params.id.as_deref().map(id_params).transpose()?;
        let (sender, events) = mpsc::channel(EVENT_QUEUE);
        let connection = Self::open(self.socket.clone(), self.trusted, Some(sender)).await?;
        let Subscription { subscription } = connection.call(Call::Subscribe(params)).await?;
        Ok(Events {
            subscribed: Subscribed {
                connection,
                subscription,
            },
            events,
        })
    }

    async fn call<T: DeserializeOwned>(&self, call: Call) -> Result<T, ClientError> {
        let id = self.next_id.fetch_add(1, Ordering::Relaxed);
        let (sender, response) = oneshot::channel();
        let registered = lock(&self.calls)
            .as_mut()
            .map(|calls| calls.insert(id, sender));
        registered.ok_or(ClientError::Closed)?;
        self.send(call.encode(id)?).await?;
        let result = response.await.map_err(|_| ClientError::Closed)??;
        serde_json::from_str(result.get()).map_err(|error| ClientError::Protocol {
            method: call.method(),
            message: error.to_string(),
        })
    }

    /// Writes a frame in a task, so that a cancelled caller cannot leave half a frame on the wire.
    async fn send(&self, frame: Vec<u8>) -> Result<(), ClientError> {
        let writer = self.writer.clone();
        tokio::spawn(async move { writer.lock_owned().await.write_all(&frame).await })
            .await
            .map_err(|_| ClientError::Closed)?
            .map_err(|_| ClientError::Closed)
    }
}

/// The events of a subscription, in order. Dropping it unsubscribes.
pub struct Events {
    subscribed: Subscribed,
    events: mpsc::Receiver<Notification>,
}

impl Events {
    /// Returns the next event; `None` when the connection has ended. In a subscription to one agent,
    /// [`Notification::AgentExit`] is the last event. Cancel safe.
    pub async fn next(&mut self) -> Option<Notification> {
        self.events.recv().await
    }

    pub(crate) fn subscribed(&self) -> Subscribed {
        self.subscribed.clone()
    }
}

/// A subscription on its connection.
#[derive(Clone)]
pub(crate) struct Subscribed {
    connection: Client,
    subscription: u64,
}

impl Subscribed {
    /// Tells the daemon the size of the subscriber's terminal. The answer is read only while events are.
    pub(crate) async fn resize_terminal(&self, terminal: TerminalSize) -> Result<(), ClientError> {
        let params = ResizeParams {
            subscription: self.subscription,
            terminal,
        };
        let Empty {} = self.connection.call(Call::ResizeTerminal(params)).await?;
        Ok(())
    }
}
