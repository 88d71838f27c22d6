//! The socket: malformed input is answered by a clear error, and the daemon keeps serving.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::fmt::Write as _;
use std::io::{BufRead, BufReader, Write as _};
use std::os::unix::net::UnixStream;

use colibri_tests::{Daemon, SOON, Wire, text, wait_until};
use serde_json::{Value, json};

/// Returns the kind of the error in an answer.
fn error_kind(answer: &Value) -> &str {
    answer["error"]["data"]["kind"]
        .as_str()
        .unwrap_or("no error")
}

#[test]
fn bad_frame_is_answered_and_the_connection_survives() {
    let daemon = Daemon::start();
    let mut wire = daemon.connect();
    let long = vec![b'x'; (1 << 20) + 1];
    let deep = "[".repeat(100_000);
    for (frame, expected) in [
        (&b"nonsense"[..], "parse-error"),
        (b"\xff\xfe", "parse-error"),
        (deep.as_bytes(), "parse-error"),
        (&long, "frame-too-long"),
        (b"[]", "invalid-request"),
        (br#"{"jsonrpc":"2.0","id":1,"method":"make-coffee"}"#, "unknown-method"),
        (br#"{"jsonrpc":"2.0","id":1,"method":"get-agent"}"#, "invalid-params"),
        (br#"{"jsonrpc":"2.0","id":1,"method":"spawn-agent","params":{"program":"true","jail":{"pth":"/"}}}"#, "invalid-jail"),
    ] {
        wire.send(frame);
        wire.send(b"\n");
        let answer = wire.next_line().unwrap();
        assert_eq!(error_kind(&answer), expected, "{answer}");
    }
    assert_eq!(wire.call("version", json!({}))["result"]["protocol"], 1);
}

#[test]
fn ids_of_invalid_requests_are_answered_verbatim() {
    let daemon = Daemon::start();
    let mut stream = UnixStream::connect(daemon.socket()).unwrap();
    stream.set_read_timeout(Some(SOON)).unwrap();
    let mut lines = BufReader::new(stream.try_clone().unwrap()).lines();
    for id in [
        "7",
        "123456789012345678901234567890",
        "1.50",
        r#""a\u00e4""#,
        "null",
    ] {
        for members in [
            r#""jsonrpc":"2.0","method":"version""#,
            r#""jsonrpc":"2.0","method":"make-coffee""#,
            r#""jsonrpc":"2.0","method":"get-agent","params":{}"#,
            r#""jsonrpc":"2.0","method":"version","params":[]"#,
            r#""jsonrpc":"1.0","method":"version""#,
            r#""jsonrpc":"2.0""#,
        ] {
            writeln!(stream, "{{\"id\":{id},{members}}}").unwrap();
            let answer = lines.next().unwrap().unwrap();
            assert!(
                answer.contains(&format!("\"id\":{id},")),
                "{id} {members}: {answer}"
            );
        }
    }
}

#[test]
fn unterminated_frame_closes_only_that_connection() {
    let daemon = Daemon::start();
    let mut stream = UnixStream::connect(daemon.socket()).unwrap();
    stream.set_read_timeout(Some(SOON)).unwrap();
    let sent = (0..400).try_for_each(|_| stream.write_all(&[b'x'; 65_536]));
    assert!(sent.is_err(), "the daemon has read everything");
    let mut lines = BufReader::new(stream).lines();
    let answer: Value = serde_json::from_str(&lines.next().unwrap().unwrap()).unwrap();
    assert_eq!(error_kind(&answer), "frame-too-long");
    // The kernel may report a reset, because the daemon has closed the connection with unread data.
    assert!(!matches!(lines.next(), Some(Ok(_))));
    daemon.cli_ok(&["ps"]);
}

#[test]
fn refused_spawn_names_the_cause_and_a_hint() {
    let daemon = Daemon::start();
    let mut wire = daemon.connect();
    let mut shown = String::new();
    for params in [
        json!({"program": ""}),
        json!({"program": "a\u{0}b"}),
        json!({"program": "no-such-program-7f3a", "env": {"PATH": "/usr/bin:/bin"}}),
        json!({"program": "/no/such/program"}),
        json!({"program": "/etc/passwd"}),
        json!({"program": "true", "cwd": "/no/such/dir"}),
        json!({"program": "true", "cwd": "relative"}),
        json!({"program": "true", "env": {"A=B": "x"}}),
        json!({"program": "true", "env": {"A": "x\u{0}"}}),
        json!({"program": "true", "jail": {"path": "/no/such/root"}}),
        json!({"program": "true", "jail": {"path": "/etc/passwd"}}),
        json!({"program": "true", "jail": {"path": "/usr"}}),
        json!({"program": "true", "jail": {"path": "srv"}}),
        json!({"program": "true", "jail": {"name": "web"}}),
        json!({"program": "true", "jail": {"name": "-web"}}),
        json!({"program": "true", "jail": {"path": "/", "ip4": "192.0.2.7"}}),
        json!({"program": "true", "jail": {"path": "/", "ip4": "none"}}),
        json!({"program": "true", "jail": {"path": "/", "user": "no-such-user"}}),
        json!({"program": "true", "jail": {"user": "root"}}),
        json!({"program": "/no/such/program", "jail": {"path": "/"}}),
        json!({"program": "true", "cwd": "/no/such/dir", "jail": {"path": "/"}}),
        json!({"program": "true", "env": {"LD_PRELOAD": "/tmp/evil.so"}, "jail": {"path": "/"}}),
    ] {
        let answer = wire.call("spawn-agent", params.clone());
        let message = answer["error"]["message"].as_str().unwrap_or("ACCEPTED");
        writeln!(shown, "{params}\n    {}: {message}", error_kind(&answer)).unwrap();
    }
    insta::assert_snapshot!(shown);
    assert_eq!(
        wire.call("list-agents", json!({}))["result"]["agents"],
        json!([]),
        "nothing is left of a refused spawn"
    );
    assert_eq!(daemon.agent_count(), 0);
}

#[test]
fn subscriber_receives_every_byte_state_and_the_exit() {
    let daemon = Daemon::start();
    let id = daemon.spawn(&[
        "--",
        "sh",
        "-c",
        "read x; i=0; while [ $i -lt 2000 ]; do i=$((i+1)); echo $i; done; exit 3",
    ]);
    let mut subscribers: Vec<Wire> = (0..5).map(|_| daemon.connect()).collect();
    for wire in &mut subscribers {
        wire.call("subscribe", json!({"id": id, "from_offset": 0}));
    }
    let mut lifecycle = daemon.connect();
    lifecycle.call("subscribe", json!({"stream": "none"}));
    daemon
        .connect()
        .call("send-input", json!({"id": id, "data": "go\n"}));
    let expected: String = (1..=2000).map(|i| format!("{i}\n")).collect();
    for wire in &mut subscribers {
        let mut received = String::new();
        loop {
            let event = wire.next_line().unwrap();
            let params = &event["params"];
            match event["method"].as_str().unwrap() {
                "agent-output" => {
                    assert_eq!(params["offset"], received.len(), "no gap and no repeat");
                    received.push_str(params["data"].as_str().unwrap());
                }
                "agent-exit" => {
                    assert_eq!(
                        (&params["exit"], &params["state"]),
                        (&json!({"code": 3, "reason": "exited"}), &json!("error"))
                    );
                    break;
                }
                _ => {}
            }
        }
        assert!(received == expected);
    }
    loop {
        let event = lifecycle.next_line().unwrap();
        assert_ne!(event["method"], "agent-output");
        if event["method"] == "agent-exit" {
            break;
        }
    }
}

#[test]
fn binary_output_round_trips() {
    let daemon = Daemon::start();
    let id = daemon.spawn(&["--", "printf", "\\377\\000\\n\\303"]);
    daemon.wait(&id);
    let read = daemon.connect().call(
        "read-journal",
        json!({"id": id, "stream": "stdout", "offset": 0, "limit": 100}),
    );
    assert_eq!(read["result"]["encoding"], "base64");
    assert_eq!(read["result"]["data"], "/wAKww==");
    assert_eq!(
        (&read["result"]["end"], &read["result"]["next_offset"]),
        (&json!(true), &json!(4))
    );
    assert_eq!(daemon.stdout(&id), [0xff, 0, b'\n', 0xc3]);
    let beyond_end = daemon.connect().call(
        "read-journal",
        json!({"id": id, "stream": "stdout", "offset": 5, "limit": 1}),
    );
    assert_eq!(error_kind(&beyond_end), "offset-beyond-end");
}

#[test]
fn input_queue_is_bounded_and_can_be_closed() {
    let daemon = Daemon::start();
    let mut wire = daemon.connect();
    let id = daemon.spawn(&["--", "sh", "-c", "sleep 1000"]);
    let data = "x".repeat(512 * 1024);
    let mut accepted = 0;
    let refused = (0..10).any(|_| {
        let answer = wire.call("send-input", json!({"id": id, "data": data}));
        accepted += answer["result"]["written"].as_u64().unwrap();
        answer["result"]["written"] == 0
    });
    assert!(
        refused && accepted > (1 << 20) && accepted < (2 << 20),
        "{accepted}"
    );
    daemon.cli_ok(&["kill", "--grace", "0s", &id]);
    assert_eq!(
        error_kind(&wire.call("send-input", json!({"id": id, "data": "x"}))),
        "agent-ended"
    );
    let id = daemon.spawn(&["--", "sh", "-c", "cat; read line; sleep 1000"]);
    wire.call(
        "send-input",
        json!({"id": id, "data": "aGk=", "encoding": "base64"}),
    );
    wire.call("close-input", json!({"id": id}));
    wait_until("cat has ended", || daemon.stdout(&id) == b"hi");
    assert_eq!(
        error_kind(&wire.call("send-input", json!({"id": id, "data": "x"}))),
        "input-closed"
    );
}

#[test]
fn explain_is_identical_with_and_without_a_daemon() {
    let daemon = Daemon::start();
    let by_client = daemon.cli_ok(&[
        "explain",
        "--json",
        "--jail-path",
        "/",
        "--jail-ip4",
        "disable",
        "--",
        "ls",
        "-l",
    ]);
    let by_client: Value = serde_json::from_str(&by_client).unwrap();
    let by_daemon = daemon.connect().call(
        "explain-spawn",
        json!({"program": "ls", "args": ["-l"], "jail": {"path": "/", "ip4": "disable"}}),
    );
    assert_eq!(by_daemon["result"], by_client);
    assert_eq!(
        (&by_client["engine"], &by_client["privilege"]),
        (&json!("bubblewrap"), &json!("none"))
    );
    let freebsd = daemon
        .command("colibri")
        .env("COLIBRI_JAIL_ENGINE", "freebsd")
        .args([
            "explain",
            "--jail-name",
            "web",
            "--jail-user",
            "agent",
            "--",
            "pi",
            "--mode",
            "json",
        ])
        .output()
        .unwrap();
    let shown = text(&freebsd.stdout);
    assert_eq!(
        shown,
        "/usr/bin/mdo -i -- /usr/sbin/jexec -U agent web pi --mode json\n"
    );
}

#[test]
fn long_lists_are_paginated() {
    let daemon = Daemon::start();
    let mut ids: Vec<String> = (0..5).map(|_| daemon.spawn(&["--", "true"])).collect();
    ids.sort();
    assert_eq!(listed_ids(&mut daemon.connect(), false), ids);
}

#[test]
fn running_filter_survives_a_daemon_restart() {
    let mut daemon = Daemon::start();
    let mut ended: Vec<String> = (0..3).map(|_| daemon.spawn(&["--", "true"])).collect();
    let mut running: Vec<String> = (0..5).map(|_| daemon.spawn(&["--", "cat"])).collect();
    running.sort();
    for id in &ended {
        assert_eq!(daemon.wait(id), Some(0));
    }
    assert_eq!(listed_ids(&mut daemon.connect(), true), running);
    ended.push(running.remove(2));
    daemon.cli_ok(&["kill", &ended[3]]);
    assert_eq!(listed_ids(&mut daemon.connect(), true), running);
    daemon.kill();
    daemon.launch();
    assert_eq!(listed_ids(&mut daemon.connect(), true), running);
    running.push(daemon.spawn(&["--", "cat"]));
    running.sort();
    assert_eq!(listed_ids(&mut daemon.connect(), true), running);
    daemon.cli_ok(&["rm", &ended[0]]);
    let mut all = [&ended[1..], &running].concat();
    all.sort();
    assert_eq!(listed_ids(&mut daemon.connect(), false), all);
}

/// Returns the ids of all agents, or only of running ones, from pages of two agents.
fn listed_ids(wire: &mut Wire, running: bool) -> Vec<String> {
    let mut ids = Vec::new();
    let mut after = Value::Null;
    loop {
        let params = json!({"limit": 2, "after": after, "running": running});
        let page = wire.call("list-agents", params)["result"].clone();
        assert!(page["agents"].as_array().unwrap().len() <= 2, "{page}");
        for agent in page["agents"].as_array().unwrap() {
            ids.push(agent["id"].as_str().unwrap().to_owned());
        }
        after = page["next"].clone();
        if after.is_null() {
            return ids;
        }
    }
}
