//! Paths as users type them, and working directories from which no agent can be started.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::Output;

use colibri_tests::{Daemon, program, text};

/// Runs a shell script in a directory; `$colibri` is the path of the command.
fn sh(daemon: &Daemon, directory: &Path, script: &str) -> Output {
    daemon
        .external("sh")
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
            "mkdir gone && cd gone && rmdir ../gone && exec \"$colibri\" --no-autostart {command} -- pwd"
        );
        let output = sh(&daemon, daemon.path("log").parent().unwrap(), &script);
        let message = text(&output.stderr);
        assert!(!output.status.success(), "{command}: {output:?}");
        assert_eq!(text(&output.stdout), "", "{command}");
        assert!(
            message.contains("current directory"),
            "{command}: {message}"
        );
        assert!(message.contains("--cwd"), "{command}: {message}");
    }
    // Commands that do not need the directory ignore it.
    let script = "mkdir gone && cd gone && rmdir ../gone && exec \"$colibri\" run --cwd / -- pwd";
    let output = sh(&daemon, daemon.path("log").parent().unwrap(), script);
    assert_eq!(text(&output.stdout), "/\n", "{output:?}");
    assert_eq!(daemon.agent_count(), 1, "nothing else was started");
}

#[test]
fn working_directory_that_is_not_utf8_is_an_error() {
    let daemon = Daemon::start();
    let odd = daemon
        .path("log")
        .parent()
        .unwrap()
        .join(OsStr::from_bytes(b"odd-\xff"));
    fs::create_dir(&odd).unwrap();
    for command in ["run", "spawn", "explain"] {
        let script = format!("exec \"$colibri\" --no-autostart {command} -- pwd");
        let output = sh(&daemon, &odd, &script);
        let message = text(&output.stderr);
        assert!(!output.status.success(), "{command}: {output:?}");
        assert_eq!(text(&output.stdout), "", "{command}");
        assert!(message.contains("not UTF-8"), "{command}: {message}");
    }
    let output = sh(
        &daemon,
        &odd,
        "\"$colibri\" run --jail-path / --workspace . -- pwd",
    );
    assert!(text(&output.stderr).contains("not UTF-8"), "{output:?}");
}

#[test]
fn typed_paths_work_as_a_shell_completes_them() {
    let daemon = Daemon::start();
    let root = daemon.path("log").parent().unwrap().canonicalize().unwrap();
    fs::create_dir_all(root.join("real/project/sub")).unwrap();
    fs::write(root.join("real/vars"), "MARK=from-file\n").unwrap();
    symlink(root.join("real"), root.join("link")).unwrap();
    let real = root.join("real");
    let at = |path: &str| format!("{}\n", real.join(path).display());
    for (script, expected) in [
        (
            "run --jail-path / --workspace project/ -- pwd",
            at("project"),
        ),
        (
            "run --jail-path / --workspace ./project// -- pwd",
            at("project"),
        ),
        (
            "run --jail-path / --workspace project/sub/.. -- pwd",
            at("project"),
        ),
        ("run --jail-path /. --workspace . -- pwd", at("")),
        (
            "run --jail-path // --workspace ../real/project -- pwd",
            at("project"),
        ),
        ("run --jail-path / --workspace \"$PWD\" -- pwd", at("")),
        (
            "run --jail-path / --workspace \"$PWD/project/\" -- pwd",
            at("project"),
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
        ("run --cwd project/ -- pwd", at("project")),
        ("run --cwd .. -- pwd", format!("{}\n", root.display())),
        (
            "run --env-file ./vars -- sh -c 'echo $MARK'",
            "from-file\n".to_owned(),
        ),
        (
            "--socket ../run/colibri.sock run -- echo hi",
            "hi\n".to_owned(),
        ),
    ] {
        // As in a shell that entered the directory through a symbolic link: PWD contains the link.
        let script = format!("cd link && \"$colibri\" --no-autostart {script}");
        let output = sh(&daemon, &root, &script);
        let (out, message) = (text(&output.stdout), text(&output.stderr));
        let trimmed = expected.replace("//", "/").replace("/\n", "\n");
        let expected = if expected == "/\n" { expected } else { trimmed };
        assert_eq!(out, expected, "{script}: {message}");
    }
    // A link that is not part of PWD stays, and the daemon refuses it.
    let output = sh(
        &daemon,
        &root,
        "\"$colibri\" run --jail-path / --workspace link -- pwd",
    );
    assert!(!output.status.success(), "{output:?}");
}
