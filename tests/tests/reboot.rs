//! Agents that ran when the machine was stopped come back after its start.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::fs;

use colibri_tests::{Daemon, eventually, text};
use serde_json::Value;

/// Returns the agent that continues another, once it exists.
fn successor(daemon: &Daemon, id: &str) -> Value {
    eventually("the agent comes back", || {
        let mut agents = daemon.agents().into_iter();
        agents.find(|agent| agent["resumes"] == id)
    })
}

/// Returns the agent once it waits to be resumed.
fn waiting(daemon: &Daemon, id: &str) -> Value {
    eventually("the agent waits", || {
        let agent = daemon.agent(id);
        (agent["state"] == "blocked").then_some(agent)
    })
}

fn script(path: &std::path::Path) -> String {
    format!("echo \"${{TOKEN-none}}\" >> {}; sleep 1000", path.display())
}

#[test]
fn agent_comes_back_once_with_variables_of_the_daemon() {
    let mut daemon = Daemon::start();
    let seen = daemon.path("seen");
    let script = script(&seen);
    let mut started = Vec::new();
    for (policy, name) in [
        ("on-reboot", "one"),
        ("always", "two"),
        ("on-failure", "three"),
    ] {
        let output = daemon
            .command("colibri")
            .args([
                "spawn",
                "--restart",
                policy,
                "--name",
                name,
                "--secret",
                "TOKEN",
                "--",
            ])
            .args(["sh", "-c", &script])
            .env("TOKEN", "first")
            .output()
            .unwrap();
        assert!(output.status.success(), "{}", text(&output.stderr));
        started.push(text(&output.stdout).trim().to_owned());
    }
    let read = || fs::read_to_string(&seen).unwrap_or_default();
    eventually("the agents run", || {
        (read() == "first\n".repeat(3)).then_some(())
    });
    daemon.lose_power();
    let mut command = daemon.command("colibri-daemon");
    command.env("TOKEN", "second");
    daemon.launch_command(command);
    for (old, name) in started[..2].iter().zip(["one", "two"]) {
        let agent = successor(&daemon, old);
        assert_eq!(agent["name"], name);
        assert_eq!(agent["restart"], daemon.agent(old)["restart"]);
        assert_eq!(daemon.agent(old)["exit"]["reason"], "lost");
    }
    let expected = "first\n".repeat(3) + &"second\n".repeat(2);
    eventually("both run again", || (read() == expected).then_some(()));
    // Nothing comes back twice, also if the daemon is started again in the same boot.
    daemon.kill();
    daemon.launch();
    let output = daemon.cli_ok(&["ps", "--running", "--quiet"]);
    assert_eq!(output.lines().count(), 2, "{output}");
    assert_eq!(daemon.agent_count(), 5);
    // No value is in the state directory.
    let found = std::process::Command::new("grep")
        .args(["-rlE", "first|second"])
        .arg(daemon.state())
        .output()
        .unwrap();
    assert_eq!(text(&found.stdout), "");
}

#[test]
fn agent_without_its_variables_waits_and_says_so() {
    let mut daemon = Daemon::start();
    let seen = daemon.path("seen");
    let script = script(&seen);
    let spawn = |daemon: &Daemon| {
        let arguments = [
            "spawn",
            "--restart",
            "on-reboot",
            "--env",
            "TOKEN=first",
            "--",
            "sh",
            "-c",
        ];
        daemon
            .cli_ok(&[&arguments[..], &[&script]].concat())
            .trim()
            .to_owned()
    };
    let ids = [spawn(&daemon), spawn(&daemon), spawn(&daemon)];
    daemon.lose_power();
    daemon.launch();
    for id in &ids {
        let agent = waiting(&daemon, id);
        let error = agent["error"].as_str().unwrap();
        assert_eq!(
            error,
            format!(
                "not resumed after the start of the machine: the variables TOKEN are set neither in its profile, nor in the daemon's environment, nor in systemd's credentials; give them: colibri restart {id} --secret TOKEN"
            )
        );
    }
    // Listed with the running ones.
    let listed = daemon.cli_ok(&["ps", "--running", "--quiet"]);
    assert!(ids.iter().all(|id| listed.contains(id)), "{listed}");
    // As the message says.
    let output = daemon
        .command("colibri")
        .args(["restart", &ids[0], "--secret", "TOKEN"])
        .env("TOKEN", "given")
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", text(&output.stderr));
    assert_eq!(
        successor(&daemon, &ids[0])["id"],
        text(&output.stdout).trim()
    );
    eventually("the agent runs", || {
        let text = fs::read_to_string(&seen).unwrap_or_default();
        text.ends_with("given\n").then_some(())
    });
    daemon.cli_ok(&["kill", &ids[1]]);
    for id in &ids[..2] {
        assert_eq!(daemon.agent(id)["state"], "error");
    }
    // A daemon that is started again finds the third one waiting, and lets the others rest.
    daemon.kill();
    daemon.launch();
    waiting(&daemon, &ids[2]);
    for id in &ids[..2] {
        assert_eq!(daemon.agent(id)["state"], "error");
    }
    daemon.cli_ok(&["rm", &ids[2]]);
    let listed = daemon.cli_ok(&["ps", "--running", "--quiet"]);
    assert_eq!(listed.lines().count(), 1, "{listed}");
}

#[test]
fn agent_that_the_shutdown_ended_comes_back() {
    let mut daemon = Daemon::start();
    let arguments = ["spawn", "--restart", "on-reboot", "--", "sleep", "1000"];
    let id = daemon.cli_ok(&arguments).trim().to_owned();
    colibri_tests::signal(daemon.shim_pid(&id), rustix::process::Signal::TERM);
    daemon.wait(&id);
    daemon.kill();
    let spec = daemon.agent_dir(&id).join("spec.json");
    let record = fs::read_to_string(&spec).unwrap();
    let start = record.find("\"boot\":\"").unwrap() + 8;
    fs::write(&spec, format!("{}x{}", &record[..start], &record[start..])).unwrap();
    daemon.launch();
    successor(&daemon, &id);
}
