//! Hosts and network destinations.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

use crate::{JailError, hostname};

/// TCP port of the proxy on the loopback interface of a filtered jail.
pub const PROXY_PORT: u16 = 3128;
/// Maximum length of a DNS name (RFC 1035, section 2.3.4), in bytes, without the trailing dot.
const MAX_HOST_LEN: usize = 253;
/// The name of the loopback addresses (RFC 6761, section 6.3).
const LOCALHOST: &str = "localhost";

/// The host of a destination: one DNS name or one address.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Host {
    /// A DNS name, in lower case, without a trailing dot.
    Name(String),
    /// An address. An IPv4 address that is mapped into IPv6 is stored as IPv4.
    Address(IpAddr),
}

impl Host {
    /// Returns the name; `None` for an address.
    #[must_use]
    pub fn name(&self) -> Option<&str> {
        match self {
            Self::Name(name) => Some(name),
            Self::Address(_) => None,
        }
    }

    /// Returns the addresses that are known without a lookup: the address itself, and the loopback addresses for
    /// `localhost`. Empty for another name.
    #[must_use]
    pub fn known_addresses(&self) -> Vec<IpAddr> {
        match self {
            Self::Address(address) => vec![*address],
            Self::Name(name) if name == LOCALHOST => {
                vec![Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()]
            }
            Self::Name(_) => Vec::new(),
        }
    }
}

impl FromStr for Host {
    type Err = JailError;

    /// Parses a name, an IPv4 address, or an IPv6 address in brackets.
    fn from_str(text: &str) -> Result<Self, JailError> {
        let invalid = |problem: &str| Err(JailError::invalid("host", text, problem));
        if let Some(inner) = text.strip_prefix('[') {
            return match inner.strip_suffix(']').map(str::parse::<Ipv6Addr>) {
                Some(Ok(address)) => Ok(Self::Address(IpAddr::from(address).to_canonical())),
                _ => invalid("is not an IPv6 address in brackets, like [2001:db8::1]"),
            };
        }
        if let Ok(address) = text.parse::<Ipv4Addr>() {
            return Ok(Self::Address(address.into()));
        }
        if text.len() > MAX_HOST_LEN || !text.split('.').all(hostname::is_label) {
            return invalid("is not a host; give a DNS name, an IPv4 address or [IPV6 ADDRESS]");
        }
        // Resolvers read such names as addresses (inet_aton(3)): 127.1, 0x7f.1, 2130706433.
        let last = text.rsplit('.').next().unwrap_or_default();
        let hex = last.strip_prefix("0x").or_else(|| last.strip_prefix("0X"));
        if last.bytes().all(|byte| byte.is_ascii_digit())
            || hex.is_some_and(|hex| hex.bytes().all(|byte| byte.is_ascii_hexdigit()))
        {
            return invalid("ends in a number; give an IPv4 address as four numbers from 0 to 255");
        }
        Ok(Self::Name(text.to_ascii_lowercase()))
    }
}

impl fmt::Display for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Name(name) => f.write_str(name),
            Self::Address(IpAddr::V4(address)) => address.fmt(f),
            Self::Address(IpAddr::V6(address)) => write!(f, "[{address}]"),
        }
    }
}

/// Parses a TCP port. u16::from_str also accepts a sign and leading zeros.
pub(crate) fn parse_port(text: &str) -> Option<u16> {
    Some(text)
        .filter(|text| text.bytes().all(|byte| byte.is_ascii_digit()) && !text.starts_with('0'))
        .and_then(|text| text.parse().ok())
}

/// A host and a TCP port: `HOST:PORT`, with brackets around an IPv6 address. The host is one name or address, without
/// patterns. Names are case-insensitive and stored in lower case.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Destination {
    host: Host,
    port: u16,
}

impl Destination {
    /// Creates a destination.
    #[must_use]
    pub fn new(host: Host, port: u16) -> Self {
        Self { host, port }
    }

    /// Parses an authority of a URL: `HOST[:PORT]`.
    ///
    /// # Errors
    /// The text is not a host with an optional port.
    pub fn from_authority(text: &str, default_port: u16) -> Result<Self, JailError> {
        // The port follows the last colon, unless that is part of an IPv6 address in brackets.
        match text.rsplit_once(':') {
            Some((_, port)) if !port.ends_with(']') => text.parse(),
            _ => Ok(Self::new(text.parse()?, default_port)),
        }
    }

    /// Returns the host.
    #[must_use]
    pub fn host(&self) -> &Host {
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
            JailError::invalid("destination", text, problem)
        };
        let (host, port) = text.rsplit_once(':').ok_or_else(malformed)?;
        let port = parse_port(port).ok_or_else(malformed)?;
        let host = host.parse().map_err(|_| malformed())?;
        Ok(Self { host, port })
    }
}

impl fmt::Display for Destination {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.host, self.port)
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
            ("[::ffff:127.0.0.1]:80", "127.0.0.1:80"),
            ("[::ffff:7f00:1]:80", "127.0.0.1:80"),
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
            "[fe80::1%lo]:1",
            "http://a:1",
            "a/b:1",
            "a\0:1",
            "a\n:1",
            "--:1",
            "127.1:1",
            "0x7f.0x1:1",
            "2130706433:1",
            "0177.0.0.1:1",
            "256.1.1.1:1",
            "a.0X:1",
        ] {
            assert!(bad.parse::<Destination>().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn authority_has_an_optional_port() {
        for (text, shown) in [
            ("a", "a:80"),
            ("a:81", "a:81"),
            ("[::1]", "[::1]:80"),
            ("[::1]:81", "[::1]:81"),
        ] {
            let destination = Destination::from_authority(text, 80).unwrap();
            assert_eq!(destination.to_string(), shown);
        }
        for bad in ["", "a:", "u@a", "u:p@a", "::1", "a:80:80"] {
            assert!(Destination::from_authority(bad, 80).is_err(), "{bad:?}");
        }
    }
}
