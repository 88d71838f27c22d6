//! Names and the addresses that they resolve to.

use crate::bridge::Proxy;
use crate::servers::{Server, loopback_hostname};

fn get(proxy: &Proxy, host: &str) -> String {
    proxy.exchange(&format!(
        "GET http://{host}/ HTTP/1.1\r\nConnection: close\r\n\r\n"
    ))
}

#[test]
fn name_of_a_loopback_address_needs_a_rule_by_address() {
    let Some(name) = loopback_hostname() else {
        return;
    };
    let server = Server::start();
    let port = server.port;
    let host = format!("{name}:{port}");
    let proxy = Proxy::start(&[&host]);
    let answer = get(&proxy, &host);
    assert!(
        answer.starts_with("HTTP/1.1 403 ") && answer.contains("a loopback address"),
        "{answer}"
    );
    let tunnel = proxy.exchange(&format!("CONNECT {host} HTTP/1.1\r\n\r\n"));
    assert!(
        tunnel.starts_with("HTTP/1.1 403 ") && tunnel.contains("a loopback address"),
        "{tunnel}"
    );
    assert!(proxy.stderr_line().contains("resolves to"));
    assert!(server.requests().is_empty());
    let proxy = Proxy::start(&[&host, &format!("127.0.0.1:{port}")]);
    assert!(get(&proxy, &host).starts_with("HTTP/1.1 200 "));
    // A rule by path is for its own host only.
    let proxy = Proxy::start(&[&host, &format!("http://127.0.0.1:{port}/x/*")]);
    let answer = get(&proxy, &host);
    assert!(answer.starts_with("HTTP/1.1 403 "), "{answer}");
    assert!(
        answer.contains(&format!("--allow 127.0.0.1:{port}")),
        "{answer}"
    );
    // The address of another port is not allowed.
    let proxy = Proxy::start(&[&host, "127.0.0.1:1"]);
    assert!(get(&proxy, &host).starts_with("HTTP/1.1 403 "));
}

#[test]
fn localhost_is_its_addresses() {
    let server = Server::start();
    let port = server.port;
    for rule in [format!("localhost:{port}"), format!("127.0.0.1:{port}")] {
        let proxy = Proxy::start(&[&rule]);
        for host in ["localhost", "LOCALHOST", "127.0.0.1", "[::ffff:127.0.0.1]"] {
            let answer = get(&proxy, &format!("{host}:{port}"));
            assert!(
                answer.starts_with("HTTP/1.1 200 "),
                "{rule} {host}: {answer}"
            );
        }
        for host in [
            "127.0.0.2",
            "127.1",
            "2130706433",
            "0x7f000001",
            "0.0.0.0",
            "[::]",
            "[::7f00:1]",
            "a.localhost",
        ] {
            let answer = get(&proxy, &format!("{host}:{port}"));
            assert!(answer.starts_with("HTTP/1.1 40"), "{rule} {host}: {answer}");
        }
    }
    assert_eq!(server.requests().len(), 8);
}

#[test]
fn name_without_an_address_is_an_error_of_the_gateway() {
    let proxy = Proxy::start(&["colibri.invalid:80", "*.colibri.invalid:80"]);
    for host in ["colibri.invalid", "a.b.colibri.invalid"] {
        let answer = get(&proxy, host);
        assert!(
            answer.starts_with("HTTP/1.1 502 ") && answer.contains("cannot resolve the name"),
            "{answer}"
        );
    }
}
