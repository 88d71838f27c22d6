//! A real setuid helper for tests: built with a fixed place of its own, installed as root's, and called by real
//! unprivileged users. All of it is this host's: one lock, shared by tests that only call the helper and
//! held alone by those that change its policy, keeps them from each other. What is installed stays: the program and
//! its policy serve two users that nobody can log in as.

use std::fs::{self, File};
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

/// Fixed when the variant is built; root's alone.
pub const PREFIX: &str = "/run/colibri-helper-test";
/// Where the programs are installed: not under /run, which may be nosuid.
const PROGRAMS: &str = "/usr/local/libexec/colibri-helper-test";
/// Under it the caller may write.
pub const TREE: &str = "/var/tmp/colibri-helper-test";

/// In the policy.
pub const CALLER: &str = "colibri-caller";
/// In the policy too, by its group.
pub const OTHER: &str = "colibri-other";
/// Not in the policy.
pub const STRANGER: &str = "colibri-stranger";
/// Whom agents run as.
pub const AGENT: &str = "colibri-agent";

/// What every test but those of bad policies lives by.
pub const POLICY: &str = r#"
syslog = "best-effort"

[[rule]]
callers = ["colibri-caller", "%colibri-other"]
jails = ["colibri-*", "web"]
roots = ["/", "/var/tmp/colibri-helper-test/*"]
users = ["colibri-agent"]
programs = ["*"]
ip4 = ["disable", "inherit"]
environment = ["PATH", "LC_*", "MARK"]
signals = ["TERM", "KILL"]

[rule.limits]
open_files = 256
processes = 500
file_size = 1000000
cpu_seconds = 600

[[rule]]
callers = ["colibri-caller"]
jails = ["agent-*"]
users = ["colibri-agent"]
programs = ["/usr/bin/true"]
signals = ["HUP"]
"#;

/// The installed helper, as long as this lives.
pub struct Helper {
    alone: bool,
    _lock: File,
}

impl Helper {
    /// For tests that call the helper.
    pub fn shared() -> Self {
        let lock = lock_file();
        loop {
            lock.lock_shared().unwrap();
            if is_installed() {
                break;
            }
            lock.unlock().unwrap();
            lock.lock().unwrap();
            install();
            lock.unlock().unwrap();
        }
        Self {
            alone: false,
            _lock: lock,
        }
    }

    /// For tests that change the policy or what lies beside it.
    pub fn alone() -> Self {
        let lock = lock_file();
        lock.lock().unwrap();
        install();
        Self {
            alone: true,
            _lock: lock,
        }
    }

    /// Puts a policy in place of the present one, as an ordinary file of root's.
    pub fn set_policy(&self, text: &str) {
        assert!(self.alone, "others rely on the policy");
        write_policy(text);
    }

    /// A shell command of a user's, with nothing to read; `$H` is the helper.
    pub fn sh(&self, user: &str, script: &str) -> Output {
        as_user(user, &["/bin/bash", "-c", script])
            .output()
            .unwrap()
    }

    /// The helper, called by a user with these words.
    pub fn call(&self, user: &str, words: &[&str]) -> Output {
        let helper = program("colibri-jail-helper");
        as_user(user, &[&[helper.to_str().unwrap()], words].concat())
            .output()
            .unwrap()
    }
}

impl Drop for Helper {
    fn drop(&mut self) {
        if self.alone {
            write_policy(POLICY);
        }
    }
}

/// An installed program.
pub fn program(name: &str) -> PathBuf {
    Path::new(PROGRAMS).join(name)
}

/// A command that a user runs, with an environment of its own and nothing to read.
pub fn as_user(user: &str, words: &[&str]) -> Command {
    let mut command = Command::new("setpriv");
    command
        .args(["--reuid", user, "--regid", user, "--clear-groups", "--"])
        .args(words)
        .env_clear()
        .env("PATH", "/usr/bin:/bin")
        .env("H", program("colibri-jail-helper"))
        .current_dir("/")
        .stdin(Stdio::null());
    command
}

/// Makes a user that nobody can log in as, if there is none of that name. One at a time: useradd(8) does not wait
/// for another one.
pub fn make_user(name: &str) {
    let lock = File::create("/run/colibri-test-users.lock").unwrap();
    lock.lock().unwrap();
    let known = Command::new("id").arg(name).output().unwrap();
    if !known.status.success() {
        run(Command::new("useradd").args([
            "--system",
            "--user-group",
            "--no-create-home",
            "--shell",
            "/bin/sh",
            name,
        ]));
    }
}

/// The number of a user.
pub fn uid(user: &str) -> u32 {
    let output = Command::new("id").args(["-u", user]).output().unwrap();
    crate::text(&output.stdout).trim().parse().unwrap()
}

/// What tests of one run have in common, so that each run installs once.
fn run_id() -> String {
    let run = std::env::var("NEXTEST_RUN_ID").unwrap_or_else(|_| std::process::id().to_string());
    format!("{}\n{run}", env!("CARGO_MANIFEST_DIR"))
}

fn lock_file() -> File {
    assert!(
        rustix::process::geteuid().is_root(),
        "this test installs a setuid program and makes users: run the tests as root, as in: sudo -E make test"
    );
    File::create("/run/colibri-helper-test.lock").unwrap()
}

fn is_installed() -> bool {
    fs::read_to_string(format!("{PREFIX}/installed")).is_ok_and(|run| run == run_id())
}

fn install() {
    if is_installed() {
        return;
    }
    for user in [CALLER, OTHER, STRANGER, AGENT] {
        make_user(user);
    }
    let root = crate::repository();
    let cargo = std::env::var("CARGO").unwrap_or_else(|_| "cargo".to_owned());
    let target = root.join("target/helper-test");
    run(Command::new(cargo)
        .current_dir(root)
        .args([
            "build",
            "--quiet",
            "--locked",
            "-p",
            "colibri-jail-helper",
            "--target-dir",
        ])
        .arg(&target)
        .env("COLIBRI_HELPER_PREFIX", PREFIX));
    let _ = fs::remove_dir_all(PREFIX);
    let _ = fs::remove_dir_all(TREE);
    for directory in [PREFIX, PROGRAMS, TREE] {
        fs::create_dir_all(directory).unwrap();
        fs::set_permissions(directory, fs::Permissions::from_mode(0o755)).unwrap();
    }
    chown(TREE, Some(uid(CALLER)), None).unwrap();
    copy(
        &target.join("debug/colibri-jail-helper"),
        "colibri-jail-helper",
        0o4755,
    );
    copy(
        &target.join("debug/colibri-jail-helper"),
        "not-setuid",
        0o755,
    );
    write_policy(POLICY);
    fs::write(format!("{PREFIX}/installed"), run_id()).unwrap();
}

/// Installs a program of the workspace for users who cannot look into its directory.
pub fn install_program(name: &str) -> PathBuf {
    copy(&crate::program(name), name, 0o755);
    program(name)
}

/// By another name first: the present one may be running.
fn copy(from: &Path, name: &str, mode: u32) {
    let new = program(&format!("new-{name}-{}", std::process::id()));
    fs::copy(from, &new).unwrap();
    chown(&new, Some(0), Some(0)).unwrap();
    fs::set_permissions(&new, fs::Permissions::from_mode(mode)).unwrap();
    fs::rename(&new, program(name)).unwrap();
}

fn write_policy(text: &str) {
    let path = format!("{PREFIX}/helper.toml");
    let _ = fs::remove_file(&path);
    let _ = fs::remove_dir_all(&path);
    fs::write(&path, text).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
    fs::set_permissions(PREFIX, fs::Permissions::from_mode(0o755)).unwrap();
}

/// Runs a command, which must work.
pub fn run(command: &mut Command) {
    let output = command.output().unwrap();
    assert!(
        output.status.success(),
        "{command:?}: {}",
        crate::text(&output.stderr)
    );
}

/// A directory of a user's own, with the programs in it.
pub fn programs_of(user: &str) -> tempfile::TempDir {
    make_user(user);
    let dir = tempfile::Builder::new()
        .prefix("colibri-test-")
        .tempdir_in("/var/tmp")
        .unwrap();
    for name in ["colibri", "colibri-daemon", "colibri-shim"] {
        fs::copy(program(name), dir.path().join(name)).unwrap();
    }
    let owner = Some(uid(user));
    chown(dir.path(), owner, owner).unwrap();
    dir
}
