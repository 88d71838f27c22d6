//! Paths in the forms that users type, and working directories in which no agent can be started.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::Output;

use colibri_tests::{Daemon, program, text};

/// Runs a shell script in a directory; `$colibri` is the path of `colibri`.
fn sh(daemon: &Daemon, directory: &Path, script: &str) -> Output {
    daemon
        .external_command("sh")
        .args(["-c", script])
        .env("colibri", program("colibri"))
        .current_dir(directory)
        .output()
        .unwrap()
}

#[test]
fn deleted_working_directory_is_an_error_that_names_it() {
    let daemon = Daemon::start();
    for command in ["run", "spawn", "explain"] {
        let script = format!(
            "mkdir deleted && cd deleted && rmdir ../deleted && exec \"$colibri\" --no-autostart {command} -- pwd"
        );
        let output = sh(&daemon, daemon.directory(), &script);
        let message = text(&output.stderr);
        assert!(!output.status.success(), "{command}: {output:?}");
        assert_eq!(text(&output.stdout), "", "{command}");
        assert!(
            message.contains("current directory"),
            "{command}: {message}"
        );
        assert!(message.contains("--cwd"), "{command}: {message}");
    }
    // With --cwd, the current directory is not used.
    let script =
        "mkdir deleted && cd deleted && rmdir ../deleted && exec \"$colibri\" run --cwd / -- pwd";
    let output = sh(&daemon, daemon.directory(), script);
    assert_eq!(text(&output.stdout), "/\n", "{output:?}");
    assert_eq!(daemon.agent_count(), 1, "nothing else was started");
}

#[test]
fn working_directory_that_is_not_utf8_is_an_error() {
    let daemon = Daemon::start();
    let not_utf8 = daemon.directory().join(OsStr::from_bytes(b"odd-\xff"));
    fs::create_dir(&not_utf8).unwrap();
    for command in ["run", "spawn", "explain"] {
        let script = format!("exec \"$colibri\" --no-autostart {command} -- pwd");
        let output = sh(&daemon, &not_utf8, &script);
        let message = text(&output.stderr);
        assert!(!output.status.success(), "{command}: {output:?}");
        assert_eq!(text(&output.stdout), "", "{command}");
        assert!(message.contains("not UTF-8"), "{command}: {message}");
    }
    let output = sh(
        &daemon,
        &not_utf8,
        "\"$colibri\" run --jail-path / --workspace . -- pwd",
    );
    assert!(text(&output.stderr).contains("not UTF-8"), "{output:?}");
}

#[test]
fn relative_and_unnormalized_paths_are_accepted() {
    let daemon = Daemon::start();
    let root = daemon.directory().canonicalize().unwrap();
    fs::create_dir_all(root.join("real/project/sub")).unwrap();
    fs::write(root.join("real/vars"), "MARK=from-file\n").unwrap();
    symlink(root.join("real"), root.join("link")).unwrap();
    let real = root.join("real");
    let line = |path: &Path| format!("{}\n", path.display());
    let project = line(&real.join("project"));
    for (script, expected) in [
        (
            "run --jail-path / --workspace project/ -- pwd",
            project.clone(),
        ),
        (
            "run --jail-path / --workspace ./project// -- pwd",
            project.clone(),
        ),
        (
            "run --jail-path / --workspace project/sub/.. -- pwd",
            project.clone(),
        ),
        ("run --jail-path /. --workspace . -- pwd", line(&real)),
        (
            "run --jail-path // --workspace ../real/project -- pwd",
            project.clone(),
        ),
        ("run --jail-path / --workspace \"$PWD\" -- pwd", line(&real)),
        (
            "run --jail-path / --workspace \"$PWD/project/\" -- pwd",
            project.clone(),
        ),
        ("run --jail-path / --cwd /usr/ -- pwd", "/usr\n".to_owned()),
        (
            "run --jail-path / --mount project/:/tmp/there/ -- ls /tmp",
            "there\n".to_owned(),
        ),
        (
            "run --jail-path / --mount ./project:/tmp/there:ro -- ls /tmp",
            "there\n".to_owned(),
        ),
        ("run --cwd project/ -- pwd", project.clone()),
        ("run --cwd .. -- pwd", line(&root)),
        (
            "run --env-file ./vars -- sh -c 'echo $MARK'",
            "from-file\n".to_owned(),
        ),
        (
            "--socket ../run/colibri.sock run -- echo hi",
            "hi\n".to_owned(),
        ),
    ] {
        // The shell enters the directory through a symbolic link, so that PWD contains the link.
        let script = format!("cd link && \"$colibri\" --no-autostart {script}");
        let output = sh(&daemon, &root, &script);
        let (out, message) = (text(&output.stdout), text(&output.stderr));
        assert_eq!(out, expected, "{script}: {message}");
    }
    // The client does not resolve a link that is not part of PWD, and the daemon refuses it.
    let output = sh(
        &daemon,
        &root,
        "\"$colibri\" run --jail-path / --workspace link -- pwd",
    );
    assert!(!output.status.success(), "{output:?}");
}
