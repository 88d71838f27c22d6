//! A full or read-only disk: agents stall, no output is lost, and the cause is reported.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::fs;

use colibri_tests::follower::Follower;
use colibri_tests::lines::{Difference, End, compare};
use colibri_tests::reports::Reports;
use colibri_tests::small_disk::SmallDisk;
use colibri_tests::{Daemon, eventually, program, text, wait_until};
use serde_json::json;

/// Starts a daemon whose state directory is on a disk of this size.
fn daemon_on_small_disk(mib: u32) -> (Daemon, SmallDisk) {
    let mut daemon = Daemon::prepare();
    let disk = SmallDisk::for_state(&daemon, mib);
    daemon.launch_with_prefix(&disk.enter_command());
    (daemon, disk)
}

#[test]
fn full_disk_stalls_the_agent_and_loses_no_byte() {
    let (daemon, disk) = daemon_on_small_disk(16);
    let reports = Reports::listen(&daemon.path("reports"));
    let writer = program("writer");
    disk.fill();
    // A spawn fails for lack of space and leaves nothing.
    let refused = daemon.cli(&["spawn", "--", "true"]);
    assert_eq!(refused.status.code(), Some(1));
    assert!(
        text(&refused.stderr).contains("No space left"),
        "{}",
        text(&refused.stderr)
    );
    // A shim that is started for the next agent may just fail for the same reason.
    wait_until("no directory of an agent is left", || {
        fs::read_dir(disk.path().join("agents")).unwrap().count() == 0
    });
    disk.empty();
    let (seed, code) = ("7", "5");
    let id = daemon.spawn(&[
        "--",
        writer.to_str().unwrap(),
        reports.socket(),
        "w",
        seed,
        code,
        "wait",
    ]);
    let follower = Follower::over_wire(daemon.socket(), id.clone());
    eventually("the agent has written", || {
        reports
            .get("w")
            .filter(|report| report.written[0].bytes > 0)
    });
    disk.fill();
    daemon.cli_ok(&["send", &id, "go"]);
    let agent = eventually("the agent is stalled", || {
        let agent = daemon.agent(&id);
        (agent["state"] == "stalled").then_some(agent)
    });
    assert!(
        agent["error"].as_str().unwrap().contains("No space left"),
        "{agent}"
    );
    assert!(!reports.get("w").unwrap().done);
    disk.empty();
    let agent = daemon.connect().call("wait-agent", json!({"id": id}))["result"].clone();
    assert_eq!(
        (&agent["state"], &agent["exit"]),
        (&json!("error"), &json!({"code": 5, "reason": "exited"}))
    );
    let followed = follower.finish();
    let report = reports.get("w").unwrap();
    for output in 0..2 {
        assert_eq!(
            compare(
                &followed.received[output],
                report.written[output],
                End::Whole
            ),
            Difference::default()
        );
    }
    assert_eq!(followed.offset_difference, Difference::default());
}

#[test]
fn exit_on_full_disk_is_recorded_when_space_is_free() {
    let (daemon, disk) = daemon_on_small_disk(4);
    let id = daemon.spawn(&["--", "sh", "-c", "echo before; read line; exit 9"]);
    // Wait until this output is stored: otherwise the full disk may stall it instead of the exit record.
    wait_until("the agent has written", || {
        daemon.stdout(&id) == b"before\n"
    });
    disk.fill();
    daemon.cli_ok(&["send", &id, "go"]);
    let agent = eventually("the end cannot be recorded", || {
        let agent = daemon.agent(&id);
        agent["error"].is_string().then_some(agent)
    });
    assert_eq!(agent["state"], "stalled", "{agent}");
    assert!(
        agent["error"].as_str().unwrap().contains("exit.json"),
        "{agent}"
    );
    disk.empty();
    assert_eq!(daemon.wait(&id), Some(9));
    assert_eq!(daemon.stdout(&id), b"before\n");
}

#[test]
fn kill_with_unrecorded_end_of_a_run_succeeds() {
    let (daemon, disk) = daemon_on_small_disk(4);
    let script = "echo run; read line; exit 9";
    let id = daemon.spawn(&[
        "--restart",
        "always",
        "--restart-delay",
        "1ms",
        "--",
        "sh",
        "-c",
        script,
    ]);
    // Wait until this output is stored: otherwise the full disk may stall it instead of the record of the run.
    wait_until("the agent has written", || daemon.stdout(&id) == b"run\n");
    disk.fill();
    daemon.cli_ok(&["send", &id, "go"]);
    wait_until("the run cannot be recorded", || {
        let error = daemon.agent(&id)["error"].to_string();
        error.contains("runs.jsonl")
    });
    daemon.cli_ok(&["kill", &id]);
    disk.empty();
    assert_eq!(daemon.wait(&id), Some(9));
    assert_eq!(daemon.stdout(&id), b"run\n", "the agent was not restarted");
}

#[test]
fn read_only_state_directory_is_reported_and_agents_run() {
    let (mut daemon, disk) = daemon_on_small_disk(16);
    let id = daemon.spawn(&[
        "--",
        "sh",
        "-c",
        "echo one; read x; echo two; read x; exit 3",
    ]);
    wait_until("the agent has written", || daemon.stdout(&id) == b"one\n");
    disk.make_read_only();
    let refused = daemon.cli(&["spawn", "--", "true"]);
    assert_eq!(refused.status.code(), Some(1));
    assert!(
        text(&refused.stderr).contains("Read-only file system"),
        "{}",
        text(&refused.stderr)
    );
    daemon.cli_ok(&["send", &id, "go"]);
    wait_until("the agent keeps running", || {
        daemon.stdout(&id) == b"one\ntwo\n"
    });
    assert!(daemon.log().contains("cannot write audit line"));
    daemon.kill();
    let enter = disk.enter_command();
    let refused = std::process::Command::new(&enter[0])
        .args(&enter[1..])
        .arg(program("colibri-daemon"))
        .args(["--state-dir", daemon.state().to_str().unwrap()])
        .args(["--socket", daemon.path("other/socket").to_str().unwrap()])
        .output()
        .unwrap();
    assert_eq!(refused.status.code(), Some(1));
    assert!(
        text(&refused.stderr).contains("Read-only file system"),
        "{}",
        text(&refused.stderr)
    );
    disk.make_writable();
    daemon.launch_with_prefix(&enter);
    daemon.cli_ok(&["send", &id, "go"]);
    assert_eq!(daemon.wait(&id), Some(3));
    assert_eq!(daemon.stdout(&id), b"one\ntwo\n");
    let after = daemon.spawn(&["--", "true"]);
    assert_eq!(daemon.wait(&after), Some(0));
}
