//! Connects to destinations, at addresses that were checked.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use colibri_jail_core::{Destination, Host};
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::policy::{Policy, Refusal};
use crate::resolver::Resolver;

/// Timeout for a connection to one of the addresses.
const TIMEOUT: Duration = Duration::from_secs(30);
/// Timeout for a connection to one address.
const ADDRESS_TIMEOUT: Duration = Duration::from_secs(10);

/// Why there is no connection to a destination.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ConnectError {
    #[error("{0}")]
    Refused(#[from] Refusal),
    #[error("cannot resolve the name: {0}")]
    Resolve(String),
    #[error("{0}")]
    Connect(#[from] io::Error),
}

/// Connects to the first reachable address that the policy allows. No name is resolved a second time.
pub(crate) async fn connect(
    destination: &Destination,
    policy: &Policy,
    resolver: &Resolver,
) -> Result<TcpStream, ConnectError> {
    let mut addresses = destination.host().known_addresses();
    if let (true, Host::Name(name)) = (addresses.is_empty(), destination.host()) {
        addresses = resolver.lookup(name).await.map_err(ConnectError::Resolve)?;
    }
    let addresses = allowed(addresses, destination, policy)?;
    let end = Instant::now() + TIMEOUT;
    let mut last = io::Error::other("the name has no address");
    for address in addresses {
        let connecting = TcpStream::connect(SocketAddr::new(address, destination.port()));
        let limit = ADDRESS_TIMEOUT.min(end.saturating_duration_since(Instant::now()));
        if limit.is_zero() {
            break;
        }
        let late = || io::Error::other(format!("no answer within {ADDRESS_TIMEOUT:?}"));
        match timeout(limit, connecting).await {
            Ok(Ok(stream)) => {
                let _ = stream.set_nodelay(true);
                return Ok(stream);
            }
            Ok(Err(error)) => last = error,
            Err(_) => last = late(),
        }
    }
    Err(last.into())
}

/// Returns the addresses that the policy allows; an error if it refuses all.
fn allowed(
    addresses: Vec<IpAddr>,
    destination: &Destination,
    policy: &Policy,
) -> Result<Vec<IpAddr>, Refusal> {
    let mut allowed = Vec::new();
    let mut refusal = None;
    for address in addresses {
        match policy.address(destination.host(), address, destination.port()) {
            Ok(()) => allowed.push(address),
            Err(refused) => refusal = Some(refused),
        }
    }
    match refusal {
        Some(refusal) if allowed.is_empty() => Err(refusal),
        _ => Ok(allowed),
    }
}
