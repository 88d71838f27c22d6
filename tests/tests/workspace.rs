//! The parts of the host that an agent can see and change.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::fs;
use std::path::Path;

use colibri_tests::{Daemon, text};
use serde_json::json;

/// Creates a directory with a path without links, as every source requires.
fn directory() -> (tempfile::TempDir, String) {
    let dir = tempfile::tempdir_in("/var/tmp").unwrap();
    let path = dir.path().canonicalize().unwrap().display().to_string();
    (dir, path)
}

fn run(daemon: &Daemon, options: &[&str], script: &str) -> std::process::Output {
    daemon.cli(
        &[
            &["run", "--jail-path", "/"],
            options,
            &["--", "sh", "-c", script],
        ]
        .concat(),
    )
}

#[test]
fn only_the_workspace_is_writable_at_the_same_path() {
    let daemon = Daemon::start();
    let (_dir, work) = directory();
    fs::write(format!("{work}/old"), "before").unwrap();
    let output = run(
        &daemon,
        &["--workspace", &work],
        "pwd; cat old; echo after > old; mkdir new; echo x > ../beside; echo x > /etc/beside; exit 3",
    );
    assert_eq!(output.status.code(), Some(3), "{output:?}");
    assert_eq!(text(&output.stdout), format!("{work}\nbefore"));
    assert_eq!(
        text(&output.stderr)
            .matches("Read-only file system")
            .count(),
        2,
        "{output:?}"
    );
    assert_eq!(
        fs::read_to_string(format!("{work}/old")).unwrap(),
        "after\n"
    );
    assert!(Path::new(&format!("{work}/new")).is_dir());
    assert!(!Path::new("/var/tmp/beside").exists() && !Path::new("/etc/beside").exists());
}

#[test]
fn mounts_have_the_requested_target_and_mode() {
    let daemon = Daemon::start();
    let (_one, one) = directory();
    let (_two, two) = directory();
    fs::write(format!("{one}/file"), "one").unwrap();
    fs::write(format!("{two}/file"), "two").unwrap();
    let output = run(
        &daemon,
        &[
            "--mount",
            &format!("{one}:/tmp/one:ro"),
            "--mount",
            &format!("{two}:/tmp/one/two"),
            "--mount",
            &format!("{one}/file:/tmp/alone"),
            "--cwd",
            "/tmp/one",
            "--hostname",
            "box.example",
        ],
        "pwd; cat file two/file ../alone; uname -n; echo x > file; echo changed > two/file",
    );
    // The target of the second mount is inside the first one and must exist: nothing is created there.
    assert!(
        text(&output.stderr).contains("not a directory in the jail"),
        "{output:?}"
    );
    fs::create_dir(format!("{one}/two")).unwrap();
    let output = run(
        &daemon,
        &[
            "--mount",
            &format!("{one}:/tmp/one:ro"),
            "--mount",
            &format!("{two}:/tmp/one/two"),
            "--cwd",
            "/tmp/one",
            "--hostname",
            "box.example",
        ],
        "pwd; cat file two/file; uname -n; echo x > file; echo changed > two/file",
    );
    assert_eq!(
        text(&output.stdout),
        "/tmp/one\nonetwobox.example\n",
        "{output:?}"
    );
    assert_eq!(
        text(&output.stderr)
            .matches("Read-only file system")
            .count(),
        1,
        "{output:?}"
    );
    assert_eq!(fs::read_to_string(format!("{one}/file")).unwrap(), "one");
    assert_eq!(
        fs::read_to_string(format!("{two}/file")).unwrap(),
        "changed\n"
    );
}

#[test]
fn daemon_state_and_socket_are_hidden_in_mounts() {
    let daemon = Daemon::start();
    let top = daemon.path("").canonicalize().unwrap();
    let seen = run(
        &daemon,
        &["--workspace", top.to_str().unwrap()],
        "ls -A . state run; echo new > made",
    );
    let listed = text(&seen.stdout);
    assert!(listed.contains("run:\n\nstate:\n"), "{seen:?}");
    assert!(top.join("made").exists());
    for way_out in [daemon.state(), daemon.state().join("agents")] {
        let output = run(
            &daemon,
            &["--mount", &format!("{}:/tmp/x", way_out.display())],
            "ls /tmp/x",
        );
        assert!(
            text(&output.stderr).contains("leave the jail"),
            "{output:?}"
        );
    }
}

#[test]
fn symlink_planted_by_an_agent_is_not_followed() {
    let daemon = Daemon::start();
    let (_dir, work) = directory();
    let planted = run(
        &daemon,
        &["--workspace", &work],
        "ln -s /etc trap; mkdir sub",
    );
    assert!(planted.status.success(), "{planted:?}");
    for source in [format!("{work}/trap"), format!("{work}/trap/ssl")] {
        let output = run(
            &daemon,
            &["--mount", &format!("{source}:/tmp/x")],
            "ls /tmp/x",
        );
        assert_eq!(output.status.code(), Some(125));
        assert!(text(&output.stderr).contains("symbolic link"), "{output:?}");
    }
    // Refused while the agent that could plant the link runs: it could do so between the check and the mount.
    let first = daemon.spawn(&[
        "--jail-path",
        "/",
        "--workspace",
        &work,
        "--",
        "sleep",
        "1000",
    ]);
    let second = daemon.connect().call(
        "spawn-agent",
        json!({"program": "ls", "jail": {"path": "/", "mounts": [{"source": format!("{work}/sub"), "target": "/tmp/x"}]}}),
    );
    assert_eq!(
        second["error"]["data"]["kind"], "path-not-found",
        "{second}"
    );
    let message = second["error"]["message"].as_str().unwrap();
    assert!(
        message.contains(&first) && message.contains("replace"),
        "{message}"
    );
    // The same directory is accepted: two agents may share it.
    let beside = run(&daemon, &["--workspace", &work], "ls");
    assert!(beside.status.success(), "{beside:?}");
    daemon.ok(&["kill", "--grace", "0s", &first]);
    let output = run(
        &daemon,
        &["--mount", &format!("{work}/sub:/tmp/x")],
        "ls /tmp/x",
    );
    assert!(output.status.success(), "{output:?}");
}

#[test]
fn relative_workspace_resolves_against_the_cwd() {
    let daemon = Daemon::start();
    let (_dir, work) = directory();
    fs::create_dir(format!("{work}/sub")).unwrap();
    for (here, named, seen) in [
        ("", ".", ""),
        ("", "sub", "/sub"),
        ("/sub", "..", ""),
        ("/sub", "./../sub", "/sub"),
    ] {
        let output = daemon
            .command("colibri")
            .current_dir(format!("{work}{here}"))
            .args(["run", "--jail-path", "/", "--workspace", named, "--", "pwd"])
            .output()
            .unwrap();
        assert_eq!(
            text(&output.stdout),
            format!("{work}{seen}\n"),
            "{output:?}"
        );
    }
}
