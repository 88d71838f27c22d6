//! Two releases share a state directory: agents survive an upgrade and a downgrade of the daemon.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::path::PathBuf;

use colibri_tests::{Daemon, eventually, kill_9, previous_program, processes_with, program, text};
use serde_json::{Value, json};

/// Returns the path of a program of a release.
type Release = fn(&str) -> PathBuf;

fn current(name: &str) -> PathBuf {
    program(name)
}

fn previous(name: &str) -> PathBuf {
    previous_program(name)
}

fn launch(daemon: &mut Daemon, release: Release) {
    let mut command = daemon.external(release("colibri-daemon"));
    command.env("COLIBRI_SHIM", release("colibri-shim"));
    daemon.launch_as(command);
}

fn spawn(daemon: &Daemon, script: &str, extra: Value) -> String {
    let mut params = json!({"program": "sh", "args": ["-c", script]});
    for (name, value) in extra.as_object().unwrap() {
        params[name] = value.clone();
    }
    let answer = daemon.connect().call("spawn-agent", params);
    answer["result"]["id"]
        .as_str()
        .unwrap_or_else(|| panic!("{answer}"))
        .to_owned()
}

/// Returns all stdout of an agent, read through the daemon.
fn stdout(daemon: &Daemon, id: &str) -> String {
    let read = json!({"id": id, "stream": "stdout"});
    let answer = daemon.connect().call("read-journal", read);
    answer["result"]["data"].as_str().unwrap().to_owned()
}

fn until_written(daemon: &Daemon, id: &str, wanted: &str) {
    eventually(&format!("{id} has written {wanted:?}"), || {
        (stdout(daemon, id) == wanted).then_some(())
    });
}

fn send(daemon: &Daemon, id: &str, line: &str) {
    let sent = daemon
        .connect()
        .call("send-input", json!({"id": id, "data": line}));
    assert_eq!(sent["result"]["written"], line.len(), "{sent}");
}

/// `mark` is in the arguments of the restarted agent and of no other process.
fn agents_survive(first: Release, second: Release, mark: &str) {
    let mut daemon = Daemon::prepare();
    launch(&mut daemon, first);
    let ended = spawn(&daemon, "echo over; exit 3", json!({}));
    daemon.connect().call("wait-agent", json!({"id": ended}));
    let reader = spawn(
        &daemon,
        "while read line; do echo \"got $line\"; done; exit 5",
        json!({}),
    );
    let sandboxed = spawn(
        &daemon,
        "trap 'echo bye; exit 0' TERM; echo up; while :; do sleep 0.02; done",
        json!({"jail": {"path": "/"}}),
    );
    let restarting = spawn(
        &daemon,
        &format!("echo run; read line; : {mark}"),
        json!({"restart": {"policy": "always", "delay_ms": 1}}),
    );
    send(&daemon, &reader, "one\n");
    until_written(&daemon, &reader, "got one\n");
    until_written(&daemon, &sandboxed, "up\n");
    until_written(&daemon, &restarting, "run\n");
    daemon.kill();

    launch(&mut daemon, second);
    // Adoption: all agents are listed, with their exits and output.
    assert_eq!(daemon.agent(&ended)["exit"]["code"], 3);
    assert_eq!(stdout(&daemon, &ended), "over\n");
    for id in [&reader, &sandboxed, &restarting] {
        let agent = eventually("it is adopted", || {
            let agent = daemon.agent(id);
            (!agent["pid"].is_null()).then_some(agent)
        });
        assert!(agent["exited_at"].is_null(), "{agent}");
    }
    // Input and logs.
    send(&daemon, &reader, "two\n");
    until_written(&daemon, &reader, "got one\ngot two\n");
    daemon.connect().call("close-input", json!({"id": reader}));
    let end = daemon.connect().call("wait-agent", json!({"id": reader}));
    assert_eq!(end["result"]["exit"]["code"], 5, "{end}");
    // Restarts by the shim.
    for pid in processes_with(mark) {
        kill_9(pid);
    }
    eventually("the second run has begun", || {
        stdout(&daemon, &restarting)
            .starts_with("run\nrun\n")
            .then_some(())
    });
    // Kill.
    for id in [&sandboxed, &restarting] {
        let killed = daemon
            .connect()
            .call("kill-agent", json!({"id": id, "grace_ms": 15_000}));
        assert_eq!(killed["result"]["outcome"], "terminated", "{killed}");
        assert!(!daemon.agent(id)["exited_at"].is_null());
    }
    assert_eq!(stdout(&daemon, &sandboxed), "up\nbye\n");
    assert_eq!(processes_with(mark), Vec::<i32>::new());
    // A new agent next to those of the other release.
    let new = spawn(&daemon, "exit 4", json!({}));
    let end = daemon.connect().call("wait-agent", json!({"id": new}));
    assert_eq!(end["result"]["exit"]["code"], 4, "{end}");
}

#[test]
fn agents_survive_an_upgrade() {
    agents_survive(previous, current, "mark-upgrade-7f3a");
}

#[test]
fn agents_survive_a_downgrade() {
    agents_survive(current, previous, "mark-downgrade-7f3a");
}

#[test]
fn new_daemon_with_an_old_shim_program_runs_agents() {
    let mut daemon = Daemon::prepare();
    let mut command = daemon.external(current("colibri-daemon"));
    command.env("COLIBRI_SHIM", previous("colibri-shim"));
    daemon.launch_as(command);
    let id = spawn(&daemon, "echo hi; exit 6", json!({}));
    let end = daemon.connect().call("wait-agent", json!({"id": id}));
    assert_eq!(
        end["result"]["exit"],
        json!({"code": 6, "reason": "exited"}),
        "{end}"
    );
    assert_eq!(stdout(&daemon, &id), "hi\n");
}

#[test]
fn old_shim_gets_only_requests_that_it_knows() {
    let mut daemon = Daemon::prepare();
    launch(&mut daemon, previous);
    let restart = json!({"restart": {"policy": "always", "delay_ms": 1}});
    let id = spawn(&daemon, "echo run; sleep 1000; :", restart);
    until_written(&daemon, &id, "run\n");
    daemon.kill();
    launch(&mut daemon, current);
    let refused = daemon.connect().call("restart-agent", json!({"id": id}));
    let message = refused["error"]["message"].as_str().unwrap_or_default();
    assert!(message.contains("earlier release"), "{refused}");
    // The connection to the shim still works, and the signal ends the agent for good.
    let signal = json!({"id": id, "signal": "INT", "escalate": false, "no_restart": true});
    let sent = daemon.connect().call("kill-agent", signal);
    assert_eq!(sent["result"]["outcome"], "signalled", "{sent}");
    let end = daemon.connect().call("wait-agent", json!({"id": id}));
    assert_eq!(
        (&end["result"]["run"], &end["result"]["exit"]["signal"]),
        (&json!(1), &json!(2)),
        "{end}"
    );
    assert_eq!(text(stdout(&daemon, &id).as_bytes()), "run\n");
}
