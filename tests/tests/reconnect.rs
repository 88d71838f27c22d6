//! Commands find the daemon, start one if none runs, and reconnect to the next one when it ends.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::fs::{self, File};
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::{Child, Command};

use colibri_tests::helper::{OTHER, as_user, copy_programs_for};
use colibri_tests::metrics::subscriptions;
use colibri_tests::{
    Daemon, eventually, is_root_or_skipped, journal_bytes, kill_9, processes_with, text, wait_until,
};
use rustix::process::{Pid, Signal, kill_process};

/// Returns a `colibri` command that can start a daemon.
fn colibri(daemon: &Daemon, args: &[&str]) -> Command {
    let mut command = daemon.command("colibri");
    command.args(args);
    command
}

/// A running `colibri` that writes its output to files.
struct RecordedCommand {
    child: Child,
    stdout: PathBuf,
    stderr: PathBuf,
}

impl RecordedCommand {
    fn start(daemon: &Daemon, name: &str, args: &[&str]) -> Self {
        let stdout = daemon.path(&format!("{name}.out"));
        let stderr = daemon.path(&format!("{name}.err"));
        let child = colibri(daemon, args)
            .stdout(File::create(&stdout).unwrap())
            .stderr(File::create(&stderr).unwrap())
            .spawn()
            .unwrap();
        Self {
            child,
            stdout,
            stderr,
        }
    }

    fn stdout(&self) -> String {
        fs::read_to_string(&self.stdout).unwrap()
    }

    fn stderr(&self) -> String {
        fs::read_to_string(&self.stderr).unwrap()
    }

    /// Waits for the end and returns the exit code.
    fn wait(&mut self) -> Option<i32> {
        eventually("the command ends", || self.child.try_wait().unwrap()).code()
    }
}

/// Creates the file `steps` and returns a script that prints the next 500 numbers for each line of the file. The line
/// `end` ends the script with code 5.
fn counting_script(daemon: &Daemon) -> String {
    let steps = daemon.path("steps");
    fs::write(&steps, "").unwrap();
    format!(
        "n=0; while read -r line || {{ sleep 0.02; true; }}; do [ -n \"$line\" ] || continue; [ $line = end ] && exit 5
         i=0; while [ $i -lt 500 ]; do echo out $n; echo err $n >&2; n=$((n+1)); i=$((i+1)); done; line=; done < {}",
        steps.display()
    )
}

/// Appends a line to the file `steps`.
fn add_step(daemon: &Daemon, line: &str) {
    use std::io::Write;
    let mut steps = fs::OpenOptions::new()
        .append(true)
        .open(daemon.path("steps"))
        .unwrap();
    writeln!(steps, "{line}").unwrap();
}

/// Returns the output of the script after this number of steps.
fn expected_output(word: &str, steps: usize) -> String {
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
        // Kills the daemon that the previous command has started.
        for pid in processes_with("--background") {
            let clients_and_daemon = processes_with(daemon.socket().to_str().unwrap());
            if clients_and_daemon.contains(&pid) {
                kill_9(pid);
                wait_until("the daemon has ended", || {
                    !processes_with("--background").contains(&pid)
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
    let not_running = Daemon::prepare();
    let output = colibri(&not_running, &["shutdown"]).output().unwrap();
    assert_eq!(
        output.status.code(),
        Some(3),
        "no daemon is started to shut it down: {output:?}"
    );
    // Without a daemon, doctor checks the host itself and creates no files.
    colibri(&not_running, &["doctor"]).output().unwrap();
    assert!(!not_running.state().exists() && !not_running.socket().exists());
    daemon.cli_ok(&["shutdown"]);
}

#[test]
fn followers_continue_at_their_offset_after_a_crash() {
    let mut daemon = Daemon::start();
    let script = counting_script(&daemon);
    let mut run = RecordedCommand::start(
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
    wait_until("the agent runs", || {
        daemon.cli(&["status", "counter"]).status.success()
    });
    let mut logs = RecordedCommand::start(
        &daemon,
        "logs",
        &["--no-autostart", "logs", "-f", "counter"],
    );
    let mut attach = RecordedCommand::start(
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
    // It reports the missing agent once it has found the other one.
    let mut wait = RecordedCommand::start(
        &daemon,
        "wait",
        &["--no-autostart", "wait", "counter", "missing"],
    );
    let mut events = RecordedCommand::start(
        &daemon,
        "events",
        &["--no-autostart", "events", "--json", "--output", "counter"],
    );
    add_step(&daemon, "next");
    for follower in [&run, &logs, &attach] {
        wait_until("all output has arrived", || {
            follower.stdout() == expected_output("out", 1)
        });
    }
    wait_until("all commands have found the agent", || {
        wait.stderr().contains("missing") && !events.stdout().is_empty()
    });
    daemon.kill();
    add_step(&daemon, "next");
    add_step(&daemon, "next");
    daemon.launch();
    add_step(&daemon, "end");
    for (name, follower) in [
        ("run", &mut run),
        ("logs", &mut logs),
        ("attach", &mut attach),
    ] {
        let code = follower.wait();
        assert_eq!(
            code,
            Some(if name == "logs" { 0 } else { 5 }),
            "{name}: {}",
            follower.stderr()
        );
        assert!(
            follower.stdout() == expected_output("out", 3),
            "{name}: {}",
            follower.stdout().len()
        );
        let agent_stderr: String = follower
            .stderr()
            .split_inclusive('\n')
            .filter(|line| !line.starts_with("colibri: "))
            .collect();
        assert!(
            agent_stderr == expected_output("err", 3),
            "{name}: {}",
            agent_stderr.len()
        );
    }
    assert_eq!(wait.wait(), Some(5), "{}", wait.stderr());
    assert_eq!(events.wait(), Some(0), "{}", events.stderr());
    let mut reported = [String::new(), String::new()];
    for line in events.stdout().lines() {
        let event: serde_json::Value = serde_json::from_str(line).unwrap();
        if event["event"] == "output" {
            reported[usize::from(event["stream"] == "stderr")] += event["data"].as_str().unwrap();
        }
    }
    assert!(
        reported == [expected_output("out", 3), expected_output("err", 3)],
        "{} {}",
        reported[0].len(),
        reported[1].len()
    );
}

#[test]
fn events_of_all_agents_catch_up_after_a_crash() {
    let mut daemon = Daemon::start_with_metrics();
    let script = counting_script(&daemon);
    let mut events = RecordedCommand::start(
        &daemon,
        "events",
        &["--no-autostart", "events", "--json", "--output"],
    );
    wait_until("the command has subscribed", || subscriptions(&daemon) > 0);
    let id = daemon.spawn(&["--", "sh", "-c", &script]);
    let reported = |events: &RecordedCommand| {
        let mut reported = String::new();
        let stdout = events.stdout();
        // The last line may be incomplete.
        let lines = stdout
            .split_inclusive('\n')
            .filter(|line| line.ends_with('\n'));
        for line in lines {
            let event: serde_json::Value = serde_json::from_str(line).unwrap();
            if event["event"] == "output" && event["stream"] == "stdout" {
                reported += event["data"].as_str().unwrap();
            }
        }
        reported
    };
    add_step(&daemon, "next");
    wait_until("the output is reported", || {
        reported(&events) == expected_output("out", 1)
    });
    daemon.kill();
    add_step(&daemon, "next");
    let journal = daemon.agent_dir(&id).join("stdout");
    wait_until("the agent has written without a daemon", || {
        journal_bytes(&journal) == expected_output("out", 2).len() as u64
    });
    add_step(&daemon, "end");
    daemon.launch();
    wait_until("the gap is filled", || {
        reported(&events) == expected_output("out", 2)
    });
    kill_process(Pid::from_child(&events.child), Signal::TERM).unwrap();
    events.wait();
}

#[test]
fn crashed_daemon_is_restarted_by_a_following_command() {
    let mut daemon = Daemon::start();
    let script = counting_script(&daemon);
    let mut run = RecordedCommand::start(&daemon, "run", &["run", "--", "sh", "-c", &script]);
    add_step(&daemon, "next");
    wait_until("all output has arrived", || {
        run.stdout() == expected_output("out", 1)
    });
    daemon.kill();
    add_step(&daemon, "next");
    wait_until("all output has arrived", || {
        run.stdout() == expected_output("out", 2)
    });
    assert!(run.stderr().contains("started"), "{}", run.stderr());
    add_step(&daemon, "end");
    assert_eq!(run.wait(), Some(5), "{}", run.stderr());
    daemon.cli_ok(&["shutdown"]);
}

#[test]
fn stopped_daemon_is_waited_for_and_not_started() {
    let mut daemon = Daemon::start();
    let script = counting_script(&daemon);
    let id = daemon.spawn(&["--", "sh", "-c", &script]);
    let mut logs = RecordedCommand::start(&daemon, "logs", &["logs", "-f", &id]);
    let mut attach = RecordedCommand::start(
        &daemon,
        "attach",
        &["attach", "--all", "--raw", "--no-input", &id],
    );
    let mut run = RecordedCommand::start(
        &daemon,
        "run",
        &["run", "--", "sh", "-c", "echo ready; exec sleep 1000"],
    );
    add_step(&daemon, "next");
    for follower in [&logs, &attach] {
        wait_until("all output has arrived", || {
            follower.stdout() == expected_output("out", 1)
        });
    }
    wait_until("the agent of run has started", || run.stdout() == "ready\n");
    assert!(daemon.terminate());
    for follower in [&logs, &attach, &run] {
        wait_until("the command reports that it waits", || {
            follower.stderr().contains("waiting for the next daemon")
        });
    }
    // Signals are handled while waiting for the next daemon.
    kill_process(Pid::from_child(&attach.child), Signal::INT).unwrap();
    assert_eq!(attach.wait(), Some(0), "{}", attach.stderr());
    kill_process(Pid::from_child(&run.child), Signal::INT).unwrap();
    assert_eq!(run.wait(), Some(125), "{}", run.stderr());
    assert!(run.stderr().contains("colibri kill"), "{}", run.stderr());
    assert!(!daemon.socket().exists(), "no daemon was started");
    add_step(&daemon, "end");
    daemon.launch();
    assert_eq!(logs.wait(), Some(0), "{}", logs.stderr());
    assert_eq!(logs.stdout(), expected_output("out", 1));
}

#[test]
fn daemon_is_found_through_its_state_directory() {
    let mut daemon = Daemon::start();
    daemon.spawn(&["--name", "here", "--", "sleep", "1000"]);
    // An environment without XDG_RUNTIME_DIR, as under su, cron and in containers.
    let output = daemon
        .command("colibri")
        .env_remove("COLIBRI_SOCKET")
        .args(["--no-autostart", "ps"])
        .output()
        .unwrap();
    assert!(text(&output.stdout).contains("here"), "{output:?}");
    let wrong_socket = daemon.path("run/other.sock");
    let output = daemon
        .command("colibri")
        .env("COLIBRI_SOCKET", &wrong_socket)
        .arg("ps")
        .output()
        .unwrap();
    let message = text(&output.stderr);
    assert_eq!(output.status.code(), Some(3), "{message}");
    let pid = daemon.pid().to_string();
    for part in [
        wrong_socket.to_str().unwrap(),
        daemon.socket().to_str().unwrap(),
        &pid,
    ] {
        assert!(message.contains(part), "{part}: {message}");
    }
    // A second daemon with the same state directory names the running one.
    let second = daemon
        .command("colibri-daemon")
        .env("COLIBRI_SOCKET", &wrong_socket)
        .output()
        .unwrap();
    assert!(
        text(&second.stderr).contains(&format!("pid {pid}")),
        "{second:?}"
    );
    let metadata = fs::metadata(daemon.state().join("daemon.json")).unwrap();
    assert_eq!(metadata.permissions().mode() & 0o777, 0o600);
    assert!(daemon.terminate());
    assert!(!daemon.state().join("daemon.json").exists());
}

#[test]
fn socket_without_runtime_directory_is_in_the_state_directory() {
    if !is_root_or_skipped("the commands run as another user") {
        return;
    }
    let dir = copy_programs_for(OTHER);
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
    wait_until("the daemon has ended", || !socket.exists());
}
