//! What a client of the proxy asks for. Pure: bytes in, meaning out.

use std::fmt::Write;

use colibri_jail_core::Destination;

/// Longest head of a request, in bytes.
pub(crate) const MAX_HEAD: usize = 32 * 1024;
const MAX_HEADERS: usize = 128;
/// Header fields that are for the proxy alone (RFC 9110, section 7.6.1), and the one that it writes itself.
const NOT_PASSED_ON: &[&str] = &[
    "connection",
    "keep-alive",
    "proxy-connection",
    "proxy-authorization",
    "host",
];

/// A request that was understood.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Request {
    /// `CONNECT`: a tunnel.
    Tunnel(Destination),
    /// A request for `http://…`: this head is sent there, and what follows it unchanged.
    Forward(Destination, String),
}

/// What came is no request that a proxy can carry out.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum BadRequest {
    #[error("the request is not HTTP/1")]
    Malformed,
    #[error("the head of the request is longer than 32 KiB")]
    TooLong,
    #[error("{0:?} is no place to connect to; ask for CONNECT HOST:PORT or for http://HOST/")]
    Target(String),
}

/// Reads a head. `None`: there is more to come; otherwise also how long it is.
pub(crate) fn read(bytes: &[u8]) -> Result<Option<(Request, usize)>, BadRequest> {
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
    let no_place = || BadRequest::Target(target.chars().take(200).collect());
    if method == "CONNECT" {
        let destination = target.parse().map_err(|_| no_place())?;
        return Ok(Some((Request::Tunnel(destination), length)));
    }
    let rest = strip_scheme(target).ok_or_else(no_place)?;
    let end = rest.find(['/', '?', '#']).unwrap_or(rest.len());
    let (authority, path) = rest.split_at(end);
    // After the last colon outside brackets comes the port.
    let has_port = authority
        .rsplit_once(':')
        .is_some_and(|(_, port)| !port.ends_with(']'));
    let whole = if has_port {
        authority.to_owned()
    } else {
        format!("{authority}:80")
    };
    let destination: Destination = whole.parse().map_err(|_| no_place())?;
    let slash = if path.starts_with('/') { "" } else { "/" };
    let mut head = format!("{method} {slash}{path} HTTP/1.1\r\nHost: {authority}\r\n");
    for header in parsed.headers.iter() {
        let own = NOT_PASSED_ON
            .iter()
            .any(|own| header.name.eq_ignore_ascii_case(own));
        if let (false, Ok(value)) = (own, std::str::from_utf8(header.value)) {
            let _ = write!(head, "{}: {value}\r\n", header.name);
        }
    }
    // One request a connection, so that the next one is looked at too.
    head.push_str("Connection: close\r\n\r\n");
    Ok(Some((Request::Forward(destination, head), length)))
}

fn strip_scheme(target: &str) -> Option<&str> {
    let (scheme, rest) = target.split_at_checked("http://".len())?;
    scheme.eq_ignore_ascii_case("http://").then_some(rest)
}

/// A whole answer that says why there is no connection.
pub(crate) fn answer(status: u16, reason: &str, text: &str) -> String {
    format!(
        "HTTP/1.1 {status} {reason}\r\nContent-Type: text/plain; charset=utf-8\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{text}\n",
        text.len() + 1
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn to(text: &str) -> Destination {
        text.parse().unwrap()
    }

    #[test]
    fn requests_and_what_is_none() {
        let no_place = |text: &str| Err(BadRequest::Target(text.into()));
        let forward = |place: &str, head: &str| Ok(Some(Request::Forward(to(place), head.into())));
        let table = [
            (
                "CONNECT a.example:443 HTTP/1.1\r\nHost: other:1\r\n\r\n",
                Ok(Some(Request::Tunnel(to("a.example:443")))),
            ),
            (
                "CONNECT [::1]:8080 HTTP/1.0\r\n\r\n",
                Ok(Some(Request::Tunnel(to("[::1]:8080")))),
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
            ("CONNECT a.example HTTP/1.1\r\n\r\n", no_place("a.example")),
            (
                "CONNECT a.example:443@b:1 HTTP/1.1\r\n\r\n",
                no_place("a.example:443@b:1"),
            ),
            ("GET / HTTP/1.1\r\nHost: a.example\r\n\r\n", no_place("/")),
            (
                "GET https://a.example/ HTTP/1.1\r\n\r\n",
                no_place("https://a.example/"),
            ),
            (
                "GET http://u:p@a.example/ HTTP/1.1\r\n\r\n",
                no_place("http://u:p@a.example/"),
            ),
            ("GET http:// HTTP/1.1\r\n\r\n", no_place("http://")),
            ("\u{16}\u{3}\u{1}", Err(BadRequest::Malformed)),
            ("SSH-2.0-OpenSSH\r\n", Err(BadRequest::Malformed)),
        ];
        for (bytes, expected) in table {
            let got = read(bytes.as_bytes()).map(|read| read.map(|(request, _)| request));
            assert_eq!(got, expected, "{bytes:?}");
        }
        let endless = format!("GET http://a/{}", "x".repeat(MAX_HEAD));
        assert_eq!(read(endless.as_bytes()), Err(BadRequest::TooLong));
    }

    proptest! {
        #[test]
        fn no_bytes_panic_and_one_head_is_sent_for_one_that_came(bytes in prop::collection::vec(any::<u8>(), 0..200), text in "[ -~]{0,80}") {
            let _ = read(&bytes);
            let request = format!("GET http://a.example/ HTTP/1.1\r\nX: {text}\r\n\r\n");
            if let Ok(Some((Request::Forward(_, head), length))) = read(request.as_bytes()) {
                prop_assert_eq!(length, request.len());
                prop_assert_eq!(head.matches("\r\n\r\n").count(), 1);
                prop_assert!(head.ends_with("\r\n\r\n"));
            }
        }
    }
}
