//! Header fields and targets of forwarded messages. Pure.

use colibri_jail_core::{Destination, HttpScheme};
use hyper::header::{
    CONNECTION, EXPECT, HOST, HeaderMap, HeaderName, HeaderValue, PROXY_AUTHENTICATE,
    PROXY_AUTHORIZATION, TE, TRAILER, TRANSFER_ENCODING, UPGRADE,
};
use hyper::{Method, Uri};

/// Header fields of one connection (RFC 9110, section 7.6.1). The proxy answers `Expect` itself.
static HOP_BY_HOP: [HeaderName; 10] = [
    CONNECTION,
    EXPECT,
    PROXY_AUTHENTICATE,
    PROXY_AUTHORIZATION,
    TE,
    TRAILER,
    TRANSFER_ENCODING,
    UPGRADE,
    HeaderName::from_static("keep-alive"),
    HeaderName::from_static("proxy-connection"),
];

/// Why the target of a request is invalid.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum BadTarget {
    #[error("{0:?} is not a destination; request CONNECT HOST:PORT or http://HOST/")]
    Target(String),
    #[error("the field Host is {host:?}, and the target {target}; send the same host in both")]
    Host { host: String, target: String },
    #[error("the method {0} is not forwarded; use another one")]
    Method(String),
    #[error("the target {0:?} is not a path; send the request as to the server itself")]
    NotAPath(String),
}

/// Shortens text of a client for a message.
fn shorten(text: &str) -> String {
    text.chars().take(200).collect()
}

/// Returns the destination of a request to the proxy: a URL with `http`.
pub(crate) fn proxy_target(
    method: &Method,
    uri: &Uri,
    headers: &HeaderMap,
) -> Result<Destination, BadTarget> {
    let bad_target = || BadTarget::Target(shorten(&uri.to_string()));
    let authority = uri.authority().ok_or_else(bad_target)?;
    if uri.scheme_str() != Some(HttpScheme::Http.name()) {
        return Err(bad_target());
    }
    let destination =
        Destination::from_authority(authority.as_str(), HttpScheme::Http.default_port())
            .map_err(|_| bad_target())?;
    check_method(method)?;
    check_host(headers, HttpScheme::Http, &destination)?;
    Ok(destination)
}

/// Checks that a request in a tunnel is for the destination of the tunnel.
pub(crate) fn check_tunneled(
    method: &Method,
    uri: &Uri,
    headers: &HeaderMap,
    scheme: HttpScheme,
    destination: &Destination,
) -> Result<(), BadTarget> {
    let not_a_path = || BadTarget::NotAPath(shorten(&uri.to_string()));
    if let Some(authority) = uri.authority() {
        let found = Destination::from_authority(authority.as_str(), scheme.default_port());
        if uri.scheme_str() != Some(scheme.name()) || found.as_ref() != Ok(destination) {
            return Err(not_a_path());
        }
    } else if !uri.path().starts_with('/') {
        return Err(not_a_path());
    }
    check_method(method)?;
    check_host(headers, scheme, destination)
}

fn check_method(method: &Method) -> Result<(), BadTarget> {
    // TRACE returns the header fields that the server received, with keys.
    match *method {
        Method::CONNECT | Method::TRACE => Err(BadTarget::Method(method.to_string())),
        _ => Ok(()),
    }
}

fn check_host(
    headers: &HeaderMap,
    scheme: HttpScheme,
    destination: &Destination,
) -> Result<(), BadTarget> {
    for host in headers.get_all(HOST) {
        let text = host.to_str().unwrap_or_default();
        let found = Destination::from_authority(text, scheme.default_port());
        if found.as_ref() != Ok(destination) {
            return Err(BadTarget::Host {
                host: shorten(text),
                target: destination.to_string(),
            });
        }
    }
    Ok(())
}

/// Removes the header fields of the connection, also those that `Connection` names.
pub(crate) fn remove_hop_by_hop(headers: &mut HeaderMap) {
    let named: Vec<HeaderName> = headers
        .get_all(CONNECTION)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .filter_map(|name| name.trim().parse().ok())
        .collect();
    for name in named.iter().chain(&HOP_BY_HOP) {
        headers.remove(name);
    }
}

/// Adds the fields of a request or response that upgrades to a WebSocket.
pub(crate) fn add_upgrade(headers: &mut HeaderMap) {
    headers.insert(CONNECTION, HeaderValue::from_static("Upgrade"));
    headers.insert(UPGRADE, HeaderValue::from_static("websocket"));
}

/// Returns the value of `Host` for a destination.
pub(crate) fn host_value(scheme: HttpScheme, destination: &Destination) -> Option<HeaderValue> {
    let text = match destination.port() == scheme.default_port() {
        true => destination.host().to_string(),
        false => destination.to_string(),
    };
    HeaderValue::from_str(&text).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(fields: &[(&'static str, &'static str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in fields {
            headers.append(*name, HeaderValue::from_static(value));
        }
        headers
    }

    #[test]
    fn target_of_a_proxy_request_is_an_http_url() {
        for (uri, host, expected) in [
            ("http://a.example/x?y", None, Some("a.example:80")),
            (
                "http://A.example:81/",
                Some("a.EXAMPLE:81"),
                Some("a.example:81"),
            ),
            ("HTTP://[::1]/", Some("[::1]"), Some("[::1]:80")),
            ("http://a/", Some("a:80"), Some("a:80")),
            ("http://a/", Some("b"), None),
            ("http://a/", Some("a:81"), None),
            ("http://a/", Some(""), None),
            ("http://a/", Some("a, b"), None),
            ("http://u:p@a/", None, None),
            ("https://a/", None, None),
            ("/", Some("a"), None),
            ("*", Some("a"), None),
            ("a:80", None, None),
        ] {
            let fields = host.map(|host| ("host", host));
            let headers = headers(fields.as_slice());
            let found = proxy_target(&Method::GET, &uri.parse().unwrap(), &headers);
            assert_eq!(
                found.ok().map(|found| found.to_string()).as_deref(),
                expected,
                "{uri} {host:?}"
            );
        }
        let uri = "http://a/".parse().unwrap();
        for method in [Method::TRACE, Method::CONNECT] {
            assert!(proxy_target(&method, &uri, &HeaderMap::new()).is_err());
        }
    }

    #[test]
    fn tunneled_request_is_for_the_host_of_its_tunnel() {
        let (http, https) = (HttpScheme::Http, HttpScheme::Https);
        for (scheme, destination, uri, host, valid) in [
            (https, "a:443", "/x", "a", true),
            (https, "a:443", "/x", "A:443", true),
            (https, "a:443", "https://a/x", "a", true),
            (https, "a:443", "https://a:443/x", "a", true),
            (https, "a:443", "/x", "b", false),
            (https, "a:443", "/x", "a:80", false),
            (https, "a:443", "https://b/x", "a", false),
            (https, "a:443", "https://a:444/x", "a", false),
            (https, "a:443", "http://a/x", "a", false),
            (https, "a:443", "*", "a", false),
            (http, "a:80", "/x", "a", true),
            (http, "a:8080", "/x", "a:8080", true),
            (http, "a:8080", "http://a:8080/x", "a:8080", true),
            (http, "a:8080", "/x", "a", false),
            (http, "a:8080", "/x", "b:8080", false),
            (http, "a:8080", "https://a:8080/x", "a:8080", false),
            (http, "a:8080", "http://b:8080/x", "a:8080", false),
        ] {
            let headers = headers(&[("host", host)]);
            let (uri, destination) = (uri.parse().unwrap(), destination.parse().unwrap());
            let found = check_tunneled(&Method::GET, &uri, &headers, scheme, &destination);
            assert_eq!(found.is_ok(), valid, "{destination} {uri} {host}");
        }
    }

    #[test]
    fn hop_by_hop_fields_are_removed() {
        let mut headers = headers(&[
            ("connection", "keep-alive, X-One"),
            ("connection", "x-two"),
            ("keep-alive", "1"),
            ("proxy-authorization", "p"),
            ("proxy-connection", "keep-alive"),
            ("te", "trailers"),
            ("trailer", "x"),
            ("transfer-encoding", "chunked"),
            ("upgrade", "h2c"),
            ("expect", "100-continue"),
            ("x-one", "1"),
            ("x-two", "2"),
            ("x-three", "3"),
            ("authorization", "a"),
        ]);
        remove_hop_by_hop(&mut headers);
        let left: Vec<_> = headers.keys().map(HeaderName::as_str).collect();
        assert_eq!(left, ["x-three", "authorization"]);
    }
}
