//! Client of a shim: sends requests, and keeps the latest state that the shim reported.
//!
//! The connection to a shim that this process started is the shim's stdio. To other shims, a background task connects,
//! and reconnects with backoff as long as the shim lives.

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use colibri_shim::control::{
    MAX_INPUT, ShimEvent, ShimMessage, ShimOp, ShimReply, ShimRequest, ShimStatus, clock_ms,
};
use colibri_shim::launch::{Launch, LaunchReport};
use colibri_shim::layout;
use colibri_shim::record::ExitRecord;
use colibri_types::TerminalSize;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines};
use tokio::net::UnixStream;
use tokio::sync::{mpsc, oneshot, watch};

use crate::state::discard;
use crate::{AgentId, NetworkLog, SpawnError, Spawner, StateDir};

/// Maximum number of queued requests of one shim; further callers wait.
const MAX_QUEUED_REQUESTS: usize = 16;
/// Timeout of a request to a healthy shim on a busy machine.
pub(crate) const REQUEST_TIMEOUT: Duration = Duration::from_secs(5);
/// Time between the expiry of a request and its timeout.
const EXPIRY_MARGIN: Duration = Duration::from_millis(250);
/// First delay between two attempts to connect to a living shim.
const FIRST_RECONNECT_DELAY: Duration = Duration::from_millis(5);
/// First delay between two checks for the end of a shim that is about to exit.
const FIRST_REAP_DELAY: Duration = Duration::from_millis(1);
/// Maximum delay of both exponential backoffs, which have no jitter.
const MAX_DELAY: Duration = Duration::from_millis(500);
/// Size of the read buffer of a connection, in bytes.
const BUFFER_BYTES: usize = 512;

/// Why a request to a shim failed.
#[derive(Debug, thiserror::Error)]
pub enum ShimClientError {
    /// The shim has ended.
    #[error("the agent's shim has ended, and the agent with it")]
    Closed,
    /// The shim refused the request.
    #[error("the agent's shim refused: {0}")]
    Refused(String),
    /// The connection broke before the reply; the shim lives.
    #[error(
        "the connection to the agent's shim broke before the reply; check the state of the agent, then try again"
    )]
    Interrupted,
    /// The shim lives and does not reply.
    #[error(
        "the agent's shim did not reply within {0:?}: it may be stopped, or the machine overloaded; try again, or kill the agent to end both"
    )]
    Silent(Duration),
}

/// The last reported state of a shim.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ShimState {
    /// Journal lengths, pid, run, and problems of the running agent.
    pub status: ShimStatus,
    /// Reports of the agent's proxy.
    pub network: NetworkLog,
    /// The exit record of the agent, after its end.
    pub exit: Option<ExitRecord>,
    /// The shim has ended; the state does not change any more.
    pub closed: bool,
}

type ShimConnection = Lines<BufReader<UnixStream>>;

fn connection(socket: UnixStream) -> ShimConnection {
    BufReader::with_capacity(BUFFER_BYTES, socket).lines()
}

/// A shim that this process started, and the socket to the shim's stdio.
pub(crate) struct StartedShim {
    pub(crate) id: AgentId,
    /// The directory of its agent.
    pub(crate) directory: PathBuf,
    program: PathBuf,
    process: Child,
    connection: ShimConnection,
}

impl StartedShim {
    /// Creates the agent's directory and starts its shim, which then waits for its launch; returns `None` if the id is in
    /// use.
    ///
    /// # Errors
    /// The directory cannot be created, or the shim cannot be started. The directory is then removed.
    pub(crate) fn start(spawner: &Spawner, id: &AgentId) -> Result<Option<Self>, SpawnError> {
        let Some((directory, log)) = spawner.state.create_agent(id)? else {
            return Ok(None);
        };
        let program = spawner.shim.clone();
        match start_process(&program, &directory, log) {
            Ok((process, connection)) => Ok(Some(Self {
                id: id.clone(),
                directory,
                program,
                process,
                connection,
            })),
            Err(source) => {
                discard(&directory);
                Err(SpawnError::shim(&program, source))
            }
        }
    }

    /// Sends the launch and returns the report; `None` if the shim ended without one.
    ///
    /// # Errors
    /// The connection fails.
    pub(crate) async fn launch(&mut self, launch: &Launch) -> io::Result<Option<LaunchReport>> {
        let mut request = serde_json::to_vec(launch)?;
        request.push(b'\n');
        // A shim that failed early has sent its report, which explains more than a broken pipe.
        let _ = self.connection.get_mut().write_all(&request).await;
        match self.connection.next_line().await {
            Ok(Some(line)) => Ok(serde_json::from_str(&line).ok()),
            Ok(None) => Ok(None),
            // The shim ended before it read the whole request (unix(7)).
            Err(error) if error.kind() == io::ErrorKind::ConnectionReset => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Reports whether the shim still runs, and runs this program.
    pub(crate) fn is_usable(&mut self, program: &Path) -> bool {
        let is_running = matches!(self.process.try_wait(), Ok(None));
        self.program == program && is_running && self.directory.is_dir()
    }

    /// Ends a shim that runs no agent: closes its stdin and waits for its exit.
    pub(crate) async fn end(self) -> Option<ExitStatus> {
        drop(self.connection);
        reap(self.process).await
    }
}

fn start_process(
    program: &Path,
    directory: &Path,
    log: File,
) -> io::Result<(Child, ShimConnection)> {
    let (own, remote) = std::os::unix::net::UnixStream::pair()?;
    own.set_nonblocking(true)?;
    let process = Command::new(program)
        .arg(directory)
        .env_clear()
        .stdin(OwnedFd::from(remote.try_clone()?))
        .stdout(OwnedFd::from(remote))
        .stderr(Stdio::from(log))
        .spawn()?;
    Ok((process, connection(UnixStream::from_std(own)?)))
}

/// Waits for a process that is about to exit. Polls, because there may be thousands: a pidfd for each would exhaust the
/// descriptors.
async fn reap(mut process: Child) -> Option<ExitStatus> {
    let mut delay = FIRST_REAP_DELAY;
    loop {
        match process.try_wait() {
            Ok(None) => tokio::time::sleep(delay).await,
            Ok(status) => return status,
            Err(error) => {
                tracing::warn!(pid = process.id(), %error, "cannot read the exit status of a shim");
                return None;
            }
        }
        delay = (delay * 2).min(MAX_DELAY);
    }
}

type Answer = oneshot::Sender<Result<ShimReply, ShimClientError>>;

struct ShimCall {
    op: ShimOp,
    payload: Vec<u8>,
    /// See [`ShimRequest::expires_ms`].
    expires_ms: u64,
    answer: Answer,
}

/// A client of one shim. Clones share its connection.
#[derive(Clone, Debug)]
pub struct ShimClient {
    /// Boxed, because a channel allocates room for 32 messages.
    calls: mpsc::Sender<Box<ShimCall>>,
    state: watch::Receiver<ShimState>,
    /// The version of the control protocol that the shim speaks.
    protocol: u32,
}

impl ShimClient {
    /// Opens a client of an agent's shim. Without `started`, a background task connects to it. `status` is the state until
    /// the shim reports its own.
    pub(crate) fn open(
        state_dir: StateDir,
        id: AgentId,
        status: ShimStatus,
        protocol: u32,
        started: Option<StartedShim>,
    ) -> Self {
        let (calls, queue) = mpsc::channel(MAX_QUEUED_REQUESTS);
        let (publish, state) = watch::channel(ShimState {
            status,
            ..ShimState::default()
        });
        tokio::spawn(run_connection(state_dir, id, queue, publish, started));
        Self {
            calls,
            state,
            protocol,
        }
    }

    /// Returns the version of the control protocol that the shim speaks.
    #[must_use]
    pub fn protocol(&self) -> u32 {
        self.protocol
    }

    /// Returns a receiver for the latest state.
    #[must_use]
    pub fn state(&self) -> watch::Receiver<ShimState> {
        self.state.clone()
    }

    /// Queues bytes for the agent's stdin. Returns the number of accepted bytes, or `None` if the stdin is closed.
    ///
    /// # Errors
    /// See [`ShimClientError`].
    pub async fn input(&self, bytes: &[u8]) -> Result<Option<usize>, ShimClientError> {
        let mut accepted = 0;
        for chunk in bytes.chunks(MAX_INPUT) {
            let op = ShimOp::Input { len: chunk.len() };
            match self.request(REQUEST_TIMEOUT, op, chunk.to_vec()).await? {
                ShimReply::Written(count) => {
                    accepted += count;
                    if count < chunk.len() {
                        break;
                    }
                }
                _ => return Ok(None),
            }
        }
        Ok(Some(accepted))
    }

    /// Closes the agent's stdin after the queued bytes.
    ///
    /// # Errors
    /// See [`ShimClientError`].
    pub async fn close_input(&self) -> Result<(), ShimClientError> {
        self.request(REQUEST_TIMEOUT, ShimOp::CloseInput, Vec::new())
            .await
            .map(drop)
    }

    /// Sets the size of the agent's terminal.
    ///
    /// # Errors
    /// See [`ShimClientError`].
    pub async fn resize(&self, size: TerminalSize) -> Result<(), ShimClientError> {
        self.request(REQUEST_TIMEOUT, ShimOp::Resize(size), Vec::new())
            .await
            .map(drop)
    }

    /// Sends a request with the timeout `limit`. A shim that was stopped and is continued later does not execute an expired
    /// request.
    pub(crate) async fn request(
        &self,
        limit: Duration,
        op: ShimOp,
        payload: Vec<u8>,
    ) -> Result<ShimReply, ShimClientError> {
        // Leaves time for the reply to a request that is executed just before it expires.
        let valid = limit.saturating_sub(EXPIRY_MARGIN.min(limit / 2));
        let (answer, answered) = oneshot::channel();
        let call = Box::new(ShimCall {
            op,
            payload,
            expires_ms: clock_ms().saturating_add(milliseconds(valid)),
            answer,
        });
        let answered = async {
            let sent = self.calls.send(call).await;
            sent.map_err(|_| ShimClientError::Closed)?;
            answered.await.map_err(|_| ShimClientError::Closed)?
        };
        match tokio::time::timeout(limit, answered).await {
            Ok(Ok(ShimReply::Expired)) | Err(_) => Err(ShimClientError::Silent(limit)),
            Ok(Ok(ShimReply::Refused(reason))) => Err(ShimClientError::Refused(reason)),
            Ok(answered) => answered,
        }
    }

    /// Waits until the agent has ended; returns `None` if the shim ended without an exit record.
    pub async fn ended(&self) -> Option<ExitRecord> {
        let mut state = self.state();
        let ended = state.wait_for(|state| state.exit.is_some() || state.closed);
        ended.await.ok()?.exit.clone()
    }
}

/// Connects to a shim's control socket. On Linux through the descriptor of its directory, because a socket address is
/// limited to 108 bytes (unix(7)).
async fn connect(directory: &Path) -> io::Result<UnixStream> {
    if cfg!(target_os = "linux") {
        use std::os::fd::AsRawFd;
        let handle = File::open(directory)?;
        UnixStream::connect(format!(
            "/proc/self/fd/{}/{}",
            handle.as_raw_fd(),
            layout::CONTROL
        ))
        .await
    } else {
        UnixStream::connect(directory.join(layout::CONTROL)).await
    }
}

/// Serves requests over one connection after the other, until the shim has ended.
async fn run_connection(
    state_dir: StateDir,
    id: AgentId,
    mut queue: mpsc::Receiver<Box<ShimCall>>,
    publish: watch::Sender<ShimState>,
    started: Option<StartedShim>,
) {
    let directory = state_dir.agent(&id);
    let mut delay = FIRST_RECONNECT_DELAY;
    let (process, mut stdio) = match started {
        Some(started) => (Some(started.process), Some(started.connection)),
        None => (None, None),
    };
    loop {
        let is_stdio = stdio.is_some();
        let connected = match stdio.take() {
            Some(connection) => Ok(connection),
            None => connect(&directory).await.map(connection),
        };
        let unanswered = match connected {
            Ok(connection) => {
                delay = FIRST_RECONNECT_DELAY;
                let started_here = process.is_some();
                serve(connection, is_stdio, &mut queue, &publish, started_here).await
            }
            Err(error) => {
                tracing::debug!(%id, %error, "cannot connect to a shim");
                Vec::new()
            }
        };
        if queue.is_closed() && queue.is_empty() && process.is_none() {
            // All clients were dropped.
            return;
        }
        // A shim writes its last record before it releases its lock, so the record is checked first.
        let ended =
            publish.borrow().exit.is_some() || state_dir.is_alive(&id).is_ok_and(|alive| !alive);
        for answer in unanswered {
            let _ = answer.send(Err(if ended {
                ShimClientError::Closed
            } else {
                ShimClientError::Interrupted
            }));
        }
        if ended {
            break;
        }
        tokio::time::sleep(delay).await;
        delay = (delay * 2).min(MAX_DELAY);
    }
    // Fails queued requests before `closed` is published.
    drop(queue);
    publish.send_modify(|state| state.closed = true);
    if let Some(process) = process {
        reap(process).await;
    }
}

/// Serves requests over one connection, until it closes, or until all clients of a shim that another process started are
/// dropped. Returns the requests without a reply.
async fn serve(
    mut connection: ShimConnection,
    is_stdio: bool,
    queue: &mut mpsc::Receiver<Box<ShimCall>>,
    publish: &watch::Sender<ShimState>,
    started_here: bool,
) -> Vec<Answer> {
    let mut pending: HashMap<u64, Answer> = HashMap::new();
    // After a failed write, messages are still read: they may contain the exit record.
    let (mut writable, mut seq) = (true, 0);
    if !is_stdio {
        writable = send(
            &mut connection,
            seq,
            None,
            ShimOp::Watch { network: true },
            &[],
        )
        .await;
    }
    let mut call: Option<Box<ShimCall>> = None;
    loop {
        // A request whose caller has given up must not be executed.
        if let Some(call) = call.take().filter(|call| !call.answer.is_closed()) {
            seq += 1;
            let expires_ms = Some(call.expires_ms);
            pending.insert(seq, call.answer);
            writable = send(&mut connection, seq, expires_ms, call.op, &call.payload).await;
        }
        tokio::select! {
            line = connection.next_line() => {
                let Ok(Some(line)) = line else { break };
                match serde_json::from_str(&line) {
                    Ok(ShimMessage::Reply { seq, reply }) => {
                        if let Some(answer) = pending.remove(&seq) {
                            let _ = answer.send(Ok(reply));
                        }
                    }
                    Ok(ShimMessage::Event(ShimEvent::Status(status))) => publish.send_modify(|state| state.status = status),
                    Ok(ShimMessage::Event(ShimEvent::Network(record))) => {
                        publish.send_modify(|state| state.network.push(record));
                    }
                    Ok(ShimMessage::Event(ShimEvent::Exit(record))) => {
                        publish.send_modify(|state| state.exit = Some(record));
                    }
                    Err(error) => tracing::warn!(%error, "invalid message from a shim"),
                }
            }
            next = queue.recv(), if writable => match next {
                Some(next) => call = Some(next),
                None if started_here => writable = false,
                None => break,
            },
        }
    }
    pending.into_values().collect()
}

/// Sends a request. Returns whether the connection accepts more.
async fn send(
    connection: &mut ShimConnection,
    seq: u64,
    expires_ms: Option<u64>,
    op: ShimOp,
    payload: &[u8],
) -> bool {
    let request = ShimRequest {
        seq,
        expires_ms,
        op,
    };
    let Ok(mut bytes) = serde_json::to_vec(&request) else {
        return true;
    };
    bytes.push(b'\n');
    bytes.extend_from_slice(payload);
    connection.get_mut().write_all(&bytes).await.is_ok()
}

/// Returns a duration in milliseconds.
pub(crate) fn milliseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
