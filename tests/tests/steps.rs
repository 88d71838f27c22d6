//! What a shim does around each run, as jails of FreeBSD need it for their mounts and limits: the real shim, with
//! commands that leave a trace.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Command, Stdio};

use colibri_tests::{SOON, eventually, program};
use serde_json::{Value, json};

fn shell(script: &str) -> Value {
    json!({"program": "/bin/sh", "args": ["-c", script]})
}

/// Starts a shim and returns its answer.
fn shim(directory: &Path, agent: &str, restart: Value, before: &[Value], after: &[Value]) -> Value {
    let launch = json!({
        "program": "/bin/sh", "args": ["-c", agent], "env": [["PATH", "/usr/bin:/bin"]], "cwd": directory,
        "restart": restart, "before": before, "after": after,
        "journal": {"segment_bytes": 65536, "fsync": "never"},
    });
    let mut child = Command::new(program("colibri-shim"))
        .arg(directory)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    child
        .stdin
        .take()
        .unwrap()
        .write_all(format!("{launch}\n").as_bytes())
        .unwrap();
    // The shim itself ends later: nobody waits for it here.
    let mut answer = String::new();
    let mut stdout = BufReader::new(child.stdout.take().unwrap());
    stdout.read_line(&mut answer).unwrap();
    serde_json::from_str(&answer).unwrap()
}

fn end(directory: &Path) -> Value {
    eventually("the agent has ended", || {
        serde_json::from_slice(&fs::read(directory.join("exit.json")).ok()?).ok()
    })
}

#[test]
fn each_run_has_its_steps_before_and_after_it() {
    let dir = tempfile::tempdir().unwrap();
    let trace = dir.path().join("trace");
    let leave = |word: &str| format!("echo {word} >> {}", trace.display());
    let started = shim(
        dir.path(),
        &format!(
            "{}; (sleep 0.1; {}) & exit 1",
            leave("agent"),
            leave("descendant")
        ),
        json!({"when": "on-failure", "delay_ms": 1, "max_delay_ms": 1, "limit": 1, "window_ms": 60000}),
        &[shell(&leave("one")), shell(&leave("two"))],
        &[shell(&leave("three")), shell(&leave("four"))],
    );
    assert!(started["started"]["pid"].is_number(), "{started}");
    end(dir.path());
    let run = "one two agent descendant three four ";
    let seen = fs::read_to_string(&trace).unwrap().replace('\n', " ");
    assert_eq!(seen, run.repeat(2));
}

#[test]
fn a_step_that_fails_before_a_run_keeps_it_from_starting_and_what_was_done_is_undone() {
    let dir = tempfile::tempdir().unwrap();
    let trace = dir.path().join("trace");
    let leave = |word: &str| format!("echo {word} >> {}", trace.display());
    let answer = shim(
        dir.path(),
        &leave("agent"),
        json!({"when": "never"}),
        &[
            shell(&leave("before")),
            shell("echo no such rule >&2; exit 1"),
        ],
        &[shell(&leave("after"))],
    );
    let said = answer["failed"]["message"].as_str().unwrap_or_default();
    assert!(said.contains("no such rule"), "{answer}");
    assert_eq!(fs::read_to_string(&trace).unwrap(), "before\nafter\n");
}

#[test]
fn a_step_that_fails_after_a_run_is_told_and_keeps_nothing_else_from_being_done() {
    let dir = tempfile::tempdir().unwrap();
    let trace = dir.path().join("trace");
    let leave = format!("echo after >> {}", trace.display());
    shim(
        dir.path(),
        "exit 7",
        json!({"when": "never"}),
        &[],
        &[shell("echo device busy >&2; exit 1"), shell(&leave)],
    );
    let end = end(dir.path());
    assert_eq!(
        (&end["exit"], &end["reason"]),
        (&json!({"code": 7}), &json!("exited"))
    );
    let error = end["error"].as_str().unwrap();
    assert!(
        error.contains("device busy") && error.contains("by hand"),
        "{error}"
    );
    assert_eq!(fs::read_to_string(&trace).unwrap(), "after\n");
}

#[test]
fn kill_during_a_hanging_step_is_answered_at_once() {
    let dir = tempfile::tempdir().unwrap();
    let first = dir.path().join("first");
    // It hangs before the second run.
    let hanging = format!(
        "[ ! -e {0} ] || exec sleep 1000 # mark-step-7f3a\ntouch {0}",
        first.display()
    );
    shim(
        dir.path(),
        "exit 9",
        json!({"when": "always", "delay_ms": 1, "max_delay_ms": 1}),
        &[shell(&hanging)],
        &[],
    );
    eventually("the first run has ended", || {
        let runs = fs::read_to_string(dir.path().join("runs.jsonl")).ok()?;
        runs.ends_with('\n').then_some(())
    });
    let socket = UnixStream::connect(dir.path().join("control.sock")).unwrap();
    socket.set_read_timeout(Some(SOON)).unwrap();
    let mut socket = BufReader::new(socket);
    let kill = "{\"seq\":1,\"op\":\"kill\",\"signal\":\"TERM\",\"grace_ms\":100}\n";
    socket.get_mut().write_all(kill.as_bytes()).unwrap();
    let mut answer = String::new();
    socket.read_line(&mut answer).unwrap();
    let answer: Value = serde_json::from_str(&answer).unwrap();
    assert_eq!(
        answer["reply"]["killed"]["remaining"],
        json!([]),
        "{answer}"
    );
    let end = end(dir.path());
    assert!(
        ["exited", "killed-by-user"].contains(&end["reason"].as_str().unwrap()),
        "{end}"
    );
}
