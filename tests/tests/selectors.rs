//! A selector selects exactly one agent. Empty and ambiguous selectors are refused.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use colibri_tests::{Daemon, text};

#[test]
fn empty_id_selects_no_agent_in_any_command() {
    let daemon = Daemon::start();
    let id = daemon.spawn(&["--", "sleep", "1000"]);
    for blank in ["", " ", "\t"] {
        for args in [
            &["kill", blank][..],
            &["rm", "-f", blank],
            &["rm", blank],
            &["status", blank],
            &["logs", blank],
            &["runs", blank],
            &["attach", blank],
            &["prompt", blank, "hi"],
            &["abort", blank],
            &["send", blank, "hi"],
            &["wait", blank],
            &["events", blank],
            &["events", &id, blank],
        ] {
            let output = daemon.cli(args);
            let message = text(&output.stderr);
            assert_eq!(output.status.code(), Some(2), "{args:?}: {message}");
            assert!(message.contains("empty"), "{args:?}: {message}");
        }
    }
    assert!(
        daemon.agent(&id)["exited_at"].is_null(),
        "the agent keeps running"
    );
    // The client checks selectors before it connects.
    let not_running = Daemon::prepare();
    assert_eq!(not_running.cli(&["kill", ""]).status.code(), Some(2));
}

#[test]
fn exact_name_beats_the_prefix_of_an_id() {
    let daemon = Daemon::start();
    let other = daemon.spawn(&["--name", "precious", "--", "sleep", "1000"]);
    for length in [1, 4, 9] {
        let name = &other[..length];
        let named = daemon.spawn(&["--name", name, "--", "sleep", "1000"]);
        daemon.cli_ok(&["kill", name]);
        assert!(daemon.agent(&other)["exited_at"].is_null(), "{name}");
        assert!(!daemon.agent(&named)["exited_at"].is_null(), "{name}");
        // When the agent is removed, its name must not select the other agent as an id prefix.
        daemon.cli_ok(&["rm", name]);
    }
    let refused = daemon.cli(&["rm", "-f", &other[..1]]);
    assert_eq!(refused.status.code(), Some(1));
    let message = text(&refused.stderr);
    assert!(message.contains("too short for an ID prefix"), "{message}");
    assert!(daemon.agent(&other)["exited_at"].is_null());
    daemon.cli_ok(&["kill", &other[..4]]);
}

#[test]
fn reused_name_selects_the_running_then_the_newest_agent() {
    let daemon = Daemon::start();
    for code in ["1", "2", "3"] {
        let script = format!("exit {code}");
        let id = daemon.spawn(&["--name", "night", "--", "sh", "-c", &script]);
        let waited = daemon.cli(&["wait", "night"]);
        assert_eq!(waited.status.code().unwrap().to_string(), code);
        assert!(daemon.cli_ok(&["status", "night"]).contains(&id));
    }
    let running = daemon.spawn(&["--name", "night", "--", "sleep", "1000"]);
    assert!(daemon.cli_ok(&["status", "night"]).contains(&running));
    daemon.cli_ok(&["rm", "-f", "night"]);
    assert_eq!(daemon.wait("night"), Some(3));
}

#[test]
fn invalid_names_are_refused_without_a_daemon() {
    let daemon = Daemon::prepare();
    let long = "x".repeat(65);
    for name in ["", "  ", "a\nb", "a\u{1b}[2J", &long] {
        for command in ["run", "spawn", "explain"] {
            let output = daemon.cli(&[command, "--name", name, "--", "true"]);
            let message = text(&output.stderr);
            assert_eq!(output.status.code(), Some(2), "{name:?}: {message}");
        }
    }
}
