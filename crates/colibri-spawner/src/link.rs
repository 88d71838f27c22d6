//! The connection to a shim: requests that get answers, and the latest state for whoever looks. It is made
//! in the background, and again when it breaks, as long as the shim lives.

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::path::Path;
use std::time::Duration;

use colibri_shim::control::{Event, MAX_INPUT, Message, Op, Reply, Request, Status};
use colibri_shim::layout;
use colibri_shim::record::ExitRecord;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;
use tokio::sync::{mpsc, oneshot, watch};

use crate::{AgentId, StateDir};

/// Requests that may wait for the shim; more wait for room.
const QUEUE: usize = 16;
/// How long a shim that is well may take for an answer on a busy machine.
pub(crate) const AT_ONCE: Duration = Duration::from_secs(5);
/// Between two tries to reach a shim that lives: the first wait, doubled up to the longest.
const TRY_AGAIN: (Duration, Duration) = (Duration::from_millis(5), Duration::from_millis(500));

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
        "the agent's shim does not answer within {0:?}; it may be stopped or the machine overloaded; kill the agent to end both"
    )]
    Silent(Duration),
}

/// What a shim last said.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ShimState {
    /// Counts and conditions.
    pub status: Status,
    /// The end of the agent, once the shim has recorded it.
    pub exit: Option<ExitRecord>,
    /// The shim is gone: nothing more comes.
    pub closed: bool,
}

type Answer = oneshot::Sender<Result<Reply, LinkError>>;

struct Call {
    op: Op,
    payload: Vec<u8>,
    answer: Answer,
}

/// A connection to a shim, shared by cloning.
#[derive(Clone, Debug)]
pub struct ShimLink {
    calls: mpsc::Sender<Call>,
    state: watch::Receiver<ShimState>,
}

impl ShimLink {
    /// A link to the shim of an agent, which is connected to in the background; `status` is what is known of
    /// the agent until the shim says more.
    pub(crate) fn open(state_dir: StateDir, id: AgentId, status: Status) -> Self {
        let (calls, queue) = mpsc::channel(QUEUE);
        let (tell, state) = watch::channel(ShimState {
            status,
            ..ShimState::default()
        });
        tokio::spawn(keep(state_dir, id, queue, tell));
        Self { calls, state }
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
            let op = Op::Input { len: chunk.len() };
            match self.request_within(AT_ONCE, op, chunk.to_vec()).await? {
                Reply::Written(count) => {
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
        self.request_within(AT_ONCE, Op::CloseInput, Vec::new())
            .await
            .map(drop)
    }

    async fn request(&self, op: Op, payload: Vec<u8>) -> Result<Reply, LinkError> {
        let (answer, answered) = oneshot::channel();
        let call = Call {
            op,
            payload,
            answer,
        };
        self.calls.send(call).await.map_err(|_| LinkError::Gone)?;
        match answered.await.map_err(|_| LinkError::Gone)?? {
            Reply::Refused(reason) => Err(LinkError::Refused(reason)),
            reply => Ok(reply),
        }
    }

    /// Asks the shim, which may be stopped: then this gives up.
    pub(crate) async fn request_within(
        &self,
        limit: Duration,
        op: Op,
        payload: Vec<u8>,
    ) -> Result<Reply, LinkError> {
        tokio::time::timeout(limit, self.request(op, payload))
            .await
            .unwrap_or(Err(LinkError::Silent(limit)))
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
    mut queue: mpsc::Receiver<Call>,
    tell: watch::Sender<ShimState>,
) {
    let directory = state_dir.agent(&id);
    let (mut wait, longest) = TRY_AGAIN;
    loop {
        let unanswered = match connect(&directory).await {
            Ok(socket) => {
                wait = TRY_AGAIN.0;
                talk(socket, &mut queue, &tell).await
            }
            Err(error) => {
                tracing::debug!(%id, %error, "shim not reached");
                Vec::new()
            }
        };
        if queue.is_closed() && queue.is_empty() {
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
}

/// One connection, to its end. Returns whoever was not answered.
async fn talk(
    socket: UnixStream,
    queue: &mut mpsc::Receiver<Call>,
    tell: &watch::Sender<ShimState>,
) -> Vec<Answer> {
    let (reader, mut writer) = socket.into_split();
    let mut lines = BufReader::new(reader).lines();
    let mut waiting: HashMap<u64, Answer> = HashMap::new();
    let (mut writable, mut next_seq) = (true, 0);
    let (answer, _watched) = oneshot::channel();
    let mut call = Some(Call {
        op: Op::Watch,
        payload: Vec::new(),
        answer,
    });
    loop {
        // Whoever has given up must not be surprised by what is done later.
        let wanted = call.take().filter(|call| !call.answer.is_closed());
        if let Some(Call {
            op,
            payload,
            answer,
        }) = wanted
        {
            next_seq += 1;
            if let Ok(mut bytes) = serde_json::to_vec(&Request { seq: next_seq, op }) {
                bytes.push(b'\n');
                bytes.extend_from_slice(&payload);
                waiting.insert(next_seq, answer);
                // What the shim still says is read to its end: the exit may be in it.
                writable = writer.write_all(&bytes).await.is_ok();
            }
        }
        tokio::select! {
            line = lines.next_line() => {
                let Ok(Some(line)) = line else { break };
                match serde_json::from_str(&line) {
                    Ok(Message::Reply { seq, reply }) => {
                        if let Some(answer) = waiting.remove(&seq) {
                            let _ = answer.send(Ok(reply));
                        }
                    }
                    Ok(Message::Event(Event::Status(status))) => tell.send_modify(|state| state.status = status),
                    Ok(Message::Event(Event::Exit(record))) => {
                        tell.send_modify(|state| state.exit = Some(record));
                    }
                    Err(error) => tracing::warn!(%error, "message of a shim not understood"),
                }
            }
            next = queue.recv(), if writable => match next {
                Some(next) => call = Some(next),
                None => break,
            },
        }
    }
    waiting.into_values().collect()
}
