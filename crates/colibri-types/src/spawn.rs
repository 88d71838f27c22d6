//! Spawn requests: what a client, a profile or an `[[autostart]]` entry asks for, and what follows from it.
//!
//! A spawn option is a field of [`SpawnRequest`] and of [`AgentSpawnConfig`], and a line in each of
//! [`SpawnRequest::or`] and [`SpawnRequest::resolve`].

use std::collections::BTreeMap;
use std::fmt;

use colibri_jail_core::{
    CommandLine, CommandLineError, Confinement, JailConfig, JailError, JailName, JailPath, Limits,
    Umask,
};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::{AgentId, AgentRuntime, RestartPolicy, TerminalSize};

/// Prefixes of variables that the dynamic linker or C library obeys (ld.so(8), rtld(1)). It would apply them to the
/// program that confines, with mdo even as root.
const LINKER_VARIABLES: &[&str] = &["LD_", "GLIBC_TUNABLES", "GCONV_PATH"];

/// Environment variable that contains the agent's id. Processes that a lost agent left behind are found by it.
pub const AGENT_VARIABLE: &str = "COLIBRI_AGENT_ID";

/// Environment variables, by name. The values may be secrets.
// `Debug` shows their names and never their values.
#[derive(Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(transparent)]
pub struct Env(pub BTreeMap<String, String>);

impl fmt::Debug for Env {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.0.keys()).finish()
    }
}

impl std::ops::Deref for Env {
    type Target = BTreeMap<String, String>;

    fn deref(&self) -> &Self::Target {
        &self.0
    }
}

/// The parameters of `spawn-agent`; also what a profile and an `[[autostart]]` entry contain. Everything may be absent:
/// a profile fills the gaps of a request.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct SpawnRequest {
    /// Name of the daemon's profile that fills the gaps of this request.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub profile: Option<String>,
    /// The agent's program: a path, or a name that is searched in its `PATH`. Absent: the profile's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub program: Option<String>,
    /// Arguments after the program's name. Absent: the profile's, if the program is the profile's too.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub args: Option<Vec<String>>,
    /// Environment variables, added to the base environment and to the profile's.
    #[serde(default)]
    pub env: Env,
    /// Working directory, inside the jail if there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cwd: Option<String>,
    /// Confinement. An unknown field in it is an error.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub jail: Option<JailConfig>,
    /// The dialect of the agent. Absent: the profile's, or `auto`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub runtime: Option<AgentRuntime>,
    /// Name of the preset that the client used. Recorded; the daemon uses it to resume the agent after a restart of the machine.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub preset: Option<String>,
    /// Arguments that the user added to those of the preset: the last ones of `args`. Recorded, as `preset` is.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub added_args: Vec<String>,
    /// The ended agent that this one continues. It no longer waits to be resumed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resumes: Option<String>,
    /// Options of colibri-adapter, for an agent that it drives.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub adapter: Option<AdapterOptions>,
    /// The agent's name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// The agent's standard input is empty: it reads end of file at once.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub no_input: Option<bool>,
    /// The agent gets a terminal, at first of this size. Absent: pipes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub terminal: Option<TerminalSize>,
    /// File mode creation mask, octal like `027`. Absent: `022`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub umask: Option<Umask>,
    /// When the agent is started again after its end. Absent: never.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub restart: Option<RestartPolicy>,
}

/// Options of colibri-adapter, which drives agents whose protocol has sessions.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(default, deny_unknown_fields)]
pub struct AdapterOptions {
    /// Id of the agent's own session to continue. Absent: a new one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub session: Option<String>,
    /// The only prompt, after which the agent ends.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub prompt: Option<String>,
    /// The agent asks before it runs commands.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub ask: bool,
}

impl AdapterOptions {
    fn is_default(&self) -> bool {
        *self == Self::default()
    }

    /// Returns the options as arguments.
    #[must_use]
    pub fn arguments(&self) -> Vec<String> {
        let mut arguments = Vec::new();
        for (option, value) in [("--session", &self.session), ("--prompt", &self.prompt)] {
            arguments.extend(value.as_ref().map(|value| format!("{option}={value}")));
        }
        arguments.extend(self.ask.then(|| "--ask".to_owned()));
        arguments
    }
}

/// Neither a spawn request nor its profile has a program.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the request names no program; give one, or a profile that has one")]
pub struct NoProgram;

impl SpawnRequest {
    /// Returns this request with its gaps filled from `weaker`, for example a profile. The jail and maps are merged field
    /// by field (see [`JailConfig::or`]), everything else is replaced as a whole.
    #[must_use]
    pub fn or(self, weaker: Self) -> Self {
        let mut env = weaker.env;
        env.0.extend(self.env.0);
        // `jail.workdir` and `cwd` are the same choice.
        let has_workdir = self
            .jail
            .as_ref()
            .is_some_and(|jail| jail.workdir.is_some());
        let weaker_cwd = weaker.cwd.filter(|_| !has_workdir);
        let weaker_args = weaker.args.filter(|_| self.program.is_none());
        Self {
            profile: self.profile.or(weaker.profile),
            args: self.args.or(weaker_args),
            program: self.program.or(weaker.program),
            env,
            cwd: self.cwd.or(weaker_cwd),
            jail: match (self.jail, weaker.jail) {
                (Some(own), Some(weaker)) => Some(own.or(weaker)),
                (own, weaker) => own.or(weaker),
            },
            runtime: self.runtime.or(weaker.runtime),
            preset: self.preset.or(weaker.preset),
            added_args: self.added_args,
            resumes: self.resumes,
            adapter: self.adapter.or(weaker.adapter),
            name: self.name.or(weaker.name),
            no_input: self.no_input.or(weaker.no_input),
            terminal: self.terminal.or(weaker.terminal),
            umask: self.umask.or(weaker.umask),
            restart: match (self.restart, weaker.restart) {
                (Some(own), Some(weaker)) => Some(own.or(weaker)),
                (own, weaker) => own.or(weaker),
            },
        }
    }

    /// Returns the agent's configuration: this request with defaults for what is absent.
    ///
    /// # Errors
    /// The request has no program.
    pub fn resolve(self) -> Result<AgentSpawnConfig, NoProgram> {
        Ok(AgentSpawnConfig {
            program: self.program.ok_or(NoProgram)?,
            args: self.args.unwrap_or_default(),
            env: self.env,
            cwd: self.cwd,
            jail: self.jail.filter(|jail| *jail != JailConfig::default()),
            // The output of a terminal contains no events.
            runtime: self
                .runtime
                .or(self.terminal.map(|_| AgentRuntime::Generic)),
            preset: self.preset,
            profile: self.profile,
            added_args: self.added_args,
            resumes: self.resumes,
            adapter: self.adapter.unwrap_or_default(),
            name: self.name,
            no_input: self.no_input.unwrap_or_default(),
            terminal: self.terminal,
            umask: self.umask,
            restart: self
                .restart
                .filter(|restart| restart.policy.is_some())
                .map(RestartPolicy::with_defaults),
            autostart: None,
        })
    }
}

/// The configuration of one agent: a spawn request without gaps. `spec.json` stores it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct AgentSpawnConfig {
    /// The agent's program: a path, or a name that is searched in its `PATH`.
    pub program: String,
    /// Arguments after the program's name.
    #[serde(default)]
    pub args: Vec<String>,
    /// Environment variables, added to the base environment.
    #[serde(default)]
    pub env: Env,
    /// Working directory, inside the jail if there is one. Default `/`.
    #[serde(default)]
    pub cwd: Option<String>,
    /// Confinement. Absent: the agent runs unconfined, as the daemon's user.
    #[serde(default)]
    pub jail: Option<JailConfig>,
    /// The dialect of the agent. A name that this release does not know reads as `auto`.
    #[serde(default, deserialize_with = "known_runtime")]
    pub runtime: Option<AgentRuntime>,
    /// Name of the preset that the client used.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub preset: Option<String>,
    /// Name of the profile that the request named.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub profile: Option<String>,
    /// Arguments that the user added to those of the preset.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub added_args: Vec<String>,
    /// The ended agent that this one continues.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resumes: Option<String>,
    /// Options of colibri-adapter.
    #[serde(default, skip_serializing_if = "AdapterOptions::is_default")]
    pub adapter: AdapterOptions,
    /// The agent's name.
    #[serde(default)]
    pub name: Option<String>,
    /// The agent's standard input is empty: it reads end of file at once.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub no_input: bool,
    /// The first size of the agent's terminal. Absent: it has pipes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub terminal: Option<TerminalSize>,
    /// File mode creation mask. Absent: 022.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub umask: Option<Umask>,
    /// When the agent is started again after its end. Absent: never.
    #[serde(
        default,
        skip_serializing_if = "Option::is_none",
        serialize_with = "crate::restart::serialize_record"
    )]
    pub restart: Option<RestartPolicy>,
    /// The entry of the settings file's `[[autostart]]` that started the agent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub autostart: Option<String>,
}

/// The request that has led to a configuration, with every value given.
impl From<AgentSpawnConfig> for SpawnRequest {
    fn from(config: AgentSpawnConfig) -> Self {
        Self {
            profile: config.profile,
            program: Some(config.program),
            args: Some(config.args),
            env: config.env,
            cwd: config.cwd,
            jail: config.jail,
            runtime: config.runtime,
            preset: config.preset,
            added_args: config.added_args,
            resumes: config.resumes,
            adapter: Some(config.adapter).filter(|options| !options.is_default()),
            name: config.name,
            no_input: config.no_input.then_some(true),
            terminal: config.terminal,
            umask: config.umask,
            restart: config.restart,
        }
    }
}

/// The options of an agent that its shim applies. Part of the launch that a daemon sends to a shim.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RunOptions {
    /// The standard input of each run is empty.
    #[serde(default)]
    pub no_input: bool,
    /// Size of the terminal of the first run. Absent: each run has pipes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub terminal: Option<TerminalSize>,
    /// File mode creation mask of each run (umask(2)). Absent: 022.
    #[serde(default, skip_serializing_if = "Option::is_none", with = "umask_bits")]
    pub umask: Option<Umask>,
    /// When the agent is started again after its end. Absent: never.
    #[serde(
        default,
        skip_serializing_if = "Option::is_none",
        serialize_with = "crate::restart::serialize_record"
    )]
    pub restart: Option<RestartPolicy>,
    /// Wall-clock limit, from the first start, in milliseconds.
    #[serde(default)]
    pub wall_time_ms: Option<u64>,
}

/// A mask as a number, which shims of earlier releases read.
mod umask_bits {
    use super::{Deserialize, Deserializer, Serialize, Serializer, Umask};

    pub(super) fn serialize<S: Serializer>(
        umask: &Option<Umask>,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        umask.map(Umask::bits).serialize(serializer)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Option<Umask>, D::Error> {
        let bits = Option::<u32>::deserialize(deserializer)?;
        bits.map(|bits| format!("{bits:03o}").parse())
            .transpose()
            .map_err(serde::de::Error::custom)
    }
}

/// Reads a runtime; one that a later release wrote reads as `auto`.
fn known_runtime<'de, D: Deserializer<'de>>(from: D) -> Result<Option<AgentRuntime>, D::Error> {
    let name = Option::<String>::deserialize(from)?;
    Ok(name.map(|name| name.parse().unwrap_or_default()))
}

/// `spec.json`: the configuration of an agent as it is stored, and how it was applied.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AgentSpec {
    /// The agent's id.
    pub id: AgentId,
    /// The configuration; every value of `env` is replaced.
    #[serde(flatten)]
    pub config: AgentSpawnConfig,
    /// Name of the engine.
    pub engine: String,
    /// Name of the privilege backend; `none` if nothing was elevated.
    pub privilege: String,
    /// Limits that are not enforced, directories that the agent shares with another jail on a kernel without the fixes, and
    /// an agent that is root in its jail, each with the reason.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub warnings: Vec<String>,
    /// When the spawn was accepted, in nanoseconds since 1970.
    pub created_at_ns: u64,
    /// The boot in which the agent was started; absent in records of earlier releases.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub boot: Option<String>,
}

/// A file or directory of the host that the shim opens once, before the first run, and passes to each run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HeldFile {
    /// Number of the descriptor in the run.
    pub descriptor: i32,
    /// The path, without symbolic links.
    pub path: String,
    /// Device of the file that was checked (stat(2)).
    pub device: u64,
    /// Its inode.
    pub inode: u64,
}

/// Limits of each process of an agent (setrlimit(2)).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessLimits {
    /// Maximum number of open files.
    pub open_files: Option<u64>,
    /// Soft limit of open files without `open_files`: that of the daemon before it raised its own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub soft_files: Option<u64>,
    /// Hard limit of open files without `open_files`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hard_files: Option<u64>,
    /// Maximum size of the data segment, in bytes: heap and anonymous mappings.
    pub data: Option<u64>,
}

/// The validated parts of an [`AgentSpawnConfig`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ValidatedSpawn {
    /// The agent's own command, not yet confined.
    pub command: CommandLine,
    /// Its confinement.
    pub confinement: Confinement,
    /// Its working directory, inside the jail if there is one.
    pub workdir: Option<JailPath>,
}

/// Why an [`AgentSpawnConfig`] is invalid on every host.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SpawnConfigError {
    /// The command line is invalid.
    #[error("the command line cannot be executed: {0}")]
    Command(#[from] CommandLineError),
    /// The confinement is invalid.
    #[error(transparent)]
    Jail(#[from] JailError),
    /// The working directory is invalid.
    #[error("working directory: {0}")]
    Workdir(#[source] JailError),
    /// The name of a variable is invalid.
    #[error("environment variable name {0:?} is empty or contains '=' or NUL; give another name")]
    EnvName(String),
    /// The value of a variable is invalid.
    #[error("the value of environment variable {0} contains a NUL byte; remove it")]
    EnvValue(String),
    /// The dynamic linker would apply a variable outside the jail.
    #[error(
        "environment variable {0} is refused for a jailed agent: the dynamic linker would apply it to the program that confines; set it inside the jail, e.g. with env(1)"
    )]
    EnvActsOutside(String),
    /// A terminal has no empty input.
    #[error(
        "`no_input` is not possible with `terminal`: the input of a terminal has no end; remove one of them"
    )]
    TerminalWithoutInput,
}

impl AgentSpawnConfig {
    /// Validates everything that does not depend on the host. `jail_name` is the name of the jail if one is created.
    ///
    /// # Errors
    /// The first invalid value.
    pub fn validate(&self, jail_name: &str) -> Result<ValidatedSpawn, SpawnConfigError> {
        let jail_name: JailName = jail_name.parse()?;
        let command = CommandLine::new(self.program.clone(), self.args.clone())?;
        let confinement = match &self.jail {
            Some(jail) => jail.confinement(&jail_name)?,
            None => Confinement::None,
        };
        let workdir = match (&self.cwd, &self.jail) {
            (Some(cwd), _) => Some(cwd.parse().map_err(SpawnConfigError::Workdir)?),
            (None, Some(jail)) => jail.workdir()?,
            (None, None) => None,
        };
        validate_env(&self.env, confinement != Confinement::None)?;
        if self.terminal.is_some() && self.no_input {
            return Err(SpawnConfigError::TerminalWithoutInput);
        }
        Ok(ValidatedSpawn {
            command,
            confinement,
            workdir,
        })
    }

    /// Returns the options that the shim applies.
    #[must_use]
    pub fn run_options(&self) -> RunOptions {
        RunOptions {
            no_input: self.no_input,
            terminal: self.terminal,
            umask: self.umask,
            restart: self.restart.clone(),
            wall_time_ms: self.limits().wall_time.map(|limit| limit.0),
        }
    }

    /// Returns the limits; without a jail they apply too.
    #[must_use]
    pub fn limits(&self) -> Limits {
        self.jail
            .as_ref()
            .map(|jail| jail.limits.clone())
            .unwrap_or_default()
    }

    /// Reports whether the agent runs in a jail.
    #[must_use]
    pub fn is_jailed(&self) -> bool {
        self.jail.as_ref().is_some_and(JailConfig::is_jail)
    }

    /// Returns a copy for files and logs: every value of `env` is replaced.
    #[must_use]
    pub fn redacted(&self) -> Self {
        let mut copy = self.clone();
        for value in copy.env.0.values_mut() {
            "<redacted>".clone_into(value);
        }
        copy
    }
}

/// Validates the names and values of environment variables.
fn validate_env(env: &BTreeMap<String, String>, jailed: bool) -> Result<(), SpawnConfigError> {
    for (name, value) in env {
        if name.is_empty() || name.contains(['=', '\0']) {
            return Err(SpawnConfigError::EnvName(name.clone()));
        }
        if value.contains('\0') {
            return Err(SpawnConfigError::EnvValue(name.clone()));
        }
        if jailed
            && LINKER_VARIABLES
                .iter()
                .any(|prefix| name.starts_with(prefix))
        {
            return Err(SpawnConfigError::EnvActsOutside(name.clone()));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn environment_values_are_neither_stored_nor_shown() {
        let config = AgentSpawnConfig {
            program: "p".into(),
            env: Env(BTreeMap::from([("TOKEN".into(), "s3cret".into())])),
            ..AgentSpawnConfig::default()
        };
        let request = SpawnRequest {
            env: config.env.clone(),
            ..SpawnRequest::default()
        };
        let stored = serde_json::to_string(&config.redacted()).unwrap();
        for text in [format!("{config:?}"), format!("{request:?}"), stored] {
            assert!(text.contains("TOKEN") && !text.contains("s3cret"), "{text}");
        }
    }

    #[test]
    fn unknown_field_is_refused_in_a_jail_only() {
        let parse = serde_json::from_str::<SpawnRequest>;
        assert_eq!(parse(r#"{"program":"p","extra":1}"#).unwrap().jail, None);
        assert!(parse(r#"{"program":"p","jail":{"pth":"/"}}"#).is_err());
    }

    #[test]
    fn unknown_runtime_is_auto_only_in_a_record() {
        let text = r#"{"program":"p","runtime":"later"}"#;
        assert!(serde_json::from_str::<SpawnRequest>(text).is_err());
        let record: AgentSpawnConfig = serde_json::from_str(text).unwrap();
        assert_eq!(record.runtime, Some(AgentRuntime::Auto));
    }

    #[test]
    fn run_options_keep_the_form_that_earlier_shims_read() {
        let config: AgentSpawnConfig = serde_json::from_str(
            r#"{"program":"p","umask":"027","restart":{"policy":"always"},"jail":{"limits":{"wall_time":"2s"}}}"#,
        )
        .unwrap();
        let text = r#"{"no_input":false,"umask":23,"restart":{"when":"always","delay_ms":1000,"max_delay_ms":300000,"limit":10,"window_ms":3600000},"wall_time_ms":2000}"#;
        let written = serde_json::to_value(config.run_options()).unwrap();
        assert_eq!(
            written,
            serde_json::from_str::<serde_json::Value>(text).unwrap()
        );
        let read: RunOptions = serde_json::from_str(text).unwrap();
        assert_eq!(read.umask, config.umask);
        assert_eq!(read.restart.unwrap().when(), crate::RestartWhen::Always);
    }

    #[test]
    fn agent_with_a_terminal_is_generic_unless_given() {
        let runtime = |text| {
            let request: SpawnRequest = serde_json::from_str(text).unwrap();
            request.resolve().unwrap().runtime
        };
        assert_eq!(
            runtime(r#"{"program":"p","terminal":{}}"#),
            Some(AgentRuntime::Generic)
        );
        assert_eq!(
            runtime(r#"{"program":"p","terminal":{},"runtime":"pi"}"#),
            Some(AgentRuntime::Pi)
        );
        assert_eq!(runtime(r#"{"program":"p"}"#), None);
    }

    #[test]
    fn request_without_a_program_is_refused() {
        assert_eq!(SpawnRequest::default().resolve(), Err(NoProgram));
    }
}
