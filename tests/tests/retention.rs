//! Retention and rotation: ended agents are removed by age and count, log files are rotated by size.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::fs;

use colibri_tests::{Daemon, wait_until};
use serde_json::{Value, json};

#[test]
fn ended_agents_are_removed_by_count_and_running_ones_never() {
    let mut daemon = Daemon::prepare();
    daemon.launch_with_settings("retain_ended_count = 2\n");
    let running = daemon.spawn(&["--", "sleep", "1000"]);
    let mut ended: Vec<String> = Vec::new();
    for _ in 0..5 {
        let id = daemon.spawn(&["--", "true"]);
        daemon.wait(&id);
        ended.push(id);
    }
    let retained = [&ended[3], &ended[4], &running];
    wait_until("the oldest are removed", || {
        let agents = daemon.agents();
        let is_listed = |id: &&String| agents.iter().any(|agent| agent["id"] == json!(id));
        agents.len() == 3 && retained.iter().all(is_listed)
    });
    let directory = daemon.agent_dir(&ended[0]);
    assert!(!directory.exists());
    // A reload applies the new setting immediately.
    fs::write(daemon.path("colibri.toml"), "retain_ended_for = \"0s\"\n").unwrap();
    daemon.cli_ok(&["config", "reload"]);
    wait_until("all ended agents are removed", || {
        let agents = daemon.agents();
        agents.len() == 1 && agents[0]["id"] == json!(running)
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
    let mut files: Vec<(String, u64)> = fs::read_dir(daemon.state())
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
    files.sort();
    let names: Vec<&str> = files.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(names, ["audit.jsonl", "audit.jsonl.1", "audit.jsonl.2"]);
    assert!(files.iter().all(|(_, size)| *size <= 4096), "{files:?}");
    let text = fs::read_to_string(daemon.state().join("audit.jsonl.1")).unwrap();
    for line in text.lines() {
        serde_json::from_str::<Value>(line).unwrap();
    }
}

#[test]
fn restart_of_ended_agent_spawns_a_new_one() {
    let daemon = Daemon::start();
    let id = daemon.spawn(&["--name", "again", "--", "sh", "-c", "exit 3"]);
    daemon.wait(&id);
    let mut wire = daemon.connect();
    let answer = wire.call("restart-agent", json!({"id": id}));
    let new_id = answer["result"]["id"].as_str().unwrap().to_owned();
    assert_ne!(new_id, id);
    assert_eq!(daemon.wait(&new_id), Some(3));
    assert_eq!(daemon.agent(&new_id)["name"], "again");
    // A running agent keeps its id, even without a restart policy.
    let running = daemon.spawn(&["--", "sleep", "1000"]);
    let answer = wire.call("restart-agent", json!({"id": running, "grace_ms": 1000}));
    assert_eq!(answer["result"]["id"], json!(running), "{answer}");
    wait_until("the next run has started", || {
        let agent = daemon.agent(&running);
        agent["run"] == 2 && agent["pid"].is_i64()
    });
    // The daemon does not store values of the environment, so it cannot restart this agent.
    let secret = daemon.spawn(&["--env", "TOKEN=s3cret", "--", "true"]);
    daemon.wait(&secret);
    let answer = wire.call("restart-agent", json!({"id": secret}));
    let error = &answer["error"];
    assert_eq!(error["data"]["kind"], "environment-not-kept", "{answer}");
    assert!(
        error["message"].as_str().unwrap().contains("TOKEN"),
        "{answer}"
    );
}
