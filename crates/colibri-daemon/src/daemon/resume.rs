//! Agents that ran when the machine was stopped, and are resumed after its start.
//!
//! An agent comes back as a new one, as after `colibri resume`: with the session, the workspace and the home of the old
//! one. The values of its environment are stored nowhere, so they are taken again by name: from the agent's profile, the
//! environment of the daemon, or systemd's credentials. An agent that cannot be resumed waits as `blocked`.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use colibri_config::{ConfigFile, Profile, ProfileError};
use colibri_presets::{EndedAgent, Host, Mode, PlanError, UnknownPreset, find, with_builtin};
use colibri_proto::{Call, SpawnRequest};
use colibri_spawner::SpawnError;
use colibri_sys::{boot, regular_file};
use colibri_types::AgentSpawnConfig;

use super::DaemonState;
use super::audit::Peer;
use crate::agent::RegisteredAgent;
use crate::{pool, supervision};

/// Prompt for an agent that had one prompt.
const CONTINUE: &str = "The machine was restarted while you worked. Continue your task.";
/// Maximum size of a credential, in bytes: that of systemd (systemd.exec(5)).
const MAX_CREDENTIAL_BYTES: u64 = 1 << 20;

/// Why an agent is not resumed.
#[derive(Debug, thiserror::Error)]
enum ResumeError {
    /// Variables without a value.
    #[error(
        "the variables {} are set neither in its profile, nor in the daemon's environment, nor in systemd's credentials; give them: colibri {command} {}",
        .names.join(", "), .names.iter().map(|name| format!("--secret {name}")).collect::<Vec<_>>().join(" ")
    )]
    Variables {
        /// The variables.
        names: Vec<String>,
        /// `resume` or `restart`, and the agent's id.
        command: String,
    },
    #[error(transparent)]
    Profile(#[from] ProfileError),
    #[error(transparent)]
    Preset(#[from] UnknownPreset),
    #[error(transparent)]
    Plan(#[from] PlanError),
    #[error(transparent)]
    Spawn(#[from] SpawnError),
}

impl DaemonState {
    /// Resumes all agents that ran when the machine was stopped and whose restart policy says so, one after the other. One
    /// that cannot be resumed waits as `blocked`.
    pub(crate) async fn resume_interrupted(self: Arc<Self>) {
        let Some(boot) = boot::identity() else {
            return;
        };
        for agent in self.registry.interrupted(&boot).await {
            if self.check_running().is_err() {
                return;
            }
            let id = &agent.spec.id;
            match self.resume_one(&agent).await {
                Ok(new) => tracing::info!(%id, new, "resumed agent after the start of the machine"),
                Err(error) => {
                    let message = format!("not resumed after the start of the machine: {error}");
                    tracing::warn!(%id, "{message}");
                    self.registry.block_until_resumed(&agent, message);
                }
            }
        }
    }

    async fn resume_one(&self, agent: &Arc<RegisteredAgent>) -> Result<String, ResumeError> {
        let directory = agent.directory.clone();
        let stored = pool::run(move || supervision::read_view(&directory)).await;
        let session = match stored {
            Some(view) => view.session,
            None => {
                supervision::parse_ended(agent.clone()).await;
                agent.latest.borrow().view.session.clone()
            }
        };
        let (file, spec) = (self.config.current(), agent.spec.clone());
        let resumed = pool::run(move || {
            let sources = Sources::of(&spec.config, &file)?;
            let id = spec.id.as_str();
            resumed(&spec.config, id, session.as_deref(), &file, &sources)
        });
        let config = resumed.await?;
        let spawned = self.registry.spawn(&config).await;
        let outcome = match &spawned {
            Ok(_) => "ok".to_owned(),
            Err(error) => error.to_string(),
        };
        let new = spawned.as_ref().ok().map(|agent| agent.spec.id.to_string());
        let call = Call::SpawnAgent(config.into());
        self.audit(Peer::daemon(), &call, new.as_deref(), &outcome)
            .await;
        Ok(spawned?.spec.id.to_string())
    }
}

/// Returns the configuration of the agent that continues an ended one.
fn resumed(
    config: &AgentSpawnConfig,
    id: &str,
    session: Option<&str>,
    file: &ConfigFile,
    sources: &Sources,
) -> Result<AgentSpawnConfig, ResumeError> {
    let mut resumed = config.clone();
    let mut env = BTreeMap::new();
    if let Some(name) = &config.preset {
        let presets = with_builtin(&file.agents)?;
        let preset = find(&presets, name)?;
        let mode = match config {
            config if config.terminal.is_some() => Mode::Terminal(None),
            config if config.no_input => Mode::Once(CONTINUE),
            config if config.adapter.ask => Mode::Asking,
            _ => Mode::Driven,
        };
        let host = Host::new(|name| match name {
            "PATH" => Some(search_path(config, sources)),
            _ => sources.lookup(name),
        });
        let ended = EndedAgent {
            session,
            jail: config.jail.as_ref(),
            variables: config.env.keys().map(String::as_str).collect(),
            added_args: &config.added_args,
        };
        let plan = preset.resume(name, &mode, &ended, &host)?;
        let request = plan.request;
        resumed.program = request.program.unwrap_or(resumed.program);
        resumed.args = request.args.unwrap_or_default();
        resumed.jail = request.jail;
        resumed.adapter = request.adapter.unwrap_or_default();
        env = request.env.0;
    }
    let mut names = Vec::new();
    for name in config.env.keys() {
        if !env.contains_key(name) {
            match sources.lookup(name) {
                Some(value) => drop(env.insert(name.clone(), value)),
                None => names.push(name.clone()),
            }
        }
    }
    if !names.is_empty() {
        let verb = match config.preset {
            Some(_) => "resume",
            None => "restart",
        };
        let command = format!("{verb} {id}");
        return Err(ResumeError::Variables { names, command });
    }
    resumed.env.0 = env;
    resumed.resumes = Some(id.to_owned());
    Ok(resumed)
}

/// Returns the `PATH` of the daemon, with the directories from which the agent was run: the service's `PATH` may lack those of
/// the user.
fn search_path(config: &AgentSpawnConfig, sources: &Sources) -> String {
    let own = sources.lookup("PATH").unwrap_or_default();
    let mut directories = vec![PathBuf::from(own)];
    directories.extend(Path::new(&config.program).parent().map(Path::to_owned));
    let mounts = config.jail.iter().flat_map(|jail| &jail.mounts);
    for mount in mounts.filter(|mount| mount.read_only) {
        let source = Path::new(&mount.source);
        // The last one: packages of npm.
        directories.extend([source.to_owned(), source.join("bin"), source.join(".bin")]);
        directories.extend(source.parent().map(Path::to_owned));
    }
    let directories: Vec<_> = directories
        .iter()
        .map(|path| path.to_string_lossy())
        .collect();
    directories.join(":")
}

/// Where the values of variables come from.
struct Sources {
    profile: BTreeMap<String, String>,
    /// Directory of systemd's credentials (systemd.exec(5), `LoadCredential=`).
    credentials: Option<PathBuf>,
}

impl Sources {
    /// Reads the profile of an agent.
    fn of(config: &AgentSpawnConfig, file: &ConfigFile) -> Result<Self, ResumeError> {
        let credentials = std::env::var_os("CREDENTIALS_DIRECTORY").map(PathBuf::from);
        let mut sources = Self {
            profile: BTreeMap::new(),
            credentials,
        };
        let known = config.profile.as_ref();
        if let Some(name) = known.filter(|name| file.profiles.contains_key(*name)) {
            let request = SpawnRequest {
                profile: Some(name.clone()),
                program: Some(config.program.clone()),
                ..SpawnRequest::default()
            };
            let profile = Profile::from(request).with_named_profile(&file.profiles)?;
            let resolved = profile.resolve(|name| sources.lookup(name))?;
            sources.profile = resolved.env.0;
        }
        Ok(sources)
    }

    fn lookup(&self, name: &str) -> Option<String> {
        let credential = || read_credential(self.credentials.as_deref()?, name);
        let set = self.profile.get(name).cloned();
        set.or_else(|| std::env::var(name).ok()).or_else(credential)
    }
}

/// Reads a credential; `None` for a name that is not one of a variable, which could be a path.
fn read_credential(directory: &Path, name: &str) -> Option<String> {
    let is_word = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
    if name.is_empty() || !name.bytes().all(is_word) {
        return None;
    }
    let bytes = regular_file::read(&directory.join(name), MAX_CREDENTIAL_BYTES).ok()?;
    let text = String::from_utf8(bytes).ok()?;
    Some(text.strip_suffix('\n').unwrap_or(&text).to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn credential_is_read_by_the_name_of_a_variable_only() {
        let dir = tempfile::tempdir().unwrap();
        let credentials = dir.path().join("credentials");
        std::fs::create_dir(&credentials).unwrap();
        std::fs::write(credentials.join("API_KEY"), "s3cret\n").unwrap();
        std::fs::write(dir.path().join("OTHER"), "x").unwrap();
        let read = |name| read_credential(&credentials, name);
        assert_eq!(read("API_KEY").as_deref(), Some("s3cret"));
        for name in ["", "MISSING", "../OTHER", ".", "API_KEY/"] {
            assert_eq!(read(name), None, "{name}");
        }
    }

    #[test]
    fn variables_without_a_source_are_named_with_the_way_out() {
        let config: AgentSpawnConfig = serde_json::from_str(
            r#"{"program":"p","env":{"COLIBRI_TEST_A":"<redacted>","COLIBRI_TEST_B":"<redacted>","C":"<redacted>"}}"#,
        )
        .unwrap();
        let sources = Sources {
            profile: BTreeMap::from([("C".to_owned(), "c".to_owned())]),
            credentials: None,
        };
        let file = ConfigFile::default();
        let error = resumed(&config, "k3x9", None, &file, &sources).unwrap_err();
        assert_eq!(
            error.to_string(),
            "the variables COLIBRI_TEST_A, COLIBRI_TEST_B are set neither in its profile, nor in the daemon's environment, nor in systemd's credentials; give them: colibri restart k3x9 --secret COLIBRI_TEST_A --secret COLIBRI_TEST_B"
        );
    }
}
