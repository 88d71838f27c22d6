//! Commands find the daemon, start one if none runs, and continue with the next one after it has ended.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::fs::{self, File};
use std::path::PathBuf;
use std::process::{Child, Command};

use colibri_tests::helper::{OTHER, as_user, programs_of};
use colibri_tests::{Daemon, eventually, is_root_or_skipped, processes_with, text};
use rustix::process::{Pid, Signal, kill_process};

/// Returns a `colibri` command that may start a daemon.
fn colibri(daemon: &Daemon, args: &[&str]) -> Command {
    let mut command = daemon.command("colibri");
    command.args(args);
    command
}

/// A command whose output goes to files.
struct Recorded {
    child: Child,
    out: PathBuf,
    err: PathBuf,
}

impl Recorded {
    fn start(daemon: &Daemon, name: &str, args: &[&str]) -> Self {
        let (out, err) = (
            daemon.path(&format!("{name}.out")),
            daemon.path(&format!("{name}.err")),
        );
        let child = colibri(daemon, args)
            .stdout(File::create(&out).unwrap())
            .stderr(File::create(&err).unwrap())
            .spawn()
            .unwrap();
        Self { child, out, err }
    }

    fn out(&self) -> String {
        fs::read_to_string(&self.out).unwrap()
    }

    fn err(&self) -> String {
        fs::read_to_string(&self.err).unwrap()
    }

    fn end(&mut self) -> Option<i32> {
        eventually("the command ends", || self.child.try_wait().unwrap()).code()
    }
}

/// Creates the file `steps` and returns a script that prints 500 numbers for each line in it.
fn counting(daemon: &Daemon) -> String {
    let steps = daemon.path("steps");
    fs::write(&steps, "").unwrap();
    format!(
        "n=0; while read -r line || {{ sleep 0.02; true; }}; do [ -n \"$line\" ] || continue; [ $line = end ] && exit 5
         i=0; while [ $i -lt 500 ]; do echo out $n; echo err $n >&2; n=$((n+1)); i=$((i+1)); done; line=; done < {}",
        steps.display()
    )
}

fn step(daemon: &Daemon, line: &str) {
    use std::io::Write;
    let mut steps = fs::OpenOptions::new()
        .append(true)
        .open(daemon.path("steps"))
        .unwrap();
    writeln!(steps, "{line}").unwrap();
}

fn counted(word: &str, steps: usize) -> String {
    (0..steps * 500).map(|n| format!("{word} {n}\n")).collect()
}

#[test]
fn every_command_starts_the_daemon_after_a_crash() {
    let mut daemon = Daemon::start();
    let id = daemon.spawn(&[
        "--",
        "sh",
        "-c",
        "echo hi; while read line; do echo $line; done",
    ]);
    for args in [
        &["ps"][..],
        &["status", &id],
        &["logs", &id],
        &["send", &id, "hello"],
        &["runs", &id],
        &["profiles"],
        &["config", "reload"],
        &["spawn", "--", "true"],
        &["kill", &id],
        &["wait", &id],
        &["attach", "--no-input", &id],
        &["events", &id],
        &["rm", &id],
    ] {
        daemon.kill();
        // A daemon that a command has started is killed, too.
        for pid in processes_with("--background") {
            let of_this = processes_with(daemon.socket().to_str().unwrap());
            if of_this.contains(&pid) {
                colibri_tests::kill_9(pid);
                eventually("the daemon has ended", || {
                    (!processes_with("--background").contains(&pid)).then_some(())
                });
            }
        }
        let refused = colibri(&daemon, &[&["--no-autostart"], args].concat())
            .output()
            .unwrap();
        assert_eq!(refused.status.code(), Some(3), "{args:?}: {refused:?}");
        let output = colibri(&daemon, args).output().unwrap();
        let message = text(&output.stderr);
        assert_ne!(output.status.code(), Some(3), "{args:?}: {message}");
        assert!(message.contains("started"), "{args:?}: {message}");
        assert!(!message.contains("cannot connect"), "{args:?}: {message}");
    }
    let refused = Daemon::prepare();
    let output = colibri(&refused, &["shutdown"]).output().unwrap();
    assert_eq!(
        output.status.code(),
        Some(3),
        "nothing to shut down: {output:?}"
    );
    // Without a daemon, doctor checks the host itself and creates no files.
    colibri(&refused, &["doctor"]).output().unwrap();
    assert!(!refused.state().exists() && !refused.socket().exists());
    daemon.ok(&["shutdown"]);
}

#[test]
fn followers_continue_at_their_offset_after_a_crash() {
    let mut daemon = Daemon::start();
    let script = counting(&daemon);
    let mut run = Recorded::start(
        &daemon,
        "run",
        &[
            "--no-autostart",
            "run",
            "--name",
            "counter",
            "--",
            "sh",
            "-c",
            &script,
        ],
    );
    eventually("the agent runs", || {
        daemon
            .cli(&["status", "counter"])
            .status
            .success()
            .then_some(())
    });
    let mut logs = Recorded::start(
        &daemon,
        "logs",
        &["--no-autostart", "logs", "-f", "counter"],
    );
    let mut attach = Recorded::start(
        &daemon,
        "attach",
        &[
            "--no-autostart",
            "attach",
            "--all",
            "--raw",
            "--no-input",
            "counter",
        ],
    );
    let mut wait = Recorded::start(&daemon, "wait", &["--no-autostart", "wait", "counter"]);
    let mut events = Recorded::start(
        &daemon,
        "events",
        &["--no-autostart", "events", "--json", "--output", "counter"],
    );
    step(&daemon, "on");
    for follower in [&run, &logs, &attach] {
        eventually("all output has arrived", || {
            (follower.out() == counted("out", 1)).then_some(())
        });
    }
    daemon.kill();
    step(&daemon, "on");
    step(&daemon, "on");
    daemon.launch();
    step(&daemon, "end");
    for (name, follower) in [
        ("run", &mut run),
        ("logs", &mut logs),
        ("attach", &mut attach),
    ] {
        let code = follower.end();
        assert_eq!(
            code,
            Some(if name == "logs" { 0 } else { 5 }),
            "{name}: {}",
            follower.err()
        );
        assert!(
            follower.out() == counted("out", 3),
            "{name}: {}",
            follower.out().len()
        );
        let agent_stderr: String = follower
            .err()
            .split_inclusive('\n')
            .filter(|line| !line.starts_with("colibri: "))
            .collect();
        assert!(
            agent_stderr == counted("err", 3),
            "{name}: {}",
            agent_stderr.len()
        );
    }
    assert_eq!(wait.end(), Some(5), "{}", wait.err());
    assert_eq!(events.end(), Some(0), "{}", events.err());
    let mut reported = [String::new(), String::new()];
    for line in events.out().lines() {
        let event: serde_json::Value = serde_json::from_str(line).unwrap();
        if event["event"] == "output" {
            reported[usize::from(event["stream"] == "stderr")] += event["data"].as_str().unwrap();
        }
    }
    assert!(
        reported == [counted("out", 3), counted("err", 3)],
        "{} {}",
        reported[0].len(),
        reported[1].len()
    );
}

#[test]
fn events_of_all_agents_catch_up_after_a_crash() {
    let mut daemon = Daemon::start();
    let script = counting(&daemon);
    let mut events = Recorded::start(
        &daemon,
        "events",
        &["--no-autostart", "events", "--json", "--output"],
    );
    let id = eventually("an agent whose start is reported", || {
        let id = daemon.spawn(&["--", "sh", "-c", &script]);
        std::iter::repeat_n((), 40).find_map(|()| {
            std::thread::sleep(std::time::Duration::from_millis(5));
            events.out().contains(&id).then_some(())
        })?;
        Some(id)
    });
    let reported = |events: &Recorded| {
        let mut reported = String::new();
        for line in events
            .out()
            .split_inclusive('\n')
            .filter(|line| line.ends_with('\n'))
        {
            let event: serde_json::Value = serde_json::from_str(line).unwrap();
            if event["event"] == "output"
                && event["id"] == id.as_str()
                && event["stream"] == "stdout"
            {
                reported += event["data"].as_str().unwrap();
            }
        }
        reported
    };
    step(&daemon, "on");
    eventually("the output is reported", || {
        (reported(&events) == counted("out", 1)).then_some(())
    });
    daemon.kill();
    step(&daemon, "on");
    let journal = daemon.agent_dir(&id).join("stdout");
    let written = || -> u64 {
        let files = fs::read_dir(&journal).unwrap().flatten();
        files
            .filter(|file| file.path().extension().is_some_and(|kind| kind == "log"))
            .map(|file| file.metadata().unwrap().len())
            .sum()
    };
    eventually("it writes without a daemon", || {
        (written() == counted("out", 2).len() as u64).then_some(())
    });
    step(&daemon, "end");
    daemon.launch();
    eventually("the gap is filled", || {
        (reported(&events) == counted("out", 2)).then_some(())
    });
    kill_process(Pid::from_child(&events.child), Signal::TERM).unwrap();
    events.end();
}

#[test]
fn crashed_daemon_is_restarted_by_a_following_command() {
    let mut daemon = Daemon::start();
    let script = counting(&daemon);
    let mut run = Recorded::start(&daemon, "run", &["run", "--", "sh", "-c", &script]);
    step(&daemon, "on");
    eventually("all output has arrived", || {
        (run.out() == counted("out", 1)).then_some(())
    });
    daemon.kill();
    step(&daemon, "on");
    eventually("all output has arrived", || {
        (run.out() == counted("out", 2)).then_some(())
    });
    assert!(run.err().contains("started"), "{}", run.err());
    step(&daemon, "end");
    assert_eq!(run.end(), Some(5), "{}", run.err());
    daemon.ok(&["shutdown"]);
}

#[test]
fn stopped_daemon_is_waited_for_and_not_started() {
    let mut daemon = Daemon::start();
    let script = counting(&daemon);
    let id = daemon.spawn(&["--", "sh", "-c", &script]);
    let mut logs = Recorded::start(&daemon, "logs", &["logs", "-f", &id]);
    let attach = Recorded::start(&daemon, "attach", &["attach", "--no-input", &id]);
    let mut run = Recorded::start(
        &daemon,
        "run",
        &["run", "--", "sh", "-c", "echo ready; exec sleep 1000"],
    );
    step(&daemon, "on");
    eventually("all output has arrived", || {
        (logs.out() == counted("out", 1)).then_some(())
    });
    eventually("the other one runs", || {
        (run.out() == "ready\n").then_some(())
    });
    assert!(daemon.terminate());
    for follower in [&logs, &attach, &run] {
        eventually("it reports that it waits", || {
            follower
                .err()
                .contains("waiting for the next daemon")
                .then_some(())
        });
    }
    // Signals are handled while waiting for the next daemon.
    let mut attach = attach;
    kill_process(Pid::from_child(&attach.child), Signal::INT).unwrap();
    assert_eq!(attach.end(), Some(0), "{}", attach.err());
    kill_process(Pid::from_child(&run.child), Signal::INT).unwrap();
    assert_eq!(run.end(), Some(125), "{}", run.err());
    assert!(run.err().contains("colibri kill"), "{}", run.err());
    assert!(!daemon.socket().exists(), "no daemon was started");
    step(&daemon, "end");
    daemon.launch();
    assert_eq!(logs.end(), Some(0), "{}", logs.err());
    assert_eq!(logs.out(), counted("out", 1));
}

#[test]
fn daemon_is_found_through_its_state_directory() {
    let daemon = Daemon::start();
    daemon.spawn(&["--name", "here", "--", "sleep", "1000"]);
    // An environment without XDG_RUNTIME_DIR, as under su, cron and in containers.
    let found = daemon
        .command("colibri")
        .env_remove("COLIBRI_SOCKET")
        .args(["--no-autostart", "ps"])
        .output()
        .unwrap();
    assert!(text(&found.stdout).contains("here"), "{found:?}");
    let wrong = daemon.path("run/other.sock");
    let output = daemon
        .command("colibri")
        .env("COLIBRI_SOCKET", &wrong)
        .arg("ps")
        .output()
        .unwrap();
    let message = text(&output.stderr);
    assert_eq!(output.status.code(), Some(3), "{message}");
    let pid = daemon.pid().to_string();
    for part in [
        wrong.to_str().unwrap(),
        daemon.socket().to_str().unwrap(),
        &pid,
    ] {
        assert!(message.contains(part), "{part}: {message}");
    }
    // A second daemon with the same state directory names the running one.
    let second = daemon
        .command("colibri-daemon")
        .env("COLIBRI_SOCKET", &wrong)
        .output()
        .unwrap();
    assert!(
        text(&second.stderr).contains(&format!("pid {pid}")),
        "{second:?}"
    );
    let mode = fs::metadata(daemon.state().join("daemon.json")).unwrap();
    assert_eq!(
        std::os::unix::fs::PermissionsExt::mode(&mode.permissions()) & 0o777,
        0o600
    );
    let mut daemon = daemon;
    assert!(daemon.terminate());
    assert!(!daemon.state().join("daemon.json").exists());
}

#[test]
fn socket_without_runtime_directory_is_in_the_state_directory() {
    if !is_root_or_skipped("this needs another user") {
        return;
    }
    let dir = programs_of(OTHER);
    let colibri = dir.path().join("colibri");
    let call = |args: &[&str]| {
        as_user(OTHER, &[&[colibri.to_str().unwrap()], args].concat())
            .env("HOME", dir.path())
            .output()
            .unwrap()
    };
    let output = call(&["run", "--", "echo", "hi"]);
    assert_eq!(text(&output.stdout), "hi\n", "{output:?}");
    let socket = dir.path().join(".local/state/colibri/colibri.sock");
    assert!(socket.exists());
    let output = call(&["shutdown"]);
    assert!(output.status.success(), "{output:?}");
    eventually("it has ended", || (!socket.exists()).then_some(()));
}
