//! `run` and `attach` handle signals while their output is blocked and while the daemon does not answer. Of all write
//! errors only EPIPE ends an agent.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::process::{Child, Output, Stdio};
use std::time::{Duration, Instant};

use colibri_tests::tmux::Terminal;
use colibri_tests::{Daemon, SOON, eventually, signal, text, wait_until};
use rustix::process::Signal;

/// Waits for the end of a command, whose output may be blocked, and returns its exit code and stderr.
fn wait_for_end(mut child: Child) -> (Option<i32>, String) {
    let code = eventually("the command ends", || child.try_wait().unwrap()).code();
    let mut message = String::new();
    child
        .stderr
        .take()
        .unwrap()
        .read_to_string(&mut message)
        .unwrap();
    (code, message)
}

/// Waits until the first agent has written more than all pipes and queues can hold, and returns its id.
fn wait_for_flood(daemon: &Daemon) -> String {
    eventually("the agent has written more than 4 MiB", || {
        let agents = daemon.agents();
        let agent = agents.first()?;
        (agent["stdout_bytes"].as_u64()? > 4 << 20)
            .then(|| agent["id"].as_str().unwrap().to_owned())
    })
}

/// Starts `colibri` with pipes as stdout and stderr.
fn start(daemon: &Daemon, args: &[&str]) -> Child {
    daemon
        .command("colibri")
        .arg("--no-autostart")
        .args(args)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap()
}

/// Runs `colibri` with /dev/full as stdout.
fn run_to_full_device(daemon: &Daemon, args: &[&str]) -> Output {
    daemon
        .command("colibri")
        .arg("--no-autostart")
        .args(args)
        .stdout(File::create("/dev/full").unwrap())
        .stderr(Stdio::piped())
        .output()
        .unwrap()
}

#[test]
fn full_disk_on_stdout_is_reported_and_ends_no_agent() {
    let daemon = Daemon::start();
    let finished = daemon.path("finished");
    for (code, expected) in [("7", 7), ("0", 125)] {
        let script = format!(
            "i=0; while [ $i -lt 20 ]; do echo line $i; i=$((i+1)); sleep 0.01; done; echo whole >> {}; exit {code}",
            finished.display()
        );
        let output = run_to_full_device(&daemon, &["run", "--", "sh", "-c", &script]);
        let message = text(&output.stderr);
        assert_eq!(output.status.code(), Some(expected), "{message}");
        assert_eq!(
            message.matches("No space left on device").count(),
            1,
            "{message}"
        );
    }
    assert_eq!(
        std::fs::read_to_string(&finished).unwrap(),
        "whole\nwhole\n"
    );
    let id = daemon.spawn(&[
        "--",
        "sh",
        "-c",
        "echo hi; read x; echo ho; exec sleep 1000",
    ]);
    wait_until("the agent has written", || !daemon.stdout(&id).is_empty());
    for args in [
        &["logs", &id][..],
        &["logs", "-f", &id],
        &["attach", "--no-input", &id],
        &["events", "--output", &id],
    ] {
        let output = run_to_full_device(&daemon, args);
        let message = text(&output.stderr);
        assert!(!output.status.success(), "{args:?}");
        assert_eq!(
            message.matches("No space left on device").count(),
            1,
            "{args:?}: {message}"
        );
        assert!(daemon.agent(&id)["exited_at"].is_null(), "{args:?}");
    }
}

#[test]
fn signal_with_full_pipe_ends_run_and_agent() {
    for (name, sent, expected) in [
        ("INT", Signal::INT, 130),
        ("TERM", Signal::TERM, 143),
        ("HUP", Signal::HUP, 129),
        ("QUIT", Signal::QUIT, 131),
    ] {
        let daemon = Daemon::start();
        let child = start(&daemon, &["run", "--", "yes"]);
        let id = wait_for_flood(&daemon);
        signal(child.id() as i32, sent);
        let (code, message) = wait_for_end(child);
        assert_eq!(code, Some(expected), "{name}: {message}");
        assert!(!daemon.agent(&id)["exited_at"].is_null(), "{name}");
    }
}

#[test]
fn second_signal_ends_a_stuck_run_but_not_its_agent() {
    let daemon = Daemon::start();
    let script = "trap '' INT; yes";
    let mut child = start(&daemon, &["run", "--", "sh", "-c", script]);
    let id = wait_for_flood(&daemon);
    // The kernel merges pending signals with the same number, so the signal is sent until the command ends.
    eventually("the command ends", || {
        let ended = child.try_wait().unwrap();
        if ended.is_none() {
            signal(child.id() as i32, Signal::INT);
        }
        ended
    });
    let (code, message) = wait_for_end(child);
    assert_eq!(code, Some(130), "{message}");
    assert!(message.contains(&format!("colibri kill {id}")), "{message}");
    assert!(
        daemon.agent(&id)["exited_at"].is_null(),
        "the agent ignores INT"
    );
}

#[test]
fn output_that_is_read_after_the_end_is_complete() {
    let daemon = Daemon::start();
    let mut child = start(&daemon, &["run", "--", "sh", "-c", "seq 1 200000; exit 3"]);
    eventually("the agent has ended", || {
        daemon.agents().first()?["exited_at"].as_str().map(drop)
    });
    // Longer than the timeouts of `run` after a signal, which must not apply here.
    std::thread::sleep(Duration::from_millis(1500));
    assert_eq!(child.try_wait().unwrap(), None);
    let mut stdout = child.stdout.take().unwrap();
    let mut received = String::new();
    stdout.read_to_string(&mut received).unwrap();
    let expected: String = (1..=200_000).map(|i| format!("{i}\n")).collect();
    assert!(received == expected, "{} bytes", received.len());
    assert_eq!(child.wait().unwrap().code(), Some(3));
}

#[test]
fn attach_with_unread_output_detaches_at_any_signal() {
    let daemon = Daemon::start();
    let id = daemon.spawn(&["--", "yes"]);
    wait_for_flood(&daemon);
    for (sent, expected) in [
        (Signal::INT, 0),
        (Signal::TERM, 143),
        (Signal::HUP, 129),
        (Signal::QUIT, 131),
    ] {
        for options in [
            &["attach", "--all", &id][..],
            &["attach", "--raw", "--all", &id],
        ] {
            let mut child = start(&daemon, options);
            let stdout = child.stdout.as_mut().unwrap();
            stdout.read_exact(&mut [0; 4]).unwrap();
            signal(child.id() as i32, sent);
            let (code, message) = wait_for_end(child);
            assert_eq!(code, Some(expected), "{options:?}: {message}");
            assert!(message.contains("detached"), "{message}");
        }
    }
    assert!(daemon.agent(&id)["exited_at"].is_null());
}

#[test]
fn signal_with_stopped_daemon_ends_run() {
    let daemon = Daemon::start();
    let mut child = start(
        &daemon,
        &[
            "run",
            "--",
            "sh",
            "-c",
            "echo $COLIBRI_AGENT_ID; exec sleep 1000",
        ],
    );
    let mut id = String::new();
    let mut stdout = BufReader::new(child.stdout.take().unwrap());
    stdout.read_line(&mut id).unwrap();
    let id = id.trim();
    signal(daemon.pid(), Signal::STOP);
    let signalled_at = Instant::now();
    signal(child.id() as i32, Signal::TERM);
    let (code, message) = wait_for_end(child);
    signal(daemon.pid(), Signal::CONT);
    assert_eq!(code, Some(125), "{message}");
    assert!(
        signalled_at.elapsed() < SOON,
        "{:?}",
        signalled_at.elapsed()
    );
    for part in [id, daemon.socket().to_str().unwrap(), "colibri kill"] {
        assert!(message.contains(part), "{part}: {message}");
    }
}

#[test]
fn attach_with_stopped_daemon_detaches_at_a_signal() {
    let daemon = Daemon::start();
    let id = daemon.spawn(&["--", "sh", "-c", "echo ready; exec sleep 1000"]);
    for sent in [Signal::INT, Signal::TERM] {
        let mut child = start(&daemon, &["attach", &id]);
        let stdout = child.stdout.as_mut().unwrap();
        stdout.read_exact(&mut [0; 4]).unwrap();
        signal(daemon.pid(), Signal::STOP);
        signal(child.id() as i32, sent);
        let (_, message) = wait_for_end(child);
        signal(daemon.pid(), Signal::CONT);
        assert!(message.contains("detached"), "{message}");
    }
}

#[test]
fn signal_with_stopped_terminal_ends_the_command() {
    let daemon = Daemon::start();
    let terminal = Terminal::open(&daemon, 80, 24, &[]);
    let flood = daemon.spawn(&["--", "yes"]);
    for (command, arguments) in [("run", "-- yes"), ("attach", &format!("--all {flood}"))] {
        terminal.type_text(&format!("colibri {command} {arguments}\n"));
        terminal.wait_until("output on the screen", |screen| {
            screen.matches("\ny").count() > 5 || screen.matches("y\n").count() > 5
        });
        terminal.press(&["C-s"]);
        let pid = eventually("the command runs", || {
            colibri_tests::processes_with(daemon.socket().to_str().unwrap())
                .into_iter()
                .find(|pid| {
                    let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
                    let line = text(&line);
                    line.starts_with("colibri\0") && line.contains(command)
                })
        });
        signal(pid, Signal::TERM);
        wait_until("the command ends", || {
            !std::path::Path::new(&format!("/proc/{pid}/exe")).exists()
        });
        terminal.press(&["C-q"]);
        terminal.wait_until("a prompt", |screen| screen.trim_end().ends_with('$'));
        terminal.type_text("clear\n");
        terminal.wait_until("a clear screen", |screen| screen.trim() == "$");
    }
}
