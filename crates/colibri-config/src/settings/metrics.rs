//! `metrics`: the address of the daemon's metrics endpoint.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::str::FromStr;

/// Address at which metrics are served. Other machines cannot reach either kind.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum MetricsAddress {
    /// A Unix socket; only the daemon's user can connect.
    Unix(PathBuf),
    /// A port of a loopback address; every user of this machine can connect.
    Loopback(SocketAddr),
}

/// Why an address is invalid.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum MetricsAddressError {
    /// The text has neither form.
    #[error(
        "{0:?} is not an address for metrics; set \"unix:/absolute/path\", or a loopback address with a port, like \"127.0.0.1:9464\" or \"[::1]:9464\""
    )]
    Form(String),
    /// Other machines could connect.
    #[error(
        "{0} can be reached from other machines, and metrics are neither encrypted nor protected; set a loopback address, like \"127.0.0.1:9464\", and use an authenticating proxy for access from other machines"
    )]
    NotLoopback(SocketAddr),
    /// The path of the socket is relative.
    #[error(
        "the socket {0:?} is not an absolute path; write its full path, like \"unix:/run/colibri/metrics.sock\""
    )]
    Relative(String),
}

impl FromStr for MetricsAddress {
    type Err = MetricsAddressError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if let Some(path) = text.strip_prefix("unix:") {
            let path = PathBuf::from(path);
            return match path.is_absolute() {
                true => Ok(Self::Unix(path)),
                false => Err(MetricsAddressError::Relative(path.display().to_string())),
            };
        }
        let address: SocketAddr = text
            .parse()
            .map_err(|_| MetricsAddressError::Form(text.to_owned()))?;
        // `::ffff:127.0.0.1` is 127.0.0.1 as an IPv4-mapped IPv6 address.
        match address.ip().to_canonical().is_loopback() {
            true => Ok(Self::Loopback(address)),
            false => Err(MetricsAddressError::NotLoopback(address)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn address_reachable_from_other_machines_is_refused() {
        for (text, expected) in [
            ("unix:/run/m.sock", Some("unix")),
            ("127.0.0.1:9464", Some("loopback")),
            ("127.8.9.1:0", Some("loopback")),
            ("[::1]:9464", Some("loopback")),
            ("[::ffff:127.0.0.1]:9464", Some("loopback")),
            ("unix:m.sock", None),
            ("unix:", None),
            ("/run/m.sock", None),
            ("localhost:9464", None),
            ("127.0.0.1", None),
            ("0.0.0.0:9464", None),
            ("[::]:9464", None),
            ("192.0.2.1:9464", None),
            ("[::ffff:192.0.2.1]:9464", None),
            ("9464", None),
            ("", None),
        ] {
            let found = match text.parse() {
                Ok(MetricsAddress::Unix(_)) => Some("unix"),
                Ok(MetricsAddress::Loopback(_)) => Some("loopback"),
                Err(error) => {
                    let message = error.to_string();
                    let hint = ["; set ", "; write "]
                        .iter()
                        .any(|verb| message.contains(verb));
                    assert!(hint, "{message}");
                    None
                }
            };
            assert_eq!(found, expected, "{text}");
        }
    }
}
