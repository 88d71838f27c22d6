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
    Override(String),
    #[error("the query parameter {METHOD_PARAMETER} could change its method")]
    MethodParameter,
    #[error("it resolves to {address}, {kind}, which is not in the allow list")]
    Address { address: IpAddr, kind: &'static str },
    #[error("the TLS connection is for {0}")]
    OtherName(String),
    #[error("the TLS connection does not name a host (SNI)")]
    NoName,
    #[error("the connection is not TLS, which needs a rule tcp:HOST:PORT")]
    NotTls,
    #[error("the connection is neither TLS nor HTTP/1, which needs a rule tcp:HOST:PORT")]
    NotHttp,
    #[error("the request in its tunnel is for {0}")]
    OtherHost(String),
}

impl Refusal {
    /// Returns the rule that would allow the destination.
    pub(crate) fn missing_rule(&self, destination: &Destination) -> String {
        match self {
            Self::Address { address, .. } => {
                Destination::new(Host::Address(*address), destination.port()).to_string()
            }
            Self::NotTcp | Self::NotTls | Self::NotHttp => format!("tcp:{destination}"),
            _ => destination.to_string(),
        }
    }
}

/// What the proxy does with the bytes of a tunnel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Tunnel {
    /// Forwards all bytes.
    Raw,
    /// Forwards TLS connections for the same host. Checks each request of another connection; with `tls_only`, refuses it.
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

/// Ends of the names of header fields by which some servers replace the method or the path of a request, like
/// `X-HTTP-Method-Override`, `X-Original-URL` and `X-Forwarded-Prefix`. These names start with `x-`.
const OVERRIDE_ENDS: &[&str] = &[
    "-method",
    "-method-override",
    "-path",
    "-path-override",
    "-url",
    "-uri",
    "-prefix",
];
/// Other names of such fields.
const OVERRIDES: &[&str] = &["base-url"];
/// The parameter of a query by which some servers replace the method.
const METHOD_PARAMETER: &str = "_method";

/// Returns whether some server could replace the method or the path of a request by this header field.
fn is_override(name: &str) -> bool {
    // CGI, WSGI and PHP read `_` as `-`.
    let name = name.to_ascii_lowercase().replace('_', "-");
    OVERRIDES.contains(&name.as_str())
        || (name.starts_with("x-") && OVERRIDE_ENDS.iter().any(|end| name.ends_with(end)))
}

/// Returns whether a query has the parameter [`METHOD_PARAMETER`], in the interpretation of some server: PHP removes spaces
/// before a name, reads `.` and ` ` in it as `_`, and ends it at `[` and NUL.
fn has_method_parameter(query: &str) -> bool {
    query.split(['&', ';']).any(|parameter| {
        let name = parameter.split('=').next().unwrap_or_default();
        let name = decode(name.as_bytes());
        let name = name
            .split(|byte| b"[\0".contains(byte))
            .next()
            .unwrap_or_default();
        let as_php_reads = |byte: &u8| match byte {
            b'.' | b' ' => b'_',
            other => other.to_ascii_lowercase(),
        };
        let name: Vec<u8> = name.trim_ascii_start().iter().map(as_php_reads).collect();
        name == METHOD_PARAMETER.as_bytes()
    })
}

/// Decodes `+` and percent-encoded bytes of a query. An invalid encoding stays as it is.
fn decode(mut text: &[u8]) -> Vec<u8> {
    let mut decoded = Vec::new();
    while let Some((first, rest)) = text.split_first() {
        let encoded = rest.get(..2).filter(|_| *first == b'%').and_then(|digits| {
            let is_hex = digits.iter().all(u8::is_ascii_hexdigit);
            let digits = std::str::from_utf8(digits).ok().filter(|_| is_hex)?;
            u8::from_str_radix(digits, 16).ok()
        });
        let byte = match (encoded, first) {
            (Some(byte), _) => byte,
            (None, b'+') => b' ',
            (None, byte) => *byte,
        };
        decoded.push(byte);
        let used = if encoded.is_some() { 2 } else { 0 };
        text = rest.get(used..).unwrap_or_default();
    }
    decoded
}

/// What the policy needs to know of a request.
#[derive(Debug, Clone, Copy)]
pub(crate) struct RequestParts<'a, Names> {
    pub(crate) method: &'a str,
    pub(crate) path: &'a str,
    pub(crate) query: &'a str,
    /// Names of the header fields.
    pub(crate) header_names: Names,
}

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
            return Ok(Tunnel::CheckName { tls_only });
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

    /// Decides about a request.
    pub(crate) fn request<'a>(
        &self,
        scheme: HttpScheme,
        destination: &Destination,
        request: RequestParts<'a, impl IntoIterator<Item = &'a str>>,
    ) -> Result<(), Refusal> {
        if self.any(|rule| rule.allows_connections(destination)) {
            return Ok(());
        }
        if !self.any(|rule| rule.restricts_requests(scheme, destination)) {
            return Err(Refusal::NotAllowed);
        }
        let RequestParts { method, path, .. } = request;
        let parsed = UrlPath::parse(path).map_err(Refusal::Path)?;
        let mut names = request.header_names.into_iter();
        if let Some(name) = names.find(|name| is_override(name)) {
            return Err(Refusal::Override(name.to_owned()));
        }
        if has_method_parameter(request.query) {
            return Err(Refusal::MethodParameter);
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
            (&["192.0.2.1:22"], "192.0.2.1:22", check(false)),
            (&["tcp:192.0.2.1:22"], "192.0.2.1:22", Ok(Tunnel::Raw)),
            (&["localhost:443"], "127.0.0.1:443", check(true)),
            (&["localhost:8080"], "127.0.0.1:8080", check(false)),
            (&["tcp:localhost:22"], "127.0.0.1:22", Ok(Tunnel::Raw)),
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
        let decide = |scheme, host: &str, method: &str, target: &str, header: &str| {
            let destination = host.parse().unwrap();
            let (path, query) = target.split_once('?').unwrap_or((target, ""));
            let request = RequestParts {
                method,
                path,
                query,
                header_names: ["accept", header],
            };
            policy.request(scheme, &destination, request)
        };
        let (http, https) = (HttpScheme::Http, HttpScheme::Https);
        assert_eq!(decide(https, "a:443", "GET", "/x/y", ""), Ok(()));
        assert_eq!(
            decide(http, "b:80", "PUT", "/..//;?_method=GET", "x-http-method"),
            Ok(())
        );
        assert_eq!(decide(http, "c:80", "PUT", "/z", ""), Ok(()));
        for (scheme, host, method, path, header) in [
            (https, "a:443", "POST", "/x/y", ""),
            (https, "a:443", "GET", "/y", ""),
            (https, "a:443", "GET", "/x/%2e%2e/y", ""),
            (https, "a:443", "GET", "/x/y", "x-http-method-override"),
            (https, "a:443", "GET", "/x/y", "x-original-url"),
            (https, "a:443", "GET", "/x/y?_method=PUT", ""),
            (http, "a:80", "GET", "/x/y", ""),
            (https, "c:443", "GET", "/z", ""),
            (http, "d:80", "GET", "/", ""),
        ] {
            let decision = decide(scheme, host, method, path, header);
            assert!(decision.is_err(), "{host} {method} {path} {header}");
        }
    }

    #[test]
    fn override_headers_are_found_by_pattern() {
        for (name, expected) in [
            ("x-http-method-override", true),
            ("x_http_method_override", true),
            ("X-HTTP_Method-Override", true),
            ("x-http-method", true),
            ("x-method-override", true),
            ("x-original-method", true),
            ("x-original-url", true),
            ("x-original-uri", true),
            ("x-rewrite-url", true),
            ("x-envoy-original-path", true),
            ("x-path-override", true),
            ("x-forwarded-uri", true),
            ("x-forwarded-path", true),
            ("x-forwarded-prefix", true),
            ("x_forwarded_method", true),
            ("base-url", true),
            ("Base_URL", true),
            ("x-forwarded-for", false),
            ("x-forwarded-host", false),
            ("x-forwarded-proto", false),
            ("x-method-name", false),
            ("x-api-key", false),
            ("content-path", false),
            ("", false),
        ] {
            assert_eq!(is_override(name), expected, "{name}");
        }
    }

    #[test]
    fn method_parameter_is_found_in_each_encoding() {
        for (query, expected) in [
            ("_method=DELETE", true),
            ("a=b&_method=DELETE", true),
            ("a=b;_method", true),
            ("%5Fmethod=DELETE", true),
            ("%5f%6d%65thod=DELETE", true),
            ("_METHOD=DELETE", true),
            (".method=DELETE", true),
            ("+_method=DELETE", true),
            ("%20.method=DELETE", true),
            ("_method[]=DELETE", true),
            ("_method%00x=DELETE", true),
            ("", false),
            ("method=DELETE", false),
            ("a=_method", false),
            ("_method_x=DELETE", false),
            ("x_method=DELETE", false),
            ("%255Fmethod=DELETE", false),
            ("%zz%5", false),
        ] {
            assert_eq!(has_method_parameter(query), expected, "{query}");
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
