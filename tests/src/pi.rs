//! pi as installed by scripts/agents.sh, in a sandbox of Colibri, with a scripted model and a workspace.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::{Value, json};

use crate::model::{Answer, Model};
use crate::{Daemon, eventually, program, run_checked};

/// Directory of the programs of pi and node, relative to the tools directory.
const BIN: &str = "node_modules/.bin";
/// Mount target of the tools in a sandbox, independent of the path of the repository.
const TOOLS_INSIDE: &str = "/tmp/pi-tools";
/// Directories that are private to a sandbox and hide those of the host.
const PRIVATE: &[&str] = &["/tmp", "/dev", "/proc"];

/// Returns the directory into which scripts/agents.sh installs an agent.
pub fn tools_of(agent: &str) -> PathBuf {
    let target = program("colibri");
    let target = target.parent().and_then(Path::parent).unwrap();
    let tools = target.join("tools").join(agent);
    let installed = bin_of(&tools).join(agent);
    assert!(
        installed.exists(),
        "{} does not exist; run: scripts/agents.sh {agent}",
        installed.display()
    );
    tools.canonicalize().unwrap()
}

/// Returns the directory of the programs in that of an agent: a package of npm, or an environment of Python.
pub fn bin_of(tools: &Path) -> PathBuf {
    match tools.join("pyvenv.cfg").exists() {
        true => tools.join("bin"),
        false => tools.join(BIN),
    }
}

/// Returns the directory into which scripts/agents.sh installs pi and its node.
fn tools_directory() -> PathBuf {
    tools_of("pi")
}

/// Returns the directory of the programs of pi and node for sandboxes without mounts. It is a copy in `directory` if a
/// sandbox hides the repository.
pub fn bin_directory(directory: &Path) -> PathBuf {
    let tools = tools_directory();
    if !PRIVATE.iter().any(|private| tools.starts_with(private)) {
        return tools.join(BIN);
    }
    let copy = directory.join("pi-tools");
    run_checked(Command::new("cp").arg("-a").args([&tools, &copy]));
    copy.join(BIN)
}

/// A daemon, a model, and a workspace for pi.
pub struct Pi {
    pub daemon: Daemon,
    pub model: Model,
    pub workspace: PathBuf,
}

impl Pi {
    /// Starts a daemon and a model, and writes settings of pi that select this model.
    pub fn new(answers: impl IntoIterator<Item = Answer>) -> Self {
        let daemon = Daemon::start();
        let model = Model::start(answers);
        let workspace = daemon.path("workspace");
        // pi writes to its settings directory, so the directory is in the workspace.
        let settings = workspace.join(".pi");
        fs::create_dir_all(&settings).unwrap();
        fs::write(settings.join("models.json"), model.models_json()).unwrap();
        // Retry transient errors immediately.
        let retry = json!({"retry": {"baseDelayMs": 1}}).to_string();
        fs::write(settings.join("settings.json"), retry).unwrap();
        Self {
            daemon,
            model,
            workspace,
        }
    }

    /// Starts pi in a sandbox, with options of `colibri spawn` and arguments of pi.
    pub fn spawn(&self, options: &[&str], arguments: &[&str]) -> String {
        let workspace = self.workspace.display().to_string();
        let mount = format!("{}:{TOOLS_INSIDE}:ro", tools_directory().display());
        let path = format!("PATH={TOOLS_INSIDE}/{BIN}:/usr/bin:/bin");
        let home = format!("HOME={workspace}");
        let settings = format!("PI_CODING_AGENT_DIR={workspace}/.pi");
        let mut command_line = vec!["--runtime", "pi", "--jail-path", "/", "--workspace"];
        let unprotected = format!("{workspace}/.pi");
        command_line.extend([&workspace, "--mount", &mount, "--unprotect", &unprotected]);
        if !options.contains(&"--allow") {
            command_line.extend(["--network", "host"]);
        }
        for variable in [&path, &home, &settings, "PI_OFFLINE=1"] {
            command_line.extend(["--env", variable]);
        }
        command_line.extend(options);
        command_line.extend(["--", "pi", "--provider", "scripted", "--model", "m"]);
        command_line.push("--no-session");
        command_line.extend(arguments);
        self.daemon.spawn(&command_line)
    }

    /// Starts pi in RPC mode.
    pub fn spawn_rpc(&self) -> String {
        self.spawn(&[], &["--mode", "rpc"])
    }

    /// Returns the path of a file in the workspace.
    pub fn file(&self, name: &str) -> PathBuf {
        self.workspace.join(name)
    }

    /// Waits until the agent has this state and a matching view, and returns the agent. Prints each change.
    pub fn wait_until(&self, id: &str, state: &str, matches: impl Fn(&Value) -> bool) -> Value {
        let mut last = Value::Null;
        eventually(&format!("{id} is {state}"), || {
            let agent = self.daemon.agent(id);
            let is_match = agent["state"] == state && matches(&agent["view"]);
            if agent != last {
                eprintln!("{} {}", agent["state"], agent["view"]);
                last = agent.clone();
            }
            is_match.then_some(agent)
        })
    }
}
