//! The daemon: crash, restart, refusals and permissions.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::fs::{self, Permissions};
use std::io::Write;
use std::os::unix::fs::{MetadataExt, PermissionsExt};

use colibri_tests::{Daemon, NO_JAIL_AND_SANDBOX, eventually, kill_9, text, wait_until};
use serde_json::json;

#[test]
fn killed_daemon_loses_no_agent_and_no_output() {
    let mut daemon = Daemon::start();
    let script =
        "i=0; while [ $i -lt 300 ]; do i=$((i+1)); echo line $i; sleep 0.005; done; exit 9";
    let running = daemon.spawn(&["--jail-path", "/", "--", "sh", "-c", script]);
    let waiting = daemon.spawn(&["--", "sh", "-c", "read line; echo \"$line\"; exit 6"]);
    let pid = daemon.agent(&running)["pid"].clone();
    daemon
        .connect()
        .call("send-input", json!({"id": waiting, "data": "last words\n"}));
    daemon.kill();
    let exit = daemon.agent_dir(&waiting).join("exit.json");
    wait_until("the agent has ended without a daemon", || exit.exists());
    daemon.launch();
    assert_eq!(daemon.agent(&running)["pid"], pid, "the same process");
    assert_eq!(
        daemon.agent(&waiting)["exit"],
        json!({"code": 6, "reason": "exited"})
    );
    assert_eq!(daemon.stdout(&waiting), b"last words\n");
    assert_eq!(daemon.wait(&running), Some(9));
    let expected: String = (1..=300).map(|i| format!("line {i}\n")).collect();
    assert_eq!(text(&daemon.stdout(&running)), expected);
}

#[test]
fn shutdown_leaves_agents_running_and_reports_them() {
    let mut daemon = Daemon::start();
    let id = daemon.spawn(&["--", "sh", "-c", "read line; exit 8"]);
    assert!(daemon.terminate());
    assert!(!daemon.socket().exists());
    assert!(
        daemon.log().contains("running=1") && daemon.log().contains("adopts them"),
        "{}",
        daemon.log()
    );
    daemon.launch();
    let log = daemon.log();
    assert_eq!(log.matches("running=1").count(), 2, "{log}");
    daemon.cli_ok(&["send", &id, "go"]);
    assert_eq!(daemon.wait(&id), Some(8));
}

#[test]
fn killed_shim_ends_its_agent_and_is_reported() {
    let daemon = Daemon::start();
    for jail in NO_JAIL_AND_SANDBOX {
        let id = daemon.spawn(
            &[
                jail,
                &[
                    "--",
                    "sh",
                    "-c",
                    "echo before; sleep 1000; :",
                    "mark-shim-7f3a",
                ],
            ]
            .concat(),
        );
        wait_until("the agent has written", || {
            daemon.stdout(&id).starts_with(b"before")
        });
        kill_9(daemon.shim_pid(&id));
        let agent = daemon.connect().call("wait-agent", json!({"id": id}))["result"].clone();
        assert_eq!(agent["state"], "error");
        assert!(
            agent["error"].as_str().unwrap().contains("shim was killed"),
            "{agent}"
        );
        assert_eq!(daemon.stdout(&id), b"before\n");
        wait_until("the agent has ended", || {
            colibri_tests::processes_with("mark-shim-7f3a").is_empty()
        });
    }
}

#[test]
fn interrupted_spawn_is_removed_and_damage_is_isolated() {
    let mut daemon = Daemon::start();
    let complete = daemon.spawn(&["--", "true"]);
    daemon.wait(&complete);
    daemon.kill();
    let agents = daemon.state().join("agents");
    fs::create_dir(agents.join("incomplete")).unwrap();
    fs::write(agents.join("incomplete/spec.json"), "{}").unwrap();
    fs::create_dir(agents.join("damaged")).unwrap();
    fs::write(agents.join("damaged/exit.json"), "{\"exit\":").unwrap();
    daemon.launch();
    assert!(!agents.join("incomplete").exists());
    assert!(agents.join("damaged").exists() && daemon.log().contains("damaged"));
    assert_eq!(
        daemon.agent(&complete)["exit"],
        json!({"code": 0, "reason": "exited"})
    );
}

#[test]
fn second_daemon_is_refused_and_stale_socket_replaced() {
    let mut daemon = Daemon::start();
    let second = daemon.command("colibri-daemon").output().unwrap();
    assert_eq!(second.status.code(), Some(1));
    assert!(
        text(&second.stderr).contains("cannot use state directory"),
        "{}",
        text(&second.stderr)
    );
    let other_state = daemon
        .command("colibri-daemon")
        .args(["--state-dir"])
        .arg(daemon.path("other"))
        .output()
        .unwrap();
    assert!(
        text(&other_state.stderr).contains("another colibri-daemon listens there"),
        "{}",
        text(&other_state.stderr)
    );
    daemon.cli_ok(&["ps"]);
    daemon.kill();
    assert!(
        daemon.socket().exists(),
        "the killed daemon leaves its socket"
    );
    daemon.launch();
    daemon.cli_ok(&["ps"]);
}

#[test]
fn state_is_private_and_writable_directories_are_refused() {
    let mut daemon = Daemon::start();
    let id = daemon.spawn(&["--", "echo", "hi"]);
    daemon.wait(&id);
    let mode = |path: std::path::PathBuf| fs::symlink_metadata(path).unwrap().mode() & 0o777;
    let agent = daemon.agent_dir(&id);
    assert_eq!((mode(daemon.state()), mode(agent.clone())), (0o700, 0o700));
    assert_eq!(
        (
            mode(daemon.socket()),
            mode(daemon.socket().parent().unwrap().into())
        ),
        (0o600, 0o700)
    );
    for entry in fs::read_dir(&agent).unwrap().flatten() {
        assert_eq!(mode(entry.path()) & 0o077, 0, "{}", entry.path().display());
    }
    daemon.kill();
    fs::set_permissions(daemon.state(), Permissions::from_mode(0o777)).unwrap();
    let refused = daemon.command("colibri-daemon").output().unwrap();
    assert_eq!(refused.status.code(), Some(1));
    assert!(
        text(&refused.stderr).contains("is writable by others"),
        "{}",
        text(&refused.stderr)
    );
}

#[test]
fn unknown_setting_is_an_error_that_lists_known_ones() {
    let daemon = Daemon::prepare();
    for (name, value, known) in [
        ("COLIBRI_JAIL_ENGINE", "docker", "bubblewrap, freebsd"),
        ("COLIBRI_JAIL_PRIV_MODE", "sudo", "helper, mdo, none"),
    ] {
        for program in ["colibri-daemon", "colibri"] {
            let mut command = daemon.command(program);
            if program == "colibri" {
                command.args(["explain", "--", "true"]);
            }
            let output = command.env(name, value).output().unwrap();
            assert_eq!(output.status.code(), Some(1));
            assert!(
                text(&output.stderr).contains(known),
                "{}",
                text(&output.stderr)
            );
        }
    }
    fs::write(daemon.path("bad.toml"), "stat_dir = \"/x\"\n").unwrap();
    let output = daemon
        .command("colibri-daemon")
        .arg("--config")
        .arg(daemon.path("bad.toml"))
        .output()
        .unwrap();
    assert!(
        text(&output.stderr).contains("bad.toml:1:1: unknown key"),
        "{}",
        text(&output.stderr)
    );
}

#[test]
fn event_details_survive_the_agent_and_the_daemon() {
    let mut daemon = Daemon::start();
    let script = r#"echo '{"type":"turn_end"}'; read x; echo '{"type":"turn_end"}'; echo '{"type":"message_end","message":{"role":"assistant","stopReason":"error","errorMessage":"overloaded"}}'"#;
    let spawn = || daemon.spawn(&["--runtime", "pi", "--", "sh", "-c", script]);
    let (ended, running) = (spawn(), spawn());
    daemon.cli_ok(&["send", &ended, "go"]);
    daemon.cli_ok(&["wait", &ended]);
    let complete_view = |daemon: &Daemon, id: &str| {
        eventually("the view is complete", || {
            let view = daemon.agent(id)["view"].clone();
            (view["turns"] == 2 && view["last_error"] == "overloaded").then_some(view)
        })
    };
    let before = complete_view(&daemon, &ended);
    wait_until("the other agent has ended its first turn", || {
        daemon.agent(&running)["view"]["turns"] == 1
    });
    // A daemon observes the end of the first agent; no daemon runs when the second one ends.
    daemon.kill();
    let shim = fs::read(daemon.agent_dir(&running).join("shim.json")).unwrap();
    let shim: serde_json::Value = serde_json::from_slice(&shim).unwrap();
    let input = format!("/proc/{}/fd/0", shim["agent_pid"]);
    fs::OpenOptions::new()
        .write(true)
        .open(input)
        .unwrap()
        .write_all(b"go\n")
        .unwrap();
    wait_until("the agent has ended", || {
        daemon.agent_dir(&running).join("exit.json").exists()
    });
    daemon.launch();
    assert_eq!(complete_view(&daemon, &ended), before);
    complete_view(&daemon, &running);
}
