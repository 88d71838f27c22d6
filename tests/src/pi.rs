//! pi as installed by scripts/pi.sh, confined by Colibri, with a scripted model and a workspace.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::{Value, json};

use crate::model::{Answer, Model};
use crate::{Daemon, eventually, program};

/// Directory of the programs of pi and node, relative to the tools directory.
const BIN: &str = "node_modules/.bin";
/// Mount target of the tools in a sandbox. It does not depend on where the repository is.
const TOOLS_INSIDE: &str = "/tmp/pi-tools";
/// Directories that are private to a sandbox and hide those of the host.
const PRIVATE: &[&str] = &["/tmp", "/dev", "/proc"];

/// Returns the directory into which scripts/pi.sh installs pi and its node.
fn tools() -> PathBuf {
    let target = program("colibri");
    let target = target.parent().and_then(Path::parent).unwrap();
    let tools = target.join("tools/pi");
    let pi = tools.join(BIN).join("pi");
    assert!(
        pi.exists(),
        "{} does not exist; run: scripts/pi.sh",
        pi.display()
    );
    tools.canonicalize().unwrap()
}

/// Returns the directory of the programs of pi and node for agents without mounts: a copy in `directory` if a sandbox
/// hides the repository.
pub fn bin(directory: &Path) -> PathBuf {
    let tools = tools();
    if !PRIVATE.iter().any(|private| tools.starts_with(private)) {
        return tools.join(BIN);
    }
    let copy = directory.join("pi-tools");
    let copied = Command::new("cp")
        .arg("-a")
        .args([&tools, &copy])
        .status()
        .unwrap();
    assert!(copied.success(), "cannot copy {}", tools.display());
    copy.join(BIN)
}

/// A daemon, a model, and a workspace for pi.
pub struct Pi {
    pub daemon: Daemon,
    pub model: Model,
    pub workspace: PathBuf,
}

impl Pi {
    pub fn new(answers: impl IntoIterator<Item = Answer>) -> Self {
        let daemon = Daemon::start();
        let model = Model::start(answers);
        let workspace = daemon.path("workspace");
        // pi writes settings and locks into its directory.
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

    /// Starts pi confined, with options of `colibri spawn` and arguments of pi.
    pub fn spawn(&self, options: &[&str], arguments: &[&str]) -> String {
        let workspace = self.workspace.display().to_string();
        let mount = format!("{}:{TOOLS_INSIDE}:ro", tools().display());
        let path = format!("PATH={TOOLS_INSIDE}/{BIN}:/usr/bin:/bin");
        let home = format!("HOME={workspace}");
        let settings = format!("PI_CODING_AGENT_DIR={workspace}/.pi");
        let mut words = vec!["--runtime", "pi", "--jail-path", "/", "--workspace"];
        words.extend([&workspace, "--mount", &mount]);
        for variable in [&path, &home, &settings, "PI_OFFLINE=1"] {
            words.extend(["--env", variable]);
        }
        words.extend(options);
        words.extend(["--", "pi", "--provider", "scripted", "--model", "m"]);
        words.push("--no-session");
        words.extend(arguments);
        self.daemon.spawn(&words)
    }

    /// Starts pi in RPC mode.
    pub fn rpc(&self) -> String {
        self.spawn(&[], &["--mode", "rpc"])
    }

    pub fn file(&self, name: &str) -> PathBuf {
        self.workspace.join(name)
    }

    /// Waits until the agent has this state and its view matches.
    pub fn until(&self, id: &str, state: &str, fits: impl Fn(&Value) -> bool) -> Value {
        let mut last = Value::Null;
        eventually(&format!("{id} is {state}"), || {
            let agent = self.daemon.agent(id);
            let found = agent["state"] == state && fits(&agent["view"]);
            if agent != last {
                eprintln!("{} {}", agent["state"], agent["view"]);
                last = agent.clone();
            }
            found.then_some(agent)
        })
    }
}
