//! Checks the framing of a client's requests before hyper parses them, so that no server can find other requests in the same
//! bytes (request smuggling). Pure.
//!
//! ```text
//!          head without body
//!         ┌──────┐
//!         v      │      Content-Length
//!   ┌─> Head ────┴──────────────────────> Body ───────┐
//!   │    │ │                                          │
//!   │    │ └─chunked─> ChunkSize ─> ChunkData ─> ChunkEnd
//!   │    │                 │  ^                     │ │
//!   │    └─upgrade─> Opaque│  └─────────────────────┘ │
//!   └───────────────── LastEnd <── (size 0)           │
//!   └─────────────────────────────────────────────────┘
//! ```

/// Maximum length of the head of a request, in bytes.
pub(crate) const MAX_HEAD: usize = 32 * 1024;
/// Maximum number of header fields of a request.
pub(crate) const MAX_HEADERS: usize = 128;
/// Maximum length of the line with the size of a chunk, in bytes: a 64-bit number.
const MAX_CHUNK_LINE: usize = 16;
/// Fields of the framing and of the connection whose names have a hyphen. CGI, WSGI and PHP read `_` in a name as `-`, hyper does
/// not, so that a server could find a field that hyper forwards as an unknown one.
const HYPHENATED: &[&str] = &["Content-Length", "Transfer-Encoding", "Keep-Alive"];
/// Start of the names of further fields of the connection.
const PROXY_PREFIX: &str = "Proxy-";

/// Why the framing of a request is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum BadFraming {
    #[error("the request is not HTTP/1; use an HTTP proxy client")]
    Malformed,
    #[error(
        "the head of the request is longer than 32 KiB or has more than 128 header fields; send fewer"
    )]
    TooLong,
    #[error(
        "the request has a line that does not end with CR LF, or a control character; send valid HTTP/1.1"
    )]
    Line,
    #[error("the request has a folded header field; send each field in one line")]
    Folded,
    #[error("the request has Transfer-Encoding and Content-Length; send one of them")]
    TwoLengths,
    #[error("the request has several fields {0}, or an invalid one; send one valid field")]
    Field(&'static str),
    #[error("the request has the field {0} with an underscore in its name; send it with a hyphen")]
    Underscore(&'static str),
    #[error("the request upgrades the connection and has a body; send it without one")]
    UpgradeBody,
    #[error("the request is CONNECT on a connection for HTTP; use a new connection")]
    Connect,
    #[error("the request has an invalid chunk; send chunks without extensions and trailers")]
    Chunk,
}

/// What hyper does not report about a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Head {
    /// The request asks for a WebSocket; what follows is not HTTP.
    pub(crate) upgrade: bool,
}

/// What follows the head of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Body {
    None,
    Length(u64),
    Chunked,
    Upgrade,
}

#[derive(Debug)]
enum State {
    Head,
    Body(u64),
    ChunkSize,
    ChunkData(u64),
    ChunkEnd,
    LastEnd,
    Opaque,
    Failed,
}

/// The checker of one connection.
#[derive(Debug)]
pub(crate) struct Framing {
    state: State,
    /// Bytes of an incomplete head or line.
    pending: Vec<u8>,
}

/// What the checker found in some bytes.
#[derive(Debug, Default)]
pub(crate) struct Checked {
    /// Valid bytes: whole heads, and parts of bodies.
    pub(crate) bytes: Vec<u8>,
    /// The heads that end in `bytes`.
    pub(crate) heads: Vec<Head>,
    /// The connection is invalid after `bytes`.
    pub(crate) error: Option<BadFraming>,
}

impl Framing {
    pub(crate) fn new() -> Self {
        Self {
            state: State::Head,
            pending: Vec::new(),
        }
    }

    /// Returns whether the next bytes belong to a head, not to a body.
    pub(crate) fn is_at_head(&self) -> bool {
        matches!(self.state, State::Head)
    }

    /// Checks the next bytes of the client.
    pub(crate) fn check(&mut self, mut input: &[u8]) -> Checked {
        let mut checked = Checked::default();
        while !input.is_empty() {
            match self.step(input, &mut checked) {
                Ok(used) => input = input.get(used..).unwrap_or_default(),
                Err(error) => {
                    checked.error = Some(error);
                    // Errors of a head are reported in its place, see `is_at_head`.
                    if !self.is_at_head() {
                        self.state = State::Failed;
                    }
                    self.pending.clear();
                    break;
                }
            }
        }
        checked
    }

    /// Checks some of the bytes, and returns how many.
    fn step(&mut self, input: &[u8], checked: &mut Checked) -> Result<usize, BadFraming> {
        let part = |limit: u64| {
            let length = usize::try_from(limit).unwrap_or(usize::MAX);
            input.get(..length.min(input.len())).unwrap_or_default()
        };
        match self.state {
            State::Opaque => {
                checked.bytes.extend_from_slice(input);
                Ok(input.len())
            }
            State::Failed => Err(BadFraming::Malformed),
            State::Head => self.head_bytes(input, checked),
            State::Body(left) => {
                let data = part(left);
                checked.bytes.extend_from_slice(data);
                self.state = match left - data.len() as u64 {
                    0 => State::Head,
                    left => State::Body(left),
                };
                Ok(data.len())
            }
            State::ChunkData(left) => {
                let data = part(left);
                checked.bytes.extend_from_slice(data);
                self.state = match left - data.len() as u64 {
                    0 => State::ChunkEnd,
                    left => State::ChunkData(left),
                };
                Ok(data.len())
            }
            State::ChunkSize | State::ChunkEnd | State::LastEnd => {
                let Some(byte) = input.first() else {
                    return Ok(0);
                };
                self.pending.push(*byte);
                if let Some(line) = self.pending.strip_suffix(b"\r\n") {
                    self.state = match self.state {
                        State::ChunkSize => match chunk_size(line)? {
                            0 => State::LastEnd,
                            size => State::ChunkData(size),
                        },
                        State::ChunkEnd if line.is_empty() => State::ChunkSize,
                        State::LastEnd if line.is_empty() => State::Head,
                        _ => return Err(BadFraming::Chunk),
                    };
                    checked.bytes.append(&mut self.pending);
                } else {
                    let line = self.pending.strip_suffix(b"\r").unwrap_or(&self.pending);
                    let has_size = matches!(self.state, State::ChunkSize);
                    let max = if has_size { MAX_CHUNK_LINE } else { 0 };
                    if line.len() > max || !line.iter().all(u8::is_ascii_hexdigit) {
                        return Err(BadFraming::Chunk);
                    }
                }
                Ok(1)
            }
        }
    }

    fn head_bytes(&mut self, input: &[u8], checked: &mut Checked) -> Result<usize, BadFraming> {
        // Empty lines before a request are ignored (RFC 9112, section 2.2).
        if self.pending.is_empty() && input.starts_with(b"\r\n") {
            return Ok(2);
        }
        // The end may be split between two reads.
        let before = self.pending.len();
        let searched = before.saturating_sub(3);
        self.pending.extend_from_slice(input);
        let end = self
            .pending
            .get(searched..)
            .and_then(|bytes| bytes.windows(4).position(|window| window == b"\r\n\r\n"))
            .map(|position| searched + position + 4);
        let Some(end) = end else {
            return match self.pending.len() {
                length if length > MAX_HEAD => Err(BadFraming::TooLong),
                _ if could_be_http(&self.pending) => Ok(input.len()),
                _ => Err(BadFraming::Malformed),
            };
        };
        if end > MAX_HEAD {
            return Err(BadFraming::TooLong);
        }
        self.pending.truncate(end);
        let body = check_head(&self.pending)?;
        checked.bytes.append(&mut self.pending);
        checked.heads.push(Head {
            upgrade: body == Body::Upgrade,
        });
        self.state = match body {
            Body::None | Body::Length(0) => State::Head,
            Body::Length(length) => State::Body(length),
            Body::Chunked => State::ChunkSize,
            Body::Upgrade => State::Opaque,
        };
        Ok(end - before)
    }
}

/// Returns whether the bytes may be the start of a request: other protocols are refused before a timeout.
fn could_be_http(bytes: &[u8]) -> bool {
    let method = bytes.split(|byte| *byte == b' ').next().unwrap_or_default();
    let is_token = |byte: &u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~\r".contains(byte);
    method.len() <= 64 && method.iter().all(is_token)
}

fn chunk_size(line: &[u8]) -> Result<u64, BadFraming> {
    let is_number = !line.is_empty() && line.iter().all(u8::is_ascii_hexdigit);
    std::str::from_utf8(line)
        .ok()
        .filter(|_| is_number && line.len() <= MAX_CHUNK_LINE)
        .and_then(|digits| u64::from_str_radix(digits, 16).ok())
        .ok_or(BadFraming::Chunk)
}

/// Returns the field of [`HYPHENATED`] that a name with underscores means to some servers.
fn hyphenated(name: &str) -> Option<&'static str> {
    if !name.contains('_') {
        return None;
    }
    let name = name.replace('_', "-");
    let is_proxy_field = name
        .get(..PROXY_PREFIX.len())
        .is_some_and(|prefix| prefix.eq_ignore_ascii_case(PROXY_PREFIX));
    let mut fields = HYPHENATED.iter().copied();
    fields
        .find(|field| field.eq_ignore_ascii_case(&name))
        .or_else(|| is_proxy_field.then_some("Proxy-*"))
}

/// Checks a complete head, and returns what follows it.
fn check_head(head: &[u8]) -> Result<Body, BadFraming> {
    let lines = head.strip_suffix(b"\r\n\r\n").ok_or(BadFraming::Line)?;
    let mut rest = lines;
    while let Some(position) = rest.iter().position(|byte| b"\r\n\0".contains(byte)) {
        rest = rest
            .get(position..)
            .and_then(|rest| rest.strip_prefix(b"\r\n"))
            .ok_or(BadFraming::Line)?;
        if rest.starts_with(b" ") || rest.starts_with(b"\t") {
            return Err(BadFraming::Folded);
        }
    }
    let mut headers = [httparse::EMPTY_HEADER; MAX_HEADERS];
    let mut request = httparse::Request::new(&mut headers);
    match request.parse(head) {
        Ok(httparse::Status::Complete(length)) if length == head.len() => {}
        Err(httparse::Error::TooManyHeaders) => return Err(BadFraming::TooLong),
        _ => return Err(BadFraming::Malformed),
    }
    if request.method == Some("CONNECT") {
        return Err(BadFraming::Connect);
    }
    if let Some(name) = request
        .headers
        .iter()
        .find_map(|header| hyphenated(header.name))
    {
        return Err(BadFraming::Underscore(name));
    }
    let values = |name: &str| -> Vec<&[u8]> {
        let headers = request.headers.iter();
        let named = headers.filter(|header| header.name.eq_ignore_ascii_case(name));
        named.map(|header| header.value).collect()
    };
    let length = match values("content-length")[..] {
        [] => None,
        [value] if !value.is_empty() && value.iter().all(u8::is_ascii_digit) => {
            let length = std::str::from_utf8(value)
                .ok()
                .and_then(|value| value.parse().ok());
            Some(length.ok_or(BadFraming::Field("Content-Length"))?)
        }
        _ => return Err(BadFraming::Field("Content-Length")),
    };
    let chunked = match values("transfer-encoding")[..] {
        [] => false,
        [value] if value.eq_ignore_ascii_case(b"chunked") && request.version == Some(1) => true,
        _ => return Err(BadFraming::Field("Transfer-Encoding")),
    };
    if chunked && length.is_some() {
        return Err(BadFraming::TwoLengths);
    }
    if values("host").len() > 1 {
        return Err(BadFraming::Field("Host"));
    }
    let upgrade = values("upgrade");
    let wants_websocket = upgrade
        .iter()
        .any(|value| value.eq_ignore_ascii_case(b"websocket"));
    let is_upgrade = wants_websocket
        && values("connection").iter().any(|value| {
            value
                .split(|byte| *byte == b',')
                .any(|token| token.trim_ascii().eq_ignore_ascii_case(b"upgrade"))
        });
    if upgrade.len() > 1 {
        return Err(BadFraming::Field("Upgrade"));
    }
    match (is_upgrade, chunked, length) {
        (true, false, None | Some(0)) => Ok(Body::Upgrade),
        (true, _, _) => Err(BadFraming::UpgradeBody),
        (false, true, _) => Ok(Body::Chunked),
        (false, false, Some(length)) => Ok(Body::Length(length)),
        (false, false, None) => Ok(Body::None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn check(bytes: &[u8]) -> Checked {
        Framing::new().check(bytes)
    }

    #[test]
    fn requests_with_two_interpretations_are_refused() {
        use BadFraming::{
            Chunk, Connect, Field, Folded, Line, Malformed, TwoLengths, Underscore, UpgradeBody,
        };
        for (fields, error) in [
            (
                "Content-Length: 1\r\nTransfer-Encoding: chunked\r\n",
                TwoLengths,
            ),
            (
                "Transfer-Encoding: chunked\r\nContent-Length: 1\r\n",
                TwoLengths,
            ),
            (
                "Transfer_Encoding: chunked\r\nContent-Length: 1\r\n",
                Underscore("Transfer-Encoding"),
            ),
            (
                "transfer_encoding: chunked\r\n",
                Underscore("Transfer-Encoding"),
            ),
            ("Content_Length: 1\r\n", Underscore("Content-Length")),
            ("X: y\r\nKEEP_ALIVE: 1\r\n", Underscore("Keep-Alive")),
            ("Proxy_Connection: close\r\n", Underscore("Proxy-*")),
            ("proxy-authori_zation: x\r\n", Underscore("Proxy-*")),
            (
                "Content-Length: 1\r\nContent-Length: 2\r\n",
                Field("Content-Length"),
            ),
            (
                "Content-Length: 1\r\nContent-Length: 1\r\n",
                Field("Content-Length"),
            ),
            ("Content-Length: 1, 1\r\n", Field("Content-Length")),
            ("Content-Length: +1\r\n", Field("Content-Length")),
            ("Content-Length: 0x1\r\n", Field("Content-Length")),
            ("Content-Length:\r\n", Field("Content-Length")),
            (
                "Content-Length: 99999999999999999999\r\n",
                Field("Content-Length"),
            ),
            (
                "Transfer-Encoding: gzip, chunked\r\n",
                Field("Transfer-Encoding"),
            ),
            (
                "Transfer-Encoding: xchunked\r\n",
                Field("Transfer-Encoding"),
            ),
            (
                "Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n",
                Field("Transfer-Encoding"),
            ),
            ("Transfer-Encoding: \u{b}chunked\r\n", Malformed),
            ("Transfer-Encoding : chunked\r\n", Malformed),
            (" Transfer-Encoding: chunked\r\n", Folded),
            ("X: y\r\n\tz\r\n", Folded),
            ("X: y\r\n Transfer-Encoding: chunked\r\n", Folded),
            ("X: y\nTransfer-Encoding: chunked\r\n", Line),
            ("X: y\rTransfer-Encoding: chunked\r\n", Line),
            ("X: y\0\r\n", Line),
            ("Host: a\r\nHost: b\r\n", Field("Host")),
            (
                "Upgrade: websocket\r\nConnection: upgrade\r\nContent-Length: 5\r\n",
                UpgradeBody,
            ),
            ("Upgrade: websocket\r\nUpgrade: h2c\r\n", Field("Upgrade")),
        ] {
            let request = format!("POST http://a/ HTTP/1.1\r\n{fields}\r\n");
            assert_eq!(check(request.as_bytes()).error, Some(error), "{fields:?}");
        }
        for (request, error) in [
            (
                "GET http://a/ HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n",
                Field("Transfer-Encoding"),
            ),
            ("CONNECT a:1 HTTP/1.1\r\n\r\n", Connect),
            ("GET http://a/ HTTP/2.0\r\n\r\n", Malformed),
            ("GET http://a/\r\n\r\n", Malformed),
            ("\u{16}\u{3}\u{1}", Malformed),
            ("SSH-2.0-x\n", Malformed),
            (
                "POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n5;x=y\r\n",
                Chunk,
            ),
            (
                "POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n0x5\r\n",
                Chunk,
            ),
            (
                "POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n-1\r\n",
                Chunk,
            ),
            (
                "POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nab\r\n",
                Chunk,
            ),
            (
                "POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n00000000000000001\r\n",
                Chunk,
            ),
            (
                "POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n1\nGET",
                Chunk,
            ),
            (
                "POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\nX: y\r\n\r\n",
                Chunk,
            ),
        ] {
            assert_eq!(check(request.as_bytes()).error, Some(error), "{request:?}");
        }
        let endless = format!("GET http://a/{}", "x".repeat(MAX_HEAD));
        assert_eq!(check(endless.as_bytes()).error, Some(BadFraming::TooLong));
        let many = format!(
            "GET / HTTP/1.1\r\n{}\r\n",
            "x: y\r\n".repeat(MAX_HEADERS + 1)
        );
        assert_eq!(check(many.as_bytes()).error, Some(BadFraming::TooLong));
    }

    const VALID: &str = "\r\nGET http://a/ HTTP/1.1\r\nHost: a\r\n\r\n\
        POST http://a/ HTTP/1.1\r\nContent-Length: 5\r\nX_Key: 1\r\n\r\nGET /\
        POST http://a/ HTTP/1.1\r\ntransfer-encoding: Chunked\r\n\r\n5\r\nGET /\r\nA\r\n0123456789\r\n0\r\n\r\n\
        HEAD http://a/ HTTP/1.0\r\nContent-Length: 0\r\n\r\n\
        GET http://a/ HTTP/1.1\r\nConnection: keep-alive, Upgrade\r\nUpgrade: WebSocket\r\n\r\nany bytes";

    #[test]
    fn every_request_of_a_connection_is_found() {
        let checked = check(VALID.as_bytes());
        assert_eq!(checked.error, None);
        let upgrades: Vec<_> = checked.heads.iter().map(|head| head.upgrade).collect();
        assert_eq!(upgrades, [false, false, false, false, true]);
        assert_eq!(checked.bytes, VALID.as_bytes()[2..]);
    }

    proptest! {
        #[test]
        fn split_input_gives_the_same_result(cuts in prop::collection::vec(0..VALID.len(), 0..8)) {
            let mut cuts = cuts;
            cuts.extend([0, VALID.len()]);
            cuts.sort_unstable();
            // The two bytes of an ignored line arrive together.
            cuts.retain(|cut| *cut != 1);
            let mut framing = Framing::new();
            let (mut bytes, mut heads) = (Vec::new(), 0);
            for pair in cuts.windows(2) {
                let checked = framing.check(&VALID.as_bytes()[pair[0]..pair[1]]);
                prop_assert_eq!(checked.error, None);
                bytes.extend(checked.bytes);
                heads += checked.heads.len();
            }
            prop_assert_eq!(bytes, &VALID.as_bytes()[2..]);
            prop_assert_eq!(heads, 5);
        }

        #[test]
        fn any_bytes_are_checked_without_panic(bytes in prop::collection::vec(any::<u8>(), 0..200), text in "[ -~\r\n]{0,80}") {
            check(&bytes);
            let request = format!("POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n{text}");
            check(request.as_bytes());
        }
    }
}
