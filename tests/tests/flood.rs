//! Agents of every runtime that flood their output delay neither the daemon nor each other.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::time::Instant;

use colibri_tests::{Daemon, SOON, eventually, journal_bytes, wait_until};
use serde_json::json;

const LINES: &str = "exec yes";
const EVENTS: &str =
    r#"exec yes '{"type":"tool_execution_start","toolCallId":"1","toolName":"bash","args":{}}'"#;
const ONE_LINE: &str = "yes | tr -d '\\n'";

/// Runtimes and scripts of ten agents.
const FLOODS: &[(&str, &str)] = &[
    ("pi", LINES),
    ("pi", EVENTS),
    ("pi", ONE_LINE),
    ("zot", LINES),
    ("zot", EVENTS),
    ("zot", ONE_LINE),
    ("generic", LINES),
    ("generic", ONE_LINE),
    ("pi", EVENTS),
    ("zot", EVENTS),
];

#[test]
fn ps_and_kill_answer_while_ten_agents_flood() {
    let mut daemon = Daemon::prepare();
    // Bounds the disk usage of the test.
    daemon.launch_with_settings("retain_bytes = 16777216\n");
    let mut wire = daemon.connect();
    let ids: Vec<String> = FLOODS
        .iter()
        .map(|(runtime, script)| {
            let params = json!({"program": "/bin/sh", "args": ["-c", script], "runtime": runtime});
            let answer = wire.call("spawn-agent", params);
            answer["result"]["id"].as_str().unwrap().to_owned()
        })
        .collect();
    for id in &ids {
        eventually("the agent has written 1 MiB", || {
            let written = daemon.agent(id)["stdout_bytes"].as_u64()?;
            (written > 1 << 20).then_some(())
        });
    }
    // The timeouts of the commands are shorter than SOON, so a delay makes them fail.
    for id in &ids {
        let started = Instant::now();
        assert!(daemon.cli_ok(&["ps"]).contains(id));
        daemon.cli_ok(&["kill", "--grace", "1s", id]);
        assert!(started.elapsed() < SOON, "{:?}", started.elapsed());
        wait_until("the end of the agent is published", || {
            daemon.agent(id)["exit"].is_object()
        });
    }
}

#[test]
fn backlog_that_is_too_long_is_skipped_and_counted() {
    let mut daemon = Daemon::start();
    let start = r#"{"type":"agent_start"}"#;
    let filler = format!(r#"{{"type":"x","filler":"{}"}}"#, "f".repeat(1000));
    let end = r#"{"type":"tool_execution_start","toolCallId":"1","toolName":"bash","args":{}}"#;
    // The agent waits until the daemon has ended, writes 100 MiB, and keeps running.
    let script = format!(
        "echo '{start}'; read x; yes '{filler}' | head -n 120000; echo '{end}'; read y; exit 3"
    );
    let id = daemon.spawn(&["--runtime", "pi", "--", "sh", "-c", &script]);
    wait_until("the agent is working", || {
        daemon.agent(&id)["state"] == "working"
    });
    // The daemon may process a part of the output before it is killed.
    daemon.cli_ok(&["send", &id, "go"]);
    daemon.kill();
    let journal = daemon.agent_dir(&id).join("stdout");
    wait_until("the agent has written 100 MiB", || {
        journal_bytes(&journal) > 100 << 20
    });
    daemon.launch();
    let agent = eventually("the last event is known", || {
        let agent = daemon.agent(&id);
        (agent["view"]["current_tool"] == "bash").then_some(agent)
    });
    let skipped = agent["view"]["skipped_bytes"].as_u64().unwrap_or(0);
    assert!(skipped > 32 << 20, "{agent}");
    assert_eq!(agent["view"]["malformed_lines"], 0, "{agent}");
    // Each of the two daemons that skips events logs it once.
    let logged = daemon.log().matches("skipping events").count();
    assert!((1..=2).contains(&logged), "{}", daemon.log());
    daemon.cli_ok(&["send", &id, "end"]);
    assert_eq!(daemon.wait(&id), Some(3));
}
