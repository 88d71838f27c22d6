//! Real agents by their presets, with a scripted model, and the home and the project of a user.

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use serde_json::Value;

use crate::pi::{bin_of, tools_of};
use crate::scripted_model::ScriptedModel;
use crate::{Daemon, eventually, text};

/// How a test runs an agent with the scripted model.
pub struct AgentCase {
    pub name: &'static str,
    /// Variables of the user, with the URL of the model in place of `MODEL_URL`.
    pub variables: &'static [(&'static str, &'static str)],
    /// Files in the user's home.
    pub files: &'static [(&'static str, &'static str)],
    /// Options of `colibri run` and `spawn`; `PORT` is the port of the model.
    pub options: &'static [&'static str],
    /// Arguments of the agent.
    pub args: &'static [&'static str],
}

/// pi with the scripted model.
pub const PI: AgentCase = AgentCase {
    name: "pi",
    variables: &[],
    files: &[
        (
            ".pi/agent/models.json",
            r#"{"providers":{"scripted":{"baseUrl":"MODEL_URL/v1","api":"openai-completions","models":[{"id":"m","cost":{"input":1,"output":5,"cacheRead":0,"cacheWrite":0}}]}}}"#,
        ),
        (
            ".pi/agent/settings.json",
            r#"{"defaultProvider":"scripted","defaultModel":"m"}"#,
        ),
        (
            ".pi/agent/auth.json",
            r#"{"scripted":{"type":"api_key","key":"sk-0123456789abcdef"}}"#,
        ),
    ],
    options: &["--allow", "127.0.0.1:PORT"],
    args: &[],
};

/// Claude Code with the scripted model.
pub const CLAUDE: AgentCase = AgentCase {
    name: "claude",
    variables: &[
        ("ANTHROPIC_API_KEY", "sk-ant-0123456789abcdef0123"),
        ("ANTHROPIC_BASE_URL", "MODEL_URL"),
    ],
    files: &[],
    options: &["--env", "CLAUDE_CODE_MAX_RETRIES=0"],
    args: &[],
};

/// Gemini CLI with the scripted model.
pub const GEMINI: AgentCase = AgentCase {
    name: "gemini",
    variables: &[
        ("GEMINI_API_KEY", "AIza0123456789abcdef0123"),
        ("GOOGLE_GEMINI_BASE_URL", "MODEL_URL"),
    ],
    files: &[],
    options: &[],
    args: &[],
};

/// A daemon, a model, and the user's home and project.
pub struct AgentSetup {
    pub case: AgentCase,
    pub daemon: Daemon,
    pub model: ScriptedModel,
    pub project: PathBuf,
}

impl AgentSetup {
    pub fn new(case: AgentCase) -> Self {
        let daemon = Daemon::start();
        let model = ScriptedModel::start();
        let project = daemon.path("project");
        fs::create_dir(&project).unwrap();
        let setup = Self {
            case,
            daemon,
            model,
            project,
        };
        for (path, content) in setup.case.files {
            let path = setup.daemon.path(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, setup.fill(content)).unwrap();
        }
        setup
    }

    pub fn fill(&self, text: &str) -> String {
        text.replace("MODEL_URL", &self.model.url())
            .replace("PORT", &self.model.port.to_string())
    }

    /// Returns a command of the user, in the project.
    pub fn command(&self, words: &[&str]) -> Command {
        let tools = bin_of(&tools_of(self.case.name));
        let mut command = self.daemon.command("colibri");
        command
            .current_dir(&self.project)
            .arg("--no-autostart")
            .args(words)
            .env("PATH", format!("{}:/usr/bin:/bin", tools.display()));
        for (name, value) in self.case.variables {
            command.env(name, self.fill(value));
        }
        command
    }

    /// Returns `colibri run` or `spawn` with the preset.
    pub fn agent(&self, words: &[&str]) -> Command {
        let (verb, words) = words.split_first().unwrap();
        let mut command = self.command(&[verb, "--jail-path", "/", "--agent", self.case.name]);
        command.args(self.case.options.iter().map(|option| self.fill(option)));
        command.args(words);
        if !self.case.args.is_empty() {
            command.arg("--").args(self.case.args);
        }
        command
    }

    pub fn cli(&self, words: &[&str]) -> String {
        let output = self.command(words).output().unwrap();
        let (out, err) = (text(&output.stdout), text(&output.stderr));
        assert!(output.status.success(), "{words:?}: {out}{err}");
        out
    }

    pub fn spawn(&self, words: &[&str]) -> String {
        let words = [&["spawn"], words].concat();
        let output = self.agent(&words).output().unwrap();
        let err = text(&output.stderr);
        assert!(output.status.success(), "{err}");
        text(&output.stdout).trim().to_owned()
    }

    pub fn wait_for_state(&self, id: &str, state: &str) -> Value {
        eventually(&format!("agent is {state}"), || {
            let agent = self.daemon.agent(id);
            let state_now = agent["state"].as_str().unwrap().to_owned();
            assert!(
                agent["exit"].is_null() || state == "done" || state == "error",
                "{agent}\n{}",
                text(&self.daemon.stdout(id))
            );
            (state_now == state).then_some(agent)
        })
    }

    /// Returns the agent that was started last.
    pub fn last_agent(&self) -> Value {
        let agents = self.daemon.agents().into_iter();
        let last = agents.max_by_key(|agent| agent["started_at"].as_str().unwrap().to_owned());
        last.unwrap()
    }
}
