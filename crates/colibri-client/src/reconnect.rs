//! Reconnects to the next daemon after a connection has ended.
//!
//! ```text
//! connected --connection ends--> socket refuses connections -> the daemon crashed: start one -> connected
//!                            \-> socket is absent           -> it was stopped: wait          -> connected
//! ```

use std::io;
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

impl Endpoint {
    /// Connects to the next daemon after a connection was lost, and passes the changes of the connection to `report`.
    ///
    /// If the daemon crashed and its service manager does not restart it, the client starts one; if it was stopped, the
    /// client waits for the next one.
    ///
    /// # Errors
    /// The daemon cannot be started, or its user is not trusted.
    pub async fn reconnect<F: Future<Output = ()>>(
        &self,
        mut report: impl FnMut(ConnectionEvent) -> F,
    ) -> Result<Client, ClientError> {
        let mut is_waiting_reported = false;
        let mut crashed_since: Option<Instant> = None;
        loop {
            sleep(RETRY_INTERVAL).await;
            let socket = self.socket();
            let source = match self.connect_at(&socket).await {
                Ok(client) => match timeout(FIRST_ANSWER_TIMEOUT, client.version()).await {
                    Ok(Ok(_)) => {
                        report(ConnectionEvent::Reconnected(socket)).await;
                        return Ok(client);
                    }
                    // The daemon is shutting down, or was killed and another process still holds its socket.
                    Ok(Err(_)) | Err(_) => continue,
                },
                Err(ClientError::NoDaemon { source, .. }) => source,
                Err(ClientError::OtherSocket { .. }) => io::ErrorKind::NotFound.into(),
                Err(error) => return Err(error),
            };
            match &self.program {
                Some(program) if has_crashed(&source) => {
                    let since = *crashed_since.get_or_insert_with(Instant::now);
                    if since.elapsed() >= SERVICE_MANAGER_DELAY {
                        let client = self.start(program, &socket, &mut report).await?;
                        report(ConnectionEvent::Reconnected(socket)).await;
                        return Ok(client);
                    }
                }
                _ => {
                    crashed_since = None;
                    if !std::mem::replace(&mut is_waiting_reported, true) {
                        report(ConnectionEvent::Waiting(socket)).await;
                    }
                }
            }
        }
    }

    /// Waits until an agent has ended and returns it; continues with the next daemon if the daemon is restarted.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn wait_agent<F: Future<Output = ()>>(
        &self,
        client: &Client,
        id: &str,
        mut report: impl FnMut(ConnectionEvent) -> F,
    ) -> Result<Agent, ClientError> {
        let mut client = client.clone();
        loop {
            match client.wait_agent(id).await {
                Err(error) if error.is_lost_connection() => {
                    client = self.reconnect(&mut report).await?;
                }
                other => return other,
            }
        }
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
            let result = call(self.get()).await;
            let is_lost = matches!(&result, Err(error) if error.is_lost_connection());
            if !is_lost || !self.changed().await {
                return result;
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
