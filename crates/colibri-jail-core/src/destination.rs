//! Network destinations that a filtered jail may connect to.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use crate::{JailError, hostname};

/// TCP port of the proxy on the loopback interface of a filtered jail.
pub const PROXY_PORT: u16 = 3128;
/// Maximum length of a DNS name (RFC 1035, section 2.3.4), in bytes, without the trailing dot.
const MAX_HOST_LEN: usize = 253;

/// A host and a TCP port: `HOST:PORT`, with brackets around an IPv6 address. The host is one name or address, without
/// patterns. Names are case-insensitive and stored in lower case.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Destination {
    host: String,
    port: u16,
}

impl Destination {
    /// Returns the host: a name in lower case, or an address without brackets.
    #[must_use]
    pub fn host(&self) -> &str {
        &self.host
    }

    /// Returns the TCP port.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.port
    }
}

impl FromStr for Destination {
    type Err = JailError;

    fn from_str(text: &str) -> Result<Self, JailError> {
        let malformed = || {
            let problem = "is not a destination; give HOST:PORT, like api.example.com:443 or [2001:db8::1]:443";
            JailError::invalid("`allow` entry", text, problem)
        };
        let (host, port) = text.rsplit_once(':').ok_or_else(malformed)?;
        // u16::from_str also accepts a sign and leading zeros.
        let port: u16 = Some(port)
            .filter(|port| port.bytes().all(|byte| byte.is_ascii_digit()) && !port.starts_with('0'))
            .and_then(|port| port.parse().ok())
            .ok_or_else(malformed)?;
        let host = match host.strip_prefix('[').map(|host| host.strip_suffix(']')) {
            Some(inner) => match inner.and_then(|inner| inner.parse().ok()) {
                Some(IpAddr::V6(address)) => address.to_string(),
                _ => return Err(malformed()),
            },
            None if host.len() <= MAX_HOST_LEN && host.split('.').all(hostname::is_label) => {
                host.to_ascii_lowercase()
            }
            None => return Err(malformed()),
        };
        Ok(Self { host, port })
    }
}

impl fmt::Display for Destination {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.host.contains(':') {
            write!(f, "[{}]:{}", self.host, self.port)
        } else {
            write!(f, "{}:{}", self.host, self.port)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn destination_requires_host_and_port() {
        for (text, shown) in [
            ("api.example.com:443", "api.example.com:443"),
            ("API.Example.COM:443", "api.example.com:443"),
            ("localhost:8080", "localhost:8080"),
            ("192.0.2.7:1", "192.0.2.7:1"),
            ("[2001:DB8::1]:65535", "[2001:db8::1]:65535"),
        ] {
            assert_eq!(text.parse::<Destination>().unwrap().to_string(), shown);
        }
        for bad in [
            "",
            ":",
            ":443",
            "a",
            "a:",
            "a:0",
            "a:65536",
            "a:+1",
            "a:01",
            "a:4 4",
            "-a:1",
            "*:443",
            "*.a:443",
            "a b:1",
            "a..b:1",
            "a.:1",
            "2001:db8::1:443",
            "[a]:1",
            "[::1]",
            "[192.0.2.7]:1",
            "[::1:1",
            "http://a:1",
            "a/b:1",
            "a\0:1",
            "a\n:1",
            "--:1",
        ] {
            assert!(bad.parse::<Destination>().is_err(), "{bad:?}");
        }
    }
}
