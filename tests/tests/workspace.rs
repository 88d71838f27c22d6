//! The parts of the host that an agent can see and change.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::fs;
use std::path::Path;

use colibri_tests::{Daemon, text};
use serde_json::json;

/// Creates a directory and returns its path without symbolic links, as mount sources require.
fn create_directory() -> (tempfile::TempDir, String) {
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
    let (_dir, work) = create_directory();
    fs::write(format!("{work}/old"), "before").unwrap();
    let output = run(
        &daemon,
        &["--workspace", &work],
        "pwd; cat old; echo after > old; mkdir new; echo x > ../outside; echo x > /etc/outside; exit 3",
    );
    assert_eq!(output.status.code(), Some(3), "{output:?}");
    assert_eq!(text(&output.stdout), format!("{work}\nbefore"));
    // The directory of the workspace is private in the sandbox.
    assert_eq!(
        text(&output.stderr)
            .matches("Read-only file system")
            .count(),
        1,
        "{output:?}"
    );
    assert_eq!(
        fs::read_to_string(format!("{work}/old")).unwrap(),
        "after\n"
    );
    assert!(Path::new(&format!("{work}/new")).is_dir());
    assert!(!Path::new("/var/tmp/outside").exists() && !Path::new("/etc/outside").exists());
}

#[test]
fn mounts_have_the_requested_target_and_mode() {
    let daemon = Daemon::start();
    let (_one, one) = create_directory();
    let (_two, two) = create_directory();
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
    // The target of the second mount is inside the first one. It must exist: the daemon does not create it.
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
    let parent = daemon.directory().canonicalize().unwrap();
    let output = run(
        &daemon,
        &[
            "--mount",
            &format!("{}:/tmp/x:ro", parent.display()),
            "--cwd",
            "/tmp/x",
        ],
        "ls -A . state run",
    );
    let listed = text(&output.stdout);
    assert!(listed.contains("run:\n\nstate:\n"), "{output:?}");
    // A writable one would let the agent move what is masked.
    let output = run(&daemon, &["--workspace", parent.to_str().unwrap()], "true");
    assert!(
        text(&output.stderr).contains("would be writable"),
        "{output:?}"
    );
    for hidden in [daemon.state(), daemon.state().join("agents")] {
        let output = run(
            &daemon,
            &["--mount", &format!("{}:/tmp/x", hidden.display())],
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
    let (_dir, work) = create_directory();
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
    // While the agent runs, it could create the link between the check and the mount, so the spawn is refused.
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
    // Two agents may share the same directory.
    let sharing = run(&daemon, &["--workspace", &work], "ls");
    assert!(sharing.status.success(), "{sharing:?}");
    daemon.cli_ok(&["kill", "--grace", "0s", &first]);
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
    let (_dir, work) = create_directory();
    fs::create_dir(format!("{work}/sub")).unwrap();
    for (subdirectory, workspace, expected) in [
        ("", ".", ""),
        ("", "sub", "/sub"),
        ("/sub", "..", ""),
        ("/sub", "./../sub", "/sub"),
    ] {
        let output = daemon
            .command("colibri")
            .current_dir(format!("{work}{subdirectory}"))
            .args([
                "run",
                "--jail-path",
                "/",
                "--workspace",
                workspace,
                "--",
                "pwd",
            ])
            .output()
            .unwrap();
        assert_eq!(
            text(&output.stdout),
            format!("{work}{expected}\n"),
            "{output:?}"
        );
    }
}
