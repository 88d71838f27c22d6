//! Decisions about destinations, requests and addresses. Pure.

use std::net::IpAddr;

use colibri_jail_core::{
    AmbiguousPath, Destination, Host, HttpScheme, NetworkRule, UrlPath, special_address_kind,
};

/// Port of HTTPS. Another protocol at this port needs a `tcp:` rule.
const HTTPS_PORT: u16 = 443;

/// Why the policy refuses something, as a clause that follows the destination.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Refusal {
    #[error("it is not in the allow list")]
    NotAllowed,
    #[error("it is not in the allow list for SOCKS5, which needs a rule tcp:HOST:PORT")]
    NotTcp,
    #[error("the allow list has only some of its requests; send them to the proxy without CONNECT")]
    PlainRequestsOnly,
    #[error("the allow list does not have {method} {path}")]
    Request { method: String, path: String },
    #[error("its path is refused: {0}")]
    Path(AmbiguousPath),
    #[error("the header {0} could change its method or path")]
    Override(&'static str),
    #[error("it resolves to {address}, {kind}, which is not in the allow list")]
    Address { address: IpAddr, kind: &'static str },
    #[error("the TLS connection is for {0}")]
    OtherName(String),
    #[error("the TLS connection does not name a host (SNI)")]
    NoName,
    #[error("the connection is not TLS, which needs a rule tcp:HOST:PORT")]
    NotTls,
    #[error("the request in its TLS connection is for {0}")]
    OtherHost(String),
}

impl Refusal {
    /// Returns the rule that would allow the destination.
    pub(crate) fn missing_rule(&self, destination: &Destination) -> String {
        match self {
            Self::Address { address, .. } => {
                Destination::new(Host::Address(*address), destination.port()).to_string()
            }
            Self::NotTcp | Self::NotTls => format!("tcp:{destination}"),
            _ => destination.to_string(),
        }
    }
}

/// What the proxy does with the bytes of a tunnel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Tunnel {
    /// Forwards all bytes.
    Raw,
    /// Forwards TLS connections for the same host. With `tls_only`, refuses other protocols.
    CheckName { tls_only: bool },
    /// Terminates TLS and checks each request.
    Terminate,
}

/// The rules of one sandbox.
#[derive(Debug)]
pub(crate) struct Policy {
    rules: Vec<NetworkRule>,
    /// Destinations with a credential.
    credentials: Vec<Destination>,
}

/// Header fields by which some servers replace the method or the path of a request.
const OVERRIDES: &[&str] = &[
    "x-http-method",
    "x-http-method-override",
    "x-method-override",
    "x-original-url",
    "x-original-uri",
    "x-rewrite-url",
    "x-forwarded-uri",
];

impl Policy {
    pub(crate) fn new(rules: Vec<NetworkRule>, credentials: Vec<Destination>) -> Self {
        Self { rules, credentials }
    }

    /// Returns the destination with a credential that connections to this loopback port are for. The proxy terminates them.
    pub(crate) fn loopback_credential(&self, port: u16) -> Option<&Destination> {
        let loopback = IpAddr::from([127, 0, 0, 1]);
        self.credentials.iter().find(|destination| {
            destination.port() == port && destination.host().known_addresses().contains(&loopback)
        })
    }

    fn any(&self, condition: impl Fn(&NetworkRule) -> bool) -> bool {
        self.rules.iter().any(condition)
    }

    /// Returns whether a rule names a loopback address of the host and this port for any byte stream.
    pub(crate) fn forwards_loopback_port(&self, port: u16) -> bool {
        self.any(|rule| rule.loopback_ports().contains(&port))
    }

    /// Returns whether some destination needs TLS termination. A rule for requests over `https` may cover any host.
    pub(crate) fn needs_termination(rules: &[NetworkRule], has_credentials: bool) -> bool {
        has_credentials
            || rules
                .iter()
                .any(|rule| rule.request_scheme() == Some(HttpScheme::Https))
    }

    /// Returns whether a rule allows HTTPS to the destination.
    pub(crate) fn allows_https(rules: &[NetworkRule], destination: &Destination) -> bool {
        rules.iter().any(|rule| {
            rule.allows_connections(destination)
                || rule.restricts_requests(HttpScheme::Https, destination)
        })
    }

    /// Decides about a tunnel of CONNECT.
    pub(crate) fn tunnel(&self, destination: &Destination) -> Result<Tunnel, Refusal> {
        let connections = self.any(|rule| rule.allows_connections(destination));
        let requests = self.any(|rule| rule.restricts_requests(HttpScheme::Https, destination));
        if self.credentials.contains(destination) && (connections || requests) {
            return Ok(Tunnel::Terminate);
        }
        if self.any(|rule| rule.allows_tcp(destination)) {
            return Ok(Tunnel::Raw);
        }
        if connections {
            let tls_only = destination.port() == HTTPS_PORT;
            let is_loopback = destination
                .host()
                .known_addresses()
                .iter()
                .any(IpAddr::is_loopback);
            let unchecked = match destination.host() {
                Host::Name(_) => is_loopback,
                Host::Address(_) => is_loopback || !tls_only,
            };
            return Ok(match unchecked {
                true => Tunnel::Raw,
                false => Tunnel::CheckName { tls_only },
            });
        }
        if requests {
            return Ok(Tunnel::Terminate);
        }
        if self.any(|rule| rule.restricts_requests(HttpScheme::Http, destination)) {
            return Err(Refusal::PlainRequestsOnly);
        }
        Err(Refusal::NotAllowed)
    }

    /// Decides about a connection over SOCKS5.
    pub(crate) fn socks(&self, destination: &Destination) -> Result<(), Refusal> {
        let known = destination.host().known_addresses();
        let is_forwarded = known.iter().any(IpAddr::is_loopback)
            && self.forwards_loopback_port(destination.port());
        if is_forwarded || self.any(|rule| rule.allows_tcp(destination)) {
            Ok(())
        } else if self.any(|rule| rule.allows_connections(destination)) {
            Err(Refusal::NotTcp)
        } else {
            Err(Refusal::NotAllowed)
        }
    }

    /// Decides about a request. `has_header` returns whether the request has a header field, by its lower-case name.
    pub(crate) fn request(
        &self,
        scheme: HttpScheme,
        destination: &Destination,
        method: &str,
        path: &str,
        has_header: impl Fn(&str) -> bool,
    ) -> Result<(), Refusal> {
        if self.any(|rule| rule.allows_connections(destination)) {
            return Ok(());
        }
        if !self.any(|rule| rule.restricts_requests(scheme, destination)) {
            return Err(Refusal::NotAllowed);
        }
        let parsed = UrlPath::parse(path).map_err(Refusal::Path)?;
        if let Some(name) = OVERRIDES.iter().find(|name| has_header(name)) {
            return Err(Refusal::Override(name));
        }
        match self.any(|rule| rule.allows_request(scheme, destination, method, &parsed)) {
            true => Ok(()),
            false => Err(Refusal::Request {
                method: method.to_owned(),
                path: path.to_owned(),
            }),
        }
    }

    /// Decides about an address of a host. A host that names its address itself needs any rule for the address. Another name
    /// needs a rule that allows all connections to the address, because a rule by path is for its own host.
    pub(crate) fn address(&self, host: &Host, address: IpAddr, port: u16) -> Result<(), Refusal> {
        let is_named = !host.known_addresses().is_empty();
        let allows = |rule: &NetworkRule| {
            (is_named || rule.request_scheme().is_none()) && rule.names_address(address, port)
        };
        match special_address_kind(address) {
            Some(kind) if !self.any(allows) => Err(Refusal::Address { address, kind }),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn policy(rules: &[&str]) -> Policy {
        let rules = rules.iter().map(|rule| rule.parse().unwrap()).collect();
        Policy::new(rules, vec!["key.example:443".parse().unwrap()])
    }

    #[test]
    fn tunnels_are_checked_by_kind_of_rule() {
        let check = |tls_only| Ok(Tunnel::CheckName { tls_only });
        for (rules, destination, expected) in [
            (&["a:443"][..], "a:443", check(true)),
            (&["a:8443"], "a:8443", check(false)),
            (&["a:443"], "a:80", Err(Refusal::NotAllowed)),
            (&["192.0.2.1:443"], "192.0.2.1:443", check(true)),
            (&["192.0.2.1:22"], "192.0.2.1:22", Ok(Tunnel::Raw)),
            (&["localhost:443"], "127.0.0.1:443", Ok(Tunnel::Raw)),
            (&["tcp:a:443"], "a:443", Ok(Tunnel::Raw)),
            (&["tcp:a:443", "a:443"], "a:443", Ok(Tunnel::Raw)),
            (&["GET https://a/*"], "a:443", Ok(Tunnel::Terminate)),
            (&["GET https://a/*", "a:443"], "a:443", check(true)),
            (&["http://a/*"], "a:80", Err(Refusal::PlainRequestsOnly)),
            (
                &["key.example:443"],
                "key.example:443",
                Ok(Tunnel::Terminate),
            ),
            (&["tcp:key.example:443"], "key.example:443", Ok(Tunnel::Raw)),
            (
                &["tcp:key.example:443", "*.example:443"],
                "key.example:443",
                Ok(Tunnel::Terminate),
            ),
            (&["a:443"], "key.example:443", Err(Refusal::NotAllowed)),
        ] {
            let found = policy(rules).tunnel(&destination.parse().unwrap());
            assert_eq!(found, expected, "{rules:?} {destination}");
        }
    }

    #[test]
    fn socks_needs_a_rule_for_tcp() {
        for (rule, destination, expected) in [
            ("tcp:a:22", "a:22", Ok(())),
            ("a:22", "a:22", Err(Refusal::NotTcp)),
            ("tcp:a:22", "a:23", Err(Refusal::NotAllowed)),
            ("https://a/*", "a:443", Err(Refusal::NotAllowed)),
            ("127.0.0.1:80", "127.0.0.1:80", Ok(())),
            ("127.0.0.1:80", "localhost:80", Ok(())),
        ] {
            let found = policy(&[rule]).socks(&destination.parse().unwrap());
            assert_eq!(found, expected, "{rule} {destination}");
        }
    }

    #[test]
    fn requests_are_allowed_by_host_or_by_path() {
        let policy = policy(&["GET https://a/x/*", "b:80", "http://c/*"]);
        let decide = |scheme, host: &str, method: &str, path: &str, header: &str| {
            let destination = host.parse().unwrap();
            policy.request(scheme, &destination, method, path, |name| name == header)
        };
        let (http, https) = (HttpScheme::Http, HttpScheme::Https);
        assert_eq!(decide(https, "a:443", "GET", "/x/y", ""), Ok(()));
        assert_eq!(
            decide(http, "b:80", "PUT", "/..//;", "x-http-method"),
            Ok(())
        );
        assert_eq!(decide(http, "c:80", "PUT", "/z", ""), Ok(()));
        for (scheme, host, method, path, header) in [
            (https, "a:443", "POST", "/x/y", ""),
            (https, "a:443", "GET", "/y", ""),
            (https, "a:443", "GET", "/x/%2e%2e/y", ""),
            (https, "a:443", "GET", "/x/y", "x-http-method-override"),
            (https, "a:443", "GET", "/x/y", "x-original-url"),
            (http, "a:80", "GET", "/x/y", ""),
            (https, "c:443", "GET", "/z", ""),
            (http, "d:80", "GET", "/", ""),
        ] {
            let decision = decide(scheme, host, method, path, header);
            assert!(decision.is_err(), "{host} {method} {path} {header}");
        }
    }

    #[test]
    fn special_addresses_need_a_rule_by_address() {
        let policy = policy(&["a:80", "10.0.0.1:80", "localhost:81", "http://10.0.0.9/x/*"]);
        for (host, address, port, allowed) in [
            ("a", "1.1.1.1", 80, true),
            ("a", "10.0.0.1", 80, true),
            ("a", "::ffff:10.0.0.1", 80, true),
            ("a", "10.0.0.1", 81, false),
            ("a", "10.0.0.2", 80, false),
            ("a", "127.0.0.1", 81, true),
            ("a", "::1", 81, true),
            ("a", "127.0.0.1", 80, false),
            ("a", "169.254.169.254", 80, false),
            ("a", "10.0.0.9", 80, false),
            ("10.0.0.9", "10.0.0.9", 80, true),
            ("localhost", "127.0.0.1", 81, true),
            ("localhost", "127.0.0.1", 80, false),
        ] {
            let found = policy.address(&host.parse().unwrap(), address.parse().unwrap(), port);
            assert_eq!(found.is_ok(), allowed, "{host} {address} {port}");
        }
    }
}
