//! Tunnels of CONNECT (RFC 9110, section 9.3.6).

use std::io;
use std::sync::Arc;

use colibri_jail_core::{Destination, Host};
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};
use tokio_rustls::TlsAcceptor;

use crate::connect::ConnectError;
use crate::framing::MAX_HEAD;
use crate::http::refusal_text;
use crate::policy::{Refusal, Tunnel};
use crate::server::{Shared, relay};
use crate::streams::Buffered;
use crate::tls::{self, FirstBytes};

/// First bytes of a request for a tunnel.
pub(crate) const METHOD: &[u8] = b"CONNECT ";
const ESTABLISHED: &[u8] = b"HTTP/1.1 200 Connection established\r\n\r\n";

/// Why a request for a tunnel is invalid.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
enum BadConnect {
    #[error("the request is not HTTP/1; use an HTTP proxy client")]
    Malformed,
    #[error("the head of the request is longer than 32 KiB; send fewer header fields")]
    TooLong,
    #[error("{0:?} is not a destination; request CONNECT HOST:PORT or http://HOST/")]
    Target(String),
}

/// Parses the head of a request for a tunnel. Returns its length and destination; `None` if it is incomplete. The header fields
/// have no effect.
fn parse(bytes: &[u8]) -> Result<Option<(usize, Destination)>, BadConnect> {
    let mut headers = [httparse::EMPTY_HEADER; crate::framing::MAX_HEADERS];
    let mut request = httparse::Request::new(&mut headers);
    let length = match request.parse(bytes) {
        Ok(httparse::Status::Complete(length)) if length <= MAX_HEAD => length,
        Ok(httparse::Status::Partial) if bytes.len() <= MAX_HEAD => return Ok(None),
        Ok(_) | Err(httparse::Error::TooManyHeaders) => return Err(BadConnect::TooLong),
        Err(_) => return Err(BadConnect::Malformed),
    };
    let target = request.path.unwrap_or_default();
    match target.parse() {
        Ok(destination) => Ok(Some((length, destination))),
        Err(_) => Err(BadConnect::Target(target.chars().take(200).collect())),
    }
}

/// Returns a complete response with an error message.
fn error_response(status: &str, header: &str, text: &str) -> String {
    let length = "colibri-proxy: \n".len() + text.len();
    format!(
        "HTTP/1.1 {status}\r\nContent-Type: text/plain; charset=utf-8\r\nContent-Length: {length}\r\n{header}Connection: close\r\n\r\ncolibri-proxy: {text}\n"
    )
}

async fn respond<S>(mut client: Buffered<S>, response: &str) -> io::Result<()>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    client.write_all(response.as_bytes()).await?;
    client.shutdown().await
}

/// Serves a client whose first bytes are [`METHOD`].
pub(crate) async fn serve<S>(mut client: Buffered<S>, shared: &Arc<Shared>) -> io::Result<()>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let receiving = async {
        loop {
            match parse(client.peeked()) {
                Ok(Some(found)) => return Ok(Ok(found)),
                Ok(None) => client.peek_more().await?,
                Err(error) => return Ok(Err(error)),
            }
        }
    };
    let destination = match shared.within_head_timeout(receiving).await? {
        Ok((length, destination)) => {
            client.consume(length);
            destination
        }
        Err(error) => {
            let problem = format!("refused a request: {error}");
            shared.reporter.notice(&problem);
            return respond(client, &error_response("400 Bad Request", "", &problem)).await;
        }
    };
    let tunnel = match shared.policy.tunnel(&destination) {
        Ok(tunnel) => tunnel,
        Err(refusal) => return refuse(client, &destination, &refusal, shared).await,
    };
    if tunnel == Tunnel::Terminate {
        client.write_all(ESTABLISHED).await?;
        return terminate(client, destination, shared).await;
    }
    let mut server = match shared.connect(&destination).await {
        Ok(server) => server,
        Err(ConnectError::Refused(refusal)) => {
            return refuse(client, &destination, &refusal, shared).await;
        }
        Err(error) => {
            let problem = format!("cannot connect to {destination}: {error}");
            shared.reporter.notice(&problem);
            return respond(client, &error_response("502 Bad Gateway", "", &problem)).await;
        }
    };
    client.write_all(ESTABLISHED).await?;
    if let Tunnel::CheckName { tls_only } = tunnel {
        let first = receive_first_bytes(&mut client, shared).await?;
        match check_first(&first, &destination, tls_only) {
            Ok(Content::Tls) => {}
            Ok(Content::Requests) => {
                return crate::http::serve_plain_tunnel(client, destination, server, shared).await;
            }
            Err(refusal) => return abort(client, &destination, &refusal, shared).await,
        }
    }
    relay(&mut client, &mut server).await
}

async fn refuse<S>(
    client: Buffered<S>,
    destination: &Destination,
    refusal: &Refusal,
    shared: &Arc<Shared>,
) -> io::Result<()>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    shared.reporter.refused(destination, &refusal.to_string());
    let text = refusal_text(destination, refusal);
    let response = error_response("403 Forbidden", "X-Colibri-Refused: policy\r\n", &text);
    respond(client, &response).await
}

/// Ends an open tunnel that the policy refuses. A TLS client gets an alert.
async fn abort<S>(
    mut client: Buffered<S>,
    destination: &Destination,
    refusal: &Refusal,
    shared: &Arc<Shared>,
) -> io::Result<()>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    shared.reporter.refused(destination, &refusal.to_string());
    if !matches!(refusal, Refusal::NotTls | Refusal::NotHttp) {
        client.write_all(tls::ACCESS_DENIED).await?;
    }
    client.shutdown().await
}

async fn receive_first_bytes<S>(
    client: &mut Buffered<S>,
    shared: &Arc<Shared>,
) -> io::Result<FirstBytes>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let receiving = async {
        loop {
            match tls::first_bytes(client.peeked()) {
                FirstBytes::Incomplete => client.peek_more().await?,
                found => return Ok(found),
            }
        }
    };
    match shared.within_head_timeout(receiving).await {
        // The client waits for the server, as no client of TLS or HTTP does.
        Err(error) if error.kind() == io::ErrorKind::TimedOut => Ok(FirstBytes::Incomplete),
        found => found,
    }
}

/// What a checked tunnel contains.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Content {
    /// A TLS connection for the destination.
    Tls,
    /// Bytes that must be HTTP requests for the destination.
    Requests,
}

/// Checks that a tunnel is a TLS connection for its destination, or, without `tls_only`, not TLS.
fn check_first(
    first: &FirstBytes,
    destination: &Destination,
    tls_only: bool,
) -> Result<Content, Refusal> {
    match (first, destination.host()) {
        (FirstBytes::Tls { name: Some(name) }, Host::Name(host)) if name == host => {
            Ok(Content::Tls)
        }
        (FirstBytes::Tls { name: Some(name) }, Host::Name(_)) => {
            Err(Refusal::OtherName(name.clone()))
        }
        (FirstBytes::Tls { name: None }, Host::Name(_)) => Err(Refusal::NoName),
        (FirstBytes::Tls { .. }, Host::Address(_)) => Ok(Content::Tls),
        (FirstBytes::InvalidTls, _) => Err(Refusal::NotTls),
        (FirstBytes::Incomplete | FirstBytes::Other, _) if tls_only => Err(Refusal::NotTls),
        (FirstBytes::Incomplete, _) => Err(Refusal::NotHttp),
        (FirstBytes::Other, _) => Ok(Content::Requests),
    }
}

/// Terminates the TLS connection in a tunnel, and serves its requests.
pub(crate) async fn terminate<S>(
    mut client: Buffered<S>,
    destination: Destination,
    shared: &Arc<Shared>,
) -> io::Result<()>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let Some(tls) = &shared.tls else {
        return Err(io::Error::other("TLS is not set up"));
    };
    let first = receive_first_bytes(&mut client, shared).await?;
    if let Err(refusal) = check_first(&first, &destination, true) {
        return abort(client, &destination, &refusal, shared).await;
    }
    let config = tls.server(destination.host()).map_err(io::Error::other)?;
    let handshake = TlsAcceptor::from(config).accept(client);
    let stream = shared.within_head_timeout(handshake).await?;
    crate::http::serve_terminated(stream, destination, shared).await
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn requests_for_tunnels_are_parsed_or_refused() {
        let target = |text: &str| Err(BadConnect::Target(text.into()));
        for (bytes, expected) in [
            (
                "CONNECT a.example:443 HTTP/1.1\r\nHost: other:1\r\n\r\nrest",
                Ok(Some("a.example:443")),
            ),
            (
                "CONNECT [::1]:8080 HTTP/1.0\r\n\r\n",
                Ok(Some("[::1]:8080")),
            ),
            ("CONNECT a.exa", Ok(None)),
            ("CONNECT a.example HTTP/1.1\r\n\r\n", target("a.example")),
            (
                "CONNECT a.example:443@b:1 HTTP/1.1\r\n\r\n",
                target("a.example:443@b:1"),
            ),
            ("CONNECT http://a/ HTTP/1.1\r\n\r\n", target("http://a/")),
            ("CONNECT *.a:443 HTTP/1.1\r\n\r\n", target("*.a:443")),
            ("CONNECT a:443 x\r\n\r\n", Err(BadConnect::Malformed)),
        ] {
            let found =
                parse(bytes.as_bytes()).map(|found| found.map(|(_, found)| found.to_string()));
            let expected = expected.map(|found| found.map(str::to_owned));
            assert_eq!(found, expected, "{bytes:?}");
        }
        let endless = format!("CONNECT a:1 HTTP/1.1\r\nX: {}", "x".repeat(MAX_HEAD));
        assert_eq!(parse(endless.as_bytes()), Err(BadConnect::TooLong));
    }

    #[test]
    fn first_bytes_must_fit_the_destination() {
        let tls = |name: Option<&str>| FirstBytes::Tls {
            name: name.map(str::to_owned),
        };
        for (first, destination, tls_only, expected) in [
            (tls(Some("a")), "a:443", true, Ok(Content::Tls)),
            (tls(Some("a")), "a:8443", false, Ok(Content::Tls)),
            (
                tls(Some("b")),
                "a:443",
                true,
                Err(Refusal::OtherName("b".into())),
            ),
            (
                tls(Some("b")),
                "a:8443",
                false,
                Err(Refusal::OtherName("b".into())),
            ),
            (tls(None), "a:443", true, Err(Refusal::NoName)),
            (tls(None), "192.0.2.1:443", true, Ok(Content::Tls)),
            (tls(None), "192.0.2.1:8443", false, Ok(Content::Tls)),
            (tls(None), "a:8443", false, Err(Refusal::NoName)),
            (tls(Some("b")), "192.0.2.1:443", true, Ok(Content::Tls)),
            (FirstBytes::Other, "a:443", true, Err(Refusal::NotTls)),
            (FirstBytes::Other, "a:8080", false, Ok(Content::Requests)),
            (
                FirstBytes::Other,
                "192.0.2.1:22",
                false,
                Ok(Content::Requests),
            ),
            (
                FirstBytes::InvalidTls,
                "a:8080",
                false,
                Err(Refusal::NotTls),
            ),
            (FirstBytes::InvalidTls, "a:443", true, Err(Refusal::NotTls)),
            (FirstBytes::Incomplete, "a:443", true, Err(Refusal::NotTls)),
            (
                FirstBytes::Incomplete,
                "a:8080",
                false,
                Err(Refusal::NotHttp),
            ),
        ] {
            let found = check_first(&first, &destination.parse().unwrap(), tls_only);
            assert_eq!(found, expected, "{first:?} {destination}");
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_parsed_without_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = parse(&[METHOD, &bytes[..]].concat());
        }
    }
}
