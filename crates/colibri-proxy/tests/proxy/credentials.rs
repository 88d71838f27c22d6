//! Credentials and rules with paths over TLS.

use std::io::Write;
use std::path::PathBuf;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

use crate::bridge::{Proxy, Start, read_all, read_head, read_response};
use crate::servers::{Server, TestAuthority, certificates, tls_client};

const PLACEHOLDER: &str = "colibri-placeholder-0123456789abcdef";
const KEY: &str = "k3y-that-the-agent-must-not-see";

/// A proxy with TLS termination, and the file with the certificate of its authority.
struct TlsProxy {
    proxy: Proxy,
    directory: tempfile::TempDir,
}

impl TlsProxy {
    fn start(authority: &TestAuthority, arguments: &[&str]) -> Self {
        let arguments = [&["--ca", "50", "--ca-bundle", "51"], arguments].concat();
        let proxy = Proxy::start_with(&Start {
            arguments: &arguments,
            environment: &[
                ("TOKEN", PLACEHOLDER),
                ("COLIBRI_CREDENTIAL_TOKEN", KEY),
                ("COLIBRI_CREDENTIAL_UNUSED", KEY),
                ("COLIBRI_PROXY_ROOTS", authority.file.to_str().unwrap()),
            ],
            ..Start::default()
        });
        let directory = tempfile::tempdir().unwrap();
        let pid = proxy.fact("pid").unwrap();
        for (name, number) in [("ca.pem", 50), ("bundle.pem", 51)] {
            std::fs::copy(
                format!("/proc/{pid}/fd/{number}"),
                directory.path().join(name),
            )
            .unwrap();
        }
        Self { proxy, directory }
    }

    fn file(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn curl(&self, arguments: &[&str]) -> String {
        let file = self.file("ca.pem");
        self.proxy
            .curl(&[&["--cacert", file.to_str().unwrap()], arguments].concat())
    }
}

#[test]
fn key_replaces_the_placeholder_for_its_host_only() {
    let authority = TestAuthority::new();
    let (server, other, plain) = (
        Server::start_tls(&authority),
        Server::start_tls(&authority),
        Server::start(),
    );
    let credential = format!("TOKEN@localhost:{}", server.port);
    let rules = [
        format!("localhost:{}", server.port),
        format!("https://localhost:{}/*", other.port),
        format!("localhost:{}", plain.port),
    ];
    let tls = TlsProxy::start(
        &authority,
        &["--credential", &credential, &rules[0], &rules[1], &rules[2]],
    );
    let field = format!("Authorization: Bearer {PLACEHOLDER}");
    let user = format!("user:{PLACEHOLDER}");
    let url = |port: u16| format!("https://localhost:{port}/path");
    let output = tls.curl(&["-H", &field, &url(server.port)]);
    assert!(output.contains("GET /path HTTP/1.1\r\n"), "{output}");
    let requests = server.requests();
    assert!(
        requests[0].contains(&format!("authorization: Bearer {KEY}\r\n")),
        "{requests:?}"
    );
    tls.curl(&["-u", &user, &url(server.port)]);
    let basic = server.requests()[1].clone();
    assert!(!basic.contains("Y29saWJyaS1wbGFjZWhvbGRlci0"), "{basic}");
    for url in [url(other.port), format!("http://localhost:{}/", plain.port)] {
        let output = tls.curl(&["-H", &field, &url]);
        assert!(
            output.contains(PLACEHOLDER) && !output.contains(KEY),
            "{output}"
        );
    }
}

#[test]
fn template_sets_the_header_of_the_agent() {
    let authority = TestAuthority::new();
    let server = Server::start_tls(&authority);
    let rule = format!("POST https://localhost:{}/v1/*", server.port);
    let credential = format!("TOKEN@localhost:{}=X-Api-Key: key={{}}", server.port);
    let tls = TlsProxy::start(&authority, &["--credential", &credential, &rule]);
    let url = format!("https://localhost:{}/v1/messages", server.port);
    tls.curl(&["-H", "x-api-key: forged", "-d", "{}", &url]);
    tls.curl(&["-d", "{}", &url]);
    for request in server.requests() {
        assert!(
            request.contains(&format!("x-api-key: key={KEY}\r\n")) && !request.contains("forged"),
            "{request}"
        );
    }
    assert_eq!(server.requests().len(), 2);
    // A request that the rules refuse gets no key.
    let output = tls.curl(&["-i", &url]);
    assert!(
        output.contains("HTTP/1.1 403 Forbidden") && output.contains("x-colibri-refused: policy"),
        "{output}"
    );
    assert!(
        tls.proxy
            .stderr_line()
            .contains("the allow list does not have GET /v1/messages")
    );
}

#[test]
fn heads_of_responses_do_not_reveal_the_key() {
    let authority = TestAuthority::new();
    let upper = KEY.to_ascii_uppercase();
    let basic = STANDARD.encode(format!("user:{KEY}"));
    let answer = format!(
        "HTTP/1.1 200 {KEY}\r\nX-Upper: {upper}\r\nX-Basic: Basic {basic}\r\nX-{KEY}: 1\r\nX-Latin: \u{e9}{KEY}\r\n\
        X-Other: kept\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"
    );
    let server = Server::start_tls_with_answer(&authority, answer);
    let rule = format!("localhost:{}", server.port);
    let credential = format!("TOKEN@{rule}");
    let tls = TlsProxy::start(&authority, &["--credential", &credential, &rule]);
    let output = tls.curl(&["-i", &format!("https://{rule}/")]);
    assert!(
        output.starts_with("HTTP/1.1 200 ") && output.contains("x-other: kept\r\n"),
        "{output}"
    );
    assert!(!output.to_ascii_lowercase().contains(KEY), "{output}");
    assert!(!output.contains(&basic), "{output}");
}

#[test]
fn key_is_in_no_process_of_the_agent() {
    let authority = TestAuthority::new();
    let server = Server::start_tls(&authority);
    let rule = format!("localhost:{}", server.port);
    let credential = format!("TOKEN@localhost:{}", server.port);
    let tls = TlsProxy::start(&authority, &["--credential", &credential, &rule]);
    let proxy = &tls.proxy;
    assert!(proxy.facts.contains(&format!("env TOKEN={PLACEHOLDER}")));
    assert!(
        !proxy
            .facts
            .iter()
            .any(|fact| fact.contains(KEY) || fact.contains("COLIBRI_CREDENTIAL"))
    );
    let command: i32 = proxy.fact("pid").unwrap().parse().unwrap();
    let mut pids = proxy.processes();
    assert_eq!(pids.len(), 2, "serve and resolve");
    pids.push(command);
    for pid in &pids {
        for file in ["cmdline", "environ"] {
            // Without root, the environment of the proxy's processes cannot be read.
            let Ok(bytes) = std::fs::read(format!("/proc/{pid}/{file}")) else {
                assert_ne!(*pid, command);
                continue;
            };
            assert!(
                !String::from_utf8_lossy(&bytes).contains(KEY),
                "{pid} {file}"
            );
        }
    }
    for number in [50, 51] {
        let text = std::fs::read_to_string(format!("/proc/{command}/fd/{number}")).unwrap();
        assert!(!text.contains("PRIVATE KEY"));
    }
}

#[test]
fn bundle_contains_the_authority_and_the_roots() {
    let authority = TestAuthority::new();
    let tls = TlsProxy::start(&authority, &["https://localhost:1/*"]);
    let ca = certificates(&tls.file("ca.pem"));
    let bundle = certificates(&tls.file("bundle.pem"));
    assert_eq!(ca.len(), 1);
    assert!(bundle.contains(&ca[0]) && bundle.contains(&certificates(&authority.file)[0]));
    for root in rustls_native_certs::load_native_certs().certs {
        assert!(bundle.contains(&root));
    }
}

#[test]
fn requests_in_tls_are_checked_each() {
    let authority = TestAuthority::new();
    let server = Server::start_tls(&authority);
    let host = format!("localhost:{}", server.port);
    let tls = TlsProxy::start(&authority, &[&format!("GET https://{host}/repos/*")]);
    let trusted = || certificates(&tls.file("ca.pem"));
    let mut stream = tls_client(trusted(), "localhost", tls.proxy.tunnel(&host));
    for (request, status) in [
        (
            format!("GET /repos/a HTTP/1.1\r\nHost: {host}\r\n\r\n"),
            200,
        ),
        (format!("GET /user HTTP/1.1\r\nHost: {host}\r\n\r\n"), 403),
        (
            format!("GET /repos/%2e%2e/user HTTP/1.1\r\nHost: {host}\r\n\r\n"),
            403,
        ),
        (
            format!("GET https://{host}/repos/b HTTP/1.1\r\nHost: {host}\r\n\r\n"),
            200,
        ),
        (
            format!("DELETE /repos/a HTTP/1.1\r\nHost: {host}\r\n\r\n"),
            403,
        ),
        (
            "GET /repos/a HTTP/1.1\r\nHost: other.example\r\n\r\n".to_owned(),
            403,
        ),
        (
            "GET https://other.example/repos/a HTTP/1.1\r\n\r\n".to_owned(),
            400,
        ),
        (
            format!("GET http://{host}/repos/a HTTP/1.1\r\nHost: {host}\r\n\r\n"),
            400,
        ),
        (
            format!("TRACE /repos/a HTTP/1.1\r\nHost: {host}\r\n\r\n"),
            403,
        ),
        (
            format!("GET /repos/c HTTP/1.1\r\nHost: {host}\r\n\r\n"),
            200,
        ),
        ("CONNECT other:1 HTTP/1.1\r\n\r\n".to_owned(), 400),
    ] {
        stream.write_all(request.as_bytes()).unwrap();
        let (head, _) = read_response(&mut stream);
        let accepted = head.starts_with(&format!("HTTP/1.1 {status} "))
            || (request.starts_with("TRACE") && head.starts_with("HTTP/1.1 40"));
        assert!(accepted, "{request}: {head}");
    }
    assert_eq!(server.requests().len(), 3);
    let mut stream = tls_client(trusted(), "localhost", tls.proxy.tunnel(&host));
    write!(stream, "POST /repos/a HTTP/1.1\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\nGET /x").unwrap();
    assert!(read_all(&mut stream).starts_with("HTTP/1.1 400 "));
    let mut stream = tls_client(trusted(), "localhost", tls.proxy.tunnel(&host));
    write!(stream, "GET /repos/ws HTTP/1.1\r\nHost: {host}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n").unwrap();
    assert!(read_head(&mut stream).starts_with("HTTP/1.1 101 "));
    stream.write_all(b"ping\r\n\r\n").unwrap();
    assert_eq!(read_head(&mut stream), "ping\r\n\r\n");
}

#[test]
fn other_names_and_protocols_are_refused_in_terminated_tunnels() {
    let authority = TestAuthority::new();
    let server = Server::start_tls(&authority);
    let host = format!("localhost:{}", server.port);
    let tls = TlsProxy::start(&authority, &[&format!("https://{host}/*")]);
    let mut stream = tls_client(
        certificates(&tls.file("ca.pem")),
        "other.example",
        tls.proxy.tunnel(&host),
    );
    assert!(
        stream.write_all(b"GET / HTTP/1.1\r\n\r\n").is_err() || read_all(&mut stream).is_empty()
    );
    assert!(
        tls.proxy
            .stderr_line()
            .contains("the TLS connection is for other.example")
    );
    let mut stream = tls.proxy.tunnel(&host);
    stream.write_all(b"GET / HTTP/1.1\r\n\r\n").unwrap();
    assert_eq!(read_all(&mut stream), "");
    assert!(
        tls.proxy
            .stderr_line()
            .contains("the connection is not TLS")
    );
    assert!(server.requests().is_empty());
}

#[test]
fn server_of_an_unknown_authority_gets_no_request() {
    let (authority, unknown) = (TestAuthority::new(), TestAuthority::new());
    let server = Server::start_tls(&unknown);
    let credential = format!("TOKEN@localhost:{}=X-Key: {{}}", server.port);
    let rule = format!("localhost:{}", server.port);
    let tls = TlsProxy::start(&authority, &["--credential", &credential, &rule]);
    let output = tls.curl(&["-i", &format!("https://localhost:{}/", server.port)]);
    assert!(
        output.contains("HTTP/1.1 502 ") && output.contains("cannot verify the server"),
        "{output}"
    );
    assert!(server.requests().is_empty());
}
