//! The connection to a shim: requests that get answers, and the latest state for whoever looks. A shim that is
//! started here is born with it; else it is made in the background, and again when it breaks, as long as the
//! shim lives.

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use colibri_shim::control::{
    MAX_INPUT, ShimEvent, ShimMessage, ShimOp, ShimReply, ShimRequest, ShimStatus, clock_ms,
};
use colibri_shim::launch::{Launch, LaunchReport};
use colibri_shim::layout;
use colibri_shim::record::ExitRecord;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines};
use tokio::net::UnixStream;
use tokio::sync::{mpsc, oneshot, watch};

use crate::{AgentId, StateDir};

/// Requests that may wait for the shim; more wait for room.
const QUEUE: usize = 16;
/// How long a shim that is well may take for an answer on a busy machine.
pub(crate) const AT_ONCE: Duration = Duration::from_secs(5);
/// Time between the expiry of a request and the timeout of its caller.
const MARGIN: Duration = Duration::from_millis(250);
/// Between two tries to reach a shim that lives: the first wait, doubled up to the longest.
const TRY_AGAIN: (Duration, Duration) = (Duration::from_millis(5), Duration::from_millis(500));

/// Between two looks whether a shim has ended that is about to.
const COLLECT: (Duration, Duration) = (Duration::from_millis(1), Duration::from_millis(500));
/// Room for a shim's messages as they come in; longer ones are put together.
const MESSAGE: usize = 512;

/// Why a shim cannot be asked.
#[derive(Debug, thiserror::Error)]
pub enum LinkError {
    /// The shim is gone: it ended, or was killed.
    #[error("the agent's shim is gone; the agent has ended")]
    Gone,
    /// The shim did not understand.
    #[error("the agent's shim refused: {0}")]
    Refused(String),
    /// The connection broke before the answer; the shim lives.
    #[error(
        "the connection to the agent's shim broke before it answered; look at the agent, then try again"
    )]
    Interrupted,
    /// The shim lives and does not answer.
    #[error(
        "the agent's shim did not answer within {0:?}: it may be stopped, or the machine overloaded; try again, or kill the agent to end both"
    )]
    Silent(Duration),
}

/// What a shim last said.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ShimState {
    /// Counts and conditions.
    pub status: ShimStatus,
    /// The end of the agent, once the shim has recorded it.
    pub exit: Option<ExitRecord>,
    /// The shim is gone: nothing more comes.
    pub closed: bool,
}

type Connection = Lines<BufReader<UnixStream>>;

fn connection(socket: UnixStream) -> Connection {
    BufReader::with_capacity(MESSAGE, socket).lines()
}

/// A shim that this process has started, and its end of the socket that is the shim's stdio.
pub(crate) struct StartedShim {
    process: Child,
    connection: Connection,
}

impl StartedShim {
    /// Runs the shim program, which waits for its launch.
    ///
    /// # Errors
    /// The system refuses the socket or the process.
    pub(crate) fn start(program: &Path, directory: &Path, log: File) -> io::Result<Self> {
        let (own, its) = std::os::unix::net::UnixStream::pair()?;
        own.set_nonblocking(true)?;
        let process = Command::new(program)
            .arg(directory)
            .env_clear()
            .stdin(OwnedFd::from(its.try_clone()?))
            .stdout(OwnedFd::from(its))
            .stderr(Stdio::from(log))
            .spawn()?;
        Ok(Self {
            process,
            connection: connection(UnixStream::from_std(own)?),
        })
    }

    /// Hands it the launch; `None` where it ended without an answer.
    ///
    /// # Errors
    /// The connection fails.
    pub(crate) async fn launch(&mut self, launch: &Launch) -> io::Result<Option<LaunchReport>> {
        let mut request = serde_json::to_vec(launch)?;
        request.push(b'\n');
        // A shim that gave up early says why; the broken pipe says less.
        let _ = self.connection.get_mut().write_all(&request).await;
        match self.connection.next_line().await {
            Ok(Some(line)) => Ok(serde_json::from_str(&line).ok()),
            Ok(None) => Ok(None),
            // It ended with some of the request unread (unix(7)).
            Err(error) if error.kind() == io::ErrorKind::ConnectionReset => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Whether it lives, as far as this process knows.
    pub(crate) fn is_running(&mut self) -> bool {
        matches!(self.process.try_wait(), Ok(None))
    }

    /// Waits for the end of one that runs no agent.
    pub(crate) async fn end(self) -> Option<ExitStatus> {
        drop(self.connection);
        collect(self.process).await
    }
}

/// Waits for a process whose end is near: it has closed its descriptors, or is about to. No signal or descriptor is
/// spent on that, as there may be thousands.
async fn collect(mut process: Child) -> Option<ExitStatus> {
    let (mut wait, longest) = COLLECT;
    loop {
        match process.try_wait() {
            Ok(None) => tokio::time::sleep(wait).await,
            Ok(status) => return status,
            Err(error) => {
                tracing::warn!(pid = process.id(), %error, "end of a shim not collected");
                return None;
            }
        }
        wait = (wait * 2).min(longest);
    }
}

type Answer = oneshot::Sender<Result<ShimReply, LinkError>>;

struct Call {
    op: ShimOp,
    payload: Vec<u8>,
    /// See [`ShimRequest::expires_ms`].
    expires_ms: Option<u64>,
    answer: Answer,
}

/// A connection to a shim, shared by cloning.
#[derive(Clone, Debug)]
pub struct ShimLink {
    /// Boxed, because the queue keeps room for 32 calls ready.
    calls: mpsc::Sender<Box<Call>>,
    state: watch::Receiver<ShimState>,
    /// The version of the control protocol that the shim speaks.
    protocol: u32,
}

impl ShimLink {
    /// A link to the shim of an agent; one that was not started here is connected to in the background. `status` is
    /// what is known of the agent until the shim says more.
    pub(crate) fn open(
        state_dir: StateDir,
        id: AgentId,
        status: ShimStatus,
        protocol: u32,
        started: Option<StartedShim>,
    ) -> Self {
        let (calls, queue) = mpsc::channel(QUEUE);
        let (tell, state) = watch::channel(ShimState {
            status,
            ..ShimState::default()
        });
        tokio::spawn(keep(state_dir, id, queue, tell, started));
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

    /// The latest state, and a way to wait for the next.
    #[must_use]
    pub fn state(&self) -> watch::Receiver<ShimState> {
        self.state.clone()
    }

    /// Queues bytes for the agent's stdin; returns how many were taken.
    ///
    /// # Errors
    /// The shim is gone; `Ok(None)` where the agent's stdin is closed.
    pub async fn input(&self, bytes: &[u8]) -> Result<Option<usize>, LinkError> {
        let mut taken = 0;
        for chunk in bytes.chunks(MAX_INPUT) {
            let op = ShimOp::Input { len: chunk.len() };
            match self.request_within(AT_ONCE, op, chunk.to_vec()).await? {
                ShimReply::Written(count) => {
                    taken += count;
                    if count < chunk.len() {
                        break;
                    }
                }
                _ => return Ok(None),
            }
        }
        Ok(Some(taken))
    }

    /// Closes the agent's stdin behind what is queued.
    ///
    /// # Errors
    /// The shim is gone.
    pub async fn close_input(&self) -> Result<(), LinkError> {
        self.request_within(AT_ONCE, ShimOp::CloseInput, Vec::new())
            .await
            .map(drop)
    }

    async fn request(
        &self,
        op: ShimOp,
        payload: Vec<u8>,
        expires_ms: Option<u64>,
    ) -> Result<ShimReply, LinkError> {
        let (answer, answered) = oneshot::channel();
        let call = Box::new(Call {
            op,
            payload,
            expires_ms,
            answer,
        });
        self.calls.send(call).await.map_err(|_| LinkError::Gone)?;
        match answered.await.map_err(|_| LinkError::Gone)?? {
            ShimReply::Refused(reason) => Err(LinkError::Refused(reason)),
            reply => Ok(reply),
        }
    }

    /// Sends a request to the shim with a timeout of `limit`. A shim that was stopped and continues later does not
    /// carry out an expired request.
    pub(crate) async fn request_within(
        &self,
        limit: Duration,
        op: ShimOp,
        payload: Vec<u8>,
    ) -> Result<ShimReply, LinkError> {
        // Leaves time for the answer to a request that is carried out just before it expires.
        let valid = limit.saturating_sub(MARGIN.min(limit / 2));
        let valid_ms = u64::try_from(valid.as_millis()).unwrap_or(u64::MAX);
        let expires_ms = Some(clock_ms().saturating_add(valid_ms));
        match tokio::time::timeout(limit, self.request(op, payload, expires_ms)).await {
            Ok(Ok(ShimReply::Expired)) | Err(_) => Err(LinkError::Silent(limit)),
            Ok(answered) => answered,
        }
    }

    /// Waits until the agent has ended; `None` where the shim went without saying how.
    pub async fn ended(&self) -> Option<ExitRecord> {
        let mut state = self.state();
        match state
            .wait_for(|state| state.exit.is_some() || state.closed)
            .await
        {
            Ok(state) => state.exit.clone(),
            Err(_) => None,
        }
    }
}

/// Connects by way of the directory's descriptor where the system can, because a socket's address is
/// short (unix(7): 108 bytes) and a state directory's path need not be.
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

/// Talks to the shim until it is gone.
async fn keep(
    state_dir: StateDir,
    id: AgentId,
    mut queue: mpsc::Receiver<Box<Call>>,
    tell: watch::Sender<ShimState>,
    started: Option<StartedShim>,
) {
    let directory = state_dir.agent(&id);
    let (mut wait, longest) = TRY_AGAIN;
    let (process, mut watched) = match started {
        Some(started) => (Some(started.process), Some(started.connection)),
        None => (None, None),
    };
    loop {
        let is_watched = watched.is_some();
        let reached = match watched.take() {
            Some(connection) => Ok(connection),
            None => connect(&directory).await.map(connection),
        };
        let unanswered = match reached {
            Ok(connection) => {
                wait = TRY_AGAIN.0;
                talk(connection, is_watched, &mut queue, &tell, process.is_some()).await
            }
            Err(error) => {
                tracing::debug!(%id, %error, "shim not reached");
                Vec::new()
            }
        };
        if queue.is_closed() && queue.is_empty() && process.is_none() {
            // Nobody holds the link any more.
            return;
        }
        // In this order: a shim that is gone has written its last record before.
        let gone =
            tell.borrow().exit.is_some() || state_dir.is_alive(&id).is_ok_and(|alive| !alive);
        for answer in unanswered {
            let _ = answer.send(Err(if gone {
                LinkError::Gone
            } else {
                LinkError::Interrupted
            }));
        }
        if gone {
            break;
        }
        tokio::time::sleep(wait).await;
        wait = (wait * 2).min(longest);
    }
    // First, so that whoever hears that nothing more comes is not kept waiting for an answer.
    drop(queue);
    tell.send_modify(|state| state.closed = true);
    if let Some(process) = process {
        collect(process).await;
    }
}

/// One connection, to its end, or until nobody holds the link of a shim that need not be collected. Returns whoever
/// was not answered.
async fn talk(
    mut connection: Connection,
    is_watched: bool,
    queue: &mut mpsc::Receiver<Box<Call>>,
    tell: &watch::Sender<ShimState>,
    to_its_end: bool,
) -> Vec<Answer> {
    let mut waiting: HashMap<u64, Answer> = HashMap::new();
    let (mut writable, mut next_seq) = (true, 0);
    let (answer, _watched) = oneshot::channel();
    let watch = Call {
        op: ShimOp::Watch,
        payload: Vec::new(),
        expires_ms: None,
        answer,
    };
    let mut call = Some(watch).filter(|_| !is_watched);
    loop {
        // Whoever has given up must not be surprised by what is done later.
        let wanted = call.take().filter(|call| !call.answer.is_closed());
        if let Some(Call {
            op,
            payload,
            expires_ms,
            answer,
        }) = wanted
        {
            next_seq += 1;
            if let Ok(mut bytes) = serde_json::to_vec(&ShimRequest {
                seq: next_seq,
                expires_ms,
                op,
            }) {
                bytes.push(b'\n');
                bytes.extend_from_slice(&payload);
                waiting.insert(next_seq, answer);
                // What the shim still says is read to its end: the exit may be in it.
                writable = connection.get_mut().write_all(&bytes).await.is_ok();
            }
        }
        tokio::select! {
            line = connection.next_line() => {
                let Ok(Some(line)) = line else { break };
                match serde_json::from_str(&line) {
                    Ok(ShimMessage::Reply { seq, reply }) => {
                        if let Some(answer) = waiting.remove(&seq) {
                            let _ = answer.send(Ok(reply));
                        }
                    }
                    Ok(ShimMessage::Event(ShimEvent::Status(status))) => tell.send_modify(|state| state.status = status),
                    Ok(ShimMessage::Event(ShimEvent::Exit(record))) => {
                        tell.send_modify(|state| state.exit = Some(record));
                    }
                    Err(error) => tracing::warn!(%error, "message of a shim not understood"),
                }
            }
            next = queue.recv(), if writable => match next {
                Some(next) => call = Some(*next),
                None if to_its_end => writable = false,
                None => break,
            },
        }
    }
    waiting.into_values().collect()
}
