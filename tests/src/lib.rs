//! Shared code of the end-to-end tests: starts a real daemon in a temporary directory, calls it, and ends all of its
//! processes afterwards.

#![forbid(unsafe_code)]
#![allow(
    clippy::print_stderr,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::disallowed_methods,
    missing_docs
)]

pub mod follower;
pub mod helper;
pub mod lines;
pub mod metrics;
pub mod model;
pub mod pi;
pub mod real_agent;
pub mod reports;
pub mod scripted_model;
pub mod small_disk;
pub mod tls;
pub mod tmux;

use std::ffi::OsStr;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use tempfile::TempDir;

/// Timeout for operations that are immediate on an idle machine.
pub const SOON: Duration = Duration::from_secs(60);

/// Options of `spawn` and `run` without a jail, and with a sandbox, for tests that expect the same of both.
pub const NO_JAIL_AND_SANDBOX: [&[&str]; 2] = [&[], &["--jail-path", "/"]];

/// Returns the root of the repository.
pub fn repository() -> &'static Path {
    let tests = Path::new(env!("CARGO_MANIFEST_DIR"));
    tests.parent().unwrap_or(tests)
}

/// Returns the text of a file of the repository.
pub fn read(path: &str) -> String {
    fs::read_to_string(repository().join(path)).expect(path)
}

/// Returns the parts of a Markdown text that are in backquotes.
pub fn backquoted(text: &str) -> impl Iterator<Item = &str> {
    text.split('`').skip(1).step_by(2)
}

/// Returns the shell commands of a page that are marked as tested.
pub fn tested_commands(page: &str) -> String {
    let blocks = page.split("<!-- tested -->\n```sh\n").skip(1);
    let commands = blocks.map(|block| block.split("```").next().unwrap());
    commands.collect()
}

/// Creates a temporary directory outside /tmp, which is private in sandboxes.
pub fn test_directory() -> TempDir {
    tempfile::Builder::new()
        .prefix("colibri-test-")
        .tempdir_in("/var/tmp")
        .unwrap()
}

/// Returns all Rust files below a directory, sorted.
#[must_use]
pub fn rust_files(directory: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            files.extend(rust_files(&path));
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            files.push(path);
        }
    }
    files.sort();
    files
}

/// Writes a file with this mode.
pub fn write_file(path: &Path, text: &str, mode: u32) {
    fs::write(path, text).unwrap();
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
}

/// Creates a FIFO.
pub fn create_fifo(path: &Path) {
    run_checked(Command::new("mkfifo").arg(path));
}

/// Runs a command and panics if it fails.
pub fn run_checked(command: &mut Command) {
    let output = command.output().unwrap();
    let message = text(&output.stderr);
    assert!(output.status.success(), "{command:?}: {message}");
}

/// Returns the total length of the logs in the directory of a journal.
pub fn journal_bytes(directory: &Path) -> u64 {
    let files = fs::read_dir(directory).unwrap().flatten();
    files
        .filter(|file| file.path().extension().is_some_and(|kind| kind == "log"))
        .map(|file| file.metadata().unwrap().len())
        .sum()
}

/// Returns the path of a program of the workspace: next to this one, or in the parent of its directory `deps`.
pub fn program(name: &str) -> PathBuf {
    let executable = std::env::current_exe().unwrap();
    let directory = executable.parent().unwrap();
    let directory = match directory.ends_with("deps") {
        true => directory.parent().unwrap(),
        false => directory,
    };
    let path = directory.join(name);
    assert!(
        path.exists(),
        "{} is not built; run: cargo build --workspace --bins",
        path.display()
    );
    path
}

/// Returns the path of a program of the previous release, built by scripts/previous.sh.
pub fn previous_program(name: &str) -> PathBuf {
    let executable = program("colibri");
    let target = executable.parent().and_then(Path::parent).unwrap();
    let path = target.join("previous").join(name);
    assert!(
        path.exists(),
        "{} is not built; run: scripts/previous.sh",
        path.display()
    );
    path
}

/// A fork bomb in Perl: each of its processes forks whenever a process slot is free. A shell ends when it cannot fork.
pub const FORK_BOMB: &str = "while (1) { fork; select(undef, undef, undef, 0.005) }";

/// Arguments of `colibri run` for an agent that always restarts.
pub const RESTARTING_SLEEP: [&str; 7] = [
    "--restart",
    "always",
    "--restart-delay",
    "1ms",
    "--",
    "sleep",
    "1000",
];

/// Polls until the condition holds, and panics after a timeout.
pub fn wait_until(description: &str, mut condition: impl FnMut() -> bool) {
    eventually(description, || condition().then_some(()));
}

/// Polls until `poll` returns a value, and panics after a timeout.
pub fn eventually<T>(description: &str, mut poll: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + SOON;
    loop {
        if let Some(value) = poll() {
            return value;
        }
        assert!(
            Instant::now() < deadline,
            "did not happen within {SOON:?}: {description}"
        );
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Returns the pids of all processes with `mark` in their arguments or environment.
pub fn processes_with(mark: &str) -> Vec<i32> {
    let mut pids = Vec::new();
    for entry in fs::read_dir("/proc").unwrap().flatten() {
        let Some(pid) = entry
            .file_name()
            .to_str()
            .and_then(|name| name.parse().ok())
        else {
            continue;
        };
        let contains_mark = |file: &str| {
            fs::read(entry.path().join(file)).is_ok_and(|bytes| {
                bytes
                    .windows(mark.len())
                    .any(|window| window == mark.as_bytes())
            })
        };
        if pid != std::process::id() as i32
            && (contains_mark("cmdline") || contains_mark("environ"))
        {
            pids.push(pid);
        }
    }
    pids
}

/// Sends SIGKILL to a process, which may have ended.
pub fn kill_9(pid: i32) {
    let _ = kill_process(Pid::from_raw(pid).unwrap(), Signal::KILL);
}

/// Sends a signal to a running process.
pub fn signal(pid: i32, signal: Signal) {
    kill_process(Pid::from_raw(pid).unwrap(), signal).unwrap();
}

/// Returns whether the test runs as root; if not, prints that the test is skipped. scripts/test.sh runs it as root.
pub fn is_root_or_skipped(reason: &str) -> bool {
    let root = rustix::process::geteuid().is_root();
    if !root {
        eprintln!("SKIPPED: {reason}; run this test as root");
    }
    root
}

/// Returns the pid in an agent's `shim.json`.
fn shim_pid(agent_dir: &Path) -> Option<i32> {
    let record = fs::read(agent_dir.join("shim.json")).ok()?;
    let record: Value = serde_json::from_slice(&record).ok()?;
    Some(record["shim_pid"].as_i64().unwrap() as i32)
}

/// Kills the shims of all running agents in a state directory; their agents die with them.
pub fn kill_shims(state: &Path) {
    let agents = fs::read_dir(state.join("agents"));
    for agent in agents.into_iter().flatten().flatten() {
        let ended = agent.path().join("exit.json").exists();
        if let (Some(shim), false) = (shim_pid(&agent.path()), ended) {
            kill_9(shim);
        }
    }
}

/// A daemon in a temporary directory.
pub struct Daemon {
    dir: TempDir,
    child: Option<Child>,
    /// Value of `COLIBRI_DAEMON_USER` for clients, if the daemon runs as another user.
    user: Option<u32>,
}

impl Daemon {
    /// Creates the directory of a daemon without starting it.
    pub fn prepare() -> Self {
        let dir = test_directory();
        // Most tests are about other things than the sandbox.
        let settings = dir.path().join(".config/colibri");
        fs::create_dir_all(&settings).unwrap();
        fs::write(
            settings.join("colibri.toml"),
            "[defaults]\nno_jail = true\n",
        )
        .unwrap();
        Self {
            dir,
            child: None,
            user: None,
        }
    }

    /// Sets `COLIBRI_DAEMON_USER` for clients, so that they accept a daemon of this user.
    pub fn set_daemon_user(&mut self, user: u32) {
        self.user = Some(user);
    }

    /// Starts a daemon and waits until it answers.
    pub fn start() -> Self {
        let mut daemon = Self::prepare();
        daemon.launch();
        daemon
    }

    /// Starts the daemon, or restarts it after its end.
    pub fn launch(&mut self) {
        let daemon = self.command("colibri-daemon");
        self.launch_command(daemon);
    }

    /// Starts the daemon with a command prefix that executes it.
    pub fn launch_with_prefix(&mut self, arguments: &[String]) {
        let daemon = self.command("colibri-daemon");
        let mut command = self.external_command(&arguments[0]);
        command.args(&arguments[1..]).arg(daemon.get_program());
        self.launch_command(command);
    }

    /// Starts the daemon with a settings file of this content.
    pub fn launch_with_settings(&mut self, settings: &str) {
        let config = self.path("colibri.toml");
        fs::write(&config, settings).unwrap();
        let mut command = self.command("colibri-daemon");
        command.arg("--config").arg(config);
        self.launch_command(command);
    }

    /// Starts the daemon with this command and waits until it answers.
    pub fn launch_command(&mut self, mut command: Command) {
        let log = fs::OpenOptions::new()
            .append(true)
            .create(true)
            .open(self.path("log"))
            .unwrap();
        self.child = Some(command.stderr(log).spawn().unwrap());
        // The daemon listens before it adopts agents, and answers after that. Between fork and exec, a shim that a
        // killed daemon was starting holds the socket open and answers nothing.
        eventually("the daemon answers", || {
            let mut wire = Wire::new(UnixStream::connect(self.socket()).ok()?);
            let request = json!({"jsonrpc": "2.0", "id": 0, "method": "version"});
            let mut answer = String::new();
            let sent = wire
                .reader
                .get_mut()
                .write_all(format!("{request}\n").as_bytes());
            let read = sent.and_then(|()| wire.reader.read_line(&mut answer));
            read.ok().filter(|bytes| *bytes > 0)
        });
    }

    /// Returns the directory of all files of the daemon, which is HOME of its clients and agents.
    pub fn directory(&self) -> &Path {
        self.dir.path()
    }

    /// Returns the path of a file in the daemon's directory.
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub fn socket(&self) -> PathBuf {
        self.path("run/colibri.sock")
    }

    pub fn state(&self) -> PathBuf {
        self.path("state")
    }

    /// Returns the directory of an agent.
    pub fn agent_dir(&self, id: &str) -> PathBuf {
        self.state().join("agents").join(id)
    }

    /// Returns the pid of an agent's shim.
    pub fn shim_pid(&self, id: &str) -> i32 {
        shim_pid(&self.agent_dir(id)).unwrap()
    }

    /// Returns the `list-agents` entries of all agents.
    pub fn agents(&self) -> Vec<Value> {
        let answer = self.connect().call("list-agents", json!({}));
        answer["result"]["agents"].as_array().unwrap().clone()
    }

    /// Returns the number of agents in the state directory, without the directory of the pooled shim.
    pub fn agent_count(&self) -> usize {
        eventually("at most one directory belongs to no agent", || {
            let agents = fs::read_dir(self.state().join("agents")).unwrap();
            let (agents, others): (Vec<_>, Vec<_>) = agents
                .map(|directory| directory.unwrap().path())
                .partition(|directory| directory.join("spec.json").exists());
            (others.len() <= 1).then_some(agents.len())
        })
    }

    /// Returns the pooled shim, if it runs.
    pub fn pooled_shim(&self) -> Option<PooledShim> {
        let agents = fs::read_dir(self.state().join("agents")).ok()?;
        let directory = agents
            .map(|directory| directory.unwrap())
            .find(|directory| !directory.path().join("spec.json").exists())?;
        let id = directory.file_name().into_string().unwrap();
        let pid = *processes_with(&id).first()?;
        Some(PooledShim { id, pid })
    }

    /// Returns the stderr of all daemons in this directory.
    pub fn log(&self) -> String {
        fs::read_to_string(self.path("log")).unwrap_or_default()
    }

    /// Returns the number of bytes that the daemon has read from files and sockets (proc_pid_io(5)).
    pub fn bytes_read(&self) -> u64 {
        let io = fs::read_to_string(format!("/proc/{}/io", self.pid())).unwrap();
        let read = io.lines().find_map(|line| line.strip_prefix("rchar: "));
        read.unwrap().parse().unwrap()
    }

    /// Returns the number of the daemon's open descriptors.
    pub fn descriptors(&self) -> usize {
        let descriptors = fs::read_dir(format!("/proc/{}/fd", self.pid()));
        descriptors.unwrap().count()
    }

    pub fn pid(&self) -> i32 {
        self.child.as_ref().unwrap().id() as i32
    }

    /// Runs the commands of a documentation page, with Colibri's programs and these directories in PATH, and checks that
    /// they print the expected texts. The last command must end the daemon.
    pub fn run_documented(&self, script: &str, directories: &[&Path], expected: &[&str]) {
        let executable = program("colibri");
        let mut path: Vec<&Path> = vec![executable.parent().unwrap()];
        path.extend(directories);
        path.extend([Path::new("/usr/bin"), Path::new("/bin")]);
        let output = self
            .external_command("sh")
            .args(["-euxc", script])
            .env("PATH", std::env::join_paths(path).unwrap())
            .output()
            .unwrap();
        let (stdout, message) = (text(&output.stdout), text(&output.stderr));
        assert!(output.status.success(), "{stdout}{message}");
        for text in expected {
            assert!(
                stdout.contains(text),
                "{text:?} is missing in:\n{stdout}{message}"
            );
        }
        wait_until("the daemon has ended", || !self.socket().exists());
    }

    /// Returns a command for a program of the workspace, with the environment of a client and empty stdin.
    pub fn command(&self, name: &str) -> Command {
        self.external_command(program(name))
    }

    /// Returns a command for any program, with the environment of a client and empty stdin.
    pub fn external_command(&self, program: impl AsRef<OsStr>) -> Command {
        let mut command = Command::new(program);
        command
            .env_clear()
            .env("PATH", "/usr/local/bin:/usr/bin:/bin")
            .env("HOME", self.dir.path())
            .env("COLIBRI_SOCKET", self.socket())
            .env("COLIBRI_STATE_DIR", self.state())
            .envs(
                self.user
                    .map(|user| ("COLIBRI_DAEMON_USER", user.to_string())),
            )
            .stdin(Stdio::null());
        command
    }

    /// Runs `colibri` with these arguments; does not start a daemon.
    pub fn cli(&self, args: &[&str]) -> Output {
        self.command("colibri")
            .arg("--no-autostart")
            .args(args)
            .output()
            .unwrap()
    }

    /// Runs `colibri` with these arguments, requires success, and returns its stdout.
    pub fn cli_ok(&self, args: &[&str]) -> String {
        let output = self.cli(args);
        assert!(
            output.status.success(),
            "{args:?}: {}",
            text(&output.stderr)
        );
        text(&output.stdout)
    }

    /// Starts an agent and returns its id.
    pub fn spawn(&self, args: &[&str]) -> String {
        let arguments: Vec<&str> = ["spawn"].iter().chain(args).copied().collect();
        self.cli_ok(&arguments).trim().to_owned()
    }

    /// Waits for the end of an agent by `colibri wait`, and returns the exit code of that command.
    pub fn wait(&self, id: &str) -> Option<i32> {
        self.cli(&["wait", id]).status.code()
    }

    /// Opens a connection.
    pub fn connect(&self) -> Wire {
        Wire::new(UnixStream::connect(self.socket()).unwrap())
    }

    /// Returns the `get-agent` result of an agent.
    pub fn agent(&self, id: &str) -> Value {
        self.connect().call("get-agent", json!({"id": id}))["result"].clone()
    }

    /// Returns all of an agent's stdout.
    pub fn stdout(&self, id: &str) -> Vec<u8> {
        let output = self.cli(&["logs", "--stream", "stdout", id]);
        assert!(output.status.success(), "{}", text(&output.stderr));
        output.stdout
    }

    /// Sends SIGKILL to the daemon and waits for its end.
    pub fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            child.kill().unwrap();
            child.wait().unwrap();
        }
    }

    /// Ends the daemon and all shims with SIGKILL, as a loss of power does, and changes the records of the agents to those of
    /// an earlier boot.
    pub fn lose_power(&mut self) {
        self.kill();
        for agent in fs::read_dir(self.state().join("agents")).unwrap() {
            let agent = agent.unwrap().path();
            let (spec, has_ended) = (agent.join("spec.json"), agent.join("exit.json").exists());
            let Some(shim) = shim_pid(&agent).filter(|_| !has_ended) else {
                continue;
            };
            kill_9(shim);
            wait_until("the shim has ended", || {
                !Path::new(&format!("/proc/{shim}")).exists()
            });
            let mut record: Value = serde_json::from_slice(&fs::read(&spec).unwrap()).unwrap();
            assert!(record["boot"].is_string(), "{record}");
            record["boot"] = json!("earlier");
            fs::write(&spec, record.to_string()).unwrap();
        }
    }

    /// Sends SIGTERM to the daemon, waits for its end, and returns whether it exited successfully.
    pub fn terminate(&mut self) -> bool {
        let mut child = self.child.take().unwrap();
        signal(child.id() as i32, Signal::TERM);
        child.wait().unwrap().success()
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
        kill_shims(&self.state());
        // No later daemon ends the orphans of the killed shims, so end all processes with this HOME. The path alone is in the
        // arguments of the sandboxes of other tests too, which mask its socket.
        for pid in processes_with(&format!("HOME={}", self.dir.path().display())) {
            kill_9(pid);
        }
        if std::thread::panicking() {
            eprintln!("---- daemon's log ----\n{}", self.log());
        }
    }
}

/// The shim that the daemon has started for the next spawn.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PooledShim {
    /// Id of the next agent.
    pub id: String,
    pub pid: i32,
}

/// A connection to the daemon that sends and receives JSON lines.
pub struct Wire {
    reader: BufReader<UnixStream>,
    next_id: u64,
}

impl Wire {
    pub fn new(stream: UnixStream) -> Self {
        stream.set_read_timeout(Some(SOON)).unwrap();
        Self {
            reader: BufReader::new(stream),
            next_id: 1,
        }
    }

    /// Sends raw bytes.
    pub fn send(&mut self, bytes: &[u8]) {
        self.reader.get_mut().write_all(bytes).unwrap();
    }

    /// Returns the next line; `None` at the end of the connection.
    pub fn next_line(&mut self) -> Option<Value> {
        let mut line = String::new();
        self.reader.read_line(&mut line).unwrap();
        (!line.is_empty()).then(|| serde_json::from_str(&line).unwrap())
    }

    /// Sends a request and returns its answer, skipping notifications.
    pub fn call(&mut self, method: &str, params: Value) -> Value {
        let id = self.next_id;
        self.next_id += 1;
        let request = json!({"jsonrpc": "2.0", "id": id, "method": method, "params": params});
        self.send(format!("{request}\n").as_bytes());
        loop {
            let line = self
                .next_line()
                .expect("the connection ended before the answer");
            if line["id"] == json!(id) {
                return line;
            }
        }
    }
}

/// Returns bytes as text, with U+FFFD in place of invalid UTF-8.
pub fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}
