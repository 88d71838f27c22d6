//! Parses requests of the proxy's clients. Pure.

use std::fmt::Write;

use colibri_jail_core::Destination;

/// Maximum length of the head of a request, in bytes.
const MAX_HEAD: usize = 32 * 1024;
/// Maximum number of header fields of a request.
const MAX_HEADERS: usize = 128;
/// Header fields that are not forwarded: those for the proxy (RFC 9110, section 7.6.1), and `Host`, which is replaced.
const NOT_FORWARDED: &[&str] = &[
    "connection",
    "keep-alive",
    "proxy-connection",
    "proxy-authorization",
    "host",
];

/// Head of a valid request.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct RequestHead {
    pub(crate) destination: Destination,
    /// For a request for `http://…`, the head to forward; the bytes after it are forwarded unchanged. Absent for `CONNECT`,
    /// which opens a tunnel.
    pub(crate) forwarded: Option<String>,
    /// Length in the input, in bytes.
    pub(crate) length: usize,
}

/// A request that the proxy cannot serve.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum BadRequest {
    #[error("the request is not HTTP/1; use an HTTP proxy client")]
    Malformed,
    #[error("the head of the request is longer than 32 KiB; send fewer header fields")]
    TooLong,
    #[error("{0:?} is not a destination; request CONNECT HOST:PORT or http://HOST/")]
    Target(String),
}

/// Parses the head of a request; `None` if it is incomplete.
pub(crate) fn parse(bytes: &[u8]) -> Result<Option<RequestHead>, BadRequest> {
    let mut headers = [httparse::EMPTY_HEADER; MAX_HEADERS];
    let mut parsed = httparse::Request::new(&mut headers);
    let length = match parsed.parse(bytes) {
        Ok(httparse::Status::Complete(length)) => length,
        Ok(httparse::Status::Partial) if bytes.len() > MAX_HEAD => return Err(BadRequest::TooLong),
        Ok(httparse::Status::Partial) => return Ok(None),
        Err(_) => return Err(BadRequest::Malformed),
    };
    let (Some(method), Some(target)) = (parsed.method, parsed.path) else {
        return Err(BadRequest::Malformed);
    };
    let bad_target = || BadRequest::Target(target.chars().take(200).collect());
    if method == "CONNECT" {
        return Ok(Some(RequestHead {
            destination: target.parse().map_err(|_| bad_target())?,
            forwarded: None,
            length,
        }));
    }
    let address = strip_http_scheme(target).ok_or_else(bad_target)?;
    let end = address.find(['/', '?', '#']).unwrap_or(address.len());
    let (authority, path) = address.split_at(end);
    // The port follows the last colon, unless that is part of an IPv6 address in brackets.
    let has_port = authority
        .rsplit_once(':')
        .is_some_and(|(_, port)| !port.ends_with(']'));
    let with_port = if has_port {
        authority.to_owned()
    } else {
        format!("{authority}:80")
    };
    let destination = with_port.parse().map_err(|_| bad_target())?;
    let slash = if path.starts_with('/') { "" } else { "/" };
    let mut head = format!("{method} {slash}{path} HTTP/1.1\r\nHost: {authority}\r\n");
    for header in parsed.headers.iter() {
        let forwarded = !NOT_FORWARDED
            .iter()
            .any(|name| header.name.eq_ignore_ascii_case(name));
        if let (true, Ok(value)) = (forwarded, std::str::from_utf8(header.value)) {
            let _ = write!(head, "{}: {value}\r\n", header.name);
        }
    }
    // One request per connection, so that every request is checked.
    head.push_str("Connection: close\r\n\r\n");
    Ok(Some(RequestHead {
        destination,
        forwarded: Some(head),
        length,
    }))
}

fn strip_http_scheme(target: &str) -> Option<&str> {
    let (scheme, address) = target.split_at_checked("http://".len())?;
    scheme.eq_ignore_ascii_case("http://").then_some(address)
}

/// Returns a complete response with an error message.
pub(crate) fn error_response(status: &str, text: &str) -> String {
    format!(
        "HTTP/1.1 {status}\r\nContent-Type: text/plain; charset=utf-8\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{text}\n",
        text.len() + 1
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn destination(text: &str) -> Destination {
        text.parse().unwrap()
    }

    #[test]
    fn requests_are_parsed_or_refused() {
        let bad_target = |text: &str| Err(BadRequest::Target(text.into()));
        let forward =
            |target: &str, head: &str| Ok(Some((destination(target), Some(head.to_owned()))));
        let table = [
            (
                "CONNECT a.example:443 HTTP/1.1\r\nHost: other:1\r\n\r\n",
                Ok(Some((destination("a.example:443"), None))),
            ),
            (
                "CONNECT [::1]:8080 HTTP/1.0\r\n\r\n",
                Ok(Some((destination("[::1]:8080"), None))),
            ),
            (
                "GET http://a.example/x?y HTTP/1.1\r\nHost: other\r\nProxy-Authorization: p\r\nConnection: keep-alive\r\nAccept: */*\r\n\r\n",
                forward(
                    "a.example:80",
                    "GET /x?y HTTP/1.1\r\nHost: a.example\r\nAccept: */*\r\nConnection: close\r\n\r\n",
                ),
            ),
            (
                "POST HTTP://[::1]:81?q HTTP/1.1\r\nContent-Length: 2\r\n\r\n{}",
                forward(
                    "[::1]:81",
                    "POST /?q HTTP/1.1\r\nHost: [::1]:81\r\nContent-Length: 2\r\nConnection: close\r\n\r\n",
                ),
            ),
            (
                "GET http://[::1]/ HTTP/1.1\r\n\r\n",
                forward(
                    "[::1]:80",
                    "GET / HTTP/1.1\r\nHost: [::1]\r\nConnection: close\r\n\r\n",
                ),
            ),
            ("GET http://a.exa", Ok(None)),
            ("", Ok(None)),
            (
                "CONNECT a.example HTTP/1.1\r\n\r\n",
                bad_target("a.example"),
            ),
            (
                "CONNECT a.example:443@b:1 HTTP/1.1\r\n\r\n",
                bad_target("a.example:443@b:1"),
            ),
            ("GET / HTTP/1.1\r\nHost: a.example\r\n\r\n", bad_target("/")),
            (
                "GET https://a.example/ HTTP/1.1\r\n\r\n",
                bad_target("https://a.example/"),
            ),
            (
                "GET http://u:p@a.example/ HTTP/1.1\r\n\r\n",
                bad_target("http://u:p@a.example/"),
            ),
            ("GET http:// HTTP/1.1\r\n\r\n", bad_target("http://")),
            ("\u{16}\u{3}\u{1}", Err(BadRequest::Malformed)),
            ("SSH-2.0-OpenSSH\r\n", Err(BadRequest::Malformed)),
        ];
        for (bytes, expected) in table {
            let request = parse(bytes.as_bytes())
                .map(|head| head.map(|head| (head.destination, head.forwarded)));
            assert_eq!(request, expected, "{bytes:?}");
        }
        let endless = format!("GET http://a/{}", "x".repeat(MAX_HEAD));
        assert_eq!(parse(endless.as_bytes()), Err(BadRequest::TooLong));
    }

    proptest! {
        #[test]
        fn forwarded_request_has_exactly_one_head(bytes in prop::collection::vec(any::<u8>(), 0..200), text in "[ -~]{0,80}") {
            let _ = parse(&bytes);
            let request = format!("GET http://a.example/ HTTP/1.1\r\nX: {text}\r\n\r\n");
            if let Ok(Some(RequestHead { forwarded: Some(head), length, .. })) = parse(request.as_bytes()) {
                prop_assert_eq!(length, request.len());
                prop_assert_eq!(head.matches("\r\n\r\n").count(), 1);
                prop_assert!(head.ends_with("\r\n\r\n"));
            }
        }
    }
}
