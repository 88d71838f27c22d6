//! The commands that a shim runs before and after each run; FreeBSD jails need them for mounts and limits. The tests
//! start the real shim with commands that write a trace.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Command, Stdio};

use colibri_tests::{SOON, create_fifo, eventually, program, wait_until};
use serde_json::{Value, json};

/// Returns a command that runs a shell script.
fn shell(script: &str) -> Value {
    json!({"program": "/bin/sh", "args": ["-c", script]})
}

/// Starts a shim for an agent with this script, and returns its answer.
fn start_shim(
    directory: &Path,
    script: &str,
    restart: Value,
    before: &[Value],
    after: &[Value],
) -> Value {
    let launch = json!({
        "program": "/bin/sh", "args": ["-c", script], "env": [["PATH", "/usr/bin:/bin"]], "cwd": directory,
        "restart": restart, "before": before, "after": after,
        "journal": {"segment_bytes": 65536, "fsync": "never"},
    });
    launch_shim(directory, &launch)
}

/// Starts a shim with this launch request, and returns its answer.
#[allow(clippy::zombie_processes, reason = "the shim outlives its starter")]
fn launch_shim(directory: &Path, launch: &Value) -> Value {
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
    let mut answer = String::new();
    let mut stdout = BufReader::new(child.stdout.take().unwrap());
    stdout.read_line(&mut answer).unwrap();
    serde_json::from_str(&answer).unwrap()
}

/// Waits for the end of the agent and returns the record of it.
fn wait_for_end(directory: &Path) -> Value {
    eventually("the agent has ended", || {
        serde_json::from_slice(&fs::read(directory.join("exit.json")).ok()?).ok()
    })
}

#[test]
fn each_run_executes_pre_run_and_post_run() {
    let dir = tempfile::tempdir().unwrap();
    let trace = dir.path().join("trace");
    let append = |word: &str| format!("echo {word} >> {}", trace.display());
    let started = start_shim(
        dir.path(),
        &format!(
            "{}; (sleep 0.1; {}) & exit 1",
            append("agent"),
            append("descendant")
        ),
        json!({"when": "on-failure", "delay_ms": 1, "max_delay_ms": 1, "limit": 1, "window_ms": 60000}),
        &[shell(&append("one")), shell(&append("two"))],
        &[shell(&append("three")), shell(&append("four"))],
    );
    assert!(started["started"]["pid"].is_number(), "{started}");
    wait_for_end(dir.path());
    let run = "one two agent descendant three four ";
    let traced = fs::read_to_string(&trace).unwrap().replace('\n', " ");
    assert_eq!(traced, run.repeat(2));
}

#[test]
fn failed_pre_run_prevents_the_run_and_is_rolled_back() {
    let dir = tempfile::tempdir().unwrap();
    let trace = dir.path().join("trace");
    let append = |word: &str| format!("echo {word} >> {}", trace.display());
    let answer = start_shim(
        dir.path(),
        &append("agent"),
        json!({"when": "never"}),
        &[
            shell(&append("before")),
            shell("echo no such rule >&2; exit 1"),
        ],
        &[shell(&append("after"))],
    );
    let message = answer["failed"]["message"].as_str().unwrap_or_default();
    assert!(message.contains("no such rule"), "{answer}");
    assert_eq!(fs::read_to_string(&trace).unwrap(), "before\nafter\n");
}

#[test]
fn failed_post_run_is_reported_and_the_others_run() {
    let dir = tempfile::tempdir().unwrap();
    let trace = dir.path().join("trace");
    let append = format!("echo after >> {}", trace.display());
    start_shim(
        dir.path(),
        "exit 7",
        json!({"when": "never"}),
        &[],
        &[shell("echo device busy >&2; exit 1"), shell(&append)],
    );
    let end = wait_for_end(dir.path());
    assert_eq!(
        (&end["exit"], &end["reason"]),
        (&json!({"code": 7}), &json!("exited"))
    );
    let error = end["error"].as_str().unwrap();
    assert!(
        error.contains("device busy") && error.contains("manually"),
        "{error}"
    );
    assert_eq!(fs::read_to_string(&trace).unwrap(), "after\n");
}

#[test]
fn failed_post_run_without_a_start_names_doctor() {
    for (script, is_manual) in [
        // The privilege backend fails before the monitor runs.
        ("echo not permitted >&2; exit 1", false),
        (
            r#"exec perl -e 'open(F, ">&=", $ENV{COLIBRI_CONTROL_FD}); print F "agent $$\n"; exit 1'"#,
            true,
        ),
    ] {
        let dir = tempfile::tempdir().unwrap();
        let launch = json!({
            "program": "/bin/sh", "args": ["-c", script], "env": [["PATH", "/usr/bin:/bin"]], "cwd": dir.path(),
            "monitored": true, "after": [shell("echo not permitted >&2; exit 1")],
            "journal": {"segment_bytes": 65536, "fsync": "never"},
        });
        launch_shim(dir.path(), &launch);
        let end = wait_for_end(dir.path());
        assert_eq!(end["exit"], json!({"code": 1}), "{end}");
        let error = end["error"].as_str().unwrap();
        assert_eq!(error.contains("manually"), is_manual, "{error}");
        assert_eq!(error.contains("run: colibri doctor"), !is_manual, "{error}");
    }
}

/// Sends a kill request to a shim.
fn send_kill(socket: &mut BufReader<UnixStream>, signal: &str, grace_ms: u64) {
    let kill = json!({"seq": 1, "op": "kill", "signal": signal, "grace_ms": grace_ms});
    socket
        .get_mut()
        .write_all(format!("{kill}\n").as_bytes())
        .unwrap();
}

fn read_answer(socket: &mut BufReader<UnixStream>) -> Value {
    let mut answer = String::new();
    socket.read_line(&mut answer).unwrap();
    serde_json::from_str(&answer).unwrap()
}

fn connect(directory: &Path) -> BufReader<UnixStream> {
    let socket = UnixStream::connect(directory.join("control.sock")).unwrap();
    socket.set_read_timeout(Some(SOON)).unwrap();
    BufReader::new(socket)
}

#[test]
fn kill_after_exit_does_not_interrupt_post_run() {
    let dir = tempfile::tempdir().unwrap();
    let (trace, gate) = (dir.path().join("trace"), dir.path().join("gate"));
    create_fifo(&gate);
    let clean_up = format!(
        "echo begun >> {0}; read line < {1}; echo after >> {0}",
        trace.display(),
        gate.display()
    );
    start_shim(
        dir.path(),
        "sleep 1000",
        json!({"when": "never"}),
        &[],
        &[shell(&clean_up)],
    );
    let mut first = connect(dir.path());
    send_kill(&mut first, "TERM", 10_000);
    read_answer(&mut first);
    wait_until("the clean-up has begun", || {
        fs::read_to_string(&trace).is_ok_and(|text| text == "begun\n")
    });
    // The refusal shows that the shim has read the second kill before the gate opens.
    let mut second = connect(dir.path());
    send_kill(&mut second, "KILL", 0);
    send_kill(&mut second, "NO-SUCH-SIGNAL", 0);
    assert_eq!(
        read_answer(&mut second)["reply"],
        json!({"refused": "unknown signal NO-SUCH-SIGNAL"})
    );
    fs::write(&gate, "go\n").unwrap();
    let killed = read_answer(&mut second);
    assert_eq!(
        killed["reply"]["killed"]["remaining"],
        json!([]),
        "{killed}"
    );
    let end = wait_for_end(dir.path());
    assert_eq!(end["error"], Value::Null, "{end}");
    assert_eq!(fs::read_to_string(&trace).unwrap(), "begun\nafter\n");
}

#[test]
fn kill_during_a_hanging_command_is_immediate() {
    let dir = tempfile::tempdir().unwrap();
    let first_run = dir.path().join("first-run");
    // The command before the second run hangs.
    let hanging = format!(
        "[ ! -e {0} ] || exec sleep 1000 # mark-step-7f3a\ntouch {0}",
        first_run.display()
    );
    start_shim(
        dir.path(),
        "exit 9",
        json!({"when": "always", "delay_ms": 1, "max_delay_ms": 1}),
        &[shell(&hanging)],
        &[],
    );
    wait_until("the first run has ended", || {
        let runs = fs::read_to_string(dir.path().join("runs.jsonl"));
        runs.is_ok_and(|runs| runs.ends_with('\n'))
    });
    let mut socket = connect(dir.path());
    send_kill(&mut socket, "TERM", 100);
    let answer = read_answer(&mut socket);
    assert_eq!(
        answer["reply"]["killed"]["remaining"],
        json!([]),
        "{answer}"
    );
    let end = wait_for_end(dir.path());
    assert!(
        ["exited", "killed-by-user"].contains(&end["reason"].as_str().unwrap()),
        "{end}"
    );
}

/// Sends a request to a shim and returns the answer.
fn call(socket: &mut BufReader<UnixStream>, request: &Value) -> Value {
    let line = format!("{request}\n");
    socket.get_mut().write_all(line.as_bytes()).unwrap();
    read_answer(socket)
}

#[test]
fn restart_request_during_backoff_starts_one_run() {
    let dir = tempfile::tempdir().unwrap();
    let marker = dir.path().join("marker");
    let agent = format!("[ -e {0} ] && exit 0; touch {0}; exit 1", marker.display());
    let restart = json!({"when": "on-failure", "delay_ms": 600_000, "max_delay_ms": 600_000});
    start_shim(dir.path(), &agent, restart, &[], &[]);
    wait_until("the first run is recorded", || {
        let runs = fs::read_to_string(dir.path().join("runs.jsonl"));
        runs.is_ok_and(|runs| runs.ends_with('\n'))
    });
    let mut socket = connect(dir.path());
    let restart = json!({"seq": 1, "op": "restart", "grace_ms": 100});
    assert_eq!(call(&mut socket, &restart)["reply"], "ok");
    let end = wait_for_end(dir.path());
    assert_eq!(
        (&end["run"], &end["exit"]),
        (&json!(2), &json!({"code": 0}))
    );
}

#[test]
fn signal_after_the_end_does_not_hit_post_run_commands() {
    let dir = tempfile::tempdir().unwrap();
    let (trace, gate) = (dir.path().join("trace"), dir.path().join("gate"));
    create_fifo(&gate);
    let post_run = format!(
        "echo begun >> {0}; read line < {1}; echo after >> {0}",
        trace.display(),
        gate.display()
    );
    let never = json!({"when": "never"});
    start_shim(dir.path(), "exit 0", never, &[], &[shell(&post_run)]);
    wait_until("the command after the run has begun", || {
        fs::read_to_string(&trace).is_ok_and(|text| text == "begun\n")
    });
    let mut socket = connect(dir.path());
    let signal = json!({"seq": 1, "op": "signal", "signal": "TERM"});
    assert_eq!(
        call(&mut socket, &signal)["reply"],
        json!({"signalled": {"sent": 0, "denied": []}})
    );
    fs::write(&gate, "go\n").unwrap();
    assert_eq!(wait_for_end(dir.path())["error"], Value::Null);
    assert_eq!(fs::read_to_string(&trace).unwrap(), "begun\nafter\n");
}
