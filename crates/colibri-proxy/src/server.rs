//! The proxy server: accepts connections and finds the protocol of each.

use std::future::Future;
use std::io;
use std::net::IpAddr;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use colibri_jail_core::{Destination, Host};
use tokio::io::unix::AsyncFd;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, Interest, copy_bidirectional};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::time::timeout;

use crate::connect::{ConnectError, connect};
use crate::credential::Credential;
use crate::policy::Policy;
use crate::reporter::Reporter;
use crate::resolver::Resolver;
use crate::streams::{Buffered, Timed};
use crate::tls::TlsContext;
use crate::{http, socks, tunnel};

/// Maximum number of concurrent connections; further ones wait.
pub(crate) const MAX_CONNECTIONS: usize = 512;
/// Timeout for the first bytes of a client, and for each step before bytes are forwarded.
const HEAD_TIMEOUT: Duration = Duration::from_secs(30);
/// Time without any transfer after which a connection is closed. Models and databases may be silent for minutes.
const IDLE_TIMEOUT: Duration = Duration::from_secs(3600);
/// Delay after a failed accept(2), for example without a free descriptor.
const ACCEPT_RETRY_DELAY: Duration = Duration::from_millis(100);

/// What all connections use.
pub(crate) struct Shared {
    pub(crate) policy: Policy,
    pub(crate) resolver: Resolver,
    pub(crate) reporter: Arc<Reporter>,
    pub(crate) credentials: Vec<Credential>,
    /// Present if the rules or credentials need it.
    pub(crate) tls: Option<TlsContext>,
}

impl Shared {
    /// Connects to a destination at an address that the policy allows.
    pub(crate) async fn connect(
        &self,
        destination: &Destination,
    ) -> Result<TcpStream, ConnectError> {
        connect(destination, &self.policy, &self.resolver).await
    }

    /// Waits for a step of a connection, for a limited time.
    pub(crate) async fn within_head_timeout<T>(
        &self,
        step: impl Future<Output = io::Result<T>>,
    ) -> io::Result<T> {
        timeout(HEAD_TIMEOUT, step).await.map_err(io::Error::from)?
    }
}

/// What a listening socket is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Purpose {
    /// The port of the proxy.
    Proxy,
    /// Forwards connections to this loopback port of the host.
    Loopback(u16),
}

/// Accepts connections, without an end.
pub(crate) async fn accept_connections(
    listener: TcpListener,
    purpose: Purpose,
    shared: Arc<Shared>,
    permits: Arc<Semaphore>,
) {
    loop {
        // Never closed.
        let permit = permits.clone().acquire_owned().await;
        match listener.accept().await {
            Ok((client, _)) => {
                let shared = shared.clone();
                tokio::spawn(async move {
                    let _ = client.set_nodelay(true);
                    let (client, last_use) = Timed::new(client);
                    // After an error the client sees a broken connection.
                    tokio::select! {
                        _ = serve_connection(client, purpose, &shared) => {}
                        () = last_use.idle(IDLE_TIMEOUT) => {}
                    }
                    drop(permit);
                });
            }
            Err(_) => tokio::time::sleep(ACCEPT_RETRY_DELAY).await,
        }
    }
}

async fn serve_connection<S>(client: S, purpose: Purpose, shared: &Arc<Shared>) -> io::Result<()>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let mut client = Buffered::new(client);
    if let Purpose::Loopback(port) = purpose {
        if let Some(destination) = shared.policy.loopback_credential(port) {
            return tunnel::terminate(client, destination.clone(), shared).await;
        }
        return forward_loopback(&mut client, port, shared).await;
    }
    let finding = async {
        loop {
            let peeked = client.peeked();
            match peeked.first() {
                Some(&socks::VERSION) => return Ok(Protocol::Socks),
                Some(_) if peeked.starts_with(tunnel::METHOD) => return Ok(Protocol::Tunnel),
                Some(_) if !tunnel::METHOD.starts_with(peeked) => return Ok(Protocol::Http),
                _ => client.peek_more().await?,
            }
        }
    };
    match shared.within_head_timeout(finding).await? {
        Protocol::Socks => socks::serve(client, shared).await,
        Protocol::Tunnel => tunnel::serve(client, shared).await,
        Protocol::Http => http::serve(client, shared).await,
    }
}

enum Protocol {
    Socks,
    Tunnel,
    Http,
}

/// Forwards a connection to a loopback port of the host. With a rule for `localhost` the service may listen at ::1 only.
async fn forward_loopback<S>(
    client: &mut Buffered<S>,
    port: u16,
    shared: &Arc<Shared>,
) -> io::Result<()>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let localhost = Destination::new(Host::Name("localhost".to_owned()), port);
    match shared.connect(&localhost).await {
        Ok(mut server) => relay(client, &mut server).await,
        Err(ConnectError::Refused(refusal)) => {
            shared.reporter.refused(&localhost, &refusal.to_string());
            Ok(())
        }
        // The port is closed for the agent too.
        Err(_) => Ok(()),
    }
}

/// Copies bytes in both directions until both sides have ended.
pub(crate) async fn relay<S>(client: &mut S, server: &mut TcpStream) -> io::Result<()>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    copy_bidirectional(client, server).await.map(|_| ())
}

/// Waits for the end of the sandbox: of its connection or of its outer process, if they are given.
pub(crate) async fn sandbox_end(
    link: Option<std::os::unix::net::UnixStream>,
    outer: Option<OwnedFd>,
) -> io::Result<()> {
    tokio::select! {
        ended = link_end(link) => ended,
        ended = process_end(outer) => ended,
    }
}

async fn process_end(process: Option<OwnedFd>) -> io::Result<()> {
    let Some(process) = process else {
        return std::future::pending().await;
    };
    // Deprecated for types whose descriptor can change; that of an OwnedFd cannot.
    #[allow(deprecated)]
    let process = AsyncFd::with_interest(process, Interest::READABLE)?;
    process.readable().await.map(drop)
}

async fn link_end(link: Option<std::os::unix::net::UnixStream>) -> io::Result<()> {
    let Some(link) = link else {
        return std::future::pending().await;
    };
    link.set_nonblocking(true)?;
    let mut link = tokio::net::UnixStream::from_std(link)?;
    // The other end sends nothing.
    let _ = link.read(&mut [0; 1]).await;
    Ok(())
}

/// Returns the purpose of a listening socket by its address: the first one is the proxy's port, the others must be allowed.
pub(crate) fn purpose(index: usize, address: (IpAddr, u16), policy: &Policy) -> Option<Purpose> {
    match (index, address) {
        (0, _) => Some(Purpose::Proxy),
        (_, (address, port)) if address.is_loopback() && policy.forwards_loopback_port(port) => {
            Some(Purpose::Loopback(port))
        }
        _ => None,
    }
}
