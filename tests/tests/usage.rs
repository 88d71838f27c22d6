//! Resource usage that the daemon measures, and lifecycle events of all agents.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use colibri_tests::{Daemon, wait_until};
use serde_json::{Value, json};

fn usage(daemon: &Daemon, params: Value) -> Value {
    daemon.connect().call("get-usage", params)["result"].clone()
}

#[test]
fn usage_sums_all_processes_of_an_agent() {
    let daemon = Daemon::start();
    // A child uses CPU time and ends, another process holds memory, and all run in a sandbox.
    let script = "sh -c 'i=0; while [ $i -lt 300000 ]; do i=$((i+1)); done'
        x=$(head -c 30000000 /dev/zero | tr '\\0' x); echo done; read line; echo ${#x} >&2; exit 0";
    let heavy = daemon.spawn(&["--jail-path", "/", "--", "sh", "-c", script]);
    let light = daemon.spawn(&["--", "sleep", "1000"]);
    wait_until("the agent has used CPU time and memory", || {
        daemon.stdout(&heavy) == b"done\n"
    });
    let measured = usage(&daemon, json!({}));
    let usage_of = |id: &str| {
        let agents = measured["agents"].as_array().unwrap();
        agents.iter().find(|agent| agent["id"] == id).cloned()
    };
    let (heavy_usage, light_usage) = (usage_of(&heavy).unwrap(), usage_of(&light).unwrap());
    let number = |usage: &Value, field: &str| usage[field].as_u64().unwrap();
    // The kernel adds the CPU time of the ended child to its parent, which has waited for it.
    assert!(number(&heavy_usage, "cpu_ms") >= 20, "{heavy_usage}");
    assert!(
        number(&heavy_usage, "memory_bytes") >= 30_000_000,
        "{heavy_usage}"
    );
    // The outer bwrap, the inner bwrap, and the shell.
    assert_eq!(number(&heavy_usage, "processes"), 3, "{heavy_usage}");
    assert_eq!(number(&heavy_usage, "stdout_bytes"), 5, "{heavy_usage}");
    assert_eq!(number(&light_usage, "processes"), 1, "{light_usage}");
    assert!(
        number(&light_usage, "memory_bytes") < 10_000_000,
        "{light_usage}"
    );

    let later = usage(&daemon, json!({"ids": [&light, "k3x9abcdef", "no id"]}));
    assert_eq!(later["agents"].as_array().unwrap().len(), 1, "{later}");
    assert_eq!(later["agents"][0]["id"], light.as_str());
    assert!(number(&later, "at_ms") >= number(&measured, "at_ms"));
    daemon.cli_ok(&["kill", &light]);
    daemon.cli_ok(&["send", &heavy, "end"]);
    daemon.cli_ok(&["wait", &heavy]);
    assert_eq!(
        usage(&daemon, json!({}))["agents"],
        json!([]),
        "all have ended"
    );
}

#[test]
fn cpu_time_includes_earlier_runs() {
    let daemon = Daemon::start();
    let script = "[ -e ran ] && exec sleep 1000; : >ran; i=0
        while [ $i -lt 300000 ]; do i=$((i+1)); done; exit 1";
    let directory = daemon.directory().display().to_string();
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
    wait_until("the second run has started", || {
        daemon.agent(&id)["run"] == 2
    });
    let measured = usage(&daemon, json!({"ids": [id]}));
    assert!(
        measured["agents"][0]["cpu_ms"].as_u64() >= Some(20),
        "{measured}"
    );
}

#[test]
fn subscriber_receives_tools_errors_and_removals() {
    let daemon = Daemon::start();
    let mut wire = daemon.connect();
    wire.call("subscribe", json!({"stream": "none"}));
    let script = r#"print() { read line; printf '%s\n' "$1"; }
        print '{"type":"agent_start"}'
        print '{"type":"tool_execution_start","toolName":"bash"}'
        print '{"type":"tool_execution_start","toolName":"edit"}'
        print '{"type":"message_end","message":{"role":"assistant","stopReason":"error","errorMessage":"overloaded"}}'
        read line"#;
    let id = daemon.spawn(&["--runtime", "pi", "--", "sh", "-c", script]);
    let mut skipped = Vec::new();
    let mut expect = |method: &str, field: &str, value: Value| {
        loop {
            let line = wire.next_line().expect("the connection is open");
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
        daemon.cli_ok(&["send", &id, "continue"]);
        expect("agent-state", field, json!(value));
    }
    daemon.cli_ok(&["send", &id, "end"]);
    expect("agent-exit", "id", json!(id));
    daemon.cli_ok(&["rm", &id]);
    expect("agent-removed", "id", json!(id));
}
