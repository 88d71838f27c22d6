//! SOCKS5 (RFC 1928): the command CONNECT without authentication.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use colibri_jail_core::{Destination, Host};
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};

use crate::connect::ConnectError;
use crate::server::{Shared, relay};
use crate::streams::Buffered;

/// First byte of a message of version 5.
pub(crate) const VERSION: u8 = 5;
const NO_AUTHENTICATION: u8 = 0;
const NO_ACCEPTABLE_METHOD: u8 = 0xff;
const COMMAND_CONNECT: u8 = 1;
const ADDRESS_IPV4: u8 = 1;
const ADDRESS_NAME: u8 = 3;
const ADDRESS_IPV6: u8 = 4;

/// Codes of a reply (RFC 1928, section 6).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Reply {
    Succeeded = 0,
    Failure = 1,
    NotAllowed = 2,
    HostUnreachable = 4,
    ConnectionRefused = 5,
    CommandNotSupported = 7,
    AddressTypeNotSupported = 8,
}

impl Reply {
    /// Returns the reply as bytes, with an unspecified bound address.
    fn bytes(self) -> [u8; 10] {
        [VERSION, self as u8, 0, ADDRESS_IPV4, 0, 0, 0, 0, 0, 0]
    }
}

/// Parses the greeting. Returns its length and whether the client accepts no authentication; `None` if it is incomplete.
fn parse_greeting(bytes: &[u8]) -> Option<(usize, bool)> {
    let [_, count, rest @ ..] = bytes else {
        return None;
    };
    let methods = rest.get(..usize::from(*count))?;
    Some((2 + methods.len(), methods.contains(&NO_AUTHENTICATION)))
}

/// Parses a request. Returns its length and destination; `None` if it is incomplete.
fn parse_request(bytes: &[u8]) -> Result<Option<(usize, Destination)>, Reply> {
    let [version, command, _, kind, rest @ ..] = bytes else {
        return Ok(None);
    };
    match (*version, *command) {
        (VERSION, COMMAND_CONNECT) => {}
        (VERSION, _) => return Err(Reply::CommandNotSupported),
        _ => return Err(Reply::Failure),
    }
    let (host, after) = match *kind {
        ADDRESS_IPV4 => match rest.split_first_chunk::<4>() {
            Some((address, after)) => (Host::Address(Ipv4Addr::from(*address).into()), after),
            None => return Ok(None),
        },
        ADDRESS_IPV6 => match rest.split_first_chunk::<16>() {
            Some((address, after)) => {
                let address = IpAddr::from(Ipv6Addr::from(*address)).to_canonical();
                (Host::Address(address), after)
            }
            None => return Ok(None),
        },
        ADDRESS_NAME => {
            let Some((length, rest)) = rest.split_first() else {
                return Ok(None);
            };
            let Some((name, after)) = rest.split_at_checked(usize::from(*length)) else {
                return Ok(None);
            };
            let text = std::str::from_utf8(name).unwrap_or_default();
            let address = text
                .parse()
                .map(|address: IpAddr| Host::Address(address.to_canonical()));
            let host = address
                .or_else(|_| text.parse())
                .map_err(|_| Reply::NotAllowed)?;
            (host, after)
        }
        _ => return Err(Reply::AddressTypeNotSupported),
    };
    let Some((port, after)) = after.split_first_chunk::<2>() else {
        return Ok(None);
    };
    match u16::from_be_bytes(*port) {
        0 => Err(Reply::NotAllowed),
        port => Ok(Some((
            bytes.len() - after.len(),
            Destination::new(host, port),
        ))),
    }
}

/// Receives a greeting and a request; an error is the reply to send.
async fn receive<S>(client: &mut Buffered<S>) -> io::Result<Result<Destination, Reply>>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let (length, acceptable) = loop {
        match parse_greeting(client.peeked()) {
            Some(greeting) => break greeting,
            None => client.peek_more().await?,
        }
    };
    client.consume(length);
    if !acceptable {
        client.write_all(&[VERSION, NO_ACCEPTABLE_METHOD]).await?;
        return Err(io::ErrorKind::InvalidData.into());
    }
    client.write_all(&[VERSION, NO_AUTHENTICATION]).await?;
    loop {
        match parse_request(client.peeked()) {
            Ok(Some((length, destination))) => {
                client.consume(length);
                return Ok(Ok(destination));
            }
            Ok(None) => client.peek_more().await?,
            Err(reply) => return Ok(Err(reply)),
        }
    }
}

/// Serves a client whose first byte is [`VERSION`].
pub(crate) async fn serve<S>(mut client: Buffered<S>, shared: &Arc<Shared>) -> io::Result<()>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let received = shared.within_head_timeout(receive(&mut client)).await?;
    let destination = match received {
        Ok(destination) => destination,
        Err(reply) => {
            let problem = "refused a request: it is not SOCKS5 with CONNECT and a valid host";
            shared.reporter.notice(problem);
            return reject(client, reply).await;
        }
    };
    if let Err(refusal) = shared.policy.socks(&destination) {
        shared.reporter.refused(&destination, &refusal.to_string());
        return reject(client, Reply::NotAllowed).await;
    }
    match shared.connect(&destination).await {
        Ok(mut server) => {
            client.write_all(&Reply::Succeeded.bytes()).await?;
            relay(&mut client, &mut server).await
        }
        Err(error) => {
            let reply = match &error {
                ConnectError::Refused(refusal) => {
                    shared.reporter.refused(&destination, &refusal.to_string());
                    Reply::NotAllowed
                }
                ConnectError::Connect(error)
                    if error.kind() == io::ErrorKind::ConnectionRefused =>
                {
                    Reply::ConnectionRefused
                }
                _ => Reply::HostUnreachable,
            };
            if reply != Reply::NotAllowed {
                shared
                    .reporter
                    .notice(&format!("cannot connect to {destination}: {error}"));
            }
            reject(client, reply).await
        }
    }
}

async fn reject<S>(mut client: Buffered<S>, reply: Reply) -> io::Result<()>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    client.write_all(&reply.bytes()).await?;
    client.shutdown().await
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn greetings_offer_methods() {
        for (bytes, expected) in [
            (&b"\x05"[..], None),
            (b"\x05\x02\x01", None),
            (b"\x05\x01\x00", Some((3, true))),
            (b"\x05\x02\x01\x00rest", Some((4, true))),
            (b"\x05\x01\x02", Some((3, false))),
            (b"\x05\x00", Some((2, false))),
        ] {
            assert_eq!(parse_greeting(bytes), expected, "{bytes:?}");
        }
    }

    #[test]
    fn requests_name_a_destination_or_are_refused() {
        for (bytes, expected) in [
            (&b"\x05\x01\x00\x01\x7f\x00\x00\x01\x00\x50"[..], Ok(Some("127.0.0.1:80"))),
            (b"\x05\x01\x00\x03\x09A.example\x01\xbbmore", Ok(Some("a.example:443"))),
            (b"\x05\x01\x00\x03\x0910.0.0.1\x00\x00\x50", Err(Reply::NotAllowed)),
            (b"\x05\x01\x00\x03\x0810.0.0.1\x00\x50", Ok(Some("10.0.0.1:80"))),
            (b"\x05\x01\x00\x03\x03::1\x00\x50", Ok(Some("[::1]:80"))),
            (b"\x05\x01\x00\x04\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\xff\xff\x0a\x00\x00\x01\x00\x50", Ok(Some("10.0.0.1:80"))),
            (b"\x05\x01\x00\x03\x00\x00\x50", Err(Reply::NotAllowed)),
            (b"\x05\x01\x00\x03\x03a\nb\x00\x50", Err(Reply::NotAllowed)),
            (b"\x05\x01\x00\x03\x05127.1\x00\x50", Err(Reply::NotAllowed)),
            (b"\x05\x01\x00\x03\x01a\x00\x00", Err(Reply::NotAllowed)),
            (b"\x05\x02\x00\x01", Err(Reply::CommandNotSupported)),
            (b"\x05\x03\x00\x01", Err(Reply::CommandNotSupported)),
            (b"\x05\x01\x00\x02", Err(Reply::AddressTypeNotSupported)),
            (b"\x04\x01\x00\x01", Err(Reply::Failure)),
            (b"\x05\x01\x00", Ok(None)),
            (b"\x05\x01\x00\x03\x09A.exa", Ok(None)),
            (b"\x05\x01\x00\x01\x7f\x00\x00\x01\x00", Ok(None)),
        ] {
            let found = parse_request(bytes).map(|found| found.map(|(_, found)| found.to_string()));
            assert_eq!(found.as_ref().map(Option::as_deref).map_err(|reply| *reply), expected, "{bytes:?}");
        }
        let (length, _) = parse_request(b"\x05\x01\x00\x03\x01a\x01\xbbmore")
            .unwrap()
            .unwrap();
        assert_eq!(length, 8);
    }

    proptest! {
        #[test]
        fn any_bytes_are_parsed_without_panic(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            let _ = parse_greeting(&bytes);
            let _ = parse_request(&bytes);
            let _ = parse_request(&[b"\x05\x01\x00\x03", &bytes[..]].concat());
        }
    }
}
