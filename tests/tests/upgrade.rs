//! Two releases use the same state directory: agents survive an upgrade and a downgrade of the daemon.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::path::PathBuf;

use colibri_tests::{
    Daemon, eventually, kill_9, previous_program, processes_with, program, text, wait_until,
};
use serde_json::{Value, json};

/// A release: returns the path of one of its programs.
type Release = fn(&str) -> PathBuf;

/// Returns a daemon without a settings file, whose later settings an earlier release would refuse.
fn prepare() -> Daemon {
    let daemon = Daemon::prepare();
    std::fs::remove_file(daemon.path(".config/colibri/colibri.toml")).unwrap();
    daemon
}

/// Starts the daemon of a release with the shim of that release.
fn launch(daemon: &mut Daemon, release: Release) {
    // The previous release does not know all settings.
    let _ = std::fs::remove_file(daemon.path(".config/colibri/colibri.toml"));
    let mut command = daemon.external_command(release("colibri-daemon"));
    command.env("COLIBRI_SHIM", release("colibri-shim"));
    daemon.launch_command(command);
}

/// Starts an agent with this script and additional parameters, and returns its id.
fn spawn(daemon: &Daemon, script: &str, parameters: Value) -> String {
    let mut params = json!({"program": "sh", "args": ["-c", script]});
    for (name, value) in parameters.as_object().unwrap() {
        params[name] = value.clone();
    }
    let answer = daemon.connect().call("spawn-agent", params);
    answer["result"]["id"]
        .as_str()
        .unwrap_or_else(|| panic!("{answer}"))
        .to_owned()
}

/// Returns all stdout of an agent by `read-journal`.
fn stdout(daemon: &Daemon, id: &str) -> String {
    let read = json!({"id": id, "stream": "stdout"});
    let answer = daemon.connect().call("read-journal", read);
    answer["result"]["data"].as_str().unwrap().to_owned()
}

fn wait_for_output(daemon: &Daemon, id: &str, expected: &str) {
    wait_until(&format!("{id} has written {expected:?}"), || {
        stdout(daemon, id) == expected
    });
}

fn send(daemon: &Daemon, id: &str, line: &str) {
    let sent = daemon
        .connect()
        .call("send-input", json!({"id": id, "data": line}));
    assert_eq!(sent["result"]["written"], line.len(), "{sent}");
}

/// Checks that a daemon of the second release adopts the agents of the first one. `mark` is in the arguments of the
/// restarted agent and of no other process.
fn assert_agents_survive(first: Release, second: Release, mark: &str) {
    let mut daemon = prepare();
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
    wait_for_output(&daemon, &reader, "got one\n");
    wait_for_output(&daemon, &sandboxed, "up\n");
    wait_for_output(&daemon, &restarting, "run\n");
    daemon.kill();

    launch(&mut daemon, second);
    // Adoption: the daemon has all agents with their exits and output.
    assert_eq!(daemon.agent(&ended)["exit"]["code"], 3);
    assert_eq!(stdout(&daemon, &ended), "over\n");
    for id in [&reader, &sandboxed, &restarting] {
        let agent = eventually("the agent is adopted", || {
            let agent = daemon.agent(id);
            (!agent["pid"].is_null()).then_some(agent)
        });
        assert!(agent["exited_at"].is_null(), "{agent}");
    }
    // Input and logs.
    send(&daemon, &reader, "two\n");
    wait_for_output(&daemon, &reader, "got one\ngot two\n");
    daemon.connect().call("close-input", json!({"id": reader}));
    let end = daemon.connect().call("wait-agent", json!({"id": reader}));
    assert_eq!(end["result"]["exit"]["code"], 5, "{end}");
    // Restarts by the shim.
    for pid in processes_with(mark) {
        kill_9(pid);
    }
    wait_until("the second run has started", || {
        stdout(&daemon, &restarting).starts_with("run\nrun\n")
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
    assert_agents_survive(previous_program, program, "mark-upgrade-7f3a");
}

#[test]
fn agents_survive_a_downgrade() {
    assert_agents_survive(program, previous_program, "mark-downgrade-7f3a");
}

#[test]
fn new_daemon_with_an_old_shim_program_runs_agents() {
    let mut daemon = prepare();
    let mut command = daemon.external_command(program("colibri-daemon"));
    command.env("COLIBRI_SHIM", previous_program("colibri-shim"));
    daemon.launch_command(command);
    let id = spawn(&daemon, "echo hi; exit 6", json!({}));
    let end = daemon.connect().call("wait-agent", json!({"id": id}));
    assert_eq!(
        end["result"]["exit"],
        json!({"code": 6, "reason": "exited"}),
        "{end}"
    );
    assert_eq!(stdout(&daemon, &id), "hi\n");
    // The old shim passes no pipe for the reports of the proxy.
    let jail = json!({"jail": {"path": "/", "allow": ["a.example:443"]}});
    let filtered = spawn(&daemon, "echo filtered", jail);
    let end = daemon.connect().call("wait-agent", json!({"id": filtered}));
    assert_eq!(end["result"]["exit"]["code"], 0, "{end}");
    assert_eq!(stdout(&daemon, &filtered), "filtered\n");
}

#[test]
fn old_shim_gets_only_requests_that_it_knows() {
    let mut daemon = prepare();
    launch(&mut daemon, previous_program);
    let restart = json!({"restart": {"policy": "always", "delay_ms": 1}});
    let id = spawn(&daemon, "echo run; sleep 1000; :", restart);
    wait_for_output(&daemon, &id, "run\n");
    daemon.kill();
    launch(&mut daemon, program);
    let refused = daemon.connect().call("restart-agent", json!({"id": id}));
    let message = refused["error"]["message"].as_str().unwrap_or_default();
    assert!(message.contains("earlier release"), "{refused}");
    // The connection to the shim works, and the signal ends the agent without a restart.
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
