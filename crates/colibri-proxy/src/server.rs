//! The proxy server: checks each request against the allow list and copies bytes in both directions.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use colibri_jail_core::Destination;
use tokio::io::{AsyncReadExt, AsyncWriteExt, copy_bidirectional};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::time::timeout;

use crate::log;
use crate::request::{self, BadRequest, MAX_HEAD, ProxyRequest};

/// Maximum number of concurrent connections; further ones wait.
const MAX_CONNECTIONS: usize = 512;
/// Timeout for the head of a request, and for a connection to a destination.
const TIMEOUT: Duration = Duration::from_secs(30);
/// Number of threads for name lookups; each counts towards the agent's process limit.
const RESOLVER_THREADS: usize = 2;
/// Delay after a failed accept(2), for example without a free descriptor.
const ACCEPT_RETRY_DELAY: Duration = Duration::from_millis(100);

/// Serves connections until the process ends.
pub(crate) fn serve(listener: std::net::TcpListener, allow: Vec<Destination>) -> io::Result<()> {
    let allow: Arc<[Destination]> = allow.into();
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .max_blocking_threads(RESOLVER_THREADS)
        .build()?
        .block_on(async {
            let listener = TcpListener::from_std(listener)?;
            let permits = Arc::new(Semaphore::new(MAX_CONNECTIONS));
            loop {
                let Ok(permit) = permits.clone().acquire_owned().await else {
                    return Ok(());
                };
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
        })
}

/// The head of a request and the bytes received after it.
struct ReceivedRequest {
    request: Result<ProxyRequest, BadRequest>,
    body_start: Vec<u8>,
}

/// A connection to an allowed destination.
struct Upstream {
    server: TcpStream,
    /// Bytes to send to the server first.
    to_server: Vec<u8>,
    /// Bytes to send to the client first.
    to_client: &'static [u8],
}

async fn serve_connection(mut client: TcpStream, allow: &[Destination]) -> io::Result<()> {
    let Ok(received) = timeout(TIMEOUT, receive_request(&mut client)).await else {
        return Ok(());
    };
    let ReceivedRequest {
        request,
        body_start,
    } = received?;
    let result = match request {
        Ok(request) => connect(request, body_start, allow).await,
        Err(error) => Err(refuse(
            "400 Bad Request",
            format!("refused a request: {error}"),
        )),
    };
    match result {
        Ok(mut upstream) => {
            client.write_all(upstream.to_client).await?;
            upstream.server.write_all(&upstream.to_server).await?;
            copy_bidirectional(&mut client, &mut upstream.server).await?;
            Ok(())
        }
        Err(response) => {
            client.write_all(response.as_bytes()).await?;
            client.shutdown().await
        }
    }
}

async fn receive_request(client: &mut TcpStream) -> io::Result<ReceivedRequest> {
    let mut bytes = Vec::new();
    loop {
        if let Some(parsed) = request::parse(&bytes).transpose() {
            let length = parsed.as_ref().map_or(bytes.len(), |head| head.length);
            return Ok(ReceivedRequest {
                body_start: bytes.split_off(length),
                request: parsed.map(|head| head.request),
            });
        }
        let mut chunk = [0; 4096];
        let count = client.read(&mut chunk).await?;
        if count == 0 || bytes.len() > 2 * MAX_HEAD {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        bytes.extend_from_slice(chunk.get(..count).unwrap_or_default());
    }
}

/// Connects to the destination of a request. An error is the response to send to the client.
async fn connect(
    request: ProxyRequest,
    body_start: Vec<u8>,
    allow: &[Destination],
) -> Result<Upstream, String> {
    let (destination, to_server, to_client): (_, _, &'static [u8]) = match request {
        ProxyRequest::Tunnel(destination) => (
            destination,
            body_start,
            b"HTTP/1.1 200 Connection established\r\n\r\n",
        ),
        ProxyRequest::Forward(destination, head) => {
            (destination, [head.into_bytes(), body_start].concat(), b"")
        }
    };
    if !allow.contains(&destination) {
        let problem = format!("refused a connection to {destination}: it is not in the allow list");
        return Err(refuse("403 Forbidden", problem));
    }
    let connecting = TcpStream::connect((destination.host(), destination.port()));
    let no_answer = |_| Err(io::Error::other(format!("no answer within {TIMEOUT:?}")));
    let connected = timeout(TIMEOUT, connecting).await.unwrap_or_else(no_answer);
    let server = connected.map_err(|error| {
        let problem = format!("cannot connect to {destination}: {error}");
        refuse("502 Bad Gateway", problem)
    })?;
    Ok(Upstream {
        server,
        to_server,
        to_client,
    })
}

/// Logs a problem, and returns the response that reports it to the client.
fn refuse(status: &str, problem: String) -> String {
    log(&problem);
    request::error_response(status, &format!("colibri-proxy: {problem}"))
}
