//! Reconnects to the next daemon after a connection has ended.
//!
//! ```text
//! connected --connection ends--> socket refuses connections -> the daemon crashed: start one -> connected
//!                            \-> socket is absent           -> it was stopped: wait          -> connected
//! ```

use std::io;
use std::ops::ControlFlow;
use std::time::Duration;

use colibri_proto::{Agent, ErrorKind};
use tokio::sync::watch;
use tokio::time::{Instant, sleep, timeout};

use crate::endpoint::has_crashed;
use crate::{Client, ClientError, ConnectionEvent, Endpoint};

/// Retry interval for connecting to the next daemon.
const RETRY_INTERVAL: Duration = Duration::from_millis(100);
/// Time that a service manager has to restart a crashed daemon before a client starts one.
const SERVICE_MANAGER_DELAY: Duration = Duration::from_millis(500);
/// Timeout for the first answer after a reconnect; after it the client reconnects again.
const FIRST_ANSWER_TIMEOUT: Duration = Duration::from_secs(30);

/// Work on a connection that continues on the next connection after a loss; see [`Endpoint::stay_connected`].
pub trait Session: Send {
    /// The result of the session.
    type Output;
    /// The error of the session.
    type Error: From<ClientError>;

    /// Works on a connection. Returns `Continue` if the connection is lost, and `Break` if the work is finished or has
    /// failed.
    fn run(
        &mut self,
        client: Client,
    ) -> impl Future<Output = ControlFlow<Result<Self::Output, Self::Error>>> + Send;

    /// Reports a change of the connection.
    fn report(&mut self, event: ConnectionEvent) -> impl Future<Output = ()> + Send;
}

impl Endpoint {
    /// Runs `session` on `client`, and after each lost connection on the connection to the next daemon.
    ///
    /// If the daemon crashed and its service manager does not restart it, the client starts one; if it was stopped, the
    /// client waits for the next one.
    ///
    /// # Errors
    /// That of `session`; the daemon cannot be started, or its user is not trusted.
    pub async fn stay_connected<S: Session>(
        &self,
        mut client: Client,
        session: &mut S,
    ) -> Result<S::Output, S::Error> {
        loop {
            match session.run(client).await {
                ControlFlow::Break(result) => return result,
                ControlFlow::Continue(()) => client = self.reconnect(session).await?,
            }
        }
    }

    async fn reconnect(&self, session: &mut impl Session) -> Result<Client, ClientError> {
        let mut is_waiting_reported = false;
        let mut crashed_since: Option<Instant> = None;
        loop {
            sleep(RETRY_INTERVAL).await;
            let socket = self.socket();
            let source = match self.connect_at(&socket).await {
                Ok(client) => match timeout(FIRST_ANSWER_TIMEOUT, client.version()).await {
                    Ok(Ok(_)) => {
                        session
                            .report(ConnectionEvent::Reconnected { socket })
                            .await;
                        return Ok(client);
                    }
                    // The daemon is shutting down, or was killed and another process still holds its socket.
                    Ok(Err(_)) | Err(_) => continue,
                },
                Err(ClientError::NoDaemon { source, .. }) => source,
                Err(ClientError::OtherSocket { .. }) => io::ErrorKind::NotFound.into(),
                Err(error) => return Err(error),
            };
            if !has_crashed(&source) {
                crashed_since = None;
            }
            match &self.program {
                Some(program) if has_crashed(&source) => {
                    let since = *crashed_since.get_or_insert_with(Instant::now);
                    if since.elapsed() >= SERVICE_MANAGER_DELAY {
                        let started = self.start(program, &socket).await?;
                        if let Some(event) = started.event {
                            session.report(event).await;
                        }
                        session
                            .report(ConnectionEvent::Reconnected { socket })
                            .await;
                        return Ok(started.client);
                    }
                }
                _ if !is_waiting_reported => {
                    is_waiting_reported = true;
                    session.report(ConnectionEvent::Waiting { socket }).await;
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
        report: impl FnMut(ConnectionEvent) + Send,
    ) -> Result<Agent, ClientError> {
        self.stay_connected(client.clone(), &mut Wait { id, report })
            .await
    }
}

/// The session of [`Endpoint::wait_agent`].
struct Wait<'a, R> {
    id: &'a str,
    report: R,
}

impl<R: FnMut(ConnectionEvent) + Send> Session for Wait<'_, R> {
    type Output = Agent;
    type Error = ClientError;

    async fn run(&mut self, client: Client) -> ControlFlow<Result<Agent, ClientError>> {
        unless_lost(client.wait_agent(self.id).await)
    }

    async fn report(&mut self, event: ConnectionEvent) {
        (self.report)(event);
    }
}

/// Returns the result of a session: `Continue` for a lost connection, `Break` for any other result.
pub(crate) fn unless_lost<T>(
    result: Result<T, ClientError>,
) -> ControlFlow<Result<T, ClientError>> {
    match result {
        Err(error) if error.is_lost_connection() => ControlFlow::Continue(()),
        other => ControlFlow::Break(other),
    }
}

/// The current connection of a [`FollowStream`](crate::FollowStream), which changes after each reconnect.
#[derive(Clone)]
pub struct CurrentClient(pub(crate) watch::Receiver<Client>);

impl CurrentClient {
    /// Returns the current connection.
    #[must_use]
    pub fn get(&mut self) -> Client {
        self.0.borrow_and_update().clone()
    }

    /// Waits until the connection has changed since the last [`CurrentClient::get`]. Returns `false` if following has
    /// ended, so that it never changes again.
    pub async fn changed(&mut self) -> bool {
        self.0.changed().await.is_ok()
    }

    /// Makes a call, and repeats it on the next connection each time that the connection is lost. Use it for idempotent
    /// calls only: the daemon may have executed a call before the connection was lost.
    ///
    /// # Errors
    /// That of the call.
    pub async fn call<T, F>(&mut self, call: impl Fn(Client) -> F) -> Result<T, ClientError>
    where
        F: Future<Output = Result<T, ClientError>>,
    {
        loop {
            match call(self.get()).await {
                Err(error) if error.is_lost_connection() => {
                    if !self.changed().await {
                        return Err(error);
                    }
                }
                other => return other,
            }
        }
    }
}

impl ClientError {
    /// Returns whether the daemon has ended or is shutting down, so that a retry with the next one is useful.
    #[must_use]
    pub fn is_lost_connection(&self) -> bool {
        match self {
            Self::Closed | Self::NoDaemon { .. } => true,
            Self::Rpc(error) => error.data.kind == ErrorKind::ShuttingDown,
            _ => false,
        }
    }
}
