//! `metrics`: where the daemon's metrics can be read.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::str::FromStr;

/// A place at which metrics are served. Both are of this machine only.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum MetricsAddress {
    /// A Unix socket, for the daemon's user.
    Unix(PathBuf),
    /// A port of a loopback address, for every user of this machine.
    Loopback(SocketAddr),
}

/// Why metrics cannot be served there.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum MetricsAddressError {
    /// Neither form.
    #[error(
        "{0:?} is no place for metrics; give \"unix:/absolute/path\", or a loopback address with a port, like \"127.0.0.1:9464\" or \"[::1]:9464\""
    )]
    Form(String),
    /// Others would read them over the network.
    #[error(
        "{0} can be reached from other machines, and metrics are neither encrypted nor protected; give a loopback address, like \"127.0.0.1:9464\", and let something in front of it that asks who comes"
    )]
    NotLoopback(SocketAddr),
    /// Not from the root.
    #[error(
        "the socket {0:?} is no absolute path; give it from the root, like \"unix:/run/colibri/metrics.sock\""
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
        // `::ffff:127.0.0.1` is the same place in other words.
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
    fn only_this_machine_is_a_place_for_metrics() {
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
                    let said = error.to_string();
                    assert!(said.contains("give "), "{said}");
                    None
                }
            };
            assert_eq!(found, expected, "{text}");
        }
    }
}
