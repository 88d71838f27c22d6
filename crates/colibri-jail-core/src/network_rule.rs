//! Rules of the allow list of a filtered jail.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use crate::destination::parse_port;
use crate::error::check_length;
use crate::url_path::PathPattern;
use crate::{Destination, Host, JailError, PROXY_PORT, UrlPath};

/// Maximum length of a rule, in bytes.
const MAX_RULE_LEN: usize = 2048;
/// Maximum number of ports in one rule.
const MAX_PORTS: usize = 64;
/// Maximum length of a request method in a rule, in bytes.
const MAX_METHOD_LEN: usize = 20;
const RULE: &str = "`allow` entry";

/// Scheme of a request over HTTP.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum HttpScheme {
    /// `http`: HTTP without TLS.
    Http,
    /// `https`: HTTP over TLS.
    Https,
}

impl HttpScheme {
    /// Returns the port of a URL without one.
    #[must_use]
    pub fn default_port(self) -> u16 {
        match self {
            Self::Http => 80,
            Self::Https => 443,
        }
    }

    /// Returns the name: `http` or `https`.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Http => "http",
            Self::Https => "https",
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
enum HostPattern {
    Exact(Host),
    /// The names below this domain, at any depth; not the domain itself.
    Subdomains(String),
}

impl HostPattern {
    fn matches(&self, host: &Host) -> bool {
        match (self, host) {
            (Self::Exact(exact), host) => exact == host,
            (Self::Subdomains(domain), Host::Name(name)) => name
                .strip_suffix(domain.as_str())
                .and_then(|before| before.strip_suffix('.'))
                .is_some_and(|before| !before.is_empty()),
            (Self::Subdomains(_), Host::Address(_)) => false,
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
enum Access {
    /// Every HTTP request and every TLS connection.
    Connections,
    /// Every byte stream.
    RawTcp,
    /// HTTP requests with one of the methods, or any method if there is none, whose path matches.
    Requests {
        scheme: HttpScheme,
        methods: Vec<String>,
        path: PathPattern,
    },
}

/// A rule of an allow list:
///
/// | rule | allows |
/// |---|---|
/// | `HOST:PORT[,PORT…]` | HTTP requests and TLS connections to the host |
/// | `*.DOMAIN:PORT[,PORT…]` | the same for all subdomains at any depth, not for the domain itself |
/// | `tcp:HOST:PORT[,PORT…]` | any TCP connection, for example SSH or a database |
/// | `[METHOD[,METHOD…] ]https://HOST[:PORT]/PATH` | requests with these methods and paths; also with `http` |
///
/// HOST is a DNS name, an IPv4 address or an IPv6 address in brackets. In PATH, `*` is a whole segment: at the end it matches
/// all that follows, elsewhere one segment.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct NetworkRule {
    access: Access,
    host: HostPattern,
    /// Sorted; at least one.
    ports: Vec<u16>,
}

impl NetworkRule {
    /// Returns the rule that allows every HTTP request and TLS connection to the destination.
    pub(crate) fn connections_to(destination: &Destination) -> Self {
        Self {
            access: Access::Connections,
            host: HostPattern::Exact(destination.host().clone()),
            ports: vec![destination.port()],
        }
    }

    /// Returns whether the rule allows any byte stream to some destination: a `tcp:` rule.
    #[must_use]
    pub fn is_tcp(&self) -> bool {
        self.access == Access::RawTcp
    }

    /// `localhost` and its addresses cover each other.
    fn covers(&self, destination: &Destination) -> bool {
        let names = |address: &IpAddr| self.names_address(*address, destination.port());
        self.ports.contains(&destination.port())
            && (self.host.matches(destination.host())
                || destination.host().known_addresses().iter().any(names))
    }

    /// Returns the scheme of a rule for requests by method or path; `None` for other rules.
    #[must_use]
    pub fn request_scheme(&self) -> Option<HttpScheme> {
        match self.access {
            Access::Requests { scheme, .. } => Some(scheme),
            Access::Connections | Access::RawTcp => None,
        }
    }

    /// Returns whether the rule allows every HTTP request and TLS connection to the destination.
    #[must_use]
    pub fn allows_connections(&self, destination: &Destination) -> bool {
        self.access == Access::Connections && self.covers(destination)
    }

    /// Returns whether the rule allows any byte stream to the destination: a `tcp:` rule.
    #[must_use]
    pub fn allows_tcp(&self, destination: &Destination) -> bool {
        self.access == Access::RawTcp && self.covers(destination)
    }

    /// Returns whether the rule allows some requests of this scheme to the destination, by method or path.
    #[must_use]
    pub fn restricts_requests(&self, scheme: HttpScheme, destination: &Destination) -> bool {
        self.request_scheme() == Some(scheme) && self.covers(destination)
    }

    /// Returns whether the rule allows a request by its method and path.
    #[must_use]
    pub fn allows_request(
        &self,
        scheme: HttpScheme,
        destination: &Destination,
        method: &str,
        path: &UrlPath,
    ) -> bool {
        let Access::Requests {
            methods,
            path: pattern,
            ..
        } = &self.access
        else {
            return false;
        };
        self.restricts_requests(scheme, destination)
            && (methods.is_empty() || methods.iter().any(|allowed| allowed == method))
            && pattern.matches(path)
    }

    /// Returns whether the rule names this address and port. `localhost` names 127.0.0.1 and ::1.
    #[must_use]
    pub fn names_address(&self, address: IpAddr, port: u16) -> bool {
        match &self.host {
            HostPattern::Exact(host) => {
                self.ports.contains(&port)
                    && host.known_addresses().contains(&address.to_canonical())
            }
            HostPattern::Subdomains(_) => false,
        }
    }

    /// Returns the ports of the host's 127.0.0.1 that the rule allows for any byte stream. They are open in the jail too,
    /// because programs bypass a proxy for loopback addresses. Without the proxy's port.
    #[must_use]
    pub fn loopback_ports(&self) -> Vec<u16> {
        let names_loopback = |host: &Host| {
            let loopback = |address: &IpAddr| *address == IpAddr::from([127, 0, 0, 1]);
            host.known_addresses().iter().any(loopback)
        };
        match (&self.access, &self.host) {
            (Access::Connections | Access::RawTcp, HostPattern::Exact(host))
                if names_loopback(host) =>
            {
                let ports = self.ports.iter().copied();
                ports.filter(|port| *port != PROXY_PORT).collect()
            }
            _ => Vec::new(),
        }
    }
}

impl FromStr for NetworkRule {
    type Err = JailError;

    fn from_str(text: &str) -> Result<Self, JailError> {
        check_length(RULE, text, MAX_RULE_LEN)?;
        let invalid = |problem: &str| JailError::invalid(RULE, text, problem);
        if text.contains("://") || text.contains(' ') {
            return parse_requests(text).map_err(|problem| invalid(&problem));
        }
        let (access, rest) = match text.strip_prefix("tcp:") {
            // Otherwise `tcp` is a host.
            Some(rest) if rest.contains(':') => (Access::RawTcp, rest),
            _ => (Access::Connections, text),
        };
        if rest.contains('/') {
            return Err(invalid(
                "has a path without a scheme; write https://HOST/PATH, or HOST:PORT for every request",
            ));
        }
        let (host, ports) = rest
            .rsplit_once(':')
            .filter(|(_, ports)| !ports.ends_with(']'))
            .ok_or_else(|| {
                invalid(
                    "is not a rule: the port is missing; write HOST:PORT, like api.example.com:443",
                )
            })?;
        Ok(Self {
            access,
            host: parse_host(host).map_err(|problem| invalid(&problem))?,
            ports: parse_ports(ports).map_err(|problem| invalid(&problem))?,
        })
    }
}

fn parse_ports(text: &str) -> Result<Vec<u16>, String> {
    let ports: Option<Vec<u16>> = text.split(',').map(parse_port).collect();
    let mut ports = ports.ok_or(
        "is not a rule: a port is not a number from 1 to 65535; write HOST:PORT or HOST:PORT,PORT, like api.example.com:80,443",
    )?;
    ports.sort_unstable();
    ports.dedup();
    if ports.len() > MAX_PORTS {
        return Err(format!(
            "has more than {MAX_PORTS} ports; use several rules"
        ));
    }
    Ok(ports)
}

fn parse_host(text: &str) -> Result<HostPattern, String> {
    let pattern_hint = "has '*' that is not the first label; write *.example.com for all subdomains, or the whole name";
    let Some(domain) = text.strip_prefix("*.") else {
        if text == "*" {
            return Err(
                "allows every host; write each host, or *.example.com for all subdomains".into(),
            );
        }
        if text.contains('*') {
            return Err(pattern_hint.into());
        }
        return text.parse().map(HostPattern::Exact).map_err(|_| {
            format!("is not a rule: {text:?} is not a host; write a DNS name, an IPv4 address or [IPV6 ADDRESS]")
        });
    };
    if domain.contains('*') {
        return Err(pattern_hint.into());
    }
    match domain.parse() {
        Ok(Host::Name(domain)) => Ok(HostPattern::Subdomains(domain)),
        _ => Err(format!(
            "is not a rule: {domain:?} is not a domain; write *.example.com"
        )),
    }
}

/// Parses a rule with a URL; an error is the cause and a hint.
fn parse_requests(text: &str) -> Result<NetworkRule, String> {
    let (methods, url) = match text.rsplit_once(' ') {
        Some((methods, url)) => (parse_methods(methods)?, url),
        None => (Vec::new(), text),
    };
    let (scheme, rest) = match url.split_once("://") {
        Some(("https", rest)) => (HttpScheme::Https, rest),
        Some(("http", rest)) => (HttpScheme::Http, rest),
        Some(_) => {
            return Err("has a scheme that is not http or https; write https://HOST/PATH".into());
        }
        None => return Err("has a method without a URL; write METHOD https://HOST/PATH".into()),
    };
    let Some(start) = rest.find('/') else {
        return Err(
            "is a URL without a path; write https://HOST/* for every path, or HOST:443 to allow the host without a check of the requests".into(),
        );
    };
    let (authority, path) = rest.split_at(start);
    if authority.contains('@') {
        return Err("has a user name; remove it".into());
    }
    let (host, ports) = match authority.rsplit_once(':') {
        Some((host, ports)) if !ports.ends_with(']') => (host, parse_ports(ports)?),
        _ => (authority, vec![scheme.default_port()]),
    };
    Ok(NetworkRule {
        access: Access::Requests {
            scheme,
            methods,
            path: PathPattern::parse(path)?,
        },
        host: parse_host(host)?,
        ports,
    })
}

fn parse_methods(text: &str) -> Result<Vec<String>, String> {
    let mut methods = Vec::new();
    for method in text.split(',') {
        let is_method = !method.is_empty()
            && method.len() <= MAX_METHOD_LEN
            && method
                .bytes()
                .all(|byte| byte.is_ascii_uppercase() || byte == b'-');
        if !is_method {
            return Err(format!(
                "is not a rule: {method:?} is not a method; write upper case and no spaces between them, like GET,HEAD https://HOST/PATH"
            ));
        }
        if ["CONNECT", "TRACE"].contains(&method) {
            return Err(format!(
                "has the method {method}, which the proxy does not forward; remove it"
            ));
        }
        methods.push(method.to_owned());
    }
    methods.sort_unstable();
    methods.dedup();
    Ok(methods)
}

impl fmt::Display for NetworkRule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let host = match &self.host {
            HostPattern::Exact(host) => host.to_string(),
            HostPattern::Subdomains(domain) => format!("*.{domain}"),
        };
        let ports: Vec<String> = self.ports.iter().map(ToString::to_string).collect();
        let ports = ports.join(",");
        match &self.access {
            Access::Connections => write!(f, "{host}:{ports}"),
            Access::RawTcp => write!(f, "tcp:{host}:{ports}"),
            Access::Requests {
                scheme,
                methods,
                path,
            } => {
                if !methods.is_empty() {
                    write!(f, "{} ", methods.join(","))?;
                }
                write!(f, "{}://{host}", scheme.name())?;
                if self.ports != [scheme.default_port()] {
                    write!(f, ":{ports}")?;
                }
                path.fmt(f)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn rule(text: &str) -> NetworkRule {
        text.parse().unwrap()
    }

    #[test]
    fn rules_are_shown_in_one_form() {
        for (text, shown) in [
            ("API.Example.com:443", "api.example.com:443"),
            ("a:443,80,443", "a:80,443"),
            ("*.Example.com:443", "*.example.com:443"),
            ("[::FFFF:127.0.0.1]:80", "127.0.0.1:80"),
            ("[2001:DB8::1]:22", "[2001:db8::1]:22"),
            ("tcp:git.example:22", "tcp:git.example:22"),
            ("tcp:[::1]:22,23", "tcp:[::1]:22,23"),
            ("tcp:*.db.example:5432", "tcp:*.db.example:5432"),
            ("tcp:80", "tcp:80"),
            ("https://a/*", "https://a/*"),
            ("https://a:443/x", "https://a/x"),
            ("http://a:80,8080/x", "http://a:80,8080/x"),
            (
                "POST,GET https://*.a.b/repos/*/x",
                "GET,POST https://*.a.b/repos/*/x",
            ),
            ("GET https://[::1]:8443/", "GET https://[::1]:8443/"),
        ] {
            assert_eq!(rule(text).to_string(), shown);
        }
    }

    #[test]
    fn invalid_rules_have_a_hint() {
        for (text, hint) in [
            ("", "the port is missing"),
            ("a", "write HOST:PORT"),
            ("[::1]", "the port is missing"),
            ("a:0", "1 to 65535"),
            ("a:", "1 to 65535"),
            ("a:80,", "HOST:PORT,PORT"),
            ("a:80-90", "1 to 65535"),
            (":443", "is not a host"),
            ("a_b:1", "is not a host"),
            ("127.1:1", "is not a host"),
            ("tcp::1", "is not a host"),
            ("*:443", "allows every host"),
            ("a.*.b:443", "first label"),
            ("*a.b:443", "first label"),
            ("*.*.a:443", "first label"),
            ("*.:443", "is not a domain"),
            ("*.10.0.0.1:443", "is not a domain"),
            ("a:443/x", "without a scheme"),
            ("https://a", "https://HOST/*"),
            ("ftp://a/", "not http or https"),
            ("https://u@a/", "user name"),
            ("https:///x", "is not a host"),
            ("https://a:0/x", "1 to 65535"),
            ("https://a/x*", "whole segment"),
            ("https://a/x?y", "query"),
            ("https://a/../x", "ambiguous"),
            ("get https://a/", "upper case"),
            ("GET, POST https://a/", "no spaces"),
            ("GET  https://a/", "is not a method"),
            ("CONNECT https://a/", "does not forward"),
            ("GET a:443", "without a URL"),
            ("a:1 ", "is not a method"),
        ] {
            let error = text.parse::<NetworkRule>().unwrap_err().to_string();
            assert!(error.contains(hint), "{text:?}: {error}");
        }
        let long = format!("{}:1", "a".repeat(MAX_RULE_LEN));
        assert!(long.parse::<NetworkRule>().is_err());
    }

    #[test]
    fn rule_allows_its_hosts_and_ports_only() {
        for (text, destination, expected) in [
            ("a.example:443", "a.example:443", true),
            ("a.example:443", "A.EXAMPLE:443", true),
            ("a.example:443", "a.example:444", false),
            ("a.example:80,443", "a.example:80", true),
            ("a.example:443", "b.a.example:443", false),
            ("*.example:443", "a.example:443", true),
            ("*.example:443", "c.b.a.example:443", true),
            ("*.example:443", "example:443", false),
            ("*.example:443", "aexample:443", false),
            ("*.example:443", "a.example.org:443", false),
            ("127.0.0.1:80", "[::ffff:127.0.0.1]:80", true),
            ("127.0.0.1:80", "localhost:80", true),
            ("[::1]:80", "localhost:80", true),
            ("localhost:80", "127.0.0.1:80", true),
            ("localhost:80", "127.0.0.2:80", false),
            ("localhost:80", "a.localhost:80", false),
        ] {
            let found = rule(text).allows_connections(&destination.parse().unwrap());
            assert_eq!(found, expected, "{text} {destination}");
        }
        let destination = "a:22".parse().unwrap();
        assert!(rule("tcp:a:22").allows_tcp(&destination));
        assert!(!rule("tcp:a:22").allows_connections(&destination));
        assert!(!rule("a:22").allows_tcp(&destination));
    }

    #[test]
    fn requests_are_allowed_by_method_and_path() {
        let rule = rule("GET,HEAD https://api.example/repos/*");
        let allows = |scheme, host: &str, method: &str, path: &str| {
            let path = UrlPath::parse(path).unwrap();
            rule.allows_request(scheme, &host.parse().unwrap(), method, &path)
        };
        let https = HttpScheme::Https;
        assert!(allows(https, "api.example:443", "GET", "/repos/x"));
        assert!(allows(https, "api.example:443", "HEAD", "/repos/x"));
        for (scheme, host, method, path) in [
            (HttpScheme::Http, "api.example:443", "GET", "/repos/x"),
            (https, "api.example:80", "GET", "/repos/x"),
            (https, "api.example:443", "POST", "/repos/x"),
            (https, "api.example:443", "get", "/repos/x"),
            (https, "api.example:443", "GET", "/user"),
        ] {
            assert!(
                !allows(scheme, host, method, path),
                "{host} {method} {path}"
            );
        }
    }

    #[test]
    fn loopback_addresses_are_named_by_address_and_localhost() {
        for (text, address, named) in [
            ("127.0.0.1:80", "127.0.0.1", true),
            ("127.0.0.1:80", "127.0.0.2", false),
            ("127.0.0.1:80", "::ffff:127.0.0.1", true),
            ("127.0.0.1:81", "127.0.0.1", false),
            ("localhost:80", "127.0.0.1", true),
            ("localhost:80", "::1", true),
            ("tcp:localhost:80", "::1", true),
            ("http://localhost/x", "::1", true),
            ("*.localhost:80", "127.0.0.1", false),
            ("a:80", "127.0.0.1", false),
        ] {
            let found = rule(text).names_address(address.parse().unwrap(), 80);
            assert_eq!(found, named, "{text} {address}");
        }
        for (text, ports) in [
            ("127.0.0.1:81,80", &[80, 81][..]),
            ("localhost:3128,5432", &[5432]),
            ("tcp:127.0.0.1:22", &[22]),
            ("http://127.0.0.1:80/x", &[]),
            ("[::1]:80", &[]),
            ("127.0.0.2:80", &[]),
            ("a:80", &[]),
        ] {
            assert_eq!(rule(text).loopback_ports(), ports, "{text}");
        }
    }

    proptest! {
        #[test]
        fn shown_rule_is_parsed_to_the_same(
            prefix in "(tcp:|https?://|GET https://|)", host in "(\\*\\.)?[a-z0-9.]{1,8}|\\[::[0-9a-f]{1,4}\\]",
            ports in "(:[1-9][0-9]{0,3}(,[1-9][0-9]{0,3})?)?", path in "(/[a-z*]{0,2}){0,3}",
        ) {
            if let Ok(rule) = format!("{prefix}{host}{ports}{path}").parse::<NetworkRule>() {
                prop_assert_eq!(rule.to_string().parse::<NetworkRule>(), Ok(rule));
            }
        }

        #[test]
        fn any_text_is_parsed_without_panic(text in "\\PC{0,60}|[ -~]{0,60}") {
            let _ = text.parse::<NetworkRule>();
        }
    }
}
