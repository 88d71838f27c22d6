//! The proxy itself: who may be connected to, and two pipes for each connection.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use colibri_jail_core::Destination;
use tokio::io::{AsyncReadExt, AsyncWriteExt, copy_bidirectional};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::time::timeout;

use crate::request::{self, BadRequest, MAX_HEAD, Request};
use crate::say;

/// Most connections at once; more wait.
const MAX_CONNECTIONS: usize = 512;
/// How long a client may take for its request, and a server to accept a connection.
const PATIENCE: Duration = Duration::from_secs(30);
/// Threads that look up names: each counts as one of the agent's processes.
const RESOLVERS: usize = 2;
/// Between two tries when no descriptor is left.
const RETRY: Duration = Duration::from_millis(100);

/// Serves for ever.
pub(crate) fn serve(listener: std::net::TcpListener, allow: Vec<Destination>) -> io::Result<()> {
    let allow: Arc<[Destination]> = allow.into();
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .max_blocking_threads(RESOLVERS)
        .build()?
        .block_on(async {
            let listener = TcpListener::from_std(listener)?;
            let places = Arc::new(Semaphore::new(MAX_CONNECTIONS));
            loop {
                let Ok(place) = places.clone().acquire_owned().await else {
                    return Ok(());
                };
                match listener.accept().await {
                    Ok((client, _)) => {
                        let allow = allow.clone();
                        tokio::spawn(async move {
                            // A connection that breaks is the client's matter; it sees it.
                            let _ = connection(client, &allow).await;
                            drop(place);
                        });
                    }
                    Err(_) => tokio::time::sleep(RETRY).await,
                }
            }
        })
}

/// What becomes of a request.
enum Outcome {
    /// It is connected; these bytes go there first, and these to the client.
    Connected(TcpStream, Vec<u8>, &'static [u8]),
    /// It is not: the answer.
    Refused(String),
}

async fn connection(mut client: TcpStream, allow: &[Destination]) -> io::Result<()> {
    let outcome = match timeout(PATIENCE, head(&mut client)).await {
        Ok(Ok((Ok(request), rest))) => connect(request, rest, allow).await,
        Ok(Ok((Err(bad), _))) => {
            say(&format_args!("refused a request: {bad}"));
            Outcome::Refused(request::answer(
                400,
                "Bad Request",
                &format!("colibri-proxy: {bad}"),
            ))
        }
        Ok(Err(error)) => return Err(error),
        Err(_) => return Ok(()),
    };
    match outcome {
        Outcome::Connected(mut server, first, hello) => {
            client.write_all(hello).await?;
            server.write_all(&first).await?;
            copy_bidirectional(&mut client, &mut server).await?;
            Ok(())
        }
        Outcome::Refused(answer) => {
            client.write_all(answer.as_bytes()).await?;
            client.shutdown().await
        }
    }
}

/// Reads the head of the request, and what came with it.
async fn head(client: &mut TcpStream) -> io::Result<(Result<Request, BadRequest>, Vec<u8>)> {
    let mut bytes = Vec::new();
    loop {
        match request::read(&bytes) {
            Ok(Some((request, length))) => return Ok((Ok(request), bytes.split_off(length))),
            Ok(None) => {}
            Err(bad) => return Ok((Err(bad), Vec::new())),
        }
        let mut chunk = [0; 4096];
        let count = client.read(&mut chunk).await?;
        if count == 0 || bytes.len() > 2 * MAX_HEAD {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        bytes.extend_from_slice(chunk.get(..count).unwrap_or_default());
    }
}

async fn connect(request: Request, rest: Vec<u8>, allow: &[Destination]) -> Outcome {
    let (destination, first, hello): (_, _, &'static [u8]) = match request {
        Request::Tunnel(destination) => (
            destination,
            rest,
            b"HTTP/1.1 200 Connection established\r\n\r\n",
        ),
        Request::Forward(destination, head) => {
            (destination, [head.into_bytes(), rest].concat(), b"")
        }
    };
    if !allow.contains(&destination) {
        say(&format_args!(
            "refused a connection to {destination}, which is not among the allowed"
        ));
        let text = format!(
            "colibri-proxy: {destination} is not among the places that this agent may connect to"
        );
        return Outcome::Refused(request::answer(403, "Forbidden", &text));
    }
    let connecting = TcpStream::connect((destination.host(), destination.port()));
    let problem = match timeout(PATIENCE, connecting).await {
        Ok(Ok(server)) => return Outcome::Connected(server, first, hello),
        Ok(Err(error)) => error.to_string(),
        Err(_) => format!("no answer within {PATIENCE:?}"),
    };
    say(&format_args!("cannot connect to {destination}: {problem}"));
    let text = format!("colibri-proxy: cannot connect to {destination}: {problem}");
    Outcome::Refused(request::answer(502, "Bad Gateway", &text))
}
