//! Orphans of killed shims, stopped shims, and reused pids.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use colibri_tests::{Daemon, kill_9, processes_with, program, signal, text, wait_until};
use rustix::process::Signal;
use serde_json::{Value, json};

/// Script of an agent with a descendant in another session, and one with an empty environment.
const WITH_DESCENDANTS: &str = "(setsid sh -c 'echo up; sleep 1000; :' \"$0\" &); (env -i sh -c 'echo up; sleep 1000; :' \"$0\" &); echo up; sleep 1000; :";

fn spawn_with_descendants(daemon: &Daemon, jail: &[&str], mark: &str) -> String {
    let id = daemon.spawn(&[jail, &["--", "sh", "-c", WITH_DESCENDANTS, mark]].concat());
    wait_until("all three have started", || {
        daemon.stdout(&id) == b"up\nup\nup\n"
    });
    id
}

#[test]
fn orphans_of_a_killed_shim_are_ended_and_reported() {
    let daemon = Daemon::start();
    for (jail, mark, remaining) in [
        (
            &[][..],
            "mark-orphans-plain-7f3a",
            "remaining processes were killed",
        ),
        (&["--jail-path", "/"], "mark-orphans-sandbox-7f3a", ""),
    ] {
        let id = spawn_with_descendants(&daemon, jail, mark);
        kill_9(daemon.shim_pid(&id));
        let agent = daemon.connect().call("wait-agent", json!({"id": id}))["result"].clone();
        assert_eq!(agent["state"], "error");
        let error = agent["error"].as_str().unwrap();
        assert!(
            error.contains("shim was killed") && error.contains(remaining),
            "{error}"
        );
        wait_until("no process of the agent is left", || {
            processes_with(mark).is_empty()
        });
        assert_eq!(daemon.stdout(&id), b"up\nup\nup\n");
    }
}

#[test]
fn next_daemon_ends_orphans_that_carry_the_agent_id() {
    let mut daemon = Daemon::start();
    let id = daemon.spawn(&[
        "--",
        "sh",
        "-c",
        "(setsid sleep 1000 &); echo up; exec sleep 1000",
    ]);
    let mark = format!("COLIBRI_AGENT_ID={id}");
    wait_until("the agent has started", || daemon.stdout(&id) == b"up\n");
    daemon.kill();
    kill_9(daemon.shim_pid(&id));
    wait_until("the first process has ended with the shim", || {
        processes_with(&mark).len() == 1
    });
    daemon.launch();
    let agent = daemon.agent(&id);
    assert!(
        agent["error"]
            .as_str()
            .unwrap()
            .contains("1 remaining process was killed"),
        "{agent}"
    );
    assert_eq!(processes_with(&mark), Vec::<i32>::new());
}

#[test]
fn stopped_shim_delays_no_daemon_and_no_kill() {
    let mut daemon = Daemon::start();
    let id = daemon.spawn(&["--", "sh", "-c", "sleep 1000; :", "mark-stopped-7f3a"]);
    let shim = daemon.shim_pid(&id);
    daemon.kill();
    signal(shim, Signal::STOP);
    daemon.launch();
    assert_eq!(daemon.agent(&id)["exited_at"], Value::Null);
    let killed = daemon
        .connect()
        .call("kill-agent", json!({"id": id, "grace_ms": 0}));
    assert_eq!(
        killed["result"],
        json!({"outcome": "killed", "remaining_pids": []}),
        "{killed}"
    );
    assert_eq!(processes_with("mark-stopped-7f3a"), Vec::<i32>::new());
    assert_eq!(daemon.agent(&id)["state"], "error");
}

/// Script for a separate pid namespace, in which it can choose the next pid (proc_sys_kernel(5), ns_last_pid). It checks
/// that a kill does not end an unrelated process with the pid of an agent, of an earlier run, or of a shim.
const REUSE_PIDS: &str = r#"
set -eu
# reuse PID: starts an unrelated process with this pid, session and process group.
reuse() {
    for attempt in 1 2 3 4 5 6 7 8 9 10; do
        echo $(($1 - 1)) >/proc/sys/kernel/ns_last_pid
        setsid sleep 777 & unrelated=$!
        [ $unrelated != "$1" ] || return 0
        kill $unrelated
    done
    echo "pid $1 was not assigned"; exit 3
}
field() { sed "s/.*\"$1\":\([0-9]*\).*/\1/" "$COLIBRI_STATE_DIR/agents/$id/shim.json"; }

id=$(colibri spawn -- sh -c '(setsid sleep 1000 &); exit 3')
pid=$(field agent_pid)
while [ -e /proc/$pid ]; do sleep 0.01; done
reuse $pid
colibri kill --grace 0s $id
echo "pid of an agent: $(cat /proc/$unrelated/comm)"

cat >"$HOME/once" <<'ONCE'
#!/bin/sh
rm "$0"
exit 1
ONCE
chmod +x "$HOME/once"
id=$(colibri spawn --restart always --restart-delay 1ms --restart-max-delay 1h --restart-limit 9999 -- "$HOME/once")
pid=$(field agent_pid)
until colibri ps --json | grep -q "could not be started"; do sleep 0.01; done
reuse $pid
colibri kill --grace 0s $id
echo "pid of an earlier run: $(cat /proc/$unrelated/comm)"

id=$(colibri spawn -- sleep 1000)
daemon=$(cat /proc/[0-9]*/stat | sed -n 's/^\([0-9]*\) (colibri-daemon).*/\1/p')
shim=$(field shim_pid)
kill -9 $daemon $shim
while [ -e /proc/$daemon ] || [ -e /proc/$shim ]; do sleep 0.01; done
reuse $shim
colibri spawn -- true >/dev/null
colibri ps | grep -q "$id.*lost"
echo "pid of a shim: $(cat /proc/$unrelated/comm)"
colibri shutdown
"#;

#[test]
fn reused_pid_is_not_signalled() {
    let daemon = Daemon::prepare();
    let colibri = program("colibri");
    let path = format!("{}:/usr/bin:/bin", colibri.parent().unwrap().display());
    let output = daemon
        .external_command("unshare")
        .args([
            "--user",
            "--map-root-user",
            "--pid",
            "--fork",
            "--mount-proc",
            "--kill-child",
        ])
        .args(["sh", "-c", REUSE_PIDS])
        .env("PATH", path)
        .output()
        .unwrap();
    let stdout = text(&output.stdout);
    assert_eq!(
        (output.status.code(), stdout.as_str()),
        (
            Some(0),
            "pid of an agent: sleep\npid of an earlier run: sleep\npid of a shim: sleep\n"
        ),
        "{}",
        text(&output.stderr)
    );
}
