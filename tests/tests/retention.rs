//! Bounds on disk usage: ended agents by age and count, log files by size.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::fs;

use colibri_tests::{Daemon, eventually};
use serde_json::{Value, json};

#[test]
fn ended_agents_are_removed_by_count_and_running_ones_never() {
    let mut daemon = Daemon::prepare();
    daemon.launch_with_settings("retain_ended_count = 2\n");
    let runs = daemon.spawn(&["--", "sleep", "1000"]);
    let mut ended: Vec<String> = Vec::new();
    for _ in 0..5 {
        let id = daemon.spawn(&["--", "true"]);
        daemon.cli(&["wait", &id]);
        ended.push(id);
    }
    let left = [&ended[3], &ended[4], &runs];
    eventually("the oldest are removed", || {
        let agents = daemon.agents();
        let known = |id: &&String| agents.iter().any(|agent| agent["id"] == json!(id));
        (agents.len() == 3 && left.iter().all(known)).then_some(())
    });
    let directory = daemon.agent_dir(&ended[0]);
    assert!(!directory.exists());
    // A reload applies immediately.
    fs::write(daemon.path("colibri.toml"), "retain_ended_for = \"0s\"\n").unwrap();
    daemon.ok(&["config", "reload"]);
    eventually("all that have ended are removed", || {
        let agents = daemon.agents();
        (agents.len() == 1 && agents[0]["id"] == json!(runs)).then_some(())
    });
}

#[test]
fn audit_file_is_rotated_by_size() {
    let mut daemon = Daemon::prepare();
    daemon.launch_with_settings("log_max_bytes = 4096\nlog_keep = 2\n");
    let mut wire = daemon.connect();
    for _ in 0..200 {
        wire.call("kill-agent", json!({"id": "absent"}));
    }
    let mut sizes: Vec<(String, u64)> = fs::read_dir(daemon.state())
        .unwrap()
        .flatten()
        .filter(|file| {
            file.file_name()
                .to_str()
                .unwrap()
                .starts_with("audit.jsonl")
        })
        .map(|file| {
            let name = file.file_name().into_string().unwrap();
            (name, file.metadata().unwrap().len())
        })
        .collect();
    sizes.sort();
    let names: Vec<&str> = sizes.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(names, ["audit.jsonl", "audit.jsonl.1", "audit.jsonl.2"]);
    assert!(sizes.iter().all(|(_, size)| *size <= 4096), "{sizes:?}");
    let text = fs::read_to_string(daemon.state().join("audit.jsonl.1")).unwrap();
    for line in text.lines() {
        serde_json::from_str::<Value>(line).unwrap();
    }
}

#[test]
fn ended_agent_is_spawned_anew_by_restart() {
    let daemon = Daemon::start();
    let id = daemon.spawn(&["--name", "again", "--", "sh", "-c", "exit 3"]);
    daemon.cli(&["wait", &id]);
    let mut wire = daemon.connect();
    let answer = wire.call("restart-agent", json!({"id": id}));
    let new = answer["result"]["id"].as_str().unwrap().to_owned();
    assert_ne!(new, id);
    assert_eq!(daemon.cli(&["wait", &new]).status.code(), Some(3));
    assert_eq!(daemon.agent(&new)["name"], "again");
    // A running agent keeps its id, whatever its restart policy.
    let runs = daemon.spawn(&["--", "sleep", "1000"]);
    let answer = wire.call("restart-agent", json!({"id": runs, "grace_ms": 1000}));
    assert_eq!(answer["result"]["id"], json!(runs), "{answer}");
    eventually("its next run has begun", || {
        let agent = daemon.agent(&runs);
        (agent["run"] == 2 && agent["pid"].is_i64()).then_some(())
    });
    // Values of the environment are not kept.
    let secret = daemon.spawn(&["--env", "TOKEN=s3cret", "--", "true"]);
    daemon.cli(&["wait", &secret]);
    let answer = wire.call("restart-agent", json!({"id": secret}));
    let error = &answer["error"];
    assert_eq!(error["data"]["kind"], "environment-not-kept", "{answer}");
    assert!(
        error["message"].as_str().unwrap().contains("TOKEN"),
        "{answer}"
    );
}
