//! Signals reach their agent. Agents inherit no signal state and no descriptors from the program that starts the daemon.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::fs;
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, Command, Stdio};

use colibri_tests::{
    Daemon, NO_JAIL_AND_SANDBOX, RESTARTING_SLEEP, eventually, program, run_checked, signal, text,
    wait_until,
};
use rustix::process::Signal;
use serde_json::json;

/// Script of an agent that exits with 0 at TERM and INT.
const EXIT_AT_TERM: &str = "trap 'echo bye; exit 0' TERM INT; while :; do sleep 0.02; done";

/// Returns a field of `/proc/PID/status` (proc_pid_status(5)).
fn process_field(pid: i32, name: &str) -> String {
    status_field(
        &fs::read_to_string(format!("/proc/{pid}/status")).unwrap(),
        name,
    )
}

/// Returns a field of the text of `/proc/PID/status`.
fn status_field(status: &str, name: &str) -> String {
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix(&format!("{name}:")));
    line.unwrap().trim().to_owned()
}

/// Returns a set of signals from the text of `/proc/PID/status`, without those that the C library reserves (32 and 33,
/// signal(7)).
fn signal_set(status: &str, name: &str) -> u64 {
    u64::from_str_radix(&status_field(status, name), 16).unwrap() & !(0b11 << 31)
}

/// Starts `colibri run`, waits until its agent is listed, and returns the command and the id.
fn start_run(daemon: &Daemon, args: &[&str]) -> (Child, String) {
    let before = daemon.agents();
    let child = daemon
        .command("colibri")
        .args(["--no-autostart", "run"])
        .args(args)
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let id = eventually("the agent is listed", || {
        let agents = daemon.agents();
        let new = agents
            .iter()
            .find(|agent| before.iter().all(|known| known["id"] != agent["id"]))?;
        Some(new["id"].as_str().unwrap().to_owned())
    });
    (child, id)
}

#[test]
fn term_right_after_spawn_is_never_lost() {
    let daemon = Daemon::start();
    let mut wire = daemon.connect();
    for round in 0..100 {
        let spawned = wire.call(
            "spawn-agent",
            json!({"program": "sh", "args": ["-c", EXIT_AT_TERM], "jail": {"path": "/"}}),
        );
        let id = spawned["result"]["id"].clone();
        let killed = wire.call("kill-agent", json!({"id": id, "grace_ms": 15_000}));
        assert_eq!(
            killed["result"]["outcome"], "terminated",
            "{round}: {killed}"
        );
    }
}

#[test]
fn interrupt_right_after_run_is_never_lost() {
    let daemon = Daemon::start();
    for round in 0..20 {
        let (mut child, id) = start_run(
            &daemon,
            &["--jail-path", "/", "--", "sh", "-c", EXIT_AT_TERM],
        );
        signal(child.id() as i32, Signal::INT);
        let ended = eventually("run has ended", || child.try_wait().unwrap());
        assert!(
            [Some(0), Some(130)].contains(&ended.code()),
            "{round}: {ended}"
        );
        assert!(!daemon.agent(&id)["exit"].is_null());
    }
}

#[test]
fn signal_forwarded_by_run_ends_restarts() {
    let daemon = Daemon::start();
    for (name, number) in [("INT", 2), ("TERM", 15), ("HUP", 1), ("QUIT", 3)] {
        let (mut child, id) = start_run(&daemon, &RESTARTING_SLEEP);
        let sent = Signal::from_named_raw(number).unwrap();
        signal(child.id() as i32, sent);
        let ended = eventually("run has ended", || child.try_wait().unwrap());
        assert_eq!(ended.code(), Some(128 + number), "{name}: {ended}");
        let agent = daemon.agent(&id);
        assert_eq!(
            (&agent["exit"]["reason"], &agent["run"], &agent["state"]),
            (&json!("killed-by-user"), &json!(1), &json!("done")),
            "{name}: {agent}"
        );
    }
}

#[test]
fn stopped_agent_gets_term_within_the_grace() {
    let daemon = Daemon::start();
    for jail in NO_JAIL_AND_SANDBOX {
        let script = "trap 'echo bye; exit 3' TERM; echo ready; kill -STOP $$; :";
        let id = daemon.spawn(&[jail, &["--", "sh", "-c", script]].concat());
        wait_until("the agent is ready", || {
            daemon.stdout(&id).starts_with(b"ready")
        });
        let killed = daemon
            .connect()
            .call("kill-agent", json!({"id": id, "grace_ms": 15_000}));
        assert_eq!(killed["result"]["outcome"], "terminated", "{killed}");
        assert_eq!(text(&daemon.stdout(&id)), "ready\nbye\n");
    }
}

#[test]
fn inherited_signal_state_reaches_no_agent() {
    let mut daemon = Daemon::prepare();
    daemon.launch_with_prefix(&[
        "/usr/bin/env".to_owned(),
        "--block-signal".to_owned(),
        "--ignore-signal=QUIT,HUP,INT,USR1,CHLD,XFSZ".to_owned(),
    ]);
    let shown = daemon.spawn(&["--", "cat", "/proc/self/status"]);
    assert_eq!(daemon.wait(&shown), Some(0));
    let agent = text(&daemon.stdout(&shown));
    assert_eq!(signal_set(&agent, "SigBlk"), 0);
    assert_eq!(signal_set(&agent, "SigIgn"), 0);
    // The Rust runtime ignores SIGPIPE (13) in daemon and shim.
    let id = daemon.spawn(&["--", "sleep", "1000"]);
    for pid in [daemon.pid(), daemon.shim_pid(&id)] {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
        assert_eq!(signal_set(&status, "SigBlk"), 0);
        assert_eq!(signal_set(&status, "SigIgn"), 1 << 12);
    }
    let killed = daemon
        .connect()
        .call("kill-agent", json!({"id": id, "signal": "QUIT"}));
    assert_eq!(killed["result"]["outcome"], "terminated", "{killed}");
}

#[test]
fn autostarted_daemon_detaches_from_its_caller() {
    let daemon = Daemon::prepare();
    fs::create_dir(daemon.path("subdirectory")).unwrap();
    let script = "umask 0; cd subdirectory; exec nice -n 5 \"$0\" spawn -- \"$@\"";
    let spawn = |args: &[&str]| {
        let output = daemon
            .external_command("sh")
            .args(["-c", script])
            .arg(program("colibri"))
            .args(args)
            .current_dir(daemon.directory())
            .output()
            .unwrap();
        assert!(output.status.success(), "{}", text(&output.stderr));
        text(&output.stdout).trim().to_owned()
    };
    let id = spawn(&["sleep", "1000"]);
    let shim = daemon.shim_pid(&id);
    let log = fs::read_to_string(daemon.state().join("daemon.log")).unwrap();
    let pid: i32 = {
        let lock = daemon.state().join("daemon.lock");
        let holders = daemon
            .external_command("fuser")
            .arg(&lock)
            .output()
            .unwrap();
        text(&holders.stdout)
            .split_whitespace()
            .find_map(|word| word.parse().ok())
            .unwrap_or_else(|| panic!("no process holds {}: {log}", lock.display()))
    };
    assert_eq!(
        fs::read_link(format!("/proc/{pid}/cwd")).unwrap().to_str(),
        Some("/")
    );
    assert_eq!(process_field(pid, "Umask"), "0077");
    assert_eq!(process_field(shim, "Umask"), "0077");
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let fields = stat.rsplit_once(')').unwrap().1;
    // Field 19 of proc_pid_stat(5); the first one here is field 3.
    let nice = fields.split_whitespace().nth(16).unwrap();
    if rustix::process::geteuid().is_root() {
        assert_eq!(nice, "0", "only root can restore the priority");
    } else {
        assert!(log.contains("low priority"), "{log}");
    }
    let agent = daemon.agent(&id)["pid"].as_i64().unwrap() as i32;
    assert_eq!(process_field(agent, "Umask"), "0022");
    let other = daemon.spawn(&["--umask", "027", "--", "sleep", "1000"]);
    let agent = daemon.agent(&other)["pid"].as_i64().unwrap() as i32;
    assert_eq!(process_field(agent, "Umask"), "0027");
    for id in [id, other] {
        daemon.cli_ok(&["kill", "--grace", "1s", &id]);
    }
    daemon.cli_ok(&["shutdown"]);
}

#[test]
fn file_size_limit_stalls_an_agent_and_loses_nothing() {
    let mut daemon = Daemon::prepare();
    daemon.launch_with_prefix(&["/usr/bin/prlimit".to_owned(), "--fsize=65536:".to_owned()]);
    let id = daemon.spawn(&[
        "--",
        "sh",
        "-c",
        "head -c 200000 /dev/zero | tr '\\0' x; exit 5",
    ]);
    let agent = eventually("the agent is stalled", || {
        let agent = daemon.agent(&id);
        (agent["state"] == "stalled").then_some(agent)
    });
    let reason = agent["error"].as_str().unwrap();
    assert!(reason.contains("File too large"), "{reason}");
    let shim = daemon.shim_pid(&id).to_string();
    run_checked(Command::new("prlimit").args(["--pid", &shim, "--fsize=unlimited:"]));
    assert_eq!(daemon.wait(&id), Some(5));
    assert_eq!(daemon.stdout(&id), vec![b'x'; 200_000]);
}

#[test]
fn exit_reason_is_recorded() {
    let daemon = Daemon::start();
    let cases: &[(&[&str], &str, &str)] = &[
        (&["--", "true"], "exited", "done"),
        (&["--", "sh", "-c", "exit 3"], "exited", "error"),
        (&["--", "sh", "-c", "kill -9 $$"], "signalled", "error"),
        (
            &["--wall-time", "100ms", "--", "sleep", "1000"],
            "wall-time",
            "error",
        ),
    ];
    for (args, reason, state) in cases {
        let id = daemon.spawn(args);
        daemon.wait(&id);
        let agent = daemon.agent(&id);
        assert_eq!(
            (&agent["exit"]["reason"], &agent["state"]),
            (&json!(reason), &json!(state)),
            "{agent}"
        );
    }
    let killed = daemon.spawn(&["--", "sleep", "1000"]);
    daemon.cli_ok(&["kill", &killed]);
    let lost = daemon.spawn(&["--", "sleep", "1000"]);
    signal(daemon.shim_pid(&lost), Signal::KILL);
    daemon.wait(&lost);
    let agent = daemon.agent(&killed);
    assert_eq!(
        (&agent["exit"], &agent["state"]),
        (
            &json!({"signal": 15, "reason": "killed-by-user"}),
            &json!("done")
        )
    );
    let agent = daemon.agent(&lost);
    assert_eq!(
        (&agent["exit"], &agent["state"]),
        (&json!({"reason": "lost"}), &json!("error"))
    );
}

#[test]
fn expired_request_is_not_carried_out_later() {
    let daemon = Daemon::start();
    let id = daemon.spawn(&["--", "cat"]);
    let shim = daemon.shim_pid(&id);
    let mut wire = daemon.connect();
    signal(shim, Signal::STOP);
    let refused = wire.call("send-input", json!({"id": id, "data": "line\n"}));
    assert_eq!(
        refused["error"]["data"]["kind"], "agent-silent",
        "{refused}"
    );
    signal(shim, Signal::CONT);
    let sent = wire.call("send-input", json!({"id": id, "data": "line\n"}));
    assert_eq!(sent["result"]["written"], 5, "{sent}");
    wire.call("close-input", json!({"id": id}));
    assert_eq!(daemon.wait(&id), Some(0));
    assert_eq!(text(&daemon.stdout(&id)), "line\n");
}

#[test]
fn agent_in_a_removed_directory_reports_its_exit_code() {
    let daemon = Daemon::start();
    let id = daemon.spawn(&[
        "--",
        "sh",
        "-c",
        "read line; head -c 300000 /dev/zero; exit 7",
    ]);
    fs::remove_dir_all(daemon.agent_dir(&id)).unwrap();
    daemon.cli_ok(&["send", &id, "go"]);
    let waited = daemon.cli(&["wait", &id]);
    assert_eq!(waited.status.code(), Some(7), "{}", text(&waited.stderr));
    let agent = daemon.agent(&id);
    assert_eq!(
        (&agent["exit"]["code"], &agent["state"]),
        (&json!(7), &json!("error"))
    );
    let error = agent["error"].as_str().unwrap();
    assert!(error.contains("was removed while it ran"), "{error}");
    daemon.cli_ok(&["rm", &id]);
}

#[test]
fn kill_ends_an_agent_whose_directory_was_removed() {
    let daemon = Daemon::start();
    let id = daemon.spawn(&["--", "sleep", "1000"]);
    fs::remove_dir_all(daemon.agent_dir(&id)).unwrap();
    let killed = daemon.connect().call("kill-agent", json!({"id": id}));
    assert_eq!(killed["result"]["outcome"], "terminated", "{killed}");
    let agent = daemon.agent(&id);
    assert_eq!(agent["exit"]["signal"], json!(15), "{agent}");
    let repeated = daemon.connect().call("kill-agent", json!({"id": id}));
    assert_eq!(
        repeated["result"]["outcome"], "already-exited",
        "{repeated}"
    );
}

#[test]
fn unreachable_shim_without_directory_ends_its_agent() {
    let mut daemon = Daemon::start();
    let id = daemon.spawn(&["--", "sh", "-c", "sleep 1000; :"]);
    let shim = daemon.shim_pid(&id);
    fs::remove_dir_all(daemon.agent_dir(&id)).unwrap();
    daemon.kill();
    wait_until("the shim has ended", || {
        !std::path::Path::new(&format!("/proc/{shim}")).exists()
            || process_field(shim, "State").starts_with('Z')
    });
}

#[test]
fn inherited_descriptor_is_closed_without_proc() {
    let dir = tempfile::tempdir().unwrap();
    let launch = json!({
        "program": "/bin/sh",
        "args": ["-c", "if (: <&7) 2>/dev/null; then echo open; else echo closed; fi >&2"],
        "env": [], "cwd": "/", "journal": {"segment_bytes": 65536, "fsync": "never"},
    });
    fs::write(dir.path().join("launch"), format!("{launch}\n")).unwrap();
    let script = "mount -t tmpfs none /proc && cd \"$1\" && exec \"$0\" \"$1\" 7</ <launch";
    let output = Command::new("unshare")
        .args(["--map-root-user", "--mount", "sh", "-c", script])
        .arg(program("colibri-shim"))
        .arg(dir.path())
        .output()
        .unwrap();
    assert!(text(&output.stdout).contains("started"), "{output:?}");
    wait_until("the agent has ended", || {
        dir.path().join("exit.json").exists()
    });
    let log = fs::read(dir.path().join("stderr/00000000000000000000.log")).unwrap();
    assert_eq!(text(&log), "closed\n");
}

#[test]
fn shim_that_cannot_close_descriptors_starts_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let output = Command::new("strace")
        .args([
            "-qq",
            "-o",
            "/dev/null",
            "-e",
            "inject=close_range:error=ENOSYS",
        ])
        .arg(program("colibri-shim"))
        .arg(dir.path())
        .stdin(Stdio::null())
        .output()
        .unwrap();
    assert!(output.status.code().is_some() && output.status.signal().is_none());
    let message = text(&output.stdout);
    assert!(
        message.contains("cannot close inherited descriptors"),
        "{message}"
    );
    assert_eq!(output.status.code(), Some(1));
}

#[test]
fn stop_right_after_spawn_does_not_block_later_signals() {
    let daemon = Daemon::start();
    let mut wire = daemon.connect();
    for _ in 0..5 {
        let params = json!({"program": "sh", "args": ["-c", EXIT_AT_TERM], "jail": {"path": "/"}});
        let id = wire.call("spawn-agent", params)["result"]["id"].clone();
        for signal in ["STOP", "CONT"] {
            let params = json!({"id": id, "signal": signal, "escalate": false});
            let sent = wire.call("kill-agent", params);
            assert_eq!(sent["result"]["outcome"], "signalled", "{signal}: {sent}");
        }
        let killed = wire.call("kill-agent", json!({"id": id, "grace_ms": 15_000}));
        assert_eq!(killed["result"]["outcome"], "terminated", "{killed}");
    }
}

#[test]
fn kill_ends_an_agent_whose_output_cannot_be_stored() {
    let mut daemon = Daemon::prepare();
    daemon.launch_with_prefix(&["/usr/bin/prlimit".to_owned(), "--fsize=65536:".to_owned()]);
    let id = daemon.spawn(&["--", "sh", "-c", "head -c 200000 /dev/zero; sleep 1000"]);
    wait_until("the agent is stalled", || {
        daemon.agent(&id)["state"] == "stalled"
    });
    daemon.connect().call("kill-agent", json!({"id": id}));
    let ended = daemon.connect().call("wait-agent", json!({"id": id}));
    let error = ended["result"]["error"].as_str().unwrap_or_default();
    assert!(error.contains("could not be stored"), "{ended}");
    assert_eq!(ended["result"]["stdout_bytes"], 65536, "{ended}");
}

#[test]
fn daemon_that_cannot_log_still_answers() {
    let daemon = Daemon::prepare();
    let spawned = daemon
        .command("colibri")
        .args(["spawn", "--", "sh", "-c", "read line; exit 3"])
        .output()
        .unwrap();
    assert!(spawned.status.success(), "{}", text(&spawned.stderr));
    let id = text(&spawned.stdout).trim().to_owned();
    let mut wire = daemon.connect();
    eventually("the state directory is removed", || {
        fs::remove_dir_all(daemon.state()).ok()
    });
    let unknown = wire.call("kill-agent", json!({"id": "nosuch"}));
    assert_eq!(
        unknown["error"]["data"]["kind"], "unknown-agent",
        "{unknown}"
    );
    let refused = wire.call("spawn-agent", json!({"program": "true"}));
    assert!(refused["error"]["message"].is_string(), "{refused}");
    wire.call("close-input", json!({"id": id}));
    let ended = wire.call("wait-agent", json!({"id": id}));
    assert_eq!(ended["result"]["exit"]["code"], 3, "{ended}");
    wire.call("shutdown", json!({}));
}
