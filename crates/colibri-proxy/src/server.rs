//! The proxy server: checks each request against the allow list and copies bytes in both directions.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use colibri_jail_core::Destination;
use tokio::io::{AsyncReadExt, AsyncWriteExt, copy_bidirectional};
use tokio::net::{TcpListener, TcpStream, UnixStream};
use tokio::sync::Semaphore;
use tokio::time::timeout;

use crate::log;
use crate::request::{self, RequestHead};
use crate::socket_passing::Received;

/// Maximum number of concurrent connections; further ones wait.
const MAX_CONNECTIONS: usize = 512;
/// Timeout for the head of a request, and for a connection to a destination.
const TIMEOUT: Duration = Duration::from_secs(30);
/// Number of threads for name lookups; each counts towards the agent's process limit.
const RESOLVER_THREADS: usize = 2;
/// Delay after a failed accept(2), for example without a free descriptor.
const ACCEPT_RETRY_DELAY: Duration = Duration::from_millis(100);

/// Serves connections until the link to the sandbox ends; without one, until the process ends.
pub(crate) fn serve(received: Received, allow: Vec<Destination>) -> io::Result<()> {
    let Received {
        listener,
        sandbox_link,
    } = received;
    let allow: Arc<[Destination]> = allow.into();
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .max_blocking_threads(RESOLVER_THREADS)
        .build()?
        .block_on(async {
            let accepting = accept_connections(TcpListener::from_std(listener)?, allow);
            let Some(sandbox_link) = sandbox_link else {
                accepting.await;
                return Ok(());
            };
            sandbox_link.set_nonblocking(true)?;
            let mut sandbox_link = UnixStream::from_std(sandbox_link)?;
            let mut byte = [0; 1];
            tokio::select! {
                () = accepting => {}
                // The other end sends nothing.
                _ = sandbox_link.read(&mut byte) => {}
            }
            Ok(())
        })
}

async fn accept_connections(listener: TcpListener, allow: Arc<[Destination]>) {
    let permits = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    loop {
        // Never closed.
        let permit = permits.clone().acquire_owned().await;
        match listener.accept().await {
            Ok((client, _)) => {
                let allow = allow.clone();
                tokio::spawn(async move {
                    // The client sees a broken connection.
                    let _ = serve_connection(client, &allow).await;
                    drop(permit);
                });
            }
            Err(_) => tokio::time::sleep(ACCEPT_RETRY_DELAY).await,
        }
    }
}

/// Why a client was not served.
#[derive(Debug, thiserror::Error)]
enum ServeError {
    #[error(transparent)]
    Connection(#[from] io::Error),
    /// The client gets a response with this status.
    #[error("{problem}")]
    Refused {
        status: &'static str,
        problem: String,
    },
}

impl ServeError {
    fn refused(status: &'static str, problem: String) -> Self {
        Self::Refused { status, problem }
    }
}

async fn serve_connection(mut client: TcpStream, allow: &[Destination]) -> io::Result<()> {
    match serve_request(&mut client, allow).await {
        Ok(()) => Ok(()),
        Err(ServeError::Connection(error)) => Err(error),
        Err(ServeError::Refused { status, problem }) => {
            log(&problem);
            let response = request::error_response(status, &format!("colibri-proxy: {problem}"));
            client.write_all(response.as_bytes()).await?;
            client.shutdown().await
        }
    }
}

/// Receives a request, connects to its destination, and copies bytes until both sides have ended.
async fn serve_request(client: &mut TcpStream, allow: &[Destination]) -> Result<(), ServeError> {
    let mut bytes = Vec::new();
    let received = timeout(TIMEOUT, receive_head(client, &mut bytes)).await;
    let head = received.map_err(io::Error::from)??;
    let (destination, body_start) = (head.destination, bytes.split_off(head.length));
    if !allow.contains(&destination) {
        let problem = format!("refused a connection to {destination}: it is not in the allow list");
        return Err(ServeError::refused("403 Forbidden", problem));
    }
    let connecting = TcpStream::connect((destination.host(), destination.port()));
    let no_answer = |_| Err(io::Error::other(format!("no answer within {TIMEOUT:?}")));
    let connected = timeout(TIMEOUT, connecting).await.unwrap_or_else(no_answer);
    let mut server = connected.map_err(|error| {
        let problem = format!("cannot connect to {destination}: {error}");
        ServeError::refused("502 Bad Gateway", problem)
    })?;
    let to_server = match head.forwarded {
        Some(head) => [head.into_bytes(), body_start].concat(),
        None => {
            let response = b"HTTP/1.1 200 Connection established\r\n\r\n";
            client.write_all(response).await?;
            body_start
        }
    };
    server.write_all(&to_server).await?;
    copy_bidirectional(client, &mut server).await?;
    Ok(())
}

/// Appends bytes of the client to `bytes` until they contain the head of a request.
async fn receive_head(
    client: &mut TcpStream,
    bytes: &mut Vec<u8>,
) -> Result<RequestHead, ServeError> {
    loop {
        let parsed = request::parse(bytes).map_err(|error| {
            ServeError::refused("400 Bad Request", format!("refused a request: {error}"))
        });
        if let Some(head) = parsed? {
            return Ok(head);
        }
        let mut chunk = [0; 4096];
        let count = client.read(&mut chunk).await?;
        if count == 0 {
            return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
        }
        bytes.extend_from_slice(chunk.get(..count).unwrap_or_default());
    }
}
