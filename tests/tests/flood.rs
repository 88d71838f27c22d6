//! Agents of every runtime that flood their output delay neither the daemon nor each other.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::time::Instant;

use colibri_tests::{Daemon, SOON, eventually};
use serde_json::json;

const LINES: &str = "exec yes";
const EVENTS: &str =
    r#"exec yes '{"type":"tool_execution_start","toolCallId":"1","toolName":"bash","args":{}}'"#;
const ONE_LINE: &str = "yes | tr -d '\\n'";

/// Scripts of ten hostile agents, and their runtimes.
const HOSTILE: &[(&str, &str)] = &[
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
    let ids: Vec<String> = HOSTILE
        .iter()
        .map(|(runtime, script)| {
            let params = json!({"program": "/bin/sh", "args": ["-c", script], "runtime": runtime});
            let answer = wire.call("spawn-agent", params);
            answer["result"]["id"].as_str().unwrap().to_owned()
        })
        .collect();
    for id in &ids {
        eventually("it floods", || {
            let written = daemon.agent(id)["stdout_bytes"].as_u64()?;
            (written > 1 << 20).then_some(())
        });
    }
    // The timeouts of the CLI are shorter, so it would report a timeout as a failure.
    for id in &ids {
        let asked = Instant::now();
        assert!(daemon.ok(&["ps"]).contains(id));
        daemon.ok(&["kill", "--grace", "1s", id]);
        assert!(asked.elapsed() < SOON, "{:?}", asked.elapsed());
        eventually("its end is published", || {
            daemon.agent(id)["exit"].is_object().then_some(())
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
    eventually("it works", || {
        (daemon.agent(&id)["state"] == "working").then_some(())
    });
    // The daemon may see part of the output before it answers this request.
    daemon.ok(&["send", &id, "go"]);
    daemon.kill();
    let journal = daemon.agent_dir(&id).join("stdout");
    let written = || {
        let files = std::fs::read_dir(&journal).into_iter().flatten().flatten();
        let lengths = files.filter_map(|file| Some(file.metadata().ok()?.len()));
        lengths.sum::<u64>()
    };
    eventually("it has written", || (written() > 100 << 20).then_some(()));
    daemon.launch();
    let agent = eventually("the last event is known", || {
        let agent = daemon.agent(&id);
        (agent["view"]["current_tool"] == "bash").then_some(agent)
    });
    let skipped = agent["view"]["skipped_bytes"].as_u64().unwrap_or(0);
    assert!(skipped > 32 << 20, "{agent}");
    assert_eq!(agent["view"]["malformed_lines"], 0, "{agent}");
    // Each daemon that skips logs it once.
    let logged = daemon.log().matches("skipping events").count();
    assert!((1..=2).contains(&logged), "{}", daemon.log());
    daemon.ok(&["send", &id, "end"]);
    assert_eq!(daemon.cli(&["wait", &id]).status.code(), Some(3));
}
