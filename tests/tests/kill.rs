//! A kill leaves no process of the agent.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use colibri_tests::{Daemon, NO_JAIL_AND_SANDBOX, processes_with, wait_until};
use serde_json::json;

/// Script of an agent that ignores TERM, with a grandchild in another session that ignores it, too.
const STUBBORN: &str = "trap '' TERM; (setsid sh -c 'trap \"\" TERM; echo grandchild; sleep 1000; :' \"$0\" &); echo child; sleep 1000; :";

/// Starts an agent and waits until it and its grandchild ignore TERM.
fn spawn_stubborn(daemon: &Daemon, jail: &[&str], mark: &str) -> String {
    let id = daemon.spawn(&[jail, &["--", "sh", "-c", STUBBORN, mark]].concat());
    wait_until("both ignore TERM", || {
        let out = daemon.stdout(&id);
        out.windows(5).filter(|w| w == b"child").count() == 2
    });
    id
}

#[test]
fn kill_ends_term_ignoring_agent_and_escaped_grandchild() {
    let daemon = Daemon::start();
    for (jail, mark) in [
        (&[][..], "mark-plain-7f3a"),
        (&["--jail-path", "/"], "mark-sandbox-7f3a"),
    ] {
        let id = spawn_stubborn(&daemon, jail, mark);
        assert!(processes_with(mark).len() >= 2);
        let result = daemon
            .connect()
            .call("kill-agent", json!({"id": id, "grace_ms": 100}));
        assert_eq!(
            result["result"],
            json!({"outcome": "killed", "remaining_pids": []}),
            "{result}"
        );
        assert_eq!(processes_with(mark), Vec::<i32>::new());
        let agent = daemon.agent(&id);
        assert_eq!(
            (&agent["state"], &agent["exit"]),
            (
                &json!("done"),
                &json!({"signal": 9, "reason": "killed-by-user"})
            ),
            "{agent}"
        );
    }
}

#[test]
fn agent_that_exits_within_the_grace_is_not_killed() {
    let daemon = Daemon::start();
    for jail in NO_JAIL_AND_SANDBOX {
        let script = "trap 'echo tidied; exit 0' TERM; echo ready; while :; do sleep 0.02; done";
        let id = daemon.spawn(&[jail, &["--", "sh", "-c", script]].concat());
        wait_until("the agent is ready", || {
            daemon.stdout(&id).starts_with(b"ready")
        });
        let result = daemon.connect().call("kill-agent", json!({"id": id}));
        assert_eq!(result["result"]["outcome"], "terminated", "{result}");
        assert_eq!(daemon.stdout(&id), b"ready\ntidied\n");
        assert_eq!(
            daemon.agent(&id)["exit"],
            json!({"code": 0, "reason": "killed-by-user"})
        );
        let repeated = daemon.connect().call("kill-agent", json!({"id": id}));
        assert_eq!(repeated["result"]["outcome"], "already-exited");
    }
}

#[test]
fn concurrent_kills_report_the_same_result() {
    let daemon = Daemon::start();
    let id = spawn_stubborn(&daemon, &[], "mark-together-7f3a");
    let outcomes: Vec<_> = std::thread::scope(|scope| {
        let kills: Vec<_> = (0..4)
            .map(|_| {
                scope.spawn(|| {
                    daemon
                        .connect()
                        .call("kill-agent", json!({"id": id, "grace_ms": 50}))
                })
            })
            .collect();
        kills
            .into_iter()
            .map(|kill| kill.join().unwrap()["result"]["outcome"].clone())
            .collect()
    });
    for outcome in outcomes {
        assert!(
            ["killed", "already-exited"].contains(&outcome.as_str().unwrap()),
            "{outcome}"
        );
    }
    assert_eq!(processes_with("mark-together-7f3a"), Vec::<i32>::new());
}

#[test]
fn kill_ends_all_processes_in_separate_sessions() {
    let daemon = Daemon::start();
    let script = "trap '' TERM; n=0; while [ $n -lt 40 ]; do n=$((n+1)); (setsid sh -c 'while :; do sleep 0.01; done' \"$0\" &); done; echo up; wait; sleep 1000";
    let id = daemon.spawn(&["--", "sh", "-c", script, "mark-sessions-7f3a"]);
    wait_until("all processes have started", || {
        daemon.stdout(&id).starts_with(b"up")
    });
    let result = daemon
        .connect()
        .call("kill-agent", json!({"id": id, "grace_ms": 0}));
    assert_eq!(result["result"]["outcome"], "killed", "{result}");
    assert_eq!(processes_with("mark-sessions-7f3a"), Vec::<i32>::new());
}

#[test]
fn exit_waits_for_descendants_and_keeps_their_output() {
    let daemon = Daemon::start();
    let id = daemon.spawn(&[
        "--",
        "sh",
        "-c",
        "exec 3<&0; (read line <&3; echo \"late $line\") & exit 4",
    ]);
    let mut wire = daemon.connect();
    wire.call("send-input", json!({"id": id, "data": "word\n"}));
    assert_eq!(daemon.wait(&id), Some(4));
    assert_eq!(daemon.stdout(&id), b"late word\n");
}

#[test]
fn kill_during_start_leaves_no_process() {
    let daemon = Daemon::start();
    let mark = "mark-starting-7f3a";
    for round in 0..20 {
        let jail = if round % 2 == 0 {
            json!(null)
        } else {
            json!({"path": "/"})
        };
        let spawn = json!({"program": "sh", "args": ["-c", STUBBORN, mark], "jail": jail});
        let mut wire = daemon.connect();
        if round < 10 {
            // bwrap(1) may not have executed the agent when it is killed.
            let id = wire.call("spawn-agent", spawn)["result"]["id"].clone();
            let killed = wire.call("kill-agent", json!({"id": id, "grace_ms": 0}));
            assert_eq!(killed["result"]["remaining_pids"], json!([]), "{killed}");
        } else {
            // The daemon starts the agent although its caller disconnects before the answer.
            let request =
                json!({"jsonrpc": "2.0", "id": 1, "method": "spawn-agent", "params": spawn});
            wire.send(format!("{request}\n").as_bytes());
            drop(wire);
        }
    }
    let running = || {
        let agents = daemon.agents().into_iter();
        agents.filter(|agent| agent["exited_at"].is_null()).count()
    };
    wait_until("agents of disconnected callers have started", || {
        running() == 10
    });
    for agent in daemon.agents() {
        let kill = json!({"id": agent["id"], "grace_ms": 0});
        let killed = daemon.connect().call("kill-agent", kill);
        assert_eq!(killed["result"]["remaining_pids"], json!([]), "{killed}");
    }
    assert_eq!(processes_with(mark), Vec::<i32>::new());
}
