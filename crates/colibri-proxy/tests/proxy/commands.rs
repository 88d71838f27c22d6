//! The command lines `run` and `enter`, and the processes of the proxy.

use std::process::{Command, Output};

use crate::bridge::{PROGRAM, Proxy};
use crate::servers::Server;

fn proxy(arguments: &[&str]) -> Output {
    Command::new(PROGRAM)
        .args(arguments)
        .env_remove("COLIBRI_PROXY_FD")
        .output()
        .unwrap()
}

#[test]
fn invalid_command_lines_have_a_hint() {
    for (arguments, code, hint) in [
        (&[][..], 2, "usage:"),
        (&["run"], 2, "usage:"),
        (&["run", "--", "true"], 2, "usage:"),
        (&["run", "a:1", "--"], 2, "usage:"),
        (&["enter"], 2, "usage:"),
        (&["enter", "--listen", "x", "true"], 2, "usage:"),
        (&["run", "a", "--", "true"], 125, "the port is missing"),
        (&["run", "--ca", "10", "--", "true"], 125, "at least one"),
        (
            &["run", "--events", "77", "a:1", "--", "true"],
            0,
            "is not open",
        ),
        (
            &["run", "--credential", "K@a", "a:443", "--", "true"],
            125,
            "COLIBRI_CREDENTIAL_K is not set",
        ),
        (
            &["run", "a:1", "--", "/nonexistent"],
            127,
            "cannot execute /nonexistent",
        ),
        (
            &["enter", "true"],
            125,
            "start this part with colibri-proxy run",
        ),
        (&["serve", "1"], 125, "cannot"),
    ] {
        let output = proxy(arguments);
        assert_eq!(
            output.status.code(),
            Some(code),
            "{arguments:?}: {output:?}"
        );
        let text = String::from_utf8_lossy(&output.stderr);
        assert!(text.contains(hint), "{arguments:?}: {text}");
    }
}

#[test]
fn exit_code_and_process_are_those_of_the_command() {
    let output = proxy(&[
        "run",
        "a:1",
        "--",
        "sh",
        "-c",
        "echo $COLIBRI_PROXY_FD; exit 7",
    ]);
    assert_eq!(output.status.code(), Some(7), "{output:?}");
    let number: i32 = String::from_utf8_lossy(&output.stdout)
        .trim()
        .parse()
        .unwrap();
    assert!(number > 2);
}

#[cfg(target_os = "linux")]
#[test]
fn server_is_confined_and_the_command_is_not() {
    let proxy = Proxy::start(&["a:1"]);
    assert_eq!(proxy.fact("dumpable"), Some("Dumpable"));
    let limit = rustix::process::getrlimit(rustix::process::Resource::Core);
    // The proxy was started with the highest possible limit.
    assert_eq!(proxy.fact("core").unwrap(), format!("{:?}", limit.maximum));
    let status = |pid: &str, field: &str| {
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
        let line = status
            .lines()
            .find_map(|line| line.strip_prefix(field).map(str::trim).map(str::to_owned));
        line.unwrap()
    };
    let own = std::process::id().to_string();
    let command = proxy.fact("pid").unwrap();
    for field in ["Seccomp:", "NoNewPrivs:"] {
        assert_eq!(status(command, field), status(&own, field));
    }
    // A response shows that the server has completed its set-up.
    proxy.exchange("CONNECT b:1 HTTP/1.1\r\n\r\n");
    let mut parts = Vec::new();
    for pid in proxy.processes() {
        let arguments = std::fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap();
        let part = arguments.split('\0').nth(1).unwrap().to_owned();
        if part == "serve" {
            assert_eq!(status(&pid.to_string(), "Seccomp:"), "2");
        }
        assert_eq!(status(&pid.to_string(), "NoNewPrivs:"), "1");
        parts.push(part);
    }
    parts.sort();
    assert_eq!(parts, ["resolve", "serve"]);
}

#[test]
fn agent_in_a_network_namespace_reaches_loopback_ports() {
    let possible = Command::new("unshare").args(["-Urn", "true"]).output();
    if !possible.is_ok_and(|output| output.status.success()) {
        eprintln!("skipped: user namespaces are not possible here");
        return;
    }
    let server = Server::start();
    let rule = format!("localhost:{}", server.port);
    let script = format!(
        "ip link set lo up; exec {PROGRAM} enter --listen {port} bash -c 'curl -sS --noproxy \"*\" http://127.0.0.1:{port}/direct; curl -sS --noproxy \"\" --proxy http://127.0.0.1:3128 http://{rule}/proxy'",
        port = server.port
    );
    let output = proxy(&["run", &rule, "--", "unshare", "-Urn", "sh", "-c", &script]);
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(
        text.contains("GET /direct ") && text.contains("GET /proxy "),
        "{output:?}"
    );
}
