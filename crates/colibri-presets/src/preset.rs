//! The form of a preset in a settings file.

use std::collections::BTreeMap;

use colibri_types::AgentRuntime;
use serde::{Deserialize, Serialize};

/// The presets of Colibri.
const BUILTIN: &str = include_str!("builtin.toml");

/// How to run an agent. Lists of arguments may contain `{prompt}`, `{session}` and `{base_url}`; the word `{resume}` stands for the
/// words of `resume_args` if a session is continued, and for nothing otherwise.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[non_exhaustive]
pub struct Preset {
    /// Name of the agent, as `colibri agents` shows it.
    pub about: String,
    /// Another preset, whose values apply where this one has none.
    pub base: Option<String>,
    /// Program: a name that is searched in `PATH`, or a path.
    pub program: String,
    /// Command that installs the agent.
    pub install: String,
    /// Runtime. Default: recognized from the arguments.
    pub runtime: Option<AgentRuntime>,
    /// Arguments for one prompt.
    pub prompt_args: Option<Vec<String>>,
    /// As `prompt_args`, to continue a session. Default: `prompt_args`.
    pub prompt_args_resumed: Option<Vec<String>>,
    /// Arguments to read prompts from standard input.
    pub stdin_args: Option<Vec<String>>,
    /// As `stdin_args`, but the agent asks before it uses its tools.
    pub ask_args: Option<Vec<String>>,
    /// Environment variables with `ask_args`, besides `env`.
    pub ask_env: BTreeMap<String, String>,
    /// Arguments for the agent's own terminal interface.
    pub terminal_args: Option<Vec<String>>,
    /// As `terminal_args`, to continue a session. Default: `terminal_args`.
    pub terminal_args_resumed: Option<Vec<String>>,
    /// Words that continue a session.
    pub resume_args: Vec<String>,
    /// Words that continue the last session, for an agent that has not reported its id.
    pub resume_last_args: Vec<String>,
    /// Environment variables.
    pub env: BTreeMap<String, String>,
    /// Files and directories in the home, like `~/.agent/settings.json`, of which the agent gets private copies.
    pub home_files: Vec<String>,
    /// Files of `home_files` of which one proves that the user has logged in.
    pub login_files: Vec<String>,
    /// How to log in.
    pub login_hint: String,
    /// Hosts that an agent with a login file connects to, each `HOST:PORT`.
    pub login_hosts: Vec<String>,
    /// Keys of model providers.
    #[serde(rename = "key")]
    pub keys: Vec<Key>,
    /// Files with a fixed content in the agent's home.
    #[serde(rename = "file")]
    pub files: Vec<FixedFile>,
    /// Other hosts that the agent connects to, each `HOST:PORT`.
    pub hosts: Vec<String>,
}

/// A key of a model provider. It is used if its variable is set.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[non_exhaustive]
pub struct Key {
    /// Name of the variable.
    pub name: String,
    /// Name of the variable in the agent's environment. Default: `name`.
    #[serde(rename = "variable")]
    pub alias: Option<String>,
    /// Host to which the proxy adds the key.
    pub host: Option<String>,
    /// Variable with another URL of the model, whose host replaces `host`.
    pub base_url: Option<String>,
    /// Value of `{base_url}` if the variable is not set.
    pub default_url: Option<String>,
    /// The agent gets the login files besides the key, because it reads other settings from them.
    pub with_login_files: bool,
    /// The agent gets the key itself, because it uses it in other ways than in the head of a request.
    pub secret: bool,
    /// Hosts that an agent with this key connects to, each `HOST:PORT`.
    pub hosts: Vec<String>,
    /// Arguments before the others.
    pub args: Vec<String>,
    /// Other variables to pass if they are set.
    pub pass_variables: Vec<String>,
}

/// A file with a fixed content.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[non_exhaustive]
pub struct FixedFile {
    /// Path in the home.
    pub target: String,
    /// Content.
    pub content: String,
    /// Only for an agent with a key, not with a login file.
    pub with_key: bool,
}

#[derive(Deserialize)]
struct PresetFile {
    agent: BTreeMap<String, Preset>,
}

/// Returns the presets of Colibri by name.
#[must_use]
pub fn builtin() -> BTreeMap<String, Preset> {
    // A test parses the file.
    toml::from_str::<PresetFile>(BUILTIN).map_or_else(|_| BTreeMap::new(), |file| file.agent)
}

/// Returns the presets of Colibri, with those of a user added. A user's preset with the name of one of Colibri extends it.
///
/// # Errors
/// The base of a preset does not exist.
pub fn with_builtin(
    own: &BTreeMap<String, Preset>,
) -> Result<BTreeMap<String, Preset>, UnknownPreset> {
    let builtin = builtin();
    let mut presets = builtin.clone();
    for (name, preset) in own {
        let base = match &preset.base {
            Some(base) => Some(find(&builtin, base)?),
            None => builtin.get(name),
        };
        let merged = match base {
            Some(base) => preset.clone().or(base.clone()),
            None => preset.clone(),
        };
        presets.insert(name.clone(), merged);
    }
    Ok(presets)
}

/// No preset has the name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("no preset {name:?}; use one of: {}, or add [agent.NAME] to colibri.toml (a `base` names a preset of Colibri)", known.join(", "))]
pub struct UnknownPreset {
    name: String,
    known: Vec<String>,
}

/// Returns the preset of this name.
///
/// # Errors
/// There is none; the error lists all names.
pub fn find<'a>(
    presets: &'a BTreeMap<String, Preset>,
    name: &str,
) -> Result<&'a Preset, UnknownPreset> {
    presets.get(name).ok_or_else(|| UnknownPreset {
        name: name.chars().take(60).collect(),
        known: presets.keys().cloned().collect(),
    })
}

impl Preset {
    /// Returns this preset with its gaps filled from `weaker`.
    fn or(self, weaker: Self) -> Self {
        fn text(own: String, weaker: String) -> String {
            if own.is_empty() { weaker } else { own }
        }
        fn list<T>(own: Vec<T>, weaker: Vec<T>) -> Vec<T> {
            if own.is_empty() { weaker } else { own }
        }
        fn map(
            own: BTreeMap<String, String>,
            mut weaker: BTreeMap<String, String>,
        ) -> BTreeMap<String, String> {
            weaker.extend(own);
            weaker
        }
        Self {
            about: text(self.about, weaker.about),
            base: self.base,
            program: text(self.program, weaker.program),
            install: text(self.install, weaker.install),
            runtime: self.runtime.or(weaker.runtime),
            prompt_args: self.prompt_args.or(weaker.prompt_args),
            prompt_args_resumed: self.prompt_args_resumed.or(weaker.prompt_args_resumed),
            stdin_args: self.stdin_args.or(weaker.stdin_args),
            ask_args: self.ask_args.or(weaker.ask_args),
            ask_env: map(self.ask_env, weaker.ask_env),
            terminal_args: self.terminal_args.or(weaker.terminal_args),
            terminal_args_resumed: self.terminal_args_resumed.or(weaker.terminal_args_resumed),
            resume_args: list(self.resume_args, weaker.resume_args),
            resume_last_args: list(self.resume_last_args, weaker.resume_last_args),
            env: map(self.env, weaker.env),
            home_files: list(self.home_files, weaker.home_files),
            login_files: list(self.login_files, weaker.login_files),
            login_hint: text(self.login_hint, weaker.login_hint),
            login_hosts: list(self.login_hosts, weaker.login_hosts),
            keys: list(self.keys, weaker.keys),
            files: list(self.files, weaker.files),
            hosts: list(self.hosts, weaker.hosts),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn builtin_presets_are_valid() {
        let file: Result<PresetFile, _> = toml::from_str(BUILTIN);
        let presets = file.unwrap().agent;
        let names: Vec<&str> = presets.keys().map(String::as_str).collect();
        assert_eq!(
            names,
            [
                "aider", "claude", "cline", "codex", "copilot", "gemini", "opencode", "pi", "qwen",
                "zot"
            ]
        );
        for (name, preset) in &presets {
            assert!(
                !preset.program.is_empty() && !preset.install.is_empty(),
                "{name}"
            );
            assert!(
                !preset.about.is_empty() && !preset.login_hint.is_empty(),
                "{name}"
            );
            for key in &preset.keys {
                let has_host =
                    key.host.is_some() || !key.hosts.is_empty() || key.base_url.is_some();
                assert!(has_host, "{name}: {}", key.name);
            }
            let files = preset.home_files.iter().chain(&preset.login_files);
            assert!(
                files.into_iter().all(|file| file.starts_with("~/")),
                "{name}"
            );
        }
    }

    #[test]
    fn preset_of_a_user_extends_its_base() {
        let own: PresetFile = toml::from_str(
            "[agent.claude]\nenv.A = \"1\"\n[agent.mine]\nbase = \"pi\"\nprompt_args = [\"x\"]\n[agent.new]\nprogram = \"p\"\n",
        )
        .unwrap();
        let presets = with_builtin(&own.agent).unwrap();
        assert_eq!(presets["claude"].program, "claude");
        assert_eq!(presets["claude"].env["A"], "1");
        assert!(presets["claude"].env.len() > 1);
        assert_eq!(presets["mine"].program, "pi");
        assert_eq!(
            presets["mine"].prompt_args.as_deref(),
            Some(&["x".to_owned()][..])
        );
        assert_eq!(presets["new"].program, "p");
        let wrong: PresetFile = toml::from_str("[agent.a]\nbase = \"none\"\n").unwrap();
        let error = with_builtin(&wrong.agent).unwrap_err().to_string();
        assert!(
            error.contains("no preset \"none\"; use one of: aider, claude"),
            "{error}"
        );
    }
}
