//! Malicious output is stored byte for byte and displayed without escape sequences.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::fs;

use colibri_tests::Daemon;
use colibri_tests::follower::Follower;
use colibri_tests::lines::Difference;
use serde_json::json;

/// Runtimes with different parsers.
const RUNTIMES: &[&str] = &["generic", "pi"];

/// Runs `script` once for each runtime. Checks that every reader receives the expected output, that commands mask control
/// characters, and that the agent exits with `code`.
fn assert_stored_and_masked(
    daemon: &Daemon,
    runtimes: &[&str],
    script: &str,
    expected: &[u8],
    code: i32,
) {
    for runtime in runtimes {
        let file = daemon.path("bytes");
        let id = daemon.spawn(&[
            "--runtime",
            runtime,
            "--name",
            "x; rm -rf $HOME",
            "--",
            "sh",
            "-c",
            script,
            file.to_str().unwrap(),
        ]);
        let follower = Follower::over_wire(daemon.socket(), id.clone());
        daemon
            .connect()
            .call("send-input", json!({"id": id, "data": "go\n"}));
        assert_eq!(daemon.wait(&id), Some(code));
        let followed = follower.finish();
        assert_eq!(followed.error, None);
        assert_eq!(followed.offset_difference, Difference::default());
        assert!(
            followed.received[0] == expected,
            "{runtime}: a subscriber got {} of {} bytes",
            followed.received[0].len(),
            expected.len()
        );
        let logs = daemon.stdout(&id);
        assert!(
            logs == expected,
            "{runtime}: {} of {} bytes in the logs",
            logs.len(),
            expected.len()
        );
        let agent = daemon.agent(&id);
        assert_eq!(agent["stdout_bytes"], expected.len(), "{agent}");
        for args in [&["events", "--output", &id][..], &["ps"]] {
            let shown = daemon.cli_ok(args);
            assert!(shown.contains(&id), "{args:?}");
            let control = shown.chars().find(|c| c.is_control() && *c != '\n');
            assert_eq!(control, None, "{args:?} shows a control character");
        }
        assert_eq!(
            daemon.cli_ok(&["ps", "--json"]).matches('\u{1b}').count(),
            0,
            "JSON escapes control characters"
        );
        daemon.cli_ok(&["rm", &id]);
    }
}

/// Checks an agent that writes these bytes.
fn assert_bytes_stored_and_masked(runtimes: &[&str], bytes: &[u8]) {
    let daemon = Daemon::start();
    fs::write(daemon.path("bytes"), bytes).unwrap();
    assert_stored_and_masked(&daemon, runtimes, "read x; cat \"$0\"", bytes, 0);
}

#[test]
fn line_of_100_mib_without_newline_is_kept() {
    assert_bytes_stored_and_masked(&["generic"], &vec![b'x'; 100 << 20]);
}

#[test]
fn line_of_100_mib_without_newline_is_parsed_as_events() {
    assert_bytes_stored_and_masked(&["pi"], &vec![b'x'; 100 << 20]);
}

#[test]
fn binary_nul_and_escape_sequences_are_kept_and_masked() {
    let mut bytes: Vec<u8> = (0..=255).cycle().take(1 << 20).collect();
    bytes.extend_from_slice(b"\x1b]0;owned\x07\x1b[2J\xc3\n\xe2\x82\n\xff\xfe\0\0\n");
    bytes.extend("é€😀\u{85}\u{9b}31m\r\n".repeat(20_000).bytes());
    bytes.extend(std::iter::repeat_n(0, 1 << 20));
    assert_bytes_stored_and_masked(RUNTIMES, &bytes);
}

#[test]
fn malicious_events_are_kept_and_masked() {
    let mut bytes = Vec::new();
    for line in [
        r#"{"type":"tool_execution_start","toolName":"\u001b[2J\u0007rm\n-rf"}"#,
        r#"{"type":"message_end","message":{"role":"assistant","stopReason":"error","errorMessage":"\u001b]0;owned\u0007","usage":{"input":-1,"output":1e999}}}"#,
        r#"{"type":"error","error":{"a":["\u009b"]}}"#,
    ] {
        bytes.extend_from_slice(line.as_bytes());
        bytes.push(b'\n');
    }
    bytes.extend("[".repeat(300_000).bytes());
    bytes.push(b'\n');
    assert_bytes_stored_and_masked(RUNTIMES, &bytes);
}

fn assert_million_lines_stored(runtime: &str) {
    let daemon = Daemon::start();
    let script = "read x; i=0; while [ $i -lt 1000000 ]; do i=$((i+1)); echo y; done; exit 6";
    assert_stored_and_masked(&daemon, &[runtime], script, &b"y\n".repeat(1_000_000), 6);
}

#[test]
fn million_tiny_lines_are_kept() {
    assert_million_lines_stored("generic");
}

#[test]
fn million_tiny_lines_are_parsed_as_events() {
    assert_million_lines_stored("pi");
}

#[test]
fn output_of_a_surviving_grandchild_is_kept() {
    let daemon = Daemon::start();
    let script =
        "exec 3<&0; echo early; (setsid sh -c 'read line <&3; echo \"late $line\"' &); exit 4";
    // In a sandbox the end of the first process would end the grandchild.
    assert_stored_and_masked(&daemon, RUNTIMES, script, b"early\nlate go\n", 4);
}
