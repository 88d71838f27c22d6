//! The connection to a shim: requests that get answers, and the latest state for whoever looks.

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::path::Path;

use colibri_shim::control::{Event, MAX_INPUT, Message, Op, Reply, Request, Status};
use colibri_shim::layout;
use colibri_shim::record::ExitRecord;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::{mpsc, oneshot, watch};

/// Requests that may wait for the shim; more wait for room.
const QUEUE: usize = 16;

/// Why a shim cannot be asked.
#[derive(Debug, thiserror::Error)]
pub enum LinkError {
    /// The shim is gone: it ended, or was killed.
    #[error("the agent's shim is gone; the agent has ended")]
    Gone,
    /// The shim did not understand.
    #[error("the agent's shim refused: {0}")]
    Refused(String),
    /// No connection.
    #[error("the agent's shim cannot be reached: {0}")]
    Connect(#[source] io::Error),
}

/// What a shim last said.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ShimState {
    /// Counts and conditions.
    pub status: Status,
    /// The end of the agent, once the shim has recorded it.
    pub exit: Option<ExitRecord>,
    /// The connection has ended: nothing more comes.
    pub closed: bool,
}

struct Call {
    op: Op,
    payload: Vec<u8>,
    answer: oneshot::Sender<Reply>,
}

/// A connection to a shim, shared by cloning.
#[derive(Clone, Debug)]
pub struct ShimLink {
    calls: mpsc::Sender<Call>,
    state: watch::Receiver<ShimState>,
}

impl ShimLink {
    /// Connects to the shim of the agent in `directory` and asks it for events.
    pub(crate) async fn connect(directory: &Path) -> Result<Self, LinkError> {
        let socket = connect(directory).await.map_err(LinkError::Connect)?;
        let (reader, writer) = socket.into_split();
        let (calls, queue) = mpsc::channel(QUEUE);
        let (tell, state) = watch::channel(ShimState::default());
        tokio::spawn(serve(reader, writer, queue, tell));
        let link = Self { calls, state };
        link.request(Op::Watch, Vec::new()).await?;
        // The first status follows the reply at once; with it the counts are the shim's, not zero.
        let mut state = link.state.clone();
        let _ = state.changed().await;
        Ok(link)
    }

    /// A link to a shim that has gone, with what it left.
    pub(crate) fn ended_with(exit: ExitRecord) -> Self {
        let status = Status {
            stdout: exit.stdout_bytes,
            stderr: exit.stderr_bytes,
            ..Status::default()
        };
        let (_, state) = watch::channel(ShimState {
            status,
            exit: Some(exit),
            closed: true,
        });
        Self {
            calls: mpsc::channel(1).0,
            state,
        }
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
            match self
                .request(Op::Input { len: chunk.len() }, chunk.to_vec())
                .await?
            {
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
        self.request(Op::CloseInput, Vec::new()).await.map(drop)
    }

    pub(crate) async fn request(&self, op: Op, payload: Vec<u8>) -> Result<Reply, LinkError> {
        let (answer, answered) = oneshot::channel();
        let call = Call {
            op,
            payload,
            answer,
        };
        self.calls.send(call).await.map_err(|_| LinkError::Gone)?;
        match answered.await.map_err(|_| LinkError::Gone)? {
            Reply::Refused(reason) => Err(LinkError::Refused(reason)),
            reply => Ok(reply),
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

async fn serve(
    reader: OwnedReadHalf,
    mut writer: OwnedWriteHalf,
    mut queue: mpsc::Receiver<Call>,
    tell: watch::Sender<ShimState>,
) {
    let mut lines = BufReader::new(reader).lines();
    let mut waiting: HashMap<u64, oneshot::Sender<Reply>> = HashMap::new();
    let mut next_seq = 0;
    loop {
        tokio::select! {
            line = lines.next_line() => {
                let Ok(Some(line)) = line else { break };
                match serde_json::from_str(&line) {
                    Ok(Message::Reply { seq, reply }) => {
                        if let Some(answer) = waiting.remove(&seq) {
                            let _ = answer.send(reply);
                        }
                    }
                    Ok(Message::Event(Event::Status(status))) => tell.send_modify(|state| state.status = status),
                    Ok(Message::Event(Event::Exit(record))) => {
                        tell.send_modify(|state| state.exit = Some(record));
                    }
                    Err(error) => tracing::warn!(%error, "message of a shim not understood"),
                }
            }
            call = queue.recv() => {
                let Some(Call { op, payload, answer }) = call else { break };
                next_seq += 1;
                let Ok(mut bytes) = serde_json::to_vec(&Request { seq: next_seq, op }) else { continue };
                bytes.push(b'\n');
                bytes.extend_from_slice(&payload);
                waiting.insert(next_seq, answer);
                if writer.write_all(&bytes).await.is_err() {
                    // What it still said is read to its end: the exit may be in it.
                    continue;
                }
            }
        }
    }
    tell.send_modify(|state| state.closed = true);
}
