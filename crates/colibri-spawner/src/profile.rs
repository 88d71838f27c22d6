//! Named sets of what a spawn request may hold, and how a request is laid over one. Pure, but for the environment
//! file that [`Profile::resolve`] reads.
//!
//! A request, an entry of `[[autostart]]` and a profile are of one type, in which everything may be absent: to
//! use a profile is to fill the gaps of a request.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::path::PathBuf;

use colibri_jail_core::{JailConfig, MountConfig, Umask};
use colibri_shim::restart::{RestartPolicy, RestartWhen};
use serde::{Deserialize, Deserializer};
use serde_json::Value;

use crate::env_file::{self, Readers};
use crate::{AgentSpawnConfig, SpawnError};

/// What `runtime` may be. Those who read the agents' events know them; a test of the daemon's holds this to it.
pub const RUNTIMES: &[&str] = &["pi", "zot", "generic"];

/// A profile; also a request. Durations are in milliseconds, and written like `500ms`, `5s` or `8h` in a file.
#[derive(Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Profile {
    /// The agent's program.
    pub program: Option<String>,
    /// Its arguments. They belong to `program`: whoever names another program takes none of these.
    pub args: Option<Vec<String>>,
    /// Variables of the agent.
    pub env: BTreeMap<String, String>,
    /// A file of more variables; those of `env` win over it.
    pub env_file: Option<PathBuf>,
    /// Variables whose values come from the environment of whoever asks, unless `env` has them; they win over
    /// `env_file`.
    pub secrets: BTreeSet<String>,
    /// Working directory, inside the jail where there is one.
    pub cwd: Option<String>,
    /// Confinement.
    pub jail: Option<JailConfig>,
    /// How the agent's output is read: one of [`RUNTIMES`].
    pub runtime: Option<String>,
    /// A label for people.
    pub name: Option<String>,
    /// Its standard input is at its end from the start, for what reads all of that before it begins.
    pub no_input: Option<bool>,
    /// Its file mode creation mask.
    pub umask: Option<Umask>,
    /// When it is started again.
    pub restart: Option<RestartWhen>,
    /// The longest wait before the first restart.
    #[serde(rename = "restart_delay", deserialize_with = "milliseconds")]
    pub restart_delay_ms: Option<u64>,
    /// No wait is longer.
    #[serde(rename = "restart_max_delay", deserialize_with = "milliseconds")]
    pub restart_max_delay_ms: Option<u64>,
    /// It is given up after so many restarts within the window.
    pub restart_limit: Option<u32>,
    /// The window of the limit.
    #[serde(rename = "restart_window", deserialize_with = "milliseconds")]
    pub restart_window_ms: Option<u64>,
}

/// Why a profile cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ProfileError {
    /// There is no profile of that name.
    #[error("there is no profile {name:?}; {}", known_profiles(.known))]
    Unknown {
        /// As asked for.
        name: String,
        /// Those that there are.
        known: Vec<String>,
    },
    /// Neither the request nor a profile says what to run.
    #[error("the request names no program; give one, or a profile that has one")]
    NoProgram,
    /// Whoever asks has not given a secret.
    #[error(
        "the secret {name} has no value; set it in the environment of the program that starts the agent, or in `env`"
    )]
    Secret {
        /// The variable.
        name: String,
    },
    /// Two jails cannot be one.
    #[error("the jail of the profile and that of the request cannot be merged: {0}")]
    Jail(String),
}

fn known_profiles(known: &[String]) -> String {
    match known {
        [] => "the settings file has none; write one as [profile.NAME]".to_owned(),
        known => format!("the settings file has: {}", known.join(", ")),
    }
}

/// Shows the names of `env` and never the values: they may be secrets.
impl fmt::Debug for Profile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Profile")
            .field("program", &self.program)
            .field("args", &self.args)
            .field("env", &self.env.keys().collect::<Vec<_>>())
            .field("env_file", &self.env_file)
            .field("secrets", &self.secrets)
            .field("cwd", &self.cwd)
            .field("jail", &self.jail)
            .field("runtime", &self.runtime)
            .field("name", &self.name)
            .field("no_input", &self.no_input)
            .field("umask", &self.umask)
            .field("restart", &self.restart)
            .field("restart_delay_ms", &self.restart_delay_ms)
            .field("restart_max_delay_ms", &self.restart_max_delay_ms)
            .field("restart_limit", &self.restart_limit)
            .field("restart_window_ms", &self.restart_window_ms)
            .finish()
    }
}

impl Profile {
    /// This, with its gaps filled from `weaker`: maps and the jail field by field, lists of the jail one behind
    /// the other, everything else as a whole.
    ///
    /// # Errors
    /// The jails cannot be merged.
    pub fn or(self, weaker: Self) -> Result<Self, ProfileError> {
        let mut env = weaker.env;
        env.extend(self.env);
        let mut secrets = weaker.secrets;
        secrets.extend(self.secrets);
        // Where a jail starts is the same question.
        let workdir = self.jail.as_ref().and_then(|jail| jail.workdir.as_ref());
        let weaker_cwd = weaker.cwd.filter(|_| workdir.is_none());
        let weaker_args = weaker.args.filter(|_| self.program.is_none());
        Ok(Self {
            args: self.args.or(weaker_args),
            program: self.program.or(weaker.program),
            env,
            env_file: self.env_file.or(weaker.env_file),
            secrets,
            cwd: self.cwd.or(weaker_cwd),
            jail: match (self.jail, weaker.jail) {
                (Some(own), Some(weaker)) => Some(jail_or(&own, weaker)?),
                (own, weaker) => own.or(weaker),
            },
            runtime: self.runtime.or(weaker.runtime),
            name: self.name.or(weaker.name),
            no_input: self.no_input.or(weaker.no_input),
            umask: self.umask.or(weaker.umask),
            restart: self.restart.or(weaker.restart),
            restart_delay_ms: self.restart_delay_ms.or(weaker.restart_delay_ms),
            restart_max_delay_ms: self.restart_max_delay_ms.or(weaker.restart_max_delay_ms),
            restart_limit: self.restart_limit.or(weaker.restart_limit),
            restart_window_ms: self.restart_window_ms.or(weaker.restart_window_ms),
        })
    }

    /// This request over the profile of that name.
    ///
    /// # Errors
    /// There is no such profile; the error lists those that there are.
    pub fn over(
        self,
        name: Option<&str>,
        profiles: &BTreeMap<String, Self>,
    ) -> Result<Self, ProfileError> {
        match name {
            None => Ok(self),
            Some(name) => match profiles.get(name) {
                Some(profile) => self.or(profile.clone()),
                None => Err(ProfileError::Unknown {
                    name: name.chars().take(60).collect(),
                    known: profiles.keys().cloned().collect(),
                }),
            },
        }
    }

    /// What to spawn, with every variable: those of `env`, then each secret by `lookup`, which gives a variable of
    /// whoever asks, then those of `env_file`, which is read.
    ///
    /// # Errors
    /// A secret has no value, the file cannot be used, or no program is named.
    pub fn resolve(
        mut self,
        lookup: impl Fn(&str) -> Option<String>,
    ) -> Result<AgentSpawnConfig, SpawnError> {
        let file = match &self.env_file {
            Some(path) => env_file::read(path, Readers::Owner)?,
            None => BTreeMap::new(),
        };
        self.fill(lookup, file)?;
        Ok(self.into_config()?)
    }

    fn fill(
        &mut self,
        lookup: impl Fn(&str) -> Option<String>,
        file: BTreeMap<String, String>,
    ) -> Result<(), ProfileError> {
        for name in &self.secrets {
            if let (false, Some(value)) = (self.env.contains_key(name), lookup(name)) {
                self.env.insert(name.clone(), value);
            }
        }
        for (name, value) in file {
            self.env.entry(name).or_insert(value);
        }
        match self
            .secrets
            .iter()
            .find(|name| !self.env.contains_key(*name))
        {
            Some(name) => Err(ProfileError::Secret { name: name.clone() }),
            None => Ok(()),
        }
    }

    /// What to spawn, without what `env_file` holds and without secrets that nobody has filled in.
    ///
    /// # Errors
    /// No program is named.
    pub fn into_config(self) -> Result<AgentSpawnConfig, ProfileError> {
        let default = RestartPolicy::default();
        Ok(AgentSpawnConfig {
            program: self.program.ok_or(ProfileError::NoProgram)?,
            args: self.args.unwrap_or_default(),
            env: self.env,
            cwd: self.cwd,
            jail: self.jail.filter(|jail| *jail != JailConfig::default()),
            runtime: self.runtime,
            name: self.name,
            no_input: self.no_input.unwrap_or_default(),
            umask: self.umask,
            restart: self.restart.map(|when| RestartPolicy {
                when,
                delay_ms: self.restart_delay_ms.unwrap_or(default.delay_ms),
                max_delay_ms: self.restart_max_delay_ms.unwrap_or(default.max_delay_ms),
                limit: self.restart_limit.unwrap_or(default.limit),
                window_ms: self.restart_window_ms.unwrap_or(default.window_ms),
            }),
            autostart: None,
        })
    }
}

/// `own` over `weaker`, whatever fields a jail has. Which jail it is, is one question, and what is mounted at one
/// place is another: an answer to it replaces the other's. Nothing that confines is dropped beside that: where it
/// does not go with the other jail, the spawn is refused.
fn jail_or(own: &JailConfig, mut weaker: JailConfig) -> Result<JailConfig, ProfileError> {
    if own.name.is_some() {
        weaker.path = None;
    }
    if own.path.is_some() && own.name.is_none() {
        weaker.name = None;
    }
    let at = |mount: &MountConfig| mount.target.clone().unwrap_or_else(|| mount.source.clone());
    weaker
        .mounts
        .retain(|mount| !own.mounts.iter().any(|over| at(over) == at(mount)));
    let failed = |error: serde_json::Error| ProfileError::Jail(error.to_string());
    let mut merged = serde_json::to_value(&weaker).map_err(failed)?;
    lay_over(&mut merged, serde_json::to_value(own).map_err(failed)?);
    serde_json::from_value(merged).map_err(failed)
}

/// Objects by key, lists one behind the other, anything else replaced. What says `null` says nothing.
fn lay_over(weaker: &mut Value, over: Value) {
    match (weaker, over) {
        (Value::Object(weaker), Value::Object(over)) => {
            for (key, value) in over {
                lay_over(weaker.entry(key).or_insert(Value::Null), value);
            }
        }
        (Value::Array(weaker), Value::Array(over)) => weaker.extend(over),
        (_, Value::Null) => {}
        (weaker, over) => *weaker = over,
    }
}

/// A duration as jiff reads it (ISO 8601, or like `1h 30m`), in milliseconds.
fn milliseconds<'de, D: Deserializer<'de>>(from: D) -> Result<Option<u64>, D::Error> {
    let text = String::deserialize(from)?;
    let duration = text
        .parse::<jiff::SignedDuration>()
        .ok()
        .and_then(|duration| u64::try_from(duration.as_millis()).ok());
    match duration {
        Some(ms) => Ok(Some(ms)),
        None => Err(serde::de::Error::custom(format!(
            "{text:?} is no duration; write it like \"5s\", \"500ms\" or \"8h\""
        ))),
    }
}

#[cfg(test)]
mod tests;
