//! Directories that are removed while a daemon or agent uses them, and FIFOs in place of files.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::fs;

use colibri_tests::{Daemon, create_fifo, kill_9, text, wait_until};
use serde_json::{Value, json};

#[test]
fn removed_state_directory_is_reported_and_restored() {
    let mut daemon = Daemon::start();
    fs::remove_dir_all(daemon.state()).unwrap();
    let answer = daemon
        .connect()
        .call("spawn-agent", json!({"program": "/bin/true"}));
    let message = answer["error"]["message"].as_str().unwrap();
    assert!(
        message.contains("was removed while the daemon runs"),
        "{answer}"
    );
    let doctor = daemon.connect().call("doctor", json!({}));
    let findings = doctor["result"]["findings"].as_array().unwrap();
    let is_failure = |finding: &&Value| {
        let what = finding["what"].as_str().unwrap();
        finding["status"] == "fail" && what.contains("was removed while the daemon runs")
    };
    let finding = findings.iter().find(is_failure);
    assert!(finding.unwrap()["fix"].is_string(), "{doctor}");
    assert!(daemon.terminate());
    daemon.launch();
    let id = daemon.spawn(&["--", "true"]);
    assert_eq!(daemon.wait(&id), Some(0));
}

#[test]
fn removed_directory_of_an_agent_does_not_hang_its_end() {
    let daemon = Daemon::start();
    let script = "echo hi; read x; exit 7";
    let ids: Vec<String> = (0..2)
        .map(|_| daemon.spawn(&["--runtime", "pi", "--", "sh", "-c", script]))
        .collect();
    let mut wire = daemon.connect();
    for id in &ids {
        wait_until("the agent has written", || {
            daemon.agent(id)["stdout_bytes"] == 3
        });
        fs::remove_dir_all(daemon.agent_dir(id)).unwrap();
    }
    let subscribed = wire.call("subscribe", json!({"id": ids[0], "from_offset": 0}));
    assert!(subscribed["result"].is_object(), "{subscribed}");
    // The daemon has the exit code in memory; the error reports that the output is lost.
    daemon.cli_ok(&["send", &ids[0], "go"]);
    let ended = daemon.connect().call("wait-agent", json!({"id": ids[0]}));
    assert_eq!(ended["result"]["exit"]["code"], 7, "{ended}");
    let error = ended["result"]["error"].as_str().unwrap_or_default();
    assert!(error.contains("removed"), "{ended}");
    while wire.next_line().unwrap()["method"] != "agent-exit" {}
    daemon.cli_ok(&["kill", "--grace", "1s", &ids[1]]);
    let ended = daemon.connect().call("wait-agent", json!({"id": ids[1]}));
    assert_eq!(
        ended["result"]["exit"]["reason"], "killed-by-user",
        "{ended}"
    );
    for id in &ids {
        // Any exit code: the journals are lost, and the command must not hang.
        assert!(daemon.cli(&["logs", "-f", id]).status.code().is_some());
        daemon.cli_ok(&["rm", id]);
        assert!(daemon.agent(id).is_null());
    }
}

#[test]
fn removed_directory_of_a_lost_agent_ends_its_readers() {
    let daemon = Daemon::start();
    let id = daemon.spawn(&["--", "sh", "-c", "echo hi; echo ho >&2; exec sleep 1000"]);
    wait_until("the agent has written", || {
        daemon.agent(&id)["stderr_bytes"] == 3
    });
    let directory = daemon.agent_dir(&id);
    let shim = daemon.shim_pid(&id);
    let mut wire = daemon.connect();
    fs::remove_dir_all(&directory).unwrap();
    let subscribed = wire.call("subscribe", json!({"id": id, "from_offset": 0}));
    assert!(subscribed["result"].is_object(), "{subscribed}");
    kill_9(shim);
    let ended = daemon.connect().call("wait-agent", json!({"id": id}));
    assert_eq!(ended["result"]["exit"]["reason"], "lost", "{ended}");
    let error = ended["result"]["error"].as_str().unwrap();
    assert!(error.contains("directory was removed"), "{ended}");
    // The subscriber receives the exit although the journals are lost.
    while wire.next_line().unwrap()["method"] != "agent-exit" {}
    let read = wire.call("read-journal", json!({"id": id, "stream": "stdout"}));
    assert_eq!(read["result"]["end"], true, "{read}");
    daemon.cli_ok(&["rm", &id]);
    assert!(daemon.agent(&id).is_null());
}

#[test]
fn fifo_in_place_of_a_file_is_refused_at_once() {
    let daemon = Daemon::prepare();
    let fifo = daemon.path("fifo");
    create_fifo(&fifo);
    let fifo = fifo.to_str().unwrap();
    let config = daemon.path("colibri.toml");
    fs::write(
        &config,
        format!("[profile.p]\nprogram = \"true\"\nenv_file = \"{fifo}\"\n"),
    )
    .unwrap();
    let config = config.to_str().unwrap();
    for args in [
        &["config", "check", "--config", fifo][..],
        &["config", "check", "--config", config],
        &["explain", "--env-file", fifo, "--", "true"],
    ] {
        let output = daemon.cli(args);
        assert!(!output.status.success(), "{args:?}");
        let message = text(&[output.stdout, output.stderr].concat());
        assert!(
            message.contains("it is a FIFO; give a regular file"),
            "{args:?}: {message}"
        );
    }
    let output = daemon
        .command("colibri-daemon")
        .args(["--config", fifo])
        .output()
        .unwrap();
    assert!(text(&output.stderr).contains("it is a FIFO"), "{output:?}");
}

#[test]
fn state_directory_of_a_newer_format_is_refused() {
    let mut daemon = Daemon::start();
    let format = daemon.state().join("format");
    assert_eq!(fs::read_to_string(&format).unwrap(), "1\n");
    assert!(daemon.terminate());
    fs::write(&format, "2\n").unwrap();
    let output = daemon.command("colibri-daemon").output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    let message = text(&output.stderr);
    assert!(
        message.contains("has format 2") && message.contains("start that version"),
        "{message}"
    );
    // Releases before format 1 did not write the file.
    fs::remove_file(&format).unwrap();
    daemon.launch();
    assert_eq!(fs::read_to_string(&format).unwrap(), "1\n");
}
