//! Metrics: values, documentation and access. The Python client of Prometheus parses them.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write;
use std::net::TcpStream;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::process::{Command, Stdio};

use colibri_tests::metrics::{request, scrape, socket};
use colibri_tests::{Daemon, SOON, read, text, wait_until};
use serde_json::{Value, json};

/// Python of the system, which has the package python3-prometheus-client. scripts/test.sh installs it.
const PYTHON: &str = "/usr/bin/python3";
const PARSE: &str = "
import json, sys
from prometheus_client.parser import text_string_to_metric_families
print(json.dumps([
    {'name': f.name, 'type': f.type, 'help': f.documentation,
     'samples': [[s.name, s.labels, s.value] for s in f.samples]}
    for f in text_string_to_metric_families(sys.stdin.read())]))
";

/// Parses metrics with the parser of the Python client.
fn parse(metrics: &str) -> Vec<Value> {
    let mut python = Command::new(PYTHON)
        .args(["-c", PARSE])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect(PYTHON);
    python
        .stdin
        .take()
        .unwrap()
        .write_all(metrics.as_bytes())
        .unwrap();
    let output = python.wait_with_output().unwrap();
    let message = text(&output.stderr);
    assert!(
        output.status.success(),
        "install python3-prometheus-client, or check:\n{message}\n{metrics}"
    );
    serde_json::from_slice(&output.stdout).unwrap()
}

/// Returns the value of the sample that has these labels.
fn value(families: &[Value], sample: &str, labels: Value) -> f64 {
    let expected_labels = labels.as_object().unwrap();
    let matches = |candidate: &&Value| {
        candidate[0] == sample
            && expected_labels
                .iter()
                .all(|(name, value)| candidate[1][name] == *value)
    };
    let samples = families
        .iter()
        .flat_map(|family| family["samples"].as_array().unwrap());
    let found = samples.into_iter().find(matches);
    found.unwrap_or_else(|| panic!("no sample {sample} {labels}"))[2]
        .as_f64()
        .unwrap()
}

#[test]
fn metrics_match_their_page_and_count_events() {
    let mut daemon = Daemon::prepare();
    let settings = "[[hook]]\non = [\"done\"]\ncommand = [\"/bin/true\"]\n";
    std::fs::write(daemon.path("colibri.toml"), settings).unwrap();
    let mut command = daemon.command("colibri-daemon");
    command
        .args(["--config", daemon.path("colibri.toml").to_str().unwrap()])
        .arg("--metrics")
        .arg(format!("unix:{}", socket(&daemon).display()));
    daemon.launch_command(command);
    let mode =
        |path: &std::path::Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(&socket(&daemon)), 0o600);
    assert_eq!(mode(socket(&daemon).parent().unwrap()), 0o700);

    let flood = daemon.spawn(&[
        "--",
        "sh",
        "-c",
        "read x; head -c 3000000 /dev/zero; echo e >&2",
    ]);
    // This subscriber does not read, so the daemon stops sending and the output stays in the journal.
    let mut stuck = daemon.connect();
    stuck.call("subscribe", json!({"id": flood, "from_offset": 0}));
    daemon.cli_ok(&["send", &flood, "go"]);
    daemon.cli_ok(&["wait", &flood]);
    let restarted = daemon.spawn(&[
        "--restart",
        "on-failure",
        "--restart-delay",
        "1ms",
        "--restart-limit",
        "2",
        "--",
        "false",
    ]);
    daemon.wait(&restarted);
    daemon.spawn(&["--", "sleep", "1000"]);
    let killed = daemon.spawn(&["--", "sleep", "1000"]);
    daemon.cli_ok(&["kill", &killed]);
    assert!(
        !daemon
            .cli(&["spawn", "--", "/nowhere/agent"])
            .status
            .success()
    );
    stuck.call("make-coffee", json!({}));

    wait_until("the hook has run", || {
        let metrics = scrape(&daemon);
        metrics.contains("colibri_hook_runs_total{result=\"ok\"} 2\n")
    });
    let metrics = scrape(&daemon);
    let families = parse(&metrics);
    for (sample, labels, expected) in [
        (
            "colibri_build_info",
            json!({"version": env!("CARGO_PKG_VERSION")}),
            1.0,
        ),
        ("colibri_spawns_total", json!({}), 4.0),
        (
            "colibri_spawn_failures_total",
            json!({"kind": "program-not-found"}),
            1.0,
        ),
        ("colibri_spawn_duration_seconds_count", json!({}), 4.0),
        // An agent that its user killed is `done`.
        ("colibri_agents", json!({"state": "done"}), 2.0),
        ("colibri_agents", json!({"state": "error"}), 1.0),
        ("colibri_agents", json!({"state": "starting"}), 1.0),
        ("colibri_agents", json!({"state": "stalled"}), 0.0),
        ("colibri_agent_ends_total", json!({"state": "done"}), 2.0),
        ("colibri_agent_ends_total", json!({"state": "error"}), 1.0),
        ("colibri_agent_restarts_total", json!({}), 2.0),
        ("colibri_kills_total", json!({"outcome": "terminated"}), 1.0),
        ("colibri_kills_total", json!({"outcome": "unverified"}), 0.0),
        (
            "colibri_output_bytes_total",
            json!({"stream": "stdout"}),
            3e6,
        ),
        (
            "colibri_output_bytes_total",
            json!({"stream": "stderr"}),
            2.0,
        ),
        ("colibri_connections", json!({}), 1.0),
        ("colibri_connections_refused_total", json!({}), 0.0),
        ("colibri_subscriptions", json!({}), 1.0),
        ("colibri_subscriptions_behind", json!({}), 1.0),
        (
            "colibri_requests_total",
            json!({"method": "spawn-agent", "result": "ok"}),
            4.0,
        ),
        (
            "colibri_requests_total",
            json!({"method": "spawn-agent", "result": "program-not-found"}),
            1.0,
        ),
        (
            "colibri_requests_total",
            json!({"method": "unknown", "result": "unknown-method"}),
            1.0,
        ),
        (
            "colibri_request_duration_seconds_count",
            json!({"method": "kill-agent"}),
            1.0,
        ),
        ("colibri_hook_runs_total", json!({"result": "failed"}), 0.0),
    ] {
        let actual = value(&families, sample, labels.clone());
        assert!(
            (actual - expected).abs() < 0.5,
            "{sample} {labels}: {actual}, not {expected}"
        );
    }
    let behind = value(&families, "colibri_subscriptions_behind_bytes", json!({}));
    // All bytes that do not fit into the buffers of the connection.
    assert!(behind > 1e6 && behind <= 3e6, "{behind}");
    assert!(value(&families, "colibri_publish_delay_seconds_count", json!({})) >= 1.0);
    let started = value(&families, "process_start_time_seconds", json!({}));
    let now = jiff::Timestamp::now().as_second() as f64;
    assert!(started > now - 600.0 && started <= now + 1.0, "{started}");
    // A label with the id would create a series per agent.
    for id in [&flood, &restarted, &killed] {
        assert!(!metrics.contains(id.as_str()), "{id}");
    }
    drop(stuck);
    wait_until("no subscription is left", || {
        scrape(&daemon).contains("\ncolibri_subscriptions 0\n")
    });
    assert_page_matches(&families);
}

/// Checks that docs/metrics.md lists exactly these metrics: name, type and labels.
fn assert_page_matches(families: &[Value]) {
    let cell = |text: &str| text.trim().trim_matches('`').to_owned();
    let page: BTreeMap<String, (String, BTreeSet<String>)> = read("docs/metrics.md")
        .lines()
        .filter(|line| line.starts_with("| `"))
        .map(|line| {
            let cells: Vec<&str> = line.split('|').collect();
            let labels = cells[3]
                .split(',')
                .map(cell)
                .filter(|label| !label.is_empty());
            (cell(cells[1]), (cell(cells[2]), labels.collect()))
        })
        .collect();
    let served: BTreeMap<String, (String, BTreeSet<String>)> = families
        .iter()
        .map(|family| {
            let kind = family["type"].as_str().unwrap().to_owned();
            // The parser strips the suffix of counters.
            let end = if kind == "counter" { "_total" } else { "" };
            let name = format!("{}{end}", family["name"].as_str().unwrap());
            let labels = family["samples"].as_array().unwrap().iter();
            let labels = labels.flat_map(|sample| sample[1].as_object().unwrap().keys());
            let labels = labels.filter(|label| *label != "le").cloned().collect();
            assert!(family["help"].as_str().unwrap().ends_with('.'), "{family}");
            (name, (kind, labels))
        })
        .collect();
    assert_eq!(page, served, "docs/metrics.md and the served metrics");
}

#[test]
fn loopback_port_serves_only_get_metrics() {
    let mut daemon = Daemon::prepare();
    let mut command = daemon.command("colibri-daemon");
    command.args(["--metrics", "127.0.0.1:0"]);
    daemon.launch_command(command);
    let log = daemon.log();
    let port = log.split("metrics address=127.0.0.1:").nth(1).unwrap();
    let port: u16 = port.split_whitespace().next().unwrap().parse().unwrap();
    let connect = || {
        let stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
        stream.set_read_timeout(Some(SOON)).unwrap();
        stream
    };
    for (head, status) in [
        (
            "GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n",
            "HTTP/1.1 200 OK",
        ),
        (
            "HEAD /metrics HTTP/1.1\r\nHost: x\r\n\r\n",
            "HTTP/1.1 200 OK",
        ),
        (
            "GET / HTTP/1.1\r\nHost: x\r\n\r\n",
            "HTTP/1.1 404 Not Found",
        ),
        (
            "POST /metrics HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\n\r\nx",
            "HTTP/1.1 405 Method Not Allowed",
        ),
        ("hello\r\n\r\n", "HTTP/1.1 400 Bad Request"),
    ] {
        let answer = request(connect(), head);
        assert!(answer.starts_with(status), "{head:?}: {answer}");
        if status.contains("200") {
            assert!(
                answer.contains("content-type: text/plain; version=0.0.4; charset=utf-8\r\n"),
                "{answer}"
            );
        }
    }
    let long_head = format!(
        "GET /metrics HTTP/1.1\r\nX: {}\r\n\r\n",
        "x".repeat(1 << 20)
    );
    let answer = request(connect(), &long_head);
    assert!(!answer.starts_with("HTTP/1.1 200"), "{answer}");
    // More idle connections than the server accepts: it closes them and serves later ones.
    let idle: Vec<TcpStream> = (0..40).map(|_| connect()).collect();
    for stream in &idle {
        assert!(!request(stream, "").contains("200 OK"));
    }
    assert!(
        request(connect(), "GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n")
            .starts_with("HTTP/1.1 200 OK")
    );
    daemon.cli_ok(&["ps"]);
}

#[test]
fn non_loopback_metrics_address_is_refused_at_start() {
    let daemon = Daemon::prepare();
    for address in [
        "0.0.0.0:0",
        "[::]:0",
        "192.0.2.1:9464",
        "localhost:9464",
        "unix:relative",
    ] {
        let output = daemon
            .command("colibri-daemon")
            .env("COLIBRI_METRICS", address)
            .output()
            .unwrap();
        let message = text(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{address}: {message}");
        assert!(
            message.contains("metrics: ")
                && (message.contains("127.0.0.1:9464") || message.contains("unix:/run")),
            "{message}"
        );
        assert!(!daemon.socket().exists());
    }
}

#[test]
fn sandboxed_agent_cannot_reach_the_metrics_socket() {
    let daemon = Daemon::start_with_metrics();
    let socket_path = socket(&daemon);
    UnixStream::connect(&socket_path).unwrap();
    let listing = daemon.cli_ok(&[
        "run",
        "--jail-path",
        "/",
        "--view",
        "host",
        "--",
        "ls",
        "-A",
        socket_path.parent().unwrap().to_str().unwrap(),
    ]);
    assert_eq!(listing, "");
    // Without the setting the socket does not exist.
    let without = Daemon::start();
    assert!(!socket(&without).exists());
}

#[test]
fn daemon_notifies_systemd_when_it_listens() {
    let mut daemon = Daemon::prepare();
    let notify = daemon.path("notify");
    let systemd = std::os::unix::net::UnixDatagram::bind(&notify).unwrap();
    systemd.set_read_timeout(Some(SOON)).unwrap();
    let mut command = daemon.command("colibri-daemon");
    command.env("NOTIFY_SOCKET", &notify);
    daemon.launch_command(command);
    let mut buffer = [0; 64];
    let count = systemd.recv(&mut buffer).unwrap();
    assert_eq!(text(&buffer[..count]).trim(), "READY=1");
    let message = daemon.cli_ok(&["run", "--", "sh", "-c", "echo \"${NOTIFY_SOCKET-none}\""]);
    assert_eq!(message, "none\n", "agents do not inherit NOTIFY_SOCKET");
}
