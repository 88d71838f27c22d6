//! The recognition of agents by their output, with recorded sessions.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use colibri_tests::{Daemon, repository};
use serde_json::Value;

fn recorded(name: &str) -> String {
    let directory = repository().join("crates/colibri-glasspane/tests/recorded");
    directory.join(name).display().to_string()
}

fn ended(daemon: &Daemon, runtime: &str, recording: &str) -> Value {
    let id = daemon.spawn(&["--runtime", runtime, "--", "cat", &recorded(recording)]);
    daemon.wait(&id);
    daemon.agent(&id)
}

#[test]
fn agent_is_recognized_by_its_first_lines() {
    let daemon = Daemon::start();
    for (recording, runtime, state) in [
        ("pi-json.jsonl", "pi", "done"),
        ("claude-stream-json.jsonl", "claude", "done"),
        ("claude-stream-json-401.jsonl", "claude", "error"),
        ("codex-exec-json.jsonl", "codex", "done"),
        ("gemini-stream-json.jsonl", "gemini", "done"),
        ("qwen-stream-json.jsonl", "qwen", "done"),
        ("opencode-run-json.jsonl", "opencode", "done"),
        ("copilot-json.jsonl", "copilot", "done"),
    ] {
        let agent = ended(&daemon, "auto", recording);
        assert_eq!(
            (&agent["runtime"], &agent["state"]),
            (&runtime.into(), &state.into()),
            "{agent}"
        );
        assert_eq!(agent["view"]["mismatch"], Value::Null, "{agent}");
        // The same after a restart of the daemon is the concern of tests/daemon.rs; here, the message.
        if state == "error" {
            let error = agent["error"].as_str().unwrap();
            assert!(
                error.starts_with("the agent reported a failure: "),
                "{error}"
            );
        }
    }
    let agent = ended(&daemon, "auto", "../../README.md");
    assert_eq!(agent["state"], "done", "{agent}");
    assert_eq!(agent["view"], Value::Null, "{agent}");
}

#[test]
fn runtime_that_does_not_fit_the_output_is_reported() {
    let daemon = Daemon::start();
    let agent = ended(&daemon, "pi", "claude-stream-json.jsonl");
    let mismatch = agent["view"]["mismatch"].as_str().unwrap();
    assert!(mismatch.contains("claude"), "{mismatch}");
    let status = daemon.cli_ok(&["status", agent["id"].as_str().unwrap()]);
    assert!(status.contains("mismatch"), "{status}");
}
