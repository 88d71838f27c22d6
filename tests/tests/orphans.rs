//! Orphans of killed shims, stopped shims, and reused pids.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use colibri_tests::{Daemon, eventually, kill_9, processes_with};
use serde_json::{Value, json};

/// Starts a grandchild in another session, and one with an empty environment.
const SPREAD: &str = "(setsid sh -c 'echo up; sleep 1000; :' \"$0\" &); (env -i sh -c 'echo up; sleep 1000; :' \"$0\" &); echo up; sleep 1000; :";

fn spawn_with_descendants(daemon: &Daemon, jail: &[&str], mark: &str) -> String {
    let id = daemon.spawn(&[jail, &["--", "sh", "-c", SPREAD, mark]].concat());
    eventually("all three have started", || {
        (daemon.stdout(&id) == b"up\nup\nup\n").then_some(())
    });
    id
}

#[test]
fn orphans_of_a_killed_shim_are_ended_and_reported() {
    let daemon = Daemon::start();
    for (jail, mark, left) in [
        (
            &[][..],
            "mark-left-plain-7f3a",
            "remaining processes were killed",
        ),
        (&["--jail-path", "/"], "mark-left-sandbox-7f3a", ""),
    ] {
        let id = spawn_with_descendants(&daemon, jail, mark);
        kill_9(daemon.shim_pid(&id));
        let agent = daemon.connect().call("wait-agent", json!({"id": id}))["result"].clone();
        assert_eq!(agent["state"], "error");
        let error = agent["error"].as_str().unwrap();
        assert!(
            error.contains("shim was killed") && error.contains(left),
            "{error}"
        );
        eventually("no process of it is left", || {
            processes_with(mark).is_empty().then_some(())
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
    eventually("it is up", || (daemon.stdout(&id) == b"up\n").then_some(()));
    daemon.kill();
    kill_9(daemon.shim_pid(&id));
    eventually("its first process has ended with the shim", || {
        (processes_with(&mark).len() == 1).then_some(())
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
    let shim = rustix::process::Pid::from_raw(daemon.shim_pid(&id)).unwrap();
    daemon.kill();
    rustix::process::kill_process(shim, rustix::process::Signal::STOP).unwrap();
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

/// Runs in a separate pid namespace, where the next pid can be chosen (proc_sys_kernel(5), ns_last_pid).
const REUSE: &str = r#"
set -eu
# reuse PID: a stranger with this pid, session and process group.
reuse() {
    for try in 1 2 3 4 5 6 7 8 9 10; do
        echo $(($1 - 1)) >/proc/sys/kernel/ns_last_pid
        setsid sleep 777 & stranger=$!
        [ $stranger != "$1" ] || return 0
        kill $stranger
    done
    echo "pid $1 was not assigned"; exit 3
}
field() { sed "s/.*\"$1\":\([0-9]*\).*/\1/" "$COLIBRI_STATE_DIR/agents/$id/shim.json"; }

id=$(colibri spawn -- sh -c '(setsid sleep 1000 &); exit 3')
pid=$(field agent_pid)
while [ -e /proc/$pid ]; do sleep 0.01; done
reuse $pid
colibri kill --grace 0s $id
echo "agent's number: $(cat /proc/$stranger/comm)"

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
echo "number of a run before: $(cat /proc/$stranger/comm)"

id=$(colibri spawn -- sleep 1000)
daemon=$(cat /proc/[0-9]*/stat | sed -n 's/^\([0-9]*\) (colibri-daemon).*/\1/p')
shim=$(field shim_pid)
kill -9 $daemon $shim
while [ -e /proc/$daemon ] || [ -e /proc/$shim ]; do sleep 0.01; done
reuse $shim
colibri spawn -- true >/dev/null
colibri ps | grep -q "$id.*lost"
echo "shim's number: $(cat /proc/$stranger/comm)"
colibri shutdown
"#;

#[test]
fn reused_pid_is_not_signalled() {
    let daemon = Daemon::prepare();
    let program = colibri_tests::program("colibri");
    let path = format!("{}:/usr/bin:/bin", program.parent().unwrap().display());
    let output = daemon
        .command("colibri")
        .get_envs()
        .fold(
            &mut std::process::Command::new("unshare"),
            |command, (name, value)| command.env(name, value.unwrap()),
        )
        .args([
            "--user",
            "--map-root-user",
            "--pid",
            "--fork",
            "--mount-proc",
            "--kill-child",
        ])
        .args(["sh", "-c", REUSE])
        .env("PATH", path)
        .stdin(std::process::Stdio::null())
        .output()
        .unwrap();
    let shown = colibri_tests::text(&output.stdout);
    assert_eq!(
        (output.status.code(), shown.as_str()),
        (
            Some(0),
            "agent's number: sleep\nnumber of a run before: sleep\nshim's number: sleep\n"
        ),
        "{}",
        colibri_tests::text(&output.stderr)
    );
}
