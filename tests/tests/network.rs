//! The network filter: real connections from a real sandbox through the real proxy.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::disallowed_methods
)]

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::process::Output;

use colibri_tests::{Daemon, Wire, processes_with, text, wait_until};
use serde_json::{Value, json};

/// A server on this port that answers an HTTP request by its head, and echoes all other data.
struct EchoServer(u16);

impl EchoServer {
    fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        std::thread::spawn(move || {
            for client in listener.incoming().flatten() {
                std::thread::spawn(move || serve(client));
            }
        });
        Self(port)
    }

    fn address(&self) -> String {
        format!("127.0.0.1:{}", self.0)
    }
}

fn serve(mut client: TcpStream) {
    let mut received = Vec::new();
    let mut chunk = [0; 4096];
    while let Ok(count) = client.read(&mut chunk)
        && count > 0
    {
        received.extend_from_slice(&chunk[..count]);
        let http = received.starts_with(b"GET ");
        if http && received.ends_with(b"\r\n\r\n") {
            let head = format!(
                "HTTP/1.1 200 OK\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
                received.len()
            );
            let _ = client.write_all(&[head.as_bytes(), &received].concat());
            return;
        }
        if !http {
            let _ = client.write_all(&received);
            received.clear();
        }
    }
}

/// Runs a script in a sandbox that can reach these addresses.
fn run(daemon: &Daemon, allow: &[&str], script: &str) -> Output {
    let mut words = vec!["run", "--jail-path", "/"];
    // Otherwise programs connect to loopback addresses without the proxy.
    words.extend(["--env", "NO_PROXY=", "--env", "no_proxy="]);
    for address in allow {
        words.extend(["--allow", address]);
    }
    words.extend(["--", "bash", "-c", script]);
    daemon.cli(&words)
}

#[test]
fn allowed_hosts_are_reached_and_refusals_shown() {
    let daemon = Daemon::start();
    let (allowed_server, refused_server) = (EchoServer::start(), EchoServer::start());
    let script = format!(
        "curl -sS http://{allowed_server}/plain; curl -sS --proxytunnel http://{allowed_server}/tunnel | head -1; \
         curl -sS -o /dev/null -w '%{{http_code}}\\n' http://{refused_server}/; \
         curl -sS http://{refused_server}/; \
         curl -sS --proxytunnel http://{refused_server}/; \
         curl -sS --noproxy '*' http://{allowed_server}/direct | head -1; \
         curl -sS --noproxy '*' http://{refused_server}/; \
         exec 3<>/dev/tcp/127.0.0.1/{port} || echo not connected; exit 7",
        allowed_server = allowed_server.address(),
        refused_server = refused_server.address(),
        port = refused_server.0,
    );
    let output = run(&daemon, &[&allowed_server.address()], &script);
    let (out, err) = (text(&output.stdout), text(&output.stderr));
    assert_eq!(
        output.status.code(),
        Some(7),
        "the exit code of the agent: {out}{err}"
    );
    assert!(out.starts_with("GET /plain HTTP/1.1\r\nhost: "), "{out}");
    assert!(out.contains("GET /tunnel HTTP/1.1"), "{out}");
    // Programs bypass the proxy for the loopback address.
    assert!(out.contains("GET /direct HTTP/1.1"), "{out}");
    assert!(out.contains("\n403\n"), "{out}");
    assert!(out.ends_with("not connected\n"), "{out}");
    let refused = format!(
        "colibri-proxy: refused a connection to {}: it is not in the allow list",
        refused_server.address()
    );
    assert_eq!(err.matches(&refused).count(), 3, "{err}");
    // The refusals are stored.
    let agents = daemon.agents();
    let id = agents[0]["id"].as_str().unwrap();
    let stored = daemon.cli_ok(&["logs", "--stream", "stderr", id]);
    assert_eq!(stored.matches(&refused).count(), 3, "{stored}");
}

#[test]
fn allowed_names_are_resolved_by_the_proxy() {
    let daemon = Daemon::start();
    let echo = EchoServer::start();
    let script = format!(
        "curl -sS http://LOCALHOST:{port}/name | head -1; curl -sS http://127.0.0.1:{port}/address | head -1; \
         curl -sS http://127.0.0.2:{port}/other; getent hosts example.com; true",
        port = echo.0
    );
    let output = run(&daemon, &[&format!("localhost:{}", echo.0)], &script);
    let out = text(&output.stdout);
    // A rule for localhost allows its addresses, and no other one.
    assert!(
        out.starts_with("GET /name HTTP/1.1\r\nGET /address HTTP/1.1\r\n"),
        "{output:?}"
    );
    assert!(
        out.contains("not in the allow list") && out.matches("GET").count() == 2,
        "{out}"
    );
}

#[test]
fn loopback_addresses_bypass_the_proxy() {
    let daemon = Daemon::start();
    let (allowed, refused) = (EchoServer::start(), EchoServer::start());
    let script = format!(
        "curl -sS http://127.0.0.1:{}/direct | head -1; curl -s http://localhost:{}/; echo $?; \
         echo \"$NO_PROXY $no_proxy $HTTPS_PROXY $ALL_PROXY\"",
        allowed.0, refused.0
    );
    let port = allowed.address();
    for (rule, all_proxy) in [
        (port.clone(), ""),
        (format!("tcp:{port}"), "socks5h://127.0.0.1:3128"),
    ] {
        let output = daemon.cli(&[
            "run",
            "--jail-path",
            "/",
            "--allow",
            &rule,
            "--",
            "bash",
            "-c",
            &script,
        ]);
        let loopback = "localhost,127.0.0.1,::1";
        let expected = format!(
            "GET /direct HTTP/1.1\r\n7\n{loopback} {loopback} http://127.0.0.1:3128 {all_proxy}\n"
        );
        assert_eq!(text(&output.stdout), expected, "{output:?}");
        assert_eq!(text(&output.stderr), "", "no refusal: {output:?}");
    }
}

#[test]
fn malformed_request_is_refused() {
    let daemon = Daemon::start();
    let echo = EchoServer::start();
    let script = "for request in 'GET / HTTP/1.1' 'CONNECT x HTTP/1.1' 'SSH-2.0-x' 'GET http://u@127.0.0.1/ HTTP/1.1'; do \
        exec 3<>/dev/tcp/127.0.0.1/3128; printf '%s\\r\\n\\r\\n' \"$request\" >&3; head -1 <&3; exec 3>&-; done";
    let output = run(&daemon, &[&echo.address()], script);
    assert_eq!(
        text(&output.stdout)
            .matches("HTTP/1.1 400 Bad Request")
            .count(),
        4,
        "{output:?}"
    );
    assert_eq!(
        text(&output.stderr).matches("refused a request").count(),
        4,
        "{output:?}"
    );
}

#[test]
fn concurrent_and_large_tunnels_transfer_all_bytes() {
    let daemon = Daemon::start();
    let echo = EchoServer::start();
    // A large transfer through a tunnel, and fifty concurrent tunnels.
    let script = format!(
        "tunnel() {{ exec 3<>/dev/tcp/127.0.0.1/3128; printf 'CONNECT {address} HTTP/1.1\\r\\n\\r\\n' >&3; \
           IFS= read -r status <&3; IFS= read -r blank <&3; }}; \
         tunnel; head -c 5000000 /dev/urandom > /tmp/sent; cat /tmp/sent >&3 & head -c 5000000 <&3 > /tmp/received; cmp /tmp/sent /tmp/received && echo same; exec 3>&-; \
         for n in $(seq 50); do (tunnel; echo $n >&3; IFS= read -r back <&3; [ $back = $n ] && echo ok) & done | grep -c ok; wait",
        address = echo.address()
    );
    let rule = format!("tcp:{}", echo.address());
    let output = run(&daemon, &[&rule], &script);
    assert_eq!(text(&output.stdout), "same\n50\n", "{output:?}");
}

#[test]
fn proxy_ends_with_its_sandbox() {
    let daemon = Daemon::start();
    let echo = EchoServer::start();
    let mark = "mark-proxy-7f3a";
    let address = echo.address();
    let spawn = |script: &str| {
        let id = daemon.spawn(&[
            "--jail-path",
            "/",
            "--allow",
            &address,
            "--env",
            "SECRET_OF=not-for-the-proxy-7f3a",
            "--",
            "bash",
            "-c",
            script,
            mark,
        ]);
        wait_until("the agent has started", || {
            daemon.stdout(&id).starts_with(b"up")
        });
        id
    };
    // The environment of the proxy can be read by root only.
    let proxies = |agent: i64| processes_with(&format!("\0serve\0{agent}\0"));
    let pid = |id: &str| daemon.agent(id)["pid"].as_i64().unwrap();
    // A signal to the agent does not reach the proxy.
    let polite = format!(
        "trap 'curl -sS -o /dev/null -w \"%{{http_code}}\" http://{address}/; exit 3' TERM; echo up; while :; do sleep 0.02; done"
    );
    let id = spawn(&polite);
    let agent = pid(&id);
    let [proxy] = proxies(agent)[..] else {
        panic!("not exactly one proxy")
    };
    let environment = std::fs::read(format!("/proc/{proxy}/environ")).unwrap_or_default();
    assert!(
        !text(&environment).contains("not-for-the-proxy"),
        "the proxy must not have the agent's environment"
    );
    let killed = daemon.connect().call("kill-agent", json!({"id": id}));
    assert_eq!(killed["result"]["outcome"], "terminated", "{killed}");
    assert_eq!(daemon.stdout(&id), b"up\n200");
    assert_eq!(
        daemon.agent(&id)["exit"],
        json!({"code": 3, "reason": "killed-by-user"})
    );
    assert_eq!(proxies(agent), Vec::<i32>::new());
    // The proxy also ends with a killed agent or shim.
    let id = spawn("trap '' TERM; echo up; sleep 1000; :");
    let agent = pid(&id);
    let killed = daemon
        .connect()
        .call("kill-agent", json!({"id": id, "grace_ms": 0}));
    assert_eq!(killed["result"]["outcome"], "killed", "{killed}");
    assert_eq!(proxies(agent), Vec::<i32>::new());
    let id = spawn("echo up; sleep 1000; :");
    let agent = pid(&id);
    assert_eq!(proxies(agent).len(), 1);
    colibri_tests::kill_shims(&daemon.state());
    wait_until("agent and proxy end with the shim", || {
        proxies(agent).is_empty() && processes_with(mark).is_empty()
    });
}

#[test]
fn each_run_of_an_agent_gets_a_proxy() {
    let daemon = Daemon::start();
    let echo = EchoServer::start();
    let script = format!(
        "curl -sS -o /dev/null -w '%{{http_code}}\\n' http://{}/; exit 1",
        echo.address()
    );
    let id = daemon.spawn(&[
        "--jail-path",
        "/",
        "--allow",
        &echo.address(),
        "--restart",
        "on-failure",
        "--restart-delay",
        "1ms",
        "--restart-limit",
        "2",
        "--",
        "bash",
        "-c",
        &script,
    ]);
    wait_until("the agent has used all restarts", || {
        daemon.agent(&id)["exited_at"].is_string()
    });
    assert_eq!(daemon.stdout(&id), b"200\n200\n200\n");
}

#[test]
fn missing_proxy_program_fails_the_spawn() {
    let mut daemon = Daemon::prepare();
    let mut command = daemon.command("colibri-daemon");
    command.env("COLIBRI_PROXY", "/nonexistent/colibri-proxy");
    daemon.launch_command(command);
    let output = run(&daemon, &["127.0.0.1:1"], "true");
    assert_eq!(output.status.code(), Some(125), "{output:?}");
    assert!(
        text(&output.stderr).contains("/nonexistent/colibri-proxy"),
        "{output:?}"
    );
    let conflict = daemon.cli(&[
        "run",
        "--jail-path",
        "/",
        "--jail-ip4",
        "inherit",
        "--allow",
        "a:1",
        "--",
        "true",
    ]);
    assert!(
        text(&conflict.stderr).contains("conflicts with --jail-ip4 inherit"),
        "{conflict:?}"
    );
    let without_jail = daemon.cli(&["run", "--allow", "a:1", "--", "true"]);
    assert!(
        text(&without_jail.stderr).contains("--allow needs a jail; add --jail-path"),
        "{without_jail:?}"
    );
}

/// Waits for a notification with this method, and returns its parameters.
fn next_event(wire: &mut Wire, method: &str) -> Value {
    loop {
        let event = wire.next_line().unwrap();
        if event["method"] == method {
            return event["params"].clone();
        }
    }
}

#[test]
fn refusals_become_events_and_are_stored() {
    let mut daemon = Daemon::start();
    let echo = EchoServer::start();
    let mut wire = daemon.connect();
    wire.call("subscribe", json!({"stream": "none", "lifecycle": true}));
    let mut plain = daemon.connect();
    plain.call("subscribe", json!({"stream": "none"}));
    // Names that a terminal must not get: the proxy refuses or replaces them.
    let script = "request() { exec 3<>/dev/tcp/127.0.0.1/3128; printf \"CONNECT $1 HTTP/1.1\\r\\n\\r\\n\" >&3; head -1 <&3; exec 3>&-; }; \
        request other.example:443; request $'a\\u200b\\U000e0041.example:443'; request $'b\\e[2J.example:443'; request other.example:22; \
        ls /proc/self/fd/ | wc -l; read line; exit 3";
    let id = daemon.spawn(&[
        "--jail-path",
        "/",
        "--allow",
        &echo.address(),
        "--",
        "bash",
        "-c",
        script,
    ]);
    let first = next_event(&mut wire, "agent-network");
    assert_eq!(first["id"], id, "{first}");
    assert_eq!(
        (
            &first["action"],
            &first["host"],
            &first["port"],
            &first["reason"]
        ),
        (
            &json!("refused"),
            &json!("other.example"),
            &json!(443),
            &json!("it is not in the allow list")
        )
    );
    assert!(
        first["at"]
            .as_str()
            .unwrap()
            .parse::<jiff::Timestamp>()
            .is_ok(),
        "{first}"
    );
    let second = next_event(&mut wire, "agent-network");
    assert_eq!(
        second["port"], 22,
        "names that are not hosts are malformed requests: {second}"
    );
    wait_until("the agent waits", || {
        text(&daemon.stdout(&id)).ends_with("4\n")
    });
    // Standard streams and the listed directory: no descriptor of the proxy.
    let agent = daemon.agent(&id);
    assert_eq!(agent["network"]["refused"], 2, "{agent}");
    assert_eq!(agent["network"]["last"]["port"], 22, "{agent}");
    let page = daemon.cli_ok(&["status", &id]);
    assert!(page.contains("2 refused, last at "), "{page}");
    assert!(page.contains("refused other.example:22"), "{page}");

    // A daemon that adopts the agent knows the number, and gets further events.
    daemon.kill();
    daemon.launch();
    wait_until("the agent is adopted", || {
        daemon.agent(&id)["network"]["refused"] == 2
    });
    daemon
        .connect()
        .call("send-input", json!({"id": id, "data": "go\n"}));
    assert_eq!(daemon.wait(&id), Some(3));
    let stored = std::fs::read_to_string(daemon.agent_dir(&id).join("network.jsonl")).unwrap();
    let stored: Vec<Value> = stored
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    let expected = ["at", "action", "host", "port", "reason"];
    assert!(
        expected
            .iter()
            .all(|field| stored[0][field] == first[field]),
        "{stored:?}"
    );
    assert_eq!(stored.len(), 2);
    daemon.kill();
    daemon.launch();
    assert_eq!(daemon.agent(&id)["network"]["refused"], 2);
    // A subscription without lifecycle gets no such event.
    while let Some(event) = plain.next_line() {
        assert_ne!(event["method"], "agent-network");
    }
}

#[test]
fn refusals_of_each_run_are_shown_by_events() {
    let daemon = Daemon::start();
    let mut events = daemon
        .command("colibri")
        .args(["--no-autostart", "events", "--json"])
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(events.stdout.take().unwrap()).lines();
    let id = daemon.spawn(&[
        "--jail-path",
        "/",
        "--allow",
        "a.example:443",
        "--restart",
        "on-failure",
        "--restart-delay",
        "1ms",
        "--restart-limit",
        "1",
        "--",
        "bash",
        "-c",
        "curl -sS https://b.example/; exit 1",
    ]);
    let mut refused = 0;
    loop {
        let line: Value = serde_json::from_str(&lines.next().unwrap().unwrap()).unwrap();
        if line["event"] == "network" {
            assert_eq!(
                (&line["id"], &line["host"], &line["port"]),
                (&json!(id), &json!("b.example"), &json!(443))
            );
            refused += 1;
        }
        if line["event"] == "exit" {
            break;
        }
    }
    assert_eq!(refused, 2);
    events.kill().unwrap();
    events.wait().unwrap();
}

#[test]
fn flood_of_refusals_is_counted_and_bounded() {
    let daemon = Daemon::start();
    let id = daemon.spawn(&[
        "--jail-path", "/", "--allow", "a.example:443", "--", "bash", "-c",
        "for n in $(seq 700); do exec 3<>/dev/tcp/127.0.0.1/3128; printf 'CONNECT b.example:%d HTTP/1.1\\r\\n\\r\\n' $n >&3; head -1 <&3 >/dev/null; exec 3>&-; done; sleep 2",
    ]);
    assert_eq!(daemon.wait(&id), Some(0));
    let stored = std::fs::read_to_string(daemon.agent_dir(&id).join("network.jsonl")).unwrap();
    let count = stored.lines().count();
    assert!((200..500).contains(&count), "{count}");
    let refused = daemon.agent(&id)["network"]["refused"].as_u64().unwrap();
    assert!(
        (500..=700).contains(&refused),
        "{refused} of 700, {count} lines"
    );
}

#[test]
fn proxy_of_root_is_another_user() {
    if !colibri_tests::is_root_or_skipped("the proxy of another user has its uid") {
        return;
    }
    let daemon = Daemon::start();
    let id = daemon.spawn(&[
        "--jail-path",
        "/",
        "--allow",
        "a.example:443",
        "--",
        "sh",
        "-c",
        "echo up; exec sleep 1000",
    ]);
    wait_until("the agent has started", || daemon.stdout(&id) == b"up\n");
    let agent = daemon.agent(&id)["pid"].as_i64().unwrap();
    let serving = processes_with(&format!("\0serve\0{agent}\0"));
    let resolving = processes_with(&format!("\0resolve\0{}\0", serving[0]));
    for pid in [serving[0], resolving[0]] {
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
        for line in [
            "Uid:\t65534\t65534\t65534\t65534",
            "Gid:\t65534\t65534\t65534\t65534",
            "Groups:\t \n",
            "NoNewPrivs:\t1",
            "CapEff:\t0000000000000000",
        ] {
            assert!(status.contains(line), "{line}: {status}");
        }
    }
}
