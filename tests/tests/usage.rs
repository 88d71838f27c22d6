//! Resource usage as measured by the daemon, and lifecycle events of all agents.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use colibri_tests::{Daemon, eventually};
use serde_json::{Value, json};

fn usage(daemon: &Daemon, params: Value) -> Value {
    daemon.connect().call("get-usage", params)["result"].clone()
}

#[test]
fn usage_sums_all_processes_of_an_agent() {
    let daemon = Daemon::start();
    // A child uses CPU time and ends, another process holds memory, and all run in a sandbox.
    let script = "sh -c 'i=0; while [ $i -lt 300000 ]; do i=$((i+1)); done'
        x=$(head -c 30000000 /dev/zero | tr '\\0' x); echo there; read line; echo ${#x} >&2; exit 0";
    let heavy = daemon.spawn(&["--jail-path", "/", "--", "sh", "-c", script]);
    let light = daemon.spawn(&["--", "sleep", "1000"]);
    eventually("the agent has done its work", || {
        (daemon.stdout(&heavy) == b"there\n").then_some(())
    });
    let measured = usage(&daemon, json!({}));
    let usage_of = |id: &str| {
        let agents = measured["agents"].as_array().unwrap();
        agents.iter().find(|agent| agent["id"] == id).cloned()
    };
    let (burnt, idle) = (usage_of(&heavy).unwrap(), usage_of(&light).unwrap());
    let number = |usage_of: &Value, field: &str| usage_of[field].as_u64().unwrap();
    // The CPU time of the ended child is known because its parent waited for it.
    assert!(number(&burnt, "cpu_ms") >= 20, "{burnt}");
    assert!(number(&burnt, "memory_bytes") >= 30_000_000, "{burnt}");
    // The outer bwrap, the inner bwrap, and the shell.
    assert_eq!(number(&burnt, "processes"), 3, "{burnt}");
    assert_eq!(number(&burnt, "stdout_bytes"), 6, "{burnt}");
    assert_eq!(number(&idle, "processes"), 1, "{idle}");
    assert!(number(&idle, "memory_bytes") < 10_000_000, "{idle}");

    let later = usage(&daemon, json!({"ids": [&light, "k3x9abcdef", "no id"]}));
    assert_eq!(later["agents"].as_array().unwrap().len(), 1, "{later}");
    assert_eq!(later["agents"][0]["id"], light.as_str());
    assert!(number(&later, "at_ms") >= number(&measured, "at_ms"));
    daemon.ok(&["kill", &light]);
    daemon.ok(&["send", &heavy, "end"]);
    daemon.ok(&["wait", &heavy]);
    assert_eq!(usage(&daemon, json!({}))["agents"], json!([]), "all ended");
}

#[test]
fn cpu_time_includes_earlier_runs() {
    let daemon = Daemon::start();
    let script = "[ -e ran ] && exec sleep 1000; : >ran; i=0
        while [ $i -lt 300000 ]; do i=$((i+1)); done; exit 1";
    let directory = daemon.path("log").parent().unwrap().display().to_string();
    let id = daemon.spawn(&[
        "--cwd",
        &directory,
        "--restart",
        "on-failure",
        "--restart-delay",
        "1ms",
        "--",
        "sh",
        "-c",
        script,
    ]);
    eventually("the second run", || {
        (daemon.agent(&id)["run"] == 2).then_some(())
    });
    let used = usage(&daemon, json!({"ids": [id]}));
    assert!(used["agents"][0]["cpu_ms"].as_u64() >= Some(20), "{used}");
}

#[test]
fn subscriber_receives_tools_errors_and_removals() {
    let daemon = Daemon::start();
    let mut wire = daemon.connect();
    wire.call("subscribe", json!({"stream": "none"}));
    let script = r#"say() { read line; printf '%s\n' "$1"; }
        say '{"type":"agent_start"}'
        say '{"type":"tool_execution_start","toolName":"bash"}'
        say '{"type":"tool_execution_start","toolName":"edit"}'
        say '{"type":"message_end","message":{"role":"assistant","stopReason":"error","errorMessage":"overloaded"}}'
        read line"#;
    let id = daemon.spawn(&["--runtime", "pi", "--", "sh", "-c", script]);
    let mut skipped = Vec::new();
    let mut expect = |method: &str, field: &str, value: Value| {
        loop {
            let line = wire.line().expect("the connection is open");
            if line["method"] == method && line["params"][field] == value {
                return;
            }
            skipped.push(line);
            assert!(
                skipped.len() < 20,
                "no {method} {field} {value}: {skipped:?}"
            );
        }
    };
    expect("agent-state", "state", json!("starting"));
    for (field, value) in [
        ("state", "working"),
        ("current_tool", "bash"),
        ("current_tool", "edit"),
        ("last_error", "overloaded"),
    ] {
        daemon.ok(&["send", &id, "continue"]);
        expect("agent-state", field, json!(value));
    }
    daemon.ok(&["send", &id, "end"]);
    expect("agent-exit", "id", json!(id));
    daemon.ok(&["rm", &id]);
    expect("agent-removed", "id", json!(id));
}
