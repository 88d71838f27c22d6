//! `run` and `attach` handle signals while their output is blocked and while the daemon does not answer. Of all write
//! errors only EPIPE ends an agent.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::process::{Child, Output, Stdio};
use std::time::{Duration, Instant};

use colibri_tests::tmux::Terminal;
use colibri_tests::{Daemon, SOON, eventually, signal, text};
use rustix::process::Signal;

/// Waits for the end of a command whose output may be blocked.
fn end(mut child: Child) -> (Option<i32>, String) {
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

/// Returns the id of the only agent after it has written more than a pipe and the queues hold.
fn flooding(daemon: &Daemon) -> String {
    eventually("the agent has written more than 4 MiB", || {
        let agents = daemon.agents();
        let agent = agents.first()?;
        (agent["stdout_bytes"].as_u64()? > 4 << 20)
            .then(|| agent["id"].as_str().unwrap().to_owned())
    })
}

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

fn to_full(daemon: &Daemon, args: &[&str]) -> Output {
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
    let mark = daemon.path("mark");
    for (code, expected) in [("7", 7), ("0", 125)] {
        let script = format!(
            "i=0; while [ $i -lt 20 ]; do echo line $i; i=$((i+1)); sleep 0.01; done; echo whole >> {}; exit {code}",
            mark.display()
        );
        let output = to_full(&daemon, &["run", "--", "sh", "-c", &script]);
        let message = text(&output.stderr);
        assert_eq!(output.status.code(), Some(expected), "{message}");
        assert_eq!(
            message.matches("No space left on device").count(),
            1,
            "{message}"
        );
    }
    assert_eq!(std::fs::read_to_string(&mark).unwrap(), "whole\nwhole\n");
    let id = daemon.spawn(&[
        "--",
        "sh",
        "-c",
        "echo hi; read x; echo ho; exec sleep 1000",
    ]);
    eventually("it has written", || {
        (!daemon.stdout(&id).is_empty()).then_some(())
    });
    for args in [
        &["logs", &id][..],
        &["logs", "-f", &id],
        &["attach", "--no-input", &id],
        &["events", "--output", &id],
    ] {
        let output = to_full(&daemon, args);
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
fn signals_are_served_while_the_pipe_is_full() {
    for (name, number, code) in [
        ("INT", Signal::INT, 130),
        ("TERM", Signal::TERM, 143),
        ("HUP", Signal::HUP, 129),
        ("QUIT", Signal::QUIT, 131),
    ] {
        let daemon = Daemon::start();
        let child = start(&daemon, &["run", "--", "yes"]);
        let id = flooding(&daemon);
        signal(child.id() as i32, number);
        let (found, message) = end(child);
        assert_eq!(found, Some(code), "{name}: {message}");
        assert!(!daemon.agent(&id)["exited_at"].is_null(), "{name}");
    }
}

#[test]
fn second_signal_ends_a_command_that_is_stuck() {
    let daemon = Daemon::start();
    let script = "trap '' INT; yes";
    let mut child = start(&daemon, &["run", "--", "sh", "-c", script]);
    let id = flooding(&daemon);
    // Two pending signals of the same kind may be merged.
    eventually("the command ends", || {
        let ended = child.try_wait().unwrap();
        if ended.is_none() {
            signal(child.id() as i32, Signal::INT);
        }
        ended
    });
    let (code, message) = end(child);
    assert_eq!(code, Some(130), "{message}");
    assert!(message.contains(&format!("colibri kill {id}")), "{message}");
    assert!(daemon.agent(&id)["exited_at"].is_null(), "it ignores INT");
}

#[test]
fn output_read_late_is_complete() {
    let daemon = Daemon::start();
    let mut child = start(&daemon, &["run", "--", "sh", "-c", "seq 1 200000; exit 3"]);
    eventually("the agent has ended", || {
        daemon.agents().first()?["exited_at"].as_str().map(drop)
    });
    // Longer than the timeouts that apply after a signal.
    std::thread::sleep(Duration::from_millis(1500));
    assert_eq!(child.try_wait().unwrap(), None);
    let mut out = String::new();
    child
        .stdout
        .take()
        .unwrap()
        .read_to_string(&mut out)
        .unwrap();
    let expected: String = (1..=200_000).map(|i| format!("{i}\n")).collect();
    assert!(out == expected, "{} bytes", out.len());
    assert_eq!(child.wait().unwrap().code(), Some(3));
}

#[test]
fn attach_detaches_at_any_signal_while_unread() {
    let daemon = Daemon::start();
    let id = daemon.spawn(&["--", "yes"]);
    flooding(&daemon);
    for (number, code) in [
        (Signal::INT, 0),
        (Signal::TERM, 143),
        (Signal::HUP, 129),
        (Signal::QUIT, 131),
    ] {
        for options in [
            &["attach", "--all", &id][..],
            &["attach", "--raw", "--all", &id],
        ] {
            let child = start(&daemon, options);
            let mut first = [0; 4];
            let mut child = child;
            child
                .stdout
                .as_mut()
                .unwrap()
                .read_exact(&mut first)
                .unwrap();
            signal(child.id() as i32, number);
            let (found, message) = end(child);
            assert_eq!(found, Some(code), "{options:?}: {message}");
            assert!(message.contains("detached"), "{message}");
        }
    }
    assert!(daemon.agent(&id)["exited_at"].is_null());
}

#[test]
fn signals_are_served_while_the_daemon_is_stopped() {
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
    let began = Instant::now();
    signal(child.id() as i32, Signal::TERM);
    let (code, message) = end(child);
    signal(daemon.pid(), Signal::CONT);
    assert_eq!(code, Some(125), "{message}");
    assert!(began.elapsed() < SOON, "{:?}", began.elapsed());
    for part in [id, daemon.socket().to_str().unwrap(), "colibri kill"] {
        assert!(message.contains(part), "{part}: {message}");
    }
}

#[test]
fn attach_detaches_while_the_daemon_is_stopped() {
    let daemon = Daemon::start();
    let id = daemon.spawn(&["--", "sh", "-c", "echo ready; exec sleep 1000"]);
    for number in [Signal::INT, Signal::TERM] {
        let mut child = start(&daemon, &["attach", &id]);
        let mut first = [0; 4];
        child
            .stdout
            .as_mut()
            .unwrap()
            .read_exact(&mut first)
            .unwrap();
        signal(daemon.pid(), Signal::STOP);
        signal(child.id() as i32, number);
        let (_, message) = end(child);
        signal(daemon.pid(), Signal::CONT);
        assert!(message.contains("detached"), "{message}");
    }
}

#[test]
fn signals_are_served_while_a_terminal_is_stopped() {
    let daemon = Daemon::start();
    let terminal = Terminal::open(&daemon, 80, 24, &[]);
    for command in ["run -- yes", "attach --all"] {
        let words = match command {
            "attach --all" => format!("attach --all {}", daemon.spawn(&["--", "yes"])),
            other => other.to_owned(),
        };
        terminal.types(&format!("colibri {words}\n"));
        terminal.wait("output on the screen", |screen| {
            screen.matches("\ny").count() > 5 || screen.matches("y\n").count() > 5
        });
        terminal.keys(&["C-s"]);
        let mark = if words.starts_with("run") {
            "run"
        } else {
            "attach"
        };
        let pid = eventually("the command runs", || {
            colibri_tests::processes_with(daemon.socket().to_str().unwrap())
                .into_iter()
                .find(|pid| {
                    let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
                    let line = text(&line);
                    line.starts_with("colibri\0") && line.contains(mark)
                })
        });
        signal(pid, Signal::TERM);
        eventually("the command ends", || {
            (!std::path::Path::new(&format!("/proc/{pid}/exe")).exists()).then_some(())
        });
        terminal.keys(&["C-q"]);
        terminal.wait("a prompt", |screen| screen.trim_end().ends_with('$'));
        terminal.types("clear\n");
        terminal.wait("a clear screen", |screen| screen.trim() == "$");
    }
}
