//! Kill always holds: whatever an agent does, nothing of it is left.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use colibri_tests::{Daemon, eventually, processes_with};
use serde_json::json;

/// Ignores TERM, and so does a grandchild that has left the session and its parent.
const STUBBORN: &str = "trap '' TERM; (setsid sh -c 'trap \"\" TERM; echo grandchild; sleep 1000; :' \"$0\" &); echo child; sleep 1000; :";

#[test]
fn an_agent_that_ignores_term_and_its_escaped_grandchild_are_gone_after_a_kill() {
    let daemon = Daemon::start();
    for (jail, mark) in [
        (&[][..], "mark-plain-7f3a"),
        (&["--jail-path", "/"], "mark-sandbox-7f3a"),
    ] {
        let id = daemon.spawn(&[jail, &["--", "sh", "-c", STUBBORN, mark]].concat());
        eventually("both have started", || {
            let out = daemon.stdout(&id);
            (out.windows(5).filter(|w| w == b"child").count() == 2).then_some(())
        });
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
            (&json!("error"), &json!({"signal": 9})),
            "{agent}"
        );
    }
}

#[test]
fn an_agent_may_end_in_its_own_way_within_the_grace() {
    let daemon = Daemon::start();
    for jail in [&[][..], &["--jail-path", "/"]] {
        let script = "trap 'echo tidied; exit 0' TERM; echo ready; while :; do sleep 0.02; done";
        let id = daemon.spawn(&[jail, &["--", "sh", "-c", script]].concat());
        eventually("it is ready", || {
            daemon.stdout(&id).starts_with(b"ready").then_some(())
        });
        let result = daemon.connect().call("kill-agent", json!({"id": id}));
        assert_eq!(result["result"]["outcome"], "terminated", "{result}");
        assert_eq!(daemon.stdout(&id), b"ready\ntidied\n");
        assert_eq!(daemon.agent(&id)["exit"], json!({"code": 0}));
        let again = daemon.connect().call("kill-agent", json!({"id": id}));
        assert_eq!(again["result"]["outcome"], "already-exited");
    }
}

#[test]
fn kills_at_the_same_time_agree() {
    let daemon = Daemon::start();
    let id = daemon.spawn(&["--", "sh", "-c", STUBBORN, "mark-together-7f3a"]);
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
fn a_fork_storm_is_ended() {
    let daemon = Daemon::start();
    // Each process replaces itself by two for ever, up to a bound that spares the machine.
    let storm = "trap '' TERM; n=0; while [ $n -lt 40 ]; do n=$((n+1)); (setsid sh -c 'while :; do sleep 0.01; done' \"$0\" &); done; echo up; wait; sleep 1000";
    let id = daemon.spawn(&["--", "sh", "-c", storm, "mark-storm-7f3a"]);
    eventually("the storm is up", || {
        daemon.stdout(&id).starts_with(b"up").then_some(())
    });
    let result = daemon
        .connect()
        .call("kill-agent", json!({"id": id, "grace_ms": 0}));
    assert_eq!(result["result"]["outcome"], "killed", "{result}");
    assert_eq!(processes_with("mark-storm-7f3a"), Vec::<i32>::new());
}

#[test]
fn descendants_are_waited_for_and_their_output_is_kept() {
    let daemon = Daemon::start();
    let id = daemon.spawn(&[
        "--",
        "sh",
        "-c",
        "exec 3<&0; (read line <&3; echo \"late $line\") & exit 4",
    ]);
    let mut wire = daemon.connect();
    wire.call("send-input", json!({"id": id, "data": "word\n"}));
    assert_eq!(daemon.cli(&["wait", &id]).status.code(), Some(4));
    assert_eq!(daemon.stdout(&id), b"late word\n");
}
