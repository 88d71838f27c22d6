//! Tunnels, SOCKS5 and forwarded loopback ports.

use std::io::{Read, Write};
use std::net::TcpStream;

use crate::bridge::{Proxy, Start, read_all, read_head, read_response};
use crate::servers::{Server, TestAuthority, loopback_hostname};

/// Sends a SOCKS5 request with a name and returns the reply's code.
fn socks(stream: &mut TcpStream, command: u8, host: &str, port: u16) -> u8 {
    stream.write_all(b"\x05\x01\x00").unwrap();
    let mut greeting = [0; 2];
    stream.read_exact(&mut greeting).unwrap();
    assert_eq!(greeting, [5, 0]);
    let length = u8::try_from(host.len()).unwrap();
    let request = [
        &[5, command, 0, 3, length],
        host.as_bytes(),
        &port.to_be_bytes(),
    ]
    .concat();
    stream.write_all(&request).unwrap();
    let mut reply = [0; 10];
    stream.read_exact(&mut reply).unwrap();
    reply[1]
}

fn assert_echo(stream: &mut (impl Read + Write), text: &[u8]) {
    stream.write_all(text).unwrap();
    let mut echo = vec![0; text.len()];
    stream.read_exact(&mut echo).unwrap();
    assert_eq!(echo, text);
}

#[test]
fn socks_connects_by_rules_for_tcp() {
    let (server, other) = (Server::start(), Server::start());
    let proxy = Proxy::start(&[&format!("tcp:localhost:{}", server.port), "a.example:443"]);
    for host in ["localhost", "127.0.0.1"] {
        let mut stream = proxy.connect();
        assert_eq!(socks(&mut stream, 1, host, server.port), 0);
        assert_echo(&mut stream, b"ssh-like bytes");
    }
    for (command, host, port, reply) in [
        (1, "127.0.0.1", other.port, 2),
        (1, "a.example", 443, 2),
        (1, "bad\u{7}name", 80, 2),
        (2, "127.0.0.1", server.port, 7),
        (3, "127.0.0.1", server.port, 7),
    ] {
        let mut stream = proxy.connect();
        assert_eq!(
            socks(&mut stream, command, host, port),
            reply,
            "{command} {host}"
        );
        assert_eq!(read_all(&mut stream), "");
    }
    assert!(
        proxy
            .stderr_line()
            .contains(&format!("refused a connection to 127.0.0.1:{}", other.port))
    );
    assert!(proxy.stderr_line().contains("tcp:HOST:PORT"));
    let url = format!("http://localhost:{}/over-socks", server.port);
    let address = format!("socks5h://127.0.0.1:{}", proxy.port);
    let output = proxy.curl(&["--proxy", &address, &url]);
    assert!(output.starts_with("GET /over-socks "), "{output}");
    // A client that requires a password.
    let mut stream = proxy.connect();
    stream.write_all(b"\x05\x01\x02").unwrap();
    assert_eq!(read_all(&mut stream).len(), "\u{5}\u{fffd}".len());
}

#[test]
fn closed_port_is_reported_over_socks() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    drop(listener);
    let proxy = Proxy::start(&[&format!("tcp:127.0.0.1:{port}")]);
    assert_eq!(socks(&mut proxy.connect(), 1, "127.0.0.1", port), 5);
}

#[test]
fn loopback_ports_are_forwarded_by_rule() {
    let (server, other) = (Server::start(), Server::start());
    let inside = format!("127.0.0.2:{}", server.port);
    let refused = format!("127.0.0.2:{}", other.port);
    let rule = format!("127.0.0.1:{}", server.port);
    let proxy = Proxy::start_with(&Start {
        arguments: &[&rule],
        listen: &[&inside, &refused],
        ..Start::default()
    });
    assert_echo(&mut TcpStream::connect(&inside).unwrap(), b"raw bytes");
    // The proxy closed the socket of a port that no rule allows.
    assert!(TcpStream::connect(&refused).is_err());
    drop(proxy);
}

#[test]
fn tunnel_transfers_all_bytes_in_both_directions() {
    let server = Server::start();
    let address = format!("127.0.0.1:{}", server.port);
    let proxy = Proxy::start(&[&format!("tcp:{address}")]);
    let mut stream = proxy.tunnel(&address);
    let sent: Vec<u8> = (0..5_000_000_u32).map(|n| (n % 251) as u8).collect();
    let mut writer = stream.try_clone().unwrap();
    let data = sent.clone();
    let writing = std::thread::spawn(move || {
        writer.write_all(&data).unwrap();
        writer.shutdown(std::net::Shutdown::Write).unwrap();
    });
    let mut received = Vec::new();
    stream.read_to_end(&mut received).unwrap();
    writing.join().unwrap();
    assert!(sent == received);
}

#[test]
fn tunnel_by_a_plain_rule_has_tls_or_checked_requests() {
    let server = Server::start();
    let address = format!("127.0.0.1:{}", server.port);
    let proxy = Proxy::start(&[&address]);
    let exchange = |bytes: &str| {
        let mut stream = proxy.tunnel(&address);
        stream.write_all(bytes.as_bytes()).unwrap();
        // A server that got the bytes would keep the connection open.
        let limit = std::time::Duration::from_secs(10);
        stream.set_read_timeout(Some(limit)).unwrap();
        read_all(&mut stream)
    };
    let ends = "Connection: close\r\n\r\n";
    for (bytes, status, text) in [
        ("SSH-2.0-x\n".to_owned(), 403, format!("tcp:{address}")),
        (
            format!("GET / HTTP/1.1\r\nHost: other.example\r\n{ends}"),
            403,
            "for other.example".to_owned(),
        ),
        (
            format!("GET / HTTP/1.1\r\nHost: 127.0.0.1\r\n{ends}"),
            403,
            "for 127.0.0.1;".to_owned(),
        ),
        (
            format!("GET http://other.example/ HTTP/1.1\r\n{ends}"),
            400,
            "not a path".to_owned(),
        ),
        (
            format!("GET / HTTP/1.1\r\nHost: {address}\r\nContent_Length: 9\r\n{ends}"),
            400,
            "Content-Length".to_owned(),
        ),
    ] {
        let answer = exchange(&bytes);
        assert!(
            answer.starts_with(&format!("HTTP/1.1 {status} ")) && answer.contains(&text),
            "{bytes:?}: {answer}"
        );
    }
    assert_eq!(exchange("\u{16}no TLS"), "");
    assert!(server.requests().is_empty(), "{:?}", server.requests());
    let mut stream = proxy.tunnel(&address);
    for path in ["/first", "/second"] {
        write!(stream, "GET {path} HTTP/1.1\r\nHost: {address}\r\n\r\n").unwrap();
        let (head, body) = read_response(&mut stream);
        assert!(head.starts_with("HTTP/1.1 200 "), "{head}");
        assert!(body.starts_with(&format!("GET {path} ")), "{body}");
    }
    write!(stream, "GET / HTTP/1.1\r\nHost: other.example\r\n\r\n").unwrap();
    let (head, _) = read_response(&mut stream);
    assert!(head.starts_with("HTTP/1.1 403 "), "{head}");
    assert_eq!(server.requests().len(), 2);
    let mut stream = proxy.tunnel(&address);
    write!(
        stream,
        "GET /ws HTTP/1.1\r\nHost: {address}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n"
    )
    .unwrap();
    let head = read_head(&mut stream);
    assert!(head.starts_with("HTTP/1.1 101 "), "{head}");
    assert_echo(&mut stream, b"any bytes");
}

#[test]
fn tls_in_a_tunnel_to_any_port_names_its_host() {
    let authority = TestAuthority::new();
    let server = Server::start_tls(&authority);
    let host = format!("localhost:{}", server.port);
    let proxy = Proxy::start(&[&host]);
    let mut stream = authority.client("localhost", proxy.tunnel(&host));
    stream.write_all(b"GET / HTTP/1.1\r\n\r\n").unwrap();
    assert!(read_head(&mut stream).starts_with("HTTP/1.1 200 "));
    assert_tls_refused(authority.client("other.example", proxy.tunnel(&host)));
    assert_eq!(server.requests().len(), 1);
}

/// Asserts that the proxy refuses a TLS connection, with an alert.
fn assert_tls_refused(mut stream: impl Read + Write) {
    let error = stream
        .write_all(b"GET / HTTP/1.1\r\n\r\n")
        .and_then(|()| stream.read(&mut [0]).map(drop))
        .unwrap_err();
    assert!(error.to_string().contains("AccessDenied"), "{error}");
}

#[test]
fn tunnel_must_be_for_its_host() {
    let Some(name) = loopback_hostname() else {
        return;
    };
    let authority = TestAuthority::new();
    let server = Server::start_tls(&authority);
    let host = format!("{name}:{}", server.port);
    let proxy = Proxy::start(&[&host, &format!("127.0.0.1:{}", server.port)]);
    let mut stream = authority.client(&name, proxy.tunnel(&host));
    stream.write_all(b"GET / HTTP/1.1\r\n\r\n").unwrap();
    assert!(read_head(&mut stream).starts_with("HTTP/1.1 200 "));
    // The same server by another name: domain fronting.
    assert_tls_refused(authority.client("localhost", proxy.tunnel(&host)));
    assert_eq!(
        proxy.stderr_line(),
        format!(
            "colibri-proxy: refused a connection to {host}: the TLS connection is for localhost"
        )
    );
    assert_eq!(server.requests().len(), 1);
}

#[test]
fn malformed_requests_for_tunnels_are_refused() {
    let proxy = Proxy::start(&["a.example:443"]);
    for request in [
        "CONNECT x HTTP/1.1",
        "CONNECT a.example:443 x",
        "GET http://u@a.example/ HTTP/1.1\r\nConnection: close",
        "SSH-2.0-x",
    ] {
        let answer = proxy.exchange(&format!("{request}\r\n\r\n"));
        assert!(
            answer.starts_with("HTTP/1.1 400 Bad Request\r\n"),
            "{request}: {answer}"
        );
        assert!(proxy.stderr_line().contains("refused a request"));
    }
}
