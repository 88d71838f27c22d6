//! `colibri run` behaves as if the shell had started the agent itself, with and without a jail.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::disallowed_methods
)]

use std::io::{Read, Write};
use std::process::Stdio;

use colibri_tests::{Daemon, eventually, is_root_or_skipped, processes_with, program, text};

#[test]
fn run_forwards_output_and_exit_code() {
    let daemon = Daemon::start();
    for jail in [&[][..], &["--jail-path", "/"]] {
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
    // More than all buffers on the way, and binary.
    let bytes: Vec<u8> = (0..3_000_000_u32)
        .map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8)
        .collect();
    for jail in [&[][..], &["--jail-path", "/"]] {
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
fn run_forwards_signals_and_the_agent_decides() {
    let daemon = Daemon::start();
    for jail in [&[][..], &["--jail-path", "/"]] {
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
        let mut ready = [0; 6];
        stdout.read_exact(&mut ready).unwrap();
        let pid = rustix::process::Pid::from_child(&child);
        rustix::process::kill_process(pid, rustix::process::Signal::INT).unwrap();
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
fn forwarded_signal_ends_a_restarting_agent_for_good() {
    let daemon = Daemon::start();
    for jail in [&[][..], &["--jail-path", "/"]] {
        for (signal, code) in [
            (rustix::process::Signal::INT, 130),
            (rustix::process::Signal::TERM, 143),
            (rustix::process::Signal::HUP, 129),
        ] {
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
            let mut stdout = std::io::BufReader::new(child.stdout.take().unwrap());
            let mut id = String::new();
            std::io::BufRead::read_line(&mut stdout, &mut id).unwrap();
            let pid = rustix::process::Pid::from_child(&child);
            rustix::process::kill_process(pid, signal).unwrap();
            let ended = eventually("it ends", || child.try_wait().unwrap());
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
        .args(["run", "--", "yes", "reader-gone-mark"])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut first = [0; 16];
    child.stdout.take().unwrap().read_exact(&mut first).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(141));
    assert_eq!(processes_with("reader-gone-mark"), Vec::<i32>::new());
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
    daemon.ok(&["shutdown"]);
    eventually("the daemon has ended", || {
        (!daemon.socket().exists()).then_some(())
    });
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
        assert_eq!(
            daemon.cli(&["wait", selector]).status.code(),
            Some(3),
            "{selector}"
        );
    }
    daemon.ok(&["rm", &id]);
    assert_eq!(daemon.cli(&["wait", &id]).status.code(), Some(125));
    assert!(!daemon.agent_dir(&id).exists());
    let running = daemon.spawn(&["--", "sleep", "1000"]);
    assert_eq!(
        daemon.cli(&["rm", &running]).status.code(),
        Some(1),
        "a running agent is not removed"
    );
    daemon.ok(&["rm", "--force", &running]);
}

#[test]
fn unprivileged_user_can_run_all_commands() {
    // Without root, the other tests cover this case.
    if !is_root_or_skipped("this needs another user") {
        return;
    }
    let dir = tempfile::Builder::new()
        .prefix("colibri-test-")
        .tempdir_in("/var/tmp")
        .unwrap();
    for name in ["colibri", "colibri-daemon", "colibri-shim"] {
        std::fs::copy(program(name), dir.path().join(name)).unwrap();
    }
    let owned = std::process::Command::new("chown")
        .args(["-R", "65534:65534"])
        .arg(dir.path())
        .status()
        .unwrap();
    assert!(owned.success());
    let as_user = |args: &[&str]| {
        std::process::Command::new("setpriv")
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
    let script = "id -u; touch /var/tmp/x; kill -9 1; exit 7";
    let output = as_user(&[
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
    let id = text(
        &as_user(&[
            "spawn",
            "--jail-path",
            "/",
            "--",
            "sh",
            "-c",
            "trap '' TERM; sleep 1000",
        ])
        .stdout,
    );
    let killed = as_user(&["kill", "--grace", "100ms", id.trim()]);
    assert!(killed.status.success(), "{}", text(&killed.stderr));
    assert!(as_user(&["shutdown"]).status.success());
}
