//! A third-party privilege backend: the daemon of examples/backend-sudo, run by an ordinary user, starts bubblewrap
//! through a real sudo, so its agents belong to another user.
#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::fs::{self, File};
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::Command;

use colibri_tests::helper::{as_user, make_user, run, uid};
use colibri_tests::{Daemon, eventually, kill_9, processes_with, program, text};
use serde_json::json;

/// May use sudo according to the example's sudoers file, during a test.
const ALLOWED: &str = "colibri-sudo";
/// May not use sudo.
const STRANGER: &str = "colibri-no-sudo";
const RULES: &str = "/etc/sudoers.d/colibri-test";

/// Two users without login, and the sudo rule for one of them. A lock serializes the tests.
struct Sudoers(File);

impl Sudoers {
    fn install() -> Self {
        assert!(
            rustix::process::geteuid().is_root(),
            "root is required to create users and a sudo rule; run: sudo -E make test"
        );
        let lock = File::create("/run/colibri-sudo-test.lock").unwrap();
        lock.lock().unwrap();
        for user in [ALLOWED, STRANGER] {
            make_user(user);
        }
        let sample = Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples/backend-sudo/sudoers");
        let rules = fs::read_to_string(sample)
            .unwrap()
            .replace("COLIBRI", ALLOWED);
        // sudo ignores files with a dot in sudoers.d, so visudo checks the file before it is renamed.
        let unchecked = format!("{RULES}.new");
        fs::write(&unchecked, rules).unwrap();
        fs::set_permissions(&unchecked, fs::Permissions::from_mode(0o440)).unwrap();
        let visudo = ["/usr/sbin/visudo", "/usr/bin/visudo"];
        let visudo = visudo.iter().find(|path| Path::new(path).exists());
        let visudo = visudo.expect("sudo is missing; install the package sudo");
        run(Command::new(visudo).args(["-cf", &unchecked]));
        fs::rename(&unchecked, RULES).unwrap();
        Self(lock)
    }
}

impl Drop for Sudoers {
    fn drop(&mut self) {
        let _ = fs::remove_file(RULES);
        let _ = self.0.unlock();
    }
}

/// The example's daemon, run by a user.
struct Site {
    daemon: Daemon,
    _sudoers: Sudoers,
}

impl Site {
    fn of(user: &str) -> Self {
        let sudoers = Sudoers::install();
        let mut daemon = Daemon::prepare();
        let directory = daemon.path("");
        let copy = |name: &str| -> PathBuf {
            let copy = directory.join(name);
            fs::copy(program(name), &copy).unwrap();
            copy
        };
        copy("colibri-shim");
        let built = copy("colibri-daemon-sudo");
        fs::set_permissions(&directory, fs::Permissions::from_mode(0o755)).unwrap();
        chown(&directory, Some(uid(user)), None).unwrap();
        let mut command = as_user(user, &[built.to_str().unwrap()]);
        command
            .env("HOME", &directory)
            .env("COLIBRI_JAIL_PRIV_MODE", "sudo")
            .env("COLIBRI_SOCKET", daemon.socket())
            .env("COLIBRI_STATE_DIR", daemon.state());
        daemon.launch_as(command);
        daemon.trust(uid(user));
        Self {
            daemon,
            _sudoers: sudoers,
        }
    }

    /// Starts an agent that writes a first line, and returns its id.
    fn agent(&self, mark: &str, script: &str) -> String {
        let mark = format!("MARK={mark}");
        let id = self.daemon.spawn(&[
            "--jail-path",
            "/",
            "--env",
            &mark,
            "--",
            "bash",
            "-c",
            script,
        ]);
        eventually("the agent runs", || {
            (!self.daemon.stdout(&id).is_empty()).then_some(())
        });
        id
    }
}

/// Returns a mark for the processes of this test.
struct Mark(String);

impl Mark {
    fn new(what: &str) -> Self {
        Self(format!("mark-{what}-{}", std::process::id()))
    }
}

impl Drop for Mark {
    fn drop(&mut self) {
        processes_with(&self.0).into_iter().for_each(kill_9);
    }
}

#[test]
fn sudo_agent_is_confined_and_keeps_its_exit_code() {
    let site = Site::of(ALLOWED);
    let daemon = &site.daemon;
    let explained = daemon.connect().call(
        "explain-spawn",
        json!({"program": "true", "jail": {"path": "/"}}),
    );
    assert_eq!(
        explained["result"]["program"], "/usr/bin/sudo",
        "{explained}"
    );
    assert_eq!(explained["result"]["privilege"], "sudo", "{explained}");
    let output = daemon.cli(&[
        "run",
        "--jail-path",
        "/",
        "--jail-ip4",
        "disable",
        "--env",
        "TOKEN=a b",
        "--",
        "bash",
        "-c",
        "echo \"$TOKEN|$1|$2\"; id -u; touch /etc/x; grep CapEff /proc/self/status; exit 7",
        "it's",
        "two words",
        "$HOME",
    ]);
    let (out, err) = (text(&output.stdout), text(&output.stderr));
    assert_eq!(output.status.code(), Some(7), "{out}{err}");
    assert!(out.starts_with("a b|two words|$HOME\n0\n"), "{out}{err}");
    assert!(out.contains("CapEff:\t0000000000000000"), "{out}");
    assert!(err.contains("Read-only file system"), "{err}");
    for (script, code) in [("exit 0", 0), ("exit 255", 255), ("kill -KILL $$", 137)] {
        let output = daemon.cli(&["run", "--jail-path", "/", "--", "bash", "-c", script]);
        assert_eq!(
            output.status.code(),
            Some(code),
            "{script}: {}",
            text(&output.stderr)
        );
    }
}

#[test]
fn kill_through_sudo_leaves_no_process() {
    let site = Site::of(ALLOWED);
    let daemon = &site.daemon;
    let mark = Mark::new("kill");
    let id = site.agent(
        &mark.0,
        "trap '' TERM; setsid bash -c 'trap \"\" TERM; (sleep 1000 & sleep 1000) & echo up; sleep 1000' & wait",
    );
    let before = processes_with(&mark.0);
    assert!(before.len() >= 4, "{before:?}");
    let killed = daemon.cli(&["kill", "--grace", "200ms", &id]);
    assert!(killed.status.success(), "{}", text(&killed.stderr));
    assert!(
        text(&killed.stderr).contains("needed KILL"),
        "{}",
        text(&killed.stderr)
    );
    assert_eq!(
        processes_with(&mark.0),
        Vec::<i32>::new(),
        "processes are left"
    );
    assert!(
        daemon.agent(&id)["exit"].is_object(),
        "{}",
        daemon.agent(&id)
    );
}

#[test]
fn sudo_agent_handles_the_first_signal_of_a_kill() {
    let site = Site::of(ALLOWED);
    let daemon = &site.daemon;
    let mark = Mark::new("term");
    let id = site.agent(
        &mark.0,
        "trap 'echo bye; exit 5' TERM; echo up; while :; do sleep 0.05; done",
    );
    let killed = daemon.cli(&["kill", "--grace", "20s", &id]);
    assert!(
        text(&killed.stderr).contains("ended at TERM"),
        "{}",
        text(&killed.stderr)
    );
    assert_eq!(text(&daemon.stdout(&id)), "up\nbye\n");
    assert_eq!(
        daemon.agent(&id)["exit"]["code"],
        5,
        "{}",
        daemon.agent(&id)
    );
    assert_eq!(
        processes_with(&mark.0),
        Vec::<i32>::new(),
        "processes are left"
    );
}

#[test]
fn refusal_by_sudo_is_shown_verbatim() {
    let site = Site::of(STRANGER);
    let output = site.daemon.cli(&["run", "--jail-path", "/", "--", "true"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(
        text(&output.stderr).contains("sudo: "),
        "{}",
        text(&output.stderr)
    );
    assert!(text(&output.stdout).is_empty());
}
