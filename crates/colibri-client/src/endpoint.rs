//! Finds the daemon of a user, starts one if none listens, and reconnects to the next one after it has ended.
//!
//! ```text
//! connected --connection ends--> socket refuses connections -> the daemon crashed: start one -> connected
//!                            \-> there is no socket         -> it was stopped: wait          -> connected
//! ```

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use colibri_proto::{Agent, ErrorKind};
use tokio::io::AsyncReadExt;
use tokio::time::{Instant, sleep, timeout};

use crate::daemon_file::is_locked;
use crate::{Client, ClientError, DaemonFile, TrustedUsers};

/// Retry interval for connecting to a daemon that was just started.
const TRY_STARTED: Duration = Duration::from_millis(10);
/// Retry interval for connecting to the next daemon.
const TRY_AGAIN: Duration = Duration::from_millis(100);
/// Time for which a connection that ends without an answer is retried: a dying process may still hold the socket.
const LEFT_OVER: Duration = Duration::from_secs(2);
/// Timeout until a started daemon listens.
const START: Duration = Duration::from_secs(60);
/// Timeout until another daemon that starts at the same time listens.
const OTHER_START: Duration = Duration::from_secs(10);
/// Time that a service manager has to restart a crashed daemon before a client starts one.
const SUPERVISOR: Duration = Duration::from_millis(500);
/// Timeout for the first answer after a reconnect; after it the client reconnects again.
const FIRST_ANSWER: Duration = Duration::from_secs(30);

/// A change of the connection, to show to the user.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum LinkNote {
    /// The client has started a daemon.
    Started {
        /// Its program.
        program: PathBuf,
        /// Where it listens.
        socket: PathBuf,
    },
    /// The daemon was stopped; the client waits for the next one.
    Waiting {
        /// Socket at which it listened.
        socket: PathBuf,
    },
    /// The client is connected to the next daemon.
    Reconnected {
        /// Where it listens.
        socket: PathBuf,
    },
}

impl fmt::Display for LinkNote {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Started { program, socket } => {
                write!(f, "started {} at {}", program.display(), socket.display())
            }
            Self::Waiting { socket } => write!(
                f,
                "the daemon at {} has gone; agents go on. Waiting for the next daemon",
                socket.display()
            ),
            Self::Reconnected { socket } => {
                write!(f, "connected to the daemon at {} again", socket.display())
            }
        }
    }
}

/// How to reach a daemon: its socket, the users who are trusted, and the program to start if none listens.
#[derive(Debug, Clone, Default)]
pub struct Endpoint {
    /// Socket set by the user; absent: that of the daemon that runs with the state directory, else `default_socket`.
    pub named_socket: Option<PathBuf>,
    /// Socket of a daemon without a `socket` setting; see [`crate::default_socket`].
    pub default_socket: PathBuf,
    /// State directory of the daemon that would be started.
    pub state_dir: Option<PathBuf>,
    /// Users whose daemon is trusted.
    pub trusted: TrustedUsers,
    /// Program of the daemon; absent: never start one.
    pub program: Option<PathBuf>,
}

impl Endpoint {
    /// Returns the socket at which the daemon is expected now.
    #[must_use]
    pub fn socket(&self) -> PathBuf {
        if let Some(named) = &self.named_socket {
            return named.clone();
        }
        self.running()
            .map_or_else(|| self.default_socket.clone(), |daemon| daemon.socket)
    }

    /// Returns the record of the daemon that runs with the state directory.
    #[must_use]
    pub fn running(&self) -> Option<DaemonFile> {
        DaemonFile::of_running(self.state_dir.as_deref()?)
    }

    /// Connects to a running daemon; starts none.
    ///
    /// # Errors
    /// [`ClientError::NoDaemon`], [`ClientError::Elsewhere`] or [`ClientError::UntrustedPeer`].
    pub async fn connect(&self) -> Result<Client, ClientError> {
        self.connect_at(&self.socket()).await
    }

    async fn connect_at(&self, socket: &Path) -> Result<Client, ClientError> {
        let error = match Client::connect_trusting(socket, self.trusted).await {
            Err(error @ ClientError::NoDaemon { .. }) => error,
            other => return other,
        };
        match (self.running(), &self.state_dir) {
            (Some(daemon), Some(state_dir)) if daemon.socket != socket => {
                Err(ClientError::Elsewhere {
                    wanted: socket.to_owned(),
                    state_dir: state_dir.clone(),
                    pid: daemon.pid,
                    socket: daemon.socket,
                })
            }
            _ => Err(error),
        }
    }

    /// Connects to the daemon; starts one if none listens.
    ///
    /// # Errors
    /// As [`Endpoint::connect`]; [`ClientError::Start`] or [`ClientError::StartFailed`].
    pub async fn connect_or_start(
        &self,
        note: impl FnMut(LinkNote),
    ) -> Result<Client, ClientError> {
        let until = Instant::now() + LEFT_OVER;
        loop {
            let socket = self.socket();
            match (self.connect_at(&socket).await, &self.program) {
                (Err(ClientError::NoDaemon { source, .. }), Some(program))
                    if is_absent(&source) || has_crashed(&source) =>
                {
                    return self.start(program, &socket, note).await;
                }
                (Ok(client), _) => {
                    if answers(&client).await {
                        return Ok(client);
                    }
                    if Instant::now() > until {
                        return Err(ClientError::Closed);
                    }
                    sleep(TRY_STARTED).await;
                }
                (other, _) => return other,
            }
        }
    }

    /// Starts a daemon and waits until it listens.
    async fn start(
        &self,
        program: &Path,
        socket: &Path,
        mut note: impl FnMut(LinkNote),
    ) -> Result<Client, ClientError> {
        let mut child = tokio::process::Command::new(program)
            .arg("--background")
            .arg("--socket")
            .arg(socket)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .map_err(|source| ClientError::Start {
                program: program.to_owned(),
                source,
            })?;
        let mut stderr = child.stderr.take();
        let mut until = Instant::now() + START;
        let mut failure = None;
        loop {
            match self.connect().await {
                Ok(client) if !answers(&client).await => {}
                Ok(client) => {
                    if failure.is_none() {
                        note(LinkNote::Started {
                            program: program.to_owned(),
                            socket: socket.to_owned(),
                        });
                    }
                    return Ok(client);
                }
                Err(ClientError::NoDaemon { .. }) => {}
                Err(error) => return Err(error),
            }
            if failure.is_none() {
                match timeout(TRY_STARTED, child.wait()).await {
                    Err(_) => {}
                    // The parent process has ended; the daemon continues in the background.
                    Ok(Ok(status)) if status.success() => sleep(TRY_STARTED).await,
                    Ok(status) => {
                        let mut said = String::new();
                        if let Some(stderr) = &mut stderr {
                            let _ = timeout(TRY_AGAIN, stderr.read_to_string(&mut said)).await;
                        }
                        if said.is_empty() {
                            said = match status {
                                Ok(status) => status.to_string(),
                                Err(error) => error.to_string(),
                            };
                        }
                        failure = Some(said.trim_end().to_owned());
                        until = Instant::now() + OTHER_START;
                    }
                }
            } else {
                sleep(TRY_STARTED).await;
            }
            // If another daemon was started at the same time, use it: it takes the lock before it listens.
            let other_starts = self.state_dir.as_deref().is_some_and(is_locked);
            match failure.take() {
                Some(said) if !other_starts || Instant::now() > until => {
                    return Err(ClientError::StartFailed(said));
                }
                None if Instant::now() > until => {
                    let said = format!(
                        "it does not listen at {} within {START:?}",
                        socket.display()
                    );
                    return Err(ClientError::StartFailed(said));
                }
                other => failure = other,
            }
        }
    }

    /// Connects to the next daemon after a connection has ended. If the daemon crashed and its service manager does not
    /// restart it, the client starts one; if it was stopped, the client waits for the next one.
    ///
    /// # Errors
    /// The daemon cannot be started, or its user is not trusted.
    pub async fn reconnect(&self, mut note: impl FnMut(LinkNote)) -> Result<Client, ClientError> {
        let mut told = false;
        let mut crashed_since: Option<Instant> = None;
        loop {
            sleep(TRY_AGAIN).await;
            let socket = self.socket();
            let source = match self.connect_at(&socket).await {
                Ok(client) => match timeout(FIRST_ANSWER, client.version()).await {
                    Ok(Ok(_)) => {
                        note(LinkNote::Reconnected { socket });
                        return Ok(client);
                    }
                    // The daemon is shutting down, or was killed and another process still holds its socket.
                    Ok(Err(_)) | Err(_) => continue,
                },
                Err(ClientError::NoDaemon { source, .. }) => source,
                Err(ClientError::Elsewhere { .. }) => io::ErrorKind::NotFound.into(),
                Err(error) => return Err(error),
            };
            if !has_crashed(&source) {
                crashed_since = None;
            }
            match &self.program {
                Some(program) if has_crashed(&source) => {
                    let since = *crashed_since.get_or_insert_with(Instant::now);
                    if since.elapsed() >= SUPERVISOR {
                        let client = self.start(program, &socket, &mut note).await?;
                        note(LinkNote::Reconnected { socket });
                        return Ok(client);
                    }
                }
                _ if !told => {
                    told = true;
                    note(LinkNote::Waiting { socket });
                }
                _ => {}
            }
        }
    }

    /// Waits until an agent has ended and returns it; continues with the next daemon if the daemon is restarted.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn wait_agent(
        &self,
        client: &Client,
        id: &str,
        mut note: impl FnMut(LinkNote),
    ) -> Result<Agent, ClientError> {
        let mut client = client.clone();
        loop {
            match client.wait_agent(id).await {
                Err(error) if error.is_lost_connection() => {
                    client = self.reconnect(&mut note).await?;
                }
                other => return other,
            }
        }
    }
}

impl ClientError {
    /// Returns whether the daemon has ended or is shutting down, so that a retry with the next one makes sense.
    #[must_use]
    pub fn is_lost_connection(&self) -> bool {
        match self {
            Self::Closed | Self::NoDaemon { .. } => true,
            Self::Rpc(error) => error.data.kind == ErrorKind::ShuttingDown,
            _ => false,
        }
    }
}

/// Returns whether a daemon answers. After a daemon was killed, a child between fork(2) and execve(2) may hold its
/// socket for a moment; it never answers.
async fn answers(client: &Client) -> bool {
    !matches!(client.version().await, Err(ClientError::Closed))
}

fn is_absent(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::NotFound
}

/// Returns whether the socket file exists and no process listens: a daemon removes the file on an orderly shutdown.
fn has_crashed(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::ConnectionRefused
}
