//! `colibri run` behaves as if a shell had started the agent, with and without a jail.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::disallowed_methods
)]

use std::io::{BufRead, BufReader, Read, Write};
use std::process::{Command, Stdio};

use colibri_tests::{
    Daemon, NO_JAIL_AND_SANDBOX, eventually, is_root_or_skipped, processes_with, program,
    run_checked, signal, test_directory, text, wait_until,
};
use rustix::process::Signal;

#[test]
fn run_forwards_output_and_exit_code() {
    let daemon = Daemon::start();
    for jail in NO_JAIL_AND_SANDBOX {
        for (script, code, out, err) in [
            ("echo hi; exit 7", 7, "hi\n", ""),
            ("echo out; echo err >&2", 0, "out\n", "err\n"),
            ("kill -TERM $$", 143, "", ""),
            ("printf 'no newline'; exit 255", 255, "no newline", ""),
        ] {
            let args: Vec<&str> = [&["run"], jail, &["--", "sh", "-c", script]].concat();
            let output = daemon.cli(&args);
            let actual = (
                output.status.code(),
                text(&output.stdout),
                text(&output.stderr),
            );
            assert_eq!(
                actual,
                (Some(code), out.to_owned(), err.to_owned()),
                "{args:?}"
            );
        }
    }
}

#[test]
fn run_forwards_stdin_and_its_end() {
    let daemon = Daemon::start();
    // Binary data that exceeds all buffers between the client and the agent.
    let bytes: Vec<u8> = (0..3_000_000_u32)
        .map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8)
        .collect();
    for jail in NO_JAIL_AND_SANDBOX {
        let mut child = daemon
            .command("colibri")
            .arg("run")
            .args(jail)
            .args(["--", "cat"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut stdin = child.stdin.take().unwrap();
        let sent = bytes.clone();
        let writer = std::thread::spawn(move || stdin.write_all(&sent).unwrap());
        let mut received = Vec::new();
        child
            .stdout
            .take()
            .unwrap()
            .read_to_end(&mut received)
            .unwrap();
        writer.join().unwrap();
        assert!(child.wait().unwrap().success());
        assert!(
            received == bytes,
            "{} of {} bytes",
            received.len(),
            bytes.len()
        );
    }
}

#[test]
fn signal_to_run_reaches_the_agent_which_handles_it() {
    let daemon = Daemon::start();
    for jail in NO_JAIL_AND_SANDBOX {
        let script = "trap 'echo got it; exit 5' INT; echo ready; while :; do sleep 0.05; done";
        let mut child = daemon
            .command("colibri")
            .arg("run")
            .args(jail)
            .args(["--", "sh", "-c", script])
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut stdout = child.stdout.take().unwrap();
        stdout.read_exact(&mut [0; 6]).unwrap();
        signal(child.id() as i32, Signal::INT);
        let mut remaining = String::new();
        stdout.read_to_string(&mut remaining).unwrap();
        assert_eq!(
            (child.wait().unwrap().code(), remaining.as_str()),
            (Some(5), "got it\n"),
            "{jail:?}"
        );
    }
}

#[test]
fn forwarded_signal_ends_an_agent_without_restart() {
    let daemon = Daemon::start();
    for jail in NO_JAIL_AND_SANDBOX {
        for (sent, code) in [(Signal::INT, 130), (Signal::TERM, 143), (Signal::HUP, 129)] {
            let restart = ["--restart", "always", "--restart-delay", "1ms", "--"];
            let script = "echo $COLIBRI_AGENT_ID; exec sleep 1000";
            let mut child = daemon
                .command("colibri")
                .arg("run")
                .args(jail)
                .args(restart)
                .args(["sh", "-c", script])
                .stdout(Stdio::piped())
                .spawn()
                .unwrap();
            let mut stdout = BufReader::new(child.stdout.take().unwrap());
            let mut id = String::new();
            stdout.read_line(&mut id).unwrap();
            signal(child.id() as i32, sent);
            let ended = eventually("run has ended", || child.try_wait().unwrap());
            assert_eq!(ended.code(), Some(code), "{jail:?}");
            let agent = daemon.agent(id.trim());
            assert_eq!(agent["run"], 1, "{agent}");
            assert!(!agent["exited_at"].is_null(), "{agent}");
        }
    }
}

#[test]
fn closed_reader_of_run_ends_the_agent() {
    let daemon = Daemon::start();
    let mut child = daemon
        .command("colibri")
        .args(["run", "--", "yes", "mark-closed-reader-7f3a"])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdout = child.stdout.take().unwrap();
    stdout.read_exact(&mut [0; 16]).unwrap();
    drop(stdout);
    assert_eq!(child.wait().unwrap().code(), Some(141));
    assert_eq!(processes_with("mark-closed-reader-7f3a"), Vec::<i32>::new());
}

#[test]
fn missing_daemon_is_started_and_reported() {
    let daemon = Daemon::prepare();
    let refused = daemon.cli(&["ps"]);
    assert_eq!(refused.status.code(), Some(3), "{}", text(&refused.stderr));
    let refused = daemon.cli(&["run", "--", "true"]);
    assert_eq!(refused.status.code(), Some(3), "--no-autostart");
    let output = daemon
        .command("colibri")
        .args(["run", "--", "echo", "hi"])
        .output()
        .unwrap();
    assert_eq!(
        (output.status.code(), text(&output.stdout).as_str()),
        (Some(0), "hi\n")
    );
    assert!(
        text(&output.stderr).contains("started"),
        "{}",
        text(&output.stderr)
    );
    daemon.cli_ok(&["shutdown"]);
    wait_until("the daemon has ended", || !daemon.socket().exists());
}

#[test]
fn invalid_command_line_exits_with_usage() {
    let daemon = Daemon::start();
    for args in [
        &["run"][..],
        &["fly"],
        &["kill", "x", "--grace", "soon"],
        &["run", "--env", "novalue", "--", "true"],
        &["run", "pi", "--mode", "json"],
        &["logs", ""],
        &["kill", " "],
        &["prune", "--older-than", "7"],
    ] {
        assert_eq!(daemon.cli(args).status.code(), Some(2), "{args:?}");
    }
    for (args, code) in [
        (&["wait", "missing"][..], 125),
        (&["attach", "missing"], 125),
        (&["kill", "../x"], 1),
    ] {
        assert_eq!(daemon.cli(args).status.code(), Some(code), "{args:?}");
    }
}

#[test]
fn agent_is_selected_by_id_prefix_and_name() {
    let daemon = Daemon::start();
    let id = daemon.spawn(&["--name", "night shift", "--", "sh", "-c", "exit 3"]);
    for selector in [id.as_str(), &id[..6], "night shift"] {
        assert_eq!(daemon.wait(selector), Some(3), "{selector}");
    }
    daemon.cli_ok(&["rm", &id]);
    assert_eq!(daemon.wait(&id), Some(125));
    assert!(!daemon.agent_dir(&id).exists());
    let running = daemon.spawn(&["--", "sleep", "1000"]);
    assert_eq!(
        daemon.cli(&["rm", &running]).status.code(),
        Some(1),
        "a running agent is not removed"
    );
    daemon.cli_ok(&["rm", "--force", &running]);
}

#[test]
fn unprivileged_user_can_run_all_commands() {
    // Without root, all tests run as an unprivileged user.
    if !is_root_or_skipped("the commands run as another user") {
        return;
    }
    let dir = test_directory();
    for name in [
        "colibri",
        "colibri-daemon",
        "colibri-shim",
        "colibri-sandbox",
    ] {
        std::fs::copy(program(name), dir.path().join(name)).unwrap();
    }
    run_checked(
        Command::new("chown")
            .args(["-R", "65534:65534"])
            .arg(dir.path()),
    );
    let call = |args: &[&str]| {
        Command::new("setpriv")
            .args([
                "--reuid=65534",
                "--regid=65534",
                "--clear-groups",
                "--no-new-privs",
            ])
            .arg(dir.path().join("colibri"))
            .args(args)
            .env_clear()
            .env("PATH", "/usr/bin:/bin")
            .env("COLIBRI_SOCKET", dir.path().join("run/s"))
            .env("COLIBRI_STATE_DIR", dir.path().join("state"))
            .stdin(Stdio::null())
            .output()
            .unwrap()
    };
    let script = "id -u; touch /etc/x /x; kill -9 1; exit 7";
    let output = call(&[
        "run",
        "--jail-path",
        "/",
        "--jail-ip4",
        "disable",
        "--",
        "sh",
        "-c",
        script,
    ]);
    assert_eq!(
        (output.status.code(), text(&output.stdout).as_str()),
        (Some(7), "65534\n"),
        "{}",
        text(&output.stderr)
    );
    assert!(
        text(&output.stderr).contains("Read-only file system"),
        "{}",
        text(&output.stderr)
    );
    let script = "trap '' TERM; sleep 1000";
    let spawned = call(&["spawn", "--jail-path", "/", "--", "sh", "-c", script]);
    let id = text(&spawned.stdout);
    let killed = call(&["kill", "--grace", "100ms", id.trim()]);
    assert!(killed.status.success(), "{}", text(&killed.stderr));
    assert!(call(&["shutdown"]).status.success());
}
