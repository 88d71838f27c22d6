//! Finds the daemon of a user, and starts one if none listens.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use colibri_sys::daemon;
use tokio::io::AsyncReadExt;
use tokio::process::{Child, Command};
use tokio::time::{Instant, sleep, timeout};

use crate::{Client, ClientError, DaemonFile, TrustedUsers};

/// Retry interval for connecting to a daemon that was just started.
const START_RETRY_INTERVAL: Duration = Duration::from_millis(10);
/// Time for which a connection that ends without an answer is retried: a dying process may still hold the socket.
const STALE_SOCKET_TIMEOUT: Duration = Duration::from_secs(2);
/// Timeout until a started daemon listens.
const START_TIMEOUT: Duration = Duration::from_secs(60);
/// Timeout until another daemon that starts at the same time listens.
const OTHER_START_TIMEOUT: Duration = Duration::from_secs(10);
/// Timeout for reading the error message of a daemon that failed to start.
const STDERR_TIMEOUT: Duration = Duration::from_millis(100);

/// A change of the connection, to show to the user.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum ConnectionEvent {
    /// The client has started a daemon.
    Started {
        /// Its program.
        program: PathBuf,
        /// Socket at which it listens.
        socket: PathBuf,
    },
    /// The daemon at this socket was stopped; the client waits for the next one.
    Waiting(PathBuf),
    /// The client is connected to the next daemon, at this socket.
    Reconnected(PathBuf),
}

impl fmt::Display for ConnectionEvent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Started { program, socket } => {
                write!(f, "started {} at {}", program.display(), socket.display())
            }
            Self::Waiting(socket) => write!(
                f,
                "the daemon at {} has stopped; its agents keep running; waiting for the next daemon",
                socket.display()
            ),
            Self::Reconnected(socket) => {
                write!(f, "reconnected to the daemon at {}", socket.display())
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
        let named = self.named_socket.clone();
        named
            .or_else(|| self.running().map(|daemon| daemon.socket))
            .unwrap_or_else(|| self.default_socket.clone())
    }

    /// Returns the record of the daemon that runs with the state directory.
    #[must_use]
    pub fn running(&self) -> Option<DaemonFile> {
        DaemonFile::of_running(self.state_dir.as_deref()?)
    }

    /// Connects to a running daemon; starts none.
    ///
    /// # Errors
    /// [`ClientError::NoDaemon`], [`ClientError::OtherSocket`] or [`ClientError::UntrustedPeer`].
    pub async fn connect(&self) -> Result<Client, ClientError> {
        self.connect_at(&self.socket()).await
    }

    pub(crate) async fn connect_at(&self, socket: &Path) -> Result<Client, ClientError> {
        let error = match Client::open(socket.into(), self.trusted, None).await {
            Err(error @ ClientError::NoDaemon { .. }) => error,
            other => return other,
        };
        match (self.running(), &self.state_dir) {
            (Some(daemon), Some(state_dir)) if daemon.socket != socket => {
                Err(ClientError::OtherSocket {
                    requested: socket.to_owned(),
                    state_dir: state_dir.clone(),
                    pid: daemon.pid,
                    socket: daemon.socket,
                })
            }
            _ => Err(error),
        }
    }

    /// Connects to the daemon; starts one if none listens, and reports that.
    ///
    /// # Errors
    /// As [`Endpoint::connect`]; [`ClientError::Start`].
    pub async fn connect_or_start<F: Future<Output = ()>>(
        &self,
        report: impl FnMut(ConnectionEvent) -> F,
    ) -> Result<Client, ClientError> {
        let deadline = Instant::now() + STALE_SOCKET_TIMEOUT;
        loop {
            let socket = self.socket();
            match (self.connect_at(&socket).await, &self.program) {
                (Err(ClientError::NoDaemon { source, .. }), Some(program))
                    if source.kind() == io::ErrorKind::NotFound || has_crashed(&source) =>
                {
                    return self.start(program, &socket, report).await;
                }
                (Ok(client), _) => {
                    if answers(&client).await {
                        return Ok(client);
                    }
                    if Instant::now() > deadline {
                        return Err(ClientError::Closed);
                    }
                    sleep(START_RETRY_INTERVAL).await;
                }
                (other, _) => return other,
            }
        }
    }

    /// Starts a daemon, waits until it listens, and reports that. Uses the daemon that another process starts at the
    /// same time.
    pub(crate) async fn start<F: Future<Output = ()>>(
        &self,
        program: &Path,
        socket: &Path,
        mut report: impl FnMut(ConnectionEvent) -> F,
    ) -> Result<Client, ClientError> {
        let mut daemon = StartingDaemon::spawn(program, socket)?;
        loop {
            match self.connect().await {
                Ok(client) if !answers(&client).await => {}
                Ok(client) => {
                    if daemon.failure.is_none() {
                        let (program, socket) = (program.to_owned(), socket.to_owned());
                        report(ConnectionEvent::Started { program, socket }).await;
                    }
                    return Ok(client);
                }
                Err(ClientError::NoDaemon { .. }) => {}
                Err(error) => return Err(error),
            }
            daemon.wait_briefly().await;
            // A daemon takes the lock before it listens.
            let other_starts = self.state_dir.as_deref().is_some_and(daemon::is_locked);
            let is_overdue = Instant::now() > daemon.deadline;
            let problem = match daemon.failure {
                Some(message) if is_overdue || !other_starts => message,
                None if is_overdue => format!(
                    "it does not listen at {} within {START_TIMEOUT:?}",
                    socket.display()
                ),
                _ => continue,
            };
            return Err(ClientError::Start(format!("a daemon:\n{problem}")));
        }
    }
}

/// Returns whether a daemon gets this variable of a client that starts it. Others may be keys, which every program of the user could
/// read for the life of the daemon (proc_pid_environ(5)).
fn is_for_daemon(name: &str) -> bool {
    const NAMES: &[&str] = &[
        "HOME",
        "LANG",
        "LOGNAME",
        "PATH",
        "SHELL",
        "SSL_CERT_DIR",
        "SSL_CERT_FILE",
        "TMPDIR",
        "TZ",
        "USER",
    ];
    const PREFIXES: &[&str] = &["COLIBRI_", "LC_", "LLVM_PROFILE_", "RUST_", "XDG_"];
    NAMES.contains(&name) || PREFIXES.iter().any(|prefix| name.starts_with(prefix))
}

/// A daemon process that does not listen yet.
struct StartingDaemon {
    child: Child,
    /// Time until which it, or the other daemon that starts, must listen.
    deadline: Instant,
    /// Error message, if the process has failed.
    failure: Option<String>,
}

impl StartingDaemon {
    fn spawn(program: &Path, socket: &Path) -> Result<Self, ClientError> {
        let variables =
            std::env::vars_os().filter(|(name, _)| is_for_daemon(&name.to_string_lossy()));
        let child = Command::new(program)
            .env_clear()
            .envs(variables)
            .arg("--background")
            .arg("--socket")
            .arg(socket)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .map_err(|source| {
                ClientError::Start(format!(
                    "{}: {source}; install colibri-daemon in the directory of colibri, or start it yourself",
                    program.display()
                ))
            })?;
        Ok(Self {
            child,
            deadline: Instant::now() + START_TIMEOUT,
            failure: None,
        })
    }

    /// Waits for the retry interval, or until the process has failed. A successful exit is the fork into the background.
    async fn wait_briefly(&mut self) {
        if self.failure.is_some() {
            return sleep(START_RETRY_INTERVAL).await;
        }
        let status = match timeout(START_RETRY_INTERVAL, self.child.wait()).await {
            Err(_) => return,
            Ok(Ok(status)) if status.success() => return sleep(START_RETRY_INTERVAL).await,
            Ok(status) => status,
        };
        let mut message = String::new();
        if let Some(stderr) = &mut self.child.stderr {
            let _ = timeout(STDERR_TIMEOUT, stderr.read_to_string(&mut message)).await;
        }
        if message.is_empty() {
            message = status.map_or_else(|error| error.to_string(), |status| status.to_string());
        }
        self.failure = Some(message.trim_end().to_owned());
        self.deadline = Instant::now() + OTHER_START_TIMEOUT;
    }
}

/// Returns whether a daemon answers. After a daemon was killed, a child between fork(2) and execve(2) may hold its
/// socket for a moment; it never answers.
async fn answers(client: &Client) -> bool {
    !matches!(client.version().await, Err(ClientError::Closed))
}

/// Returns whether the socket file exists and no process listens: a daemon removes the file on an orderly shutdown.
pub(crate) fn has_crashed(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::ConnectionRefused
}
