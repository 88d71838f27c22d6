//! Requests over HTTP: every request of a connection is checked.

use std::io::{Read, Write};

use crate::bridge::{Proxy, Start, read_all, read_head, read_response};
use crate::servers::Server;

fn get(url: &str) -> String {
    format!("GET {url} HTTP/1.1\r\n\r\n")
}

#[test]
fn each_request_of_a_connection_is_checked() {
    let (first, second, refused) = (Server::start(), Server::start(), Server::start());
    let rules = [format!("127.0.0.1:{},{}", first.port, second.port)];
    let proxy = Proxy::start(&[&rules[0]]);
    let mut stream = proxy.connect();
    for _ in 0..2 {
        for server in [&first, &second] {
            let url = format!("http://127.0.0.1:{}/path?query", server.port);
            stream.write_all(get(&url).as_bytes()).unwrap();
            let (head, body) = read_response(&mut stream);
            assert!(head.starts_with("HTTP/1.1 200 OK\r\n"), "{head}");
            assert!(!head.contains("x-hop"), "{head}");
            let host = format!("host: 127.0.0.1:{}\r\n", server.port);
            assert!(
                body.starts_with("GET /path?query HTTP/1.1\r\n") && body.contains(&host),
                "{body}"
            );
        }
        let url = format!("http://127.0.0.1:{}/", refused.port);
        stream.write_all(get(&url).as_bytes()).unwrap();
        let (head, body) = read_response(&mut stream);
        assert!(head.starts_with("HTTP/1.1 403 Forbidden\r\n"), "{head}");
        assert!(head.contains("\r\nx-colibri-refused: policy\r\n"), "{head}");
        let text = format!(
            "colibri-proxy: policy forbids 127.0.0.1:{}: it is not in the allow list; ",
            refused.port
        );
        assert!(body.starts_with(&text), "{body}");
        let line = format!(
            "colibri-proxy: refused a connection to 127.0.0.1:{}: it is not in the allow list",
            refused.port
        );
        assert_eq!(proxy.stderr_line(), line);
    }
    assert_eq!((first.requests().len(), refused.requests().len()), (2, 0));
}

#[test]
fn ambiguous_framing_reaches_no_server() {
    let server = Server::start();
    let rule = format!("127.0.0.1:{}", server.port);
    let proxy = Proxy::start(&[&rule]);
    let url = format!("http://{rule}/");
    let hidden = format!("GET http://{rule}/hidden HTTP/1.1\r\n\r\n");
    for fields in [
        "Content-Length: 5\r\nTransfer-Encoding: chunked\r\n",
        "Transfer-Encoding: chunked\r\nContent-Length: 5\r\n",
        "Content-Length: 0\r\nContent-Length: 50\r\n",
        "Content-Length: 0, 50\r\n",
        "Content_Length: 5\r\n",
        "Transfer_Encoding: chunked\r\n",
        "Transfer-Encoding: xchunked\r\n",
        "Transfer-Encoding: chunked\r\nTransfer-Encoding: x\r\n",
        "Transfer-Encoding:\u{b}chunked\r\n",
        "Transfer-Encoding : chunked\r\nContent-Length: 0\r\n",
        "X: y\r\n Content-Length: 50\r\n",
        "X: y\nContent-Length: 50\r\n",
        "Host: a\r\nHost: b\r\n",
        "Host: other.example\r\n",
        "Upgrade: websocket\r\nConnection: upgrade\r\nContent-Length: 5\r\n",
    ] {
        let answer = proxy.exchange(&format!(
            "POST {url} HTTP/1.1\r\n{fields}\r\n0\r\n\r\n{hidden}"
        ));
        assert!(
            answer.starts_with("HTTP/1.1 400 Bad Request\r\n"),
            "{fields:?}: {answer}"
        );
        let hidden_answers = answer.matches("/hidden").count();
        // The target of a valid request that differs from its Host is an error of that request only.
        assert!(
            hidden_answers == 0 || fields.starts_with("Host: other"),
            "{fields:?}: {answer}"
        );
    }
    let requests = server.requests();
    assert!(
        requests.iter().all(|request| !request.starts_with("POST")),
        "{requests:?}"
    );
    // A chunk that is invalid after a valid head ends both connections.
    let head = format!("POST {url} HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n");
    for body in [
        "5;x\r\nhello\r\n0\r\n\r\n",
        "0\r\nX: y\r\n\r\n",
        "1\r\nab\r\n0\r\n\r\n",
    ] {
        let answer = proxy.exchange(&format!("{head}{body}{hidden}"));
        assert!(!answer.starts_with("HTTP/1.1 200"), "{body:?}: {answer}");
    }
    assert!(server.requests().len() <= 1, "{:?}", server.requests());
}

#[test]
fn invalid_request_after_a_valid_one_is_refused() {
    let server = Server::start();
    let rule = format!("127.0.0.1:{}", server.port);
    let proxy = Proxy::start(&[&rule]);
    let valid = get(&format!("http://{rule}/valid"));
    for invalid in [
        "CONNECT a:1 HTTP/1.1\r\n\r\n",
        "GET / HTTP/1.1\r\n\r\n",
        "\u{16}\u{3}\u{1}",
        "GET https://a/ HTTP/1.1\r\n\r\n",
    ] {
        let mut stream = proxy.connect();
        stream
            .write_all(format!("{valid}{invalid}").as_bytes())
            .unwrap();
        let (head, _) = read_response(&mut stream);
        assert!(head.starts_with("HTTP/1.1 200"), "{head}");
        let (head, body) = read_response(&mut stream);
        assert!(head.starts_with("HTTP/1.1 400"), "{head}");
        assert!(
            body.starts_with("colibri-proxy: refused a request: "),
            "{body}"
        );
    }
    assert_eq!(server.requests().len(), 4);
    let endless = format!("GET http://{rule}/ HTTP/1.1\r\nX: {}", "x".repeat(40_000));
    assert!(proxy.exchange(&endless).starts_with("HTTP/1.1 400 "));
}

#[test]
fn bodies_arrive_and_hop_by_hop_fields_do_not() {
    let server = Server::start();
    let rule = format!("127.0.0.1:{}", server.port);
    let proxy = Proxy::start(&[&rule]);
    let fields = "Proxy-Authorization: secret\r\nConnection: keep-alive, X-One\r\nX-One: 1\r\nTE: trailers\r\nX-Two: 2\r\n";
    let mut stream = proxy.connect();
    write!(
        stream,
        "POST http://{rule}/ HTTP/1.1\r\n{fields}Content-Length: 5\r\n\r\nhello"
    )
    .unwrap();
    let (_, body) = read_response(&mut stream);
    assert!(
        body.ends_with("\r\n\r\nhello") && body.contains("x-two: 2\r\n"),
        "{body}"
    );
    for absent in ["authorization", "x-one", "te:", "connection"] {
        assert!(!body.contains(absent), "{absent}: {body}");
    }
    write!(stream, "POST http://{rule}/ HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n6\r\n world\r\n0\r\n\r\n").unwrap();
    let (_, body) = read_response(&mut stream);
    assert!(
        body.contains("transfer-encoding: chunked")
            && body.contains("hello")
            && body.contains(" world"),
        "{body}"
    );
    let output = proxy.curl(&[
        "-X",
        "PUT",
        "-H",
        "Expect: 100-continue",
        "-d",
        "data",
        &format!("http://{rule}/"),
    ]);
    assert!(
        output.ends_with("\r\n\r\ndata") && output.starts_with("PUT / "),
        "{output}"
    );
}

#[test]
fn websocket_is_upgraded_for_allowed_hosts() {
    let server = Server::start();
    let rule = format!("127.0.0.1:{}", server.port);
    let proxy = Proxy::start(&[&rule]);
    let fields =
        "Connection: keep-alive, Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Key: k\r\n";
    let mut stream = proxy.connect();
    // The first bytes of the other protocol look like a request.
    write!(
        stream,
        "GET http://{rule}/ws HTTP/1.1\r\n{fields}\r\nGET http://other/ HTTP/1.1\r\n\r\n"
    )
    .unwrap();
    let head = read_head(&mut stream);
    assert!(
        head.starts_with("HTTP/1.1 101 ") && head.contains("sec-websocket-accept: x"),
        "{head}"
    );
    assert_eq!(read_head(&mut stream), "GET http://other/ HTTP/1.1\r\n\r\n");
    stream.write_all(b"ping").unwrap();
    let mut echo = [0; 4];
    stream.read_exact(&mut echo).unwrap();
    assert_eq!(&echo, b"ping");
    let request = &server.requests()[0];
    assert!(
        request.contains("upgrade: websocket") && request.contains("sec-websocket-key: k"),
        "{request}"
    );
    // Without an upgrade, nothing after the request is served.
    let hidden = format!("GET http://{rule}/hidden HTTP/1.1\r\n\r\n");
    let answer = proxy.exchange(&format!(
        "GET http://{rule}/declined HTTP/1.1\r\n{fields}\r\n{hidden}"
    ));
    assert!(
        answer.starts_with("HTTP/1.1 200") && !answer.contains("GET /hidden"),
        "{answer}"
    );
    let answer = proxy.exchange(&format!(
        "GET http://127.0.0.1:1/ws HTTP/1.1\r\n{fields}\r\n"
    ));
    assert!(answer.starts_with("HTTP/1.1 403"), "{answer}");
}

#[test]
fn rules_for_http_requests_check_method_and_path() {
    let server = Server::start();
    let address = format!("127.0.0.1:{}", server.port);
    let proxy = Proxy::start(&[&format!("GET,HEAD http://{address}/repos/*")]);
    for (request, status) in [
        ("GET /repos/a/b?x=/../y", 200),
        ("HEAD /repos/a", 200),
        ("POST /repos/a", 403),
        ("GET /user", 403),
        ("GET /repos/../user", 403),
        ("GET /repos/%2e%2e/user", 403),
        ("GET /repos/%252e%252e/user", 403),
        ("GET /repos//../user", 403),
        ("GET //repos/a", 403),
        ("GET /repos/..;/user", 403),
        ("GET /repos/..%2fuser", 403),
    ] {
        let (method, path) = request.split_once(' ').unwrap();
        let answer = proxy.exchange(&format!(
            "{method} http://{address}{path} HTTP/1.1\r\nConnection: close\r\n\r\n"
        ));
        assert!(
            answer.starts_with(&format!("HTTP/1.1 {status} ")),
            "{request}: {answer}"
        );
    }
    for (query, field, status) in [
        ("", "X-HTTP-Method-Override: DELETE", 403),
        ("", "X_HTTP_Method_Override: DELETE", 403),
        ("", "X-Forwarded-Prefix: /user", 403),
        ("?_method=DELETE", "X: y", 403),
        ("?a=b&%5Fmethod=DELETE", "X: y", 403),
        ("?method=DELETE", "X-Forwarded-For: 192.0.2.1", 200),
    ] {
        let request = format!(
            "GET http://{address}/repos/a{query} HTTP/1.1\r\n{field}\r\nConnection: close\r\n\r\n"
        );
        let answer = proxy.exchange(&request);
        assert!(
            answer.starts_with(&format!("HTTP/1.1 {status} ")),
            "{request}: {answer}"
        );
    }
    let tunnel = proxy.exchange(&format!("CONNECT {address} HTTP/1.1\r\n\r\n"));
    assert!(
        tunnel.starts_with("HTTP/1.1 403 ") && tunnel.contains("without CONNECT"),
        "{tunnel}"
    );
    assert_eq!(server.requests().len(), 3);
}

#[test]
fn refusals_are_events_and_printable_lines() {
    let directory = tempfile::tempdir().unwrap();
    let events = directory.path().join("events");
    let proxy = Proxy::start_with(&Start {
        arguments: &["--events", "12", "a.example:443"],
        events: Some(&events),
        ..Start::default()
    });
    proxy.exchange("CONNECT b.example:443 HTTP/1.1\r\n\r\n");
    proxy.exchange("GET http://c.example/ HTTP/1.1\r\nConnection: close\r\n\r\n");
    let text = std::fs::read_to_string(&events).unwrap();
    let events: Vec<serde_json::Value> = text
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    let found: Vec<_> = events
        .iter()
        .map(|event| {
            (
                event["action"].as_str().unwrap(),
                event["host"].as_str().unwrap(),
                event["port"].as_u64().unwrap(),
            )
        })
        .collect();
    assert_eq!(
        found,
        [("refused", "b.example", 443), ("refused", "c.example", 80)]
    );
    assert_eq!(events[0]["reason"], "it is not in the allow list");
    events[0]["at"]
        .as_str()
        .unwrap()
        .parse::<jiff::Timestamp>()
        .unwrap();
    assert_eq!(
        proxy.stderr_line(),
        "colibri-proxy: refused a connection to b.example:443: it is not in the allow list"
    );
    proxy.stderr_line();
    proxy.exchange("CONNECT \u{1b}[31mred\u{9b}:1 HTTP/1.1\r\n\r\n");
    let line = proxy.stderr_line();
    assert!(
        line.bytes().all(|byte| (b' '..=b'~').contains(&byte)),
        "{line:?}"
    );
    // The command cannot write events.
    assert_eq!(
        read_all(&mut std::fs::File::open(directory.path().join("events")).unwrap())
            .lines()
            .count(),
        2
    );
    let pid = proxy.fact("pid").unwrap();
    assert!(!std::path::Path::new(&format!("/proc/{pid}/fd/12")).exists());
}
