//! A real setuid helper for tests: built with a separate path prefix, installed as root, and called by real unprivileged
//! users. All tests of a host use one installation: those that call the helper share a lock, and a test that changes the
//! policy holds the lock exclusively. The installation remains after the tests; its policy lists only users without a
//! login.

use std::fs::{self, File};
use std::io::Read;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

use crate::{eventually, processes_with, run_checked, test_directory, write_file};

/// Directory of policy, records and log socket, compiled into the helper under test. Only root can write it.
pub const PREFIX: &str = "/run/colibri-helper-test";
/// Directory of the installed programs, not in /run, which may be mounted nosuid.
const PROGRAMS: &str = "/usr/local/libexec/colibri-helper-test";
/// Directory that the caller can write. The policy allows roots below it.
pub const TREE: &str = "/var/tmp/colibri-helper-test";

/// User that the policy lists by name.
pub const CALLER: &str = "colibri-caller";
/// User that the policy lists by group.
pub const OTHER: &str = "colibri-other";
/// User that the policy does not list.
pub const UNLISTED: &str = "colibri-unlisted";
/// User that agents of [`CALLER`] run as.
pub const AGENT: &str = "colibri-agent";
/// User that agents of [`OTHER`] run as.
pub const AGENT_OF_OTHER: &str = "colibri-agent-of-other";

/// The policy, except in tests of other policies.
pub const POLICY: &str = r#"
syslog = "best-effort"

[[rule]]
callers = ["colibri-caller"]
jails = ["colibri-*", "web"]
roots = ["/", "/var/tmp/colibri-helper-test/*"]
users = ["colibri-agent"]
programs = ["*"]
ip4 = ["disable", "inherit"]
environment = ["PATH", "LC_*", "MARK"]
signals = ["TERM", "KILL"]

[rule.limits]
agents = 100
open_files = 256
processes = 500
file_size = 1000000
cpu_seconds = 600

[[rule]]
callers = ["colibri-caller"]
jails = ["agent-*", "colibri-*"]
roots = ["/usr"]
users = ["colibri-agent"]
programs = ["/usr/bin/true"]
ip4 = ["disable"]
signals = ["HUP"]

[[rule]]
callers = ["%colibri-other"]
jails = ["colibri-*", "web"]
roots = ["/", "/var/tmp/colibri-helper-test/*"]
users = ["colibri-agent-of-other"]
programs = ["*"]
ip4 = ["disable"]
environment = ["PATH", "MARK"]
signals = ["TERM", "KILL", "STOP", "CONT"]

[rule.limits]
agents = 20
processes = 500
"#;

/// The installed helper. Dropping it releases the lock.
pub struct Helper {
    is_exclusive: bool,
    _lock: File,
}

impl Helper {
    /// Installs the helper once per test run, for tests that only call it.
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
            is_exclusive: false,
            _lock: lock,
        }
    }

    /// Installs the helper for a test that changes the policy or other files in [`PREFIX`].
    pub fn exclusive() -> Self {
        let lock = lock_file();
        lock.lock().unwrap();
        install();
        Self {
            is_exclusive: true,
            _lock: lock,
        }
    }

    /// Replaces the policy by a regular file that root owns.
    pub fn set_policy(&self, text: &str) {
        assert!(self.is_exclusive, "other tests use the policy");
        // If this test is killed, the next one installs again.
        let _ = fs::remove_file(format!("{PREFIX}/installed"));
        write_policy(text);
    }

    /// Runs a shell script as a user, without input; `$H` is the path of the helper.
    pub fn sh(&self, user: &str, script: &str) -> Output {
        as_user(user, &["/bin/bash", "-c", script])
            .output()
            .unwrap()
    }

    /// Calls the helper as a user with these arguments.
    pub fn call(&self, user: &str, arguments: &[&str]) -> Output {
        let helper = program("colibri-jail-helper");
        as_user(user, &[&[helper.to_str().unwrap()], arguments].concat())
            .output()
            .unwrap()
    }
}

impl Drop for Helper {
    fn drop(&mut self) {
        if self.is_exclusive {
            write_policy(POLICY);
            let _ = fs::write(format!("{PREFIX}/installed"), run_id());
        }
    }
}

/// Returns the path of an installed program.
pub fn program(name: &str) -> PathBuf {
    Path::new(PROGRAMS).join(name)
}

/// Returns a command that runs as a user, with a minimal environment and without input.
pub fn as_user(user: &str, command_line: &[&str]) -> Command {
    let mut command = Command::new("setpriv");
    command
        .args(["--reuid", user, "--regid", user, "--clear-groups", "--"])
        .args(command_line)
        .env_clear()
        .env("PATH", "/usr/bin:/bin")
        .env("H", program("colibri-jail-helper"))
        .current_dir("/")
        .stdin(Stdio::null());
    command
}

/// Creates a user without a login, if it does not exist. A lock serializes calls, because useradd(8) fails while another
/// one runs.
pub fn create_user(name: &str) {
    let lock = File::create("/run/colibri-test-users.lock").unwrap();
    lock.lock().unwrap();
    let known = Command::new("id").arg(name).output().unwrap();
    if !known.status.success() {
        run_checked(Command::new("useradd").args([
            "--system",
            "--user-group",
            "--no-create-home",
            "--shell",
            "/bin/sh",
            name,
        ]));
    }
}

/// Returns the uid of a user.
pub fn uid(user: &str) -> u32 {
    let output = Command::new("id").args(["-u", user]).output().unwrap();
    crate::text(&output.stdout).trim().parse().unwrap()
}

/// Returns an identifier of this test run, so that each run installs the helper once.
fn run_id() -> String {
    let run = std::env::var("NEXTEST_RUN_ID").unwrap_or_else(|_| std::process::id().to_string());
    format!("{}\n{run}", env!("CARGO_MANIFEST_DIR"))
}

fn lock_file() -> File {
    assert!(
        rustix::process::geteuid().is_root(),
        "this test installs a setuid program and creates users; run the tests as root: sudo -E make test"
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
    for user in [CALLER, OTHER, UNLISTED, AGENT, AGENT_OF_OTHER] {
        create_user(user);
    }
    let root = crate::repository();
    let cargo = std::env::var("CARGO").unwrap_or_else(|_| "cargo".to_owned());
    let target = root.join("target/helper-test");
    run_checked(
        Command::new(cargo)
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
            .env("COLIBRI_HELPER_PREFIX", PREFIX),
    );
    let _ = fs::remove_dir_all(PREFIX);
    let _ = fs::remove_dir_all(TREE);
    for directory in [PREFIX, PROGRAMS, TREE] {
        fs::create_dir_all(directory).unwrap();
        fs::set_permissions(directory, fs::Permissions::from_mode(0o755)).unwrap();
    }
    chown(TREE, Some(uid(CALLER)), None).unwrap();
    let built = target.join("debug/colibri-jail-helper");
    install_file(&built, "colibri-jail-helper", 0o4755);
    install_file(&built, "not-setuid", 0o755);
    write_policy(POLICY);
    fs::write(format!("{PREFIX}/installed"), run_id()).unwrap();
}

/// Installs a program of the workspace for users without access to the build directory.
pub fn install_program(name: &str) -> PathBuf {
    install_file(&crate::program(name), name, 0o755);
    program(name)
}

/// Installs a program of the workspace setuid root, in a temporary directory that only [`CALLER`] and root can enter.
pub fn install_setuid_program(name: &str) -> (tempfile::TempDir, PathBuf) {
    let directory = tempfile::tempdir_in(PROGRAMS).unwrap();
    let path = directory.path().join(name);
    copy_as_root(&crate::program(name), &path, 0o4755);
    chown(directory.path(), Some(uid(CALLER)), None).unwrap();
    (directory, path)
}

/// A setuid copy of setpriv(1), with which only [`CALLER`] and root can run commands as other users. Dropping it deletes the
/// program.
pub struct SetuidRoot(PathBuf);

impl SetuidRoot {
    /// Installs the program beside the helper, which must be installed.
    pub fn install() -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let installed = Self(program(&format!(
            "setuid-root-{}-{number}",
            std::process::id()
        )));
        fs::copy("/usr/bin/setpriv", &installed.0).unwrap();
        let owner = format!("root:{CALLER}");
        run_checked(Command::new("chown").arg(owner).arg(&installed.0));
        fs::set_permissions(&installed.0, fs::Permissions::from_mode(0o4750)).unwrap();
        installed
    }

    /// Returns the path of the program.
    pub fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for SetuidRoot {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

/// Installs a program atomically, because the installed one may be running.
fn install_file(from: &Path, name: &str, mode: u32) {
    let new = program(&format!("new-{name}-{}", std::process::id()));
    copy_as_root(from, &new, mode);
    fs::rename(&new, program(name)).unwrap();
}

/// Copies a program; the copy belongs to root.
fn copy_as_root(from: &Path, to: &Path, mode: u32) {
    fs::copy(from, to).unwrap();
    chown(to, Some(0), Some(0)).unwrap();
    fs::set_permissions(to, fs::Permissions::from_mode(mode)).unwrap();
}

fn write_policy(text: &str) {
    let path = format!("{PREFIX}/helper.toml");
    let _ = fs::remove_file(&path);
    let _ = fs::remove_dir_all(&path);
    write_file(Path::new(&path), text, 0o644);
    fs::set_permissions(PREFIX, fs::Permissions::from_mode(0o755)).unwrap();
}

/// Creates a user and a directory that it owns, with copies of Colibri's programs.
pub fn copy_programs_for(user: &str) -> tempfile::TempDir {
    create_user(user);
    let dir = test_directory();
    for name in [
        "colibri",
        "colibri-daemon",
        "colibri-shim",
        "colibri-sandbox",
    ] {
        fs::copy(crate::program(name), dir.path().join(name)).unwrap();
    }
    let owner = Some(uid(user));
    chown(dir.path(), owner, owner).unwrap();
    dir
}

/// Arguments of `create` after the jail's name, up to the program.
const CREATE: [&str; 6] = ["--path", "/", "--ip4", "disable", "--", "sh"];

/// Returns the arguments of a request that creates a jail and runs a shell script in it.
pub fn create_request<'a>(jail: &'a str, script: &'a str) -> Vec<&'a str> {
    [&["create", "--jail", jail][..], &CREATE, &["-c", script]].concat()
}

/// Returns a text that identifies the processes of a test by their environment or arguments.
pub fn unique_mark(name: &str) -> String {
    format!("mark-{name}-{}", std::process::id())
}

/// A running call of the helper. Dropping it kills the helper.
pub struct HelperCall(pub Child);

impl HelperCall {
    /// Starts the helper with this variable `MARK`.
    pub fn start(user: &str, arguments: &[&str], mark: &str) -> Self {
        let helper = program("colibri-jail-helper");
        let command_line = [&[helper.to_str().unwrap()], arguments].concat();
        let child = as_user(user, &command_line)
            .env("MARK", mark)
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        Self(child)
    }

    /// Waits for the end; returns the exit code and the messages.
    pub fn wait_with_message(mut self) -> (Option<i32>, String) {
        let mut message = String::new();
        let stderr = self.0.stderr.take();
        stderr.unwrap().read_to_string(&mut message).unwrap();
        (self.0.wait().unwrap().code(), message)
    }

    /// Returns the pid of the helper, which becomes the monitor of an agent.
    pub fn pid(&self) -> i32 {
        self.0.id() as i32
    }
}

impl Drop for HelperCall {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Returns the pids of the processes with `mark` whose command name is `name`.
pub fn processes_named(mark: &str, name: &str) -> Vec<i32> {
    let has_name = |pid: &i32| {
        fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|comm| comm.trim() == name)
    };
    processes_with(mark).into_iter().filter(has_name).collect()
}

/// Returns the directory of a caller's records.
pub fn records_of(user: &str) -> PathBuf {
    Path::new(PREFIX)
        .join("records")
        .join(uid(user).to_string())
}

/// Waits for a process with `mark` and this command name, and returns its pid.
pub fn wait_for_process(mark: &str, name: &str) -> i32 {
    eventually(&format!("{name} runs"), || {
        processes_named(mark, name).first().copied()
    })
}

/// Starts an agent in a jail, and waits until its program runs.
pub fn start_sleeping_agent(user: &str, jail: &str, mark: &str) -> HelperCall {
    let agent = HelperCall::start(user, &create_request(jail, "sleep 1000; :"), mark);
    wait_for_process(mark, "sleep");
    agent
}
