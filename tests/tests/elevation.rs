//! A shim ends and signals processes that it may not signal itself, by the command of its launch. The shim belongs to an
//! unprivileged user; its agents run as another user, and its command runs as root, both by a setuid program.
#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::chown;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use colibri_tests::helper::{
    AGENT, CALLER, Helper, SetuidRoot, as_user, install_program, program, uid,
};
use colibri_tests::{
    SOON, eventually, kill_9, processes_with, signal, test_directory, text, wait_until,
};
use rustix::process::Signal;
use serde_json::{Value, json};

/// A command that signals any number of processes: the shell's arguments are the signal and the pids.
const KILL: &str = "exec kill -s \"$@\"";

/// A shim of [`CALLER`], whose agent runs as [`AGENT`]. Dropping it kills both.
struct Shim {
    directory: tempfile::TempDir,
    mark: String,
    pid: i32,
    _setuid: SetuidRoot,
    _helper: Helper,
}

impl Shim {
    /// Starts an agent with a shell script, and waits until it has written `ready`. `kill_script` is the privileged command;
    /// absent: the launch has none.
    #[allow(clippy::zombie_processes, reason = "dropping the shim kills it")]
    fn start(name: &str, script: &str, kill_script: Option<&str>, options: Value) -> Self {
        let helper = Helper::shared();
        install_program("colibri-shim");
        let setuid = SetuidRoot::install();
        let directory = test_directory();
        chown(directory.path(), Some(uid(CALLER)), None).unwrap();
        let mark = format!("mark-{name}-{}", std::process::id());
        let setpriv = setuid.path().to_str().unwrap();
        let become_agent = ["--reuid", AGENT, "--regid", AGENT, "--clear-groups"];
        let args = [&become_agent[..], &["sh", "-c", script]].concat();
        let mut launch = json!({
            "program": setpriv,
            "args": args,
            "env": [["PATH", "/usr/bin:/bin"], ["MARK", mark]],
            "cwd": "/",
            "journal": {"segment_bytes": 65536, "fsync": "never"},
        });
        if let Some(kill_script) = kill_script {
            let become_root = ["--reuid", "0", "--regid", "0", "--clear-groups"];
            let shell = ["/bin/sh", "-c", kill_script, "kill", "{signal}"];
            let before = [&[setpriv], &become_root[..], &shell].concat();
            launch["elevated_signal"] = json!({"before": before, "per_pid": ["{pid}"]});
        }
        for (name, value) in options.as_object().unwrap() {
            launch[name] = value.clone();
        }
        let shim = program("colibri-shim");
        let path = directory.path().to_str().unwrap();
        let mut child = as_user(CALLER, &[shim.to_str().unwrap(), path])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut stdin = child.stdin.take().unwrap();
        stdin.write_all(format!("{launch}\n").as_bytes()).unwrap();
        let mut answer = String::new();
        let mut stdout = BufReader::new(child.stdout.take().unwrap());
        stdout.read_line(&mut answer).unwrap();
        assert!(answer.contains("started"), "{answer}");
        let shim = Self {
            directory,
            mark,
            pid: child.id() as i32,
            _setuid: setuid,
            _helper: helper,
        };
        wait_until("the agent is ready", || shim.output().contains("ready\n"));
        shim
    }

    fn path(&self) -> &Path {
        self.directory.path()
    }

    fn output(&self) -> String {
        let log = self.path().join("stdout/00000000000000000000.log");
        text(&fs::read(log).unwrap_or_default())
    }

    /// Sends a request and returns the reply.
    fn request(&self, request: Value) -> Value {
        let mut socket = UnixStream::connect(self.path().join("control.sock")).unwrap();
        socket.set_read_timeout(Some(SOON)).unwrap();
        let mut request = request;
        request["seq"] = json!(1);
        socket.write_all(format!("{request}\n").as_bytes()).unwrap();
        let mut line = String::new();
        BufReader::new(socket).read_line(&mut line).unwrap();
        let answer: Value = serde_json::from_str(&line).unwrap();
        answer["reply"].clone()
    }

    fn kill(&self, grace_ms: u64) -> Value {
        let request = json!({"op": "kill", "signal": "TERM", "grace_ms": grace_ms});
        self.request(request)["killed"].clone()
    }

    fn processes(&self) -> Vec<i32> {
        processes_with(&self.mark)
    }

    fn wait_for_end(&self) -> Value {
        let path = self.path().join("exit.json");
        let exit = eventually("the agent has ended", || {
            serde_json::from_slice(&fs::read(&path).ok()?).ok()
        });
        assert_eq!(self.processes(), Vec::<i32>::new(), "{exit}");
        exit
    }
}

impl Drop for Shim {
    fn drop(&mut self) {
        kill_9(self.pid);
        self.processes().into_iter().for_each(kill_9);
    }
}

/// Ignores TERM, and so does a descendant in a separate session whose parent has ended.
const STUBBORN: &str = "trap '' TERM; (setsid sh -c 'sleep 1000; :' &); echo ready; sleep 1001; :";

#[test]
fn denied_agent_is_ended_by_kill_limit_and_term() {
    for (name, options) in [
        ("kill", json!({})),
        ("limit", json!({"wall_time_ms": 500})),
        ("term", json!({})),
    ] {
        let shim = Shim::start(name, STUBBORN, Some(KILL), options);
        wait_until("both processes sleep", || shim.processes().len() >= 4);
        match name {
            "kill" => {
                let report = shim.kill(100);
                let expected = json!({"forced": true, "remaining": [], "denied": []});
                assert_eq!(report, expected);
            }
            "term" => signal(shim.pid, Signal::TERM),
            _ => {}
        }
        let exit = shim.wait_for_end();
        assert_eq!(exit["exit"], json!({"signal": 9}), "{name}: {exit}");
        let reason = exit["reason"].as_str().unwrap();
        assert_eq!(reason == "wall-time", name == "limit", "{name}: {exit}");
    }
}

/// Each member of the group gets the signal, not only the first process.
#[test]
fn denied_group_member_gets_the_first_signal() {
    let member = "trap 'echo member; exit' TERM; echo ready; while :; do sleep 0.02; done";
    let script = format!("trap 'wait; echo first; exit 4' TERM; sh -c \"{member}\" & wait; :");
    let shim = Shim::start("group", &script, Some(KILL), json!({}));
    let report = shim.kill(20_000);
    assert_eq!(report["forced"], false, "{report}");
    assert_eq!(shim.wait_for_end()["exit"]["code"], 4);
    assert_eq!(shim.output(), "ready\nmember\nfirst\n");
}

#[test]
fn denied_signal_request_is_answered_after_delivery() {
    let script = "trap 'echo hup' HUP; echo ready; while :; do sleep 0.02; done";
    let hup = json!({"op": "signal", "signal": "HUP"});
    let shim = Shim::start("hup", script, Some(KILL), json!({}));
    let delivery = shim.request(hup.clone())["signalled"].clone();
    assert_eq!(delivery["denied"], json!([]), "{delivery}");
    assert!(delivery["sent"].as_u64() > Some(0), "{delivery}");
    wait_until("the agent handles HUP", || shim.output().contains("hup\n"));

    let without_command = Shim::start("no-command", script, None, json!({}));
    let delivery = without_command.request(hup)["signalled"].clone();
    assert!(
        !delivery["denied"].as_array().unwrap().is_empty(),
        "{delivery}"
    );
    assert_eq!(delivery["reason"], Value::Null, "{delivery}");
}

#[test]
fn stopped_denied_agent_handles_term_within_the_grace() {
    let script =
        "trap 'echo bye; exit 0' TERM; echo ready; kill -STOP $$; while :; do sleep 0.02; done";
    let shim = Shim::start("stopped", script, Some(KILL), json!({}));
    let is_stopped = |pid: i32| {
        fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| stat.contains(") T "))
    };
    wait_until("the agent is stopped", || {
        shim.processes().into_iter().any(is_stopped)
    });
    assert_eq!(shim.kill(20_000)["forced"], false);
    shim.wait_for_end();
    assert_eq!(shim.output(), "ready\nbye\n");
}

/// More processes than one command takes, which fork until they get KILL.
#[test]
fn many_denied_processes_are_ended() {
    let script = "trap '' TERM; i=0; while [ $i -lt 300 ]; do setsid sleep 1000 & i=$((i+1)); done; echo ready; wait; sleep 1000";
    let shim = Shim::start("many", script, Some(KILL), json!({}));
    wait_until("all processes run", || shim.processes().len() >= 300);
    let report = shim.kill(0);
    assert_eq!(report["remaining"], json!([]), "{report}");
    shim.wait_for_end();
}

/// The backend may refuse a command because of one of its processes.
#[test]
fn refused_command_is_repeated_for_each_process() {
    let one_by_one = "[ $# = 2 ] || { echo too many >&2; exit 77; }; exec kill -s \"$@\"";
    let shim = Shim::start("single", STUBBORN, Some(one_by_one), json!({}));
    let report = shim.kill(0);
    assert_eq!(report["remaining"], json!([]), "{report}");
    shim.wait_for_end();
}

#[test]
fn failing_command_is_named_and_the_kill_can_be_repeated() {
    let directory = test_directory();
    let permitted = directory.path().join("permitted");
    let script = format!(
        "[ -e {} ] || {{ echo not permitted here >&2; exit 3; }}; exec kill -s \"$@\"",
        permitted.display()
    );
    let shim = Shim::start("refused", STUBBORN, Some(&script), json!({}));
    let report = shim.kill(0);
    let mut remaining: Vec<i32> = serde_json::from_value(report["remaining"].clone()).unwrap();
    remaining.sort_unstable();
    assert_eq!(remaining, shim.processes(), "{report}");
    assert_eq!(report["remaining"], report["denied"], "{report}");
    let reason = report["reason"].as_str().unwrap();
    assert!(reason.contains("kill KILL "), "{reason}");
    assert!(reason.ends_with("not permitted here"), "{reason}");
    fs::write(&permitted, "").unwrap();
    let report = shim.kill(0);
    assert_eq!(report["remaining"], json!([]), "{report}");
    shim.wait_for_end();
}

/// While a command hangs, the shim serves requests, and the command is not a process of the agent.
#[test]
fn hanging_command_blocks_no_request_and_is_reported() {
    let shim = Shim::start("hanging", STUBBORN, Some("exec sleep 1002"), json!({}));
    let start = Instant::now();
    let mut killing = UnixStream::connect(shim.path().join("control.sock")).unwrap();
    let kill = json!({"seq": 1, "op": "kill", "signal": "KILL", "grace_ms": 0});
    killing.write_all(format!("{kill}\n").as_bytes()).unwrap();
    let input = json!({"op": "close-input"});
    assert_eq!(shim.request(input), "ok");
    assert!(
        start.elapsed() < Duration::from_secs(5),
        "{:?}",
        start.elapsed()
    );
    killing.set_read_timeout(Some(SOON * 2)).unwrap();
    let mut line = String::new();
    BufReader::new(killing).read_line(&mut line).unwrap();
    assert!(line.contains("did not end within"), "{line}");
    let commands = processes_with("1002");
    commands.into_iter().for_each(kill_9);
}
