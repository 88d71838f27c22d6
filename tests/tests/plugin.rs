//! A third-party privilege backend: the daemon of examples/backend-sudo runs as an unprivileged user and starts
//! bwrap(1) by a real sudo, so that its agents belong to root.
#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::fs::{self, File};
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::Command;

use colibri_tests::helper::{as_user, create_user, uid};
use colibri_tests::{
    Daemon, eventually, kill_9, processes_with, program, read, run_checked, signal, text,
    wait_until, write_file,
};
use rustix::process::Signal;
use serde_json::json;

/// User that the sudoers file of the example lists during a test.
const LISTED: &str = "colibri-sudo";
/// User that no sudo rule lists.
const UNLISTED: &str = "colibri-no-sudo";
/// Path of the installed sudoers file.
const RULES: &str = "/etc/sudoers.d/colibri-test";

/// The installed sudoers file, and a lock that serializes the tests. Dropping it removes the file.
struct Sudoers(File);

impl Sudoers {
    /// Creates the users and installs the sudoers file of the example.
    fn install() -> Self {
        assert!(
            rustix::process::geteuid().is_root(),
            "root is required to create users and a sudo rule; run: sudo -E make test"
        );
        let lock = File::create("/run/colibri-sudo-test.lock").unwrap();
        lock.lock().unwrap();
        for user in [LISTED, UNLISTED] {
            create_user(user);
        }
        let rules = read("examples/backend-sudo/sudoers").replace("COLIBRI", LISTED);
        // sudo ignores names with a dot in sudoers.d, so visudo(8) checks the file before sudo uses it.
        let unchecked = format!("{RULES}.new");
        write_file(Path::new(&unchecked), &rules, 0o440);
        let visudo = ["/usr/sbin/visudo", "/usr/bin/visudo"];
        let visudo = visudo.iter().find(|path| Path::new(path).exists());
        let visudo = visudo.expect("sudo is missing; install the package sudo");
        run_checked(Command::new(visudo).args(["-cf", &unchecked]));
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

/// The daemon of the example, with the sudoers file.
struct SudoDaemon {
    daemon: Daemon,
    _sudoers: Sudoers,
}

impl SudoDaemon {
    /// Starts the daemon as this user.
    fn start(user: &str) -> Self {
        let sudoers = Sudoers::install();
        let mut daemon = Daemon::prepare();
        let directory = daemon.directory().to_owned();
        let copy = |name: &str| -> PathBuf {
            let copy = directory.join(name);
            fs::copy(program(name), &copy).unwrap();
            copy
        };
        copy("colibri-shim");
        let program = copy("colibri-daemon-sudo");
        fs::set_permissions(&directory, fs::Permissions::from_mode(0o755)).unwrap();
        chown(&directory, Some(uid(user)), None).unwrap();
        let mut command = as_user(user, &[program.to_str().unwrap()]);
        command
            .env("HOME", &directory)
            .env("COLIBRI_JAIL_PRIV_MODE", "sudo")
            .env("COLIBRI_SOCKET", daemon.socket())
            .env("COLIBRI_STATE_DIR", daemon.state());
        daemon.launch_command(command);
        daemon.set_daemon_user(uid(user));
        Self {
            daemon,
            _sudoers: sudoers,
        }
    }

    /// Starts an agent that writes a first line, and returns its id.
    fn spawn_agent(&self, mark: &str, script: &str) -> String {
        self.spawn_with(&[], mark, script)
    }

    /// Starts an agent with further options as [`SudoDaemon::spawn_agent`] does.
    fn spawn_with(&self, options: &[&str], mark: &str, script: &str) -> String {
        let mark = format!("MARK={mark}");
        let jail = ["--jail-path", "/", "--env", &mark];
        let command = ["--", "bash", "-c", script];
        let id = self.daemon.spawn(&[&jail, options, &command].concat());
        wait_until("the agent runs", || !self.daemon.stdout(&id).is_empty());
        id
    }
}

/// A text in the environment of the processes of a test. Dropping it kills them.
struct Mark(String);

impl Mark {
    fn new(name: &str) -> Self {
        Self(format!("mark-{name}-{}", std::process::id()))
    }
}

impl Drop for Mark {
    fn drop(&mut self) {
        processes_with(&self.0).into_iter().for_each(kill_9);
    }
}

#[test]
fn sudo_agent_is_confined_and_keeps_its_exit_code() {
    let sudo_daemon = SudoDaemon::start(LISTED);
    let daemon = &sudo_daemon.daemon;
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
    let sudo_daemon = SudoDaemon::start(LISTED);
    let daemon = &sudo_daemon.daemon;
    let mark = Mark::new("kill");
    let id = sudo_daemon.spawn_agent(
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
    let sudo_daemon = SudoDaemon::start(LISTED);
    let daemon = &sudo_daemon.daemon;
    let mark = Mark::new("term");
    let id = sudo_daemon.spawn_agent(
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

/// The agent belongs to root, and so does its descendant in a separate session. Both handle TERM.
#[test]
fn shim_signals_agent_of_root_without_a_daemon() {
    let mut sudo_daemon = SudoDaemon::start(LISTED);
    let (wall, term) = (Mark::new("wall"), Mark::new("shim-term"));
    let orphan = "trap 'echo orphan; exit' TERM; echo up; while :; do sleep 0.05; done";
    let script = format!(
        "(setsid bash -c \"{orphan}\" &); trap 'sleep 1; echo bye; exit 5' TERM; while :; do sleep 0.05; done"
    );
    let limited = sudo_daemon.spawn_with(&["--wall-time", "2s"], &wall.0, &script);
    let terminated = sudo_daemon.spawn_with(&[], &term.0, &script);
    sudo_daemon.daemon.kill();
    let daemon = &sudo_daemon.daemon;
    signal(daemon.shim_pid(&terminated), Signal::TERM);
    for (id, mark) in [(&limited, &wall), (&terminated, &term)] {
        let directory = daemon.agent_dir(id);
        let exit = eventually("the agent has ended", || {
            fs::read_to_string(directory.join("exit.json")).ok()
        });
        assert!(exit.contains("{\"code\":5}"), "{exit}");
        let output = fs::read(directory.join("stdout/00000000000000000000.log")).unwrap();
        assert_eq!(text(&output), "up\norphan\nbye\n");
        assert_eq!(processes_with(&mark.0), Vec::<i32>::new(), "{id}");
    }
}

#[test]
fn refused_signal_names_the_cause() {
    let sudo_daemon = SudoDaemon::start(LISTED);
    let daemon = &sudo_daemon.daemon;
    let mark = Mark::new("refused");
    let id = sudo_daemon.spawn_agent(&mark.0, "echo up; sleep 1000; :");
    let rules = fs::read_to_string(RULES).unwrap();
    let without_kill = rules.replace(", /bin/kill", "");
    assert_ne!(rules, without_kill);
    write_file(Path::new(RULES), &without_kill, 0o440);
    let hup = json!({"id": id, "signal": "HUP", "escalate": false});
    let error = daemon.connect().call("kill-agent", hup)["error"].clone();
    assert_eq!(error["data"]["kind"], "privilege", "{error}");
    let message = error["message"].as_str().unwrap();
    for part in ["/bin/kill -s HUP", "sudo: ", "not signalled: pid "] {
        assert!(message.contains(part), "{message}");
    }
    assert!(!processes_with(&mark.0).is_empty());
}

#[test]
fn refusal_by_sudo_is_shown_verbatim() {
    let sudo_daemon = SudoDaemon::start(UNLISTED);
    let output = sudo_daemon
        .daemon
        .cli(&["run", "--jail-path", "/", "--", "true"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(
        text(&output.stderr).contains("sudo: "),
        "{}",
        text(&output.stderr)
    );
    assert!(text(&output.stdout).is_empty());
}
