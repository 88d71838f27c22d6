//! Profiles: named spawn requests of the settings file, with an environment file and secrets. An `[[autostart]]` entry
//! has the same type.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use colibri_types::{AgentSpawnConfig, NoProgram, RestartPolicy, RestartWhen, SpawnRequest};
use serde::{Deserialize, Deserializer};

use crate::env_file::{self, AllowedReaders, EnvFileError};

/// A profile.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(from = "ProfileTable")]
pub struct Profile {
    /// The options that a request on the wire has too.
    pub request: SpawnRequest,
    /// A file of environment variables; those of `request.env` take precedence.
    pub env_file: Option<PathBuf>,
    /// Variables whose values are read from the environment of the caller, unless `request.env` has them. They take
    /// precedence over `env_file`.
    pub secrets: BTreeSet<String>,
}

/// The keys of a profile in the settings file that a request does not have, or has in another form. Durations are
/// written like `500ms`, `5s` or `8h`.
#[derive(Default, Deserialize)]
#[serde(default)]
pub(crate) struct ProfileKeys {
    env_file: Option<PathBuf>,
    secrets: BTreeSet<String>,
    restart: Option<RestartWhen>,
    #[serde(deserialize_with = "milliseconds")]
    restart_delay: Option<u64>,
    #[serde(deserialize_with = "milliseconds")]
    restart_max_delay: Option<u64>,
    restart_limit: Option<u32>,
    #[serde(deserialize_with = "milliseconds")]
    restart_window: Option<u64>,
}

/// A table of the settings file. `keys` is declared first, because it consumes `restart`, which a request has in another form.
#[derive(Deserialize)]
struct ProfileTable {
    #[serde(flatten)]
    keys: ProfileKeys,
    #[serde(flatten)]
    request: SpawnRequest,
}

impl From<ProfileTable> for Profile {
    fn from(ProfileTable { keys, request }: ProfileTable) -> Self {
        let restart = RestartPolicy {
            policy: keys.restart,
            delay_ms: keys.restart_delay,
            max_delay_ms: keys.restart_max_delay,
            limit: keys.restart_limit,
            window_ms: keys.restart_window,
        };
        Self {
            request: SpawnRequest {
                restart: Some(restart).filter(|restart| *restart != RestartPolicy::default()),
                ..request
            },
            env_file: keys.env_file,
            secrets: keys.secrets,
        }
    }
}

/// A request without environment file and secrets.
impl From<SpawnRequest> for Profile {
    fn from(request: SpawnRequest) -> Self {
        Self {
            request,
            ..Self::default()
        }
    }
}

/// Why a profile cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ProfileError {
    /// No profile has the name.
    #[error("profile {name:?} does not exist; {}", known_profiles(.known))]
    Unknown {
        /// The requested name.
        name: String,
        /// Names of all profiles.
        known: Vec<String>,
    },
    /// Neither the request nor a profile has a program.
    #[error(transparent)]
    NoProgram(#[from] NoProgram),
    /// A secret has no value.
    #[error(
        "the secret {name} has no value; set it in the environment of the program that starts the agent, or in `env`"
    )]
    Secret {
        /// The variable.
        name: String,
    },
    /// The environment file cannot be used.
    #[error(transparent)]
    EnvFile(#[from] EnvFileError),
}

fn known_profiles(known: &[String]) -> String {
    match known {
        [] => "write one as [profile.NAME]".to_owned(),
        known => format!("use one of: {}", known.join(", ")),
    }
}

impl Profile {
    /// Returns this profile with its gaps filled from `weaker`; see [`SpawnRequest::or`].
    #[must_use]
    pub fn or(self, weaker: Self) -> Self {
        let mut secrets = weaker.secrets;
        secrets.extend(self.secrets);
        Self {
            request: self.request.or(weaker.request),
            env_file: self.env_file.or(weaker.env_file),
            secrets,
        }
    }

    /// Returns this profile with its gaps filled from the profile that `request.profile` names, if any.
    ///
    /// # Errors
    /// No profile has the name; the error lists all names.
    pub fn with_named_profile(
        self,
        profiles: &BTreeMap<String, Self>,
    ) -> Result<Self, ProfileError> {
        match &self.request.profile {
            None => Ok(self),
            Some(name) => match profiles.get(name) {
                Some(profile) => Ok(self.or(profile.clone())),
                None => Err(ProfileError::Unknown {
                    name: name.chars().take(60).collect(),
                    known: profiles.keys().cloned().collect(),
                }),
            },
        }
    }

    /// Returns the configuration to spawn. Its environment has the variables of `env`, each secret with its value from
    /// `lookup`, and the variables in `env_file`, in this order of precedence.
    ///
    /// # Errors
    /// A secret has no value, the file cannot be used, or there is no program.
    pub fn resolve(
        mut self,
        lookup: impl Fn(&str) -> Option<String>,
    ) -> Result<AgentSpawnConfig, ProfileError> {
        let file = match &self.env_file {
            Some(path) => env_file::read(path, AllowedReaders::Owner)?,
            None => BTreeMap::new(),
        };
        self.resolve_variables(lookup, file)?;
        Ok(self.request.resolve()?)
    }

    fn resolve_variables(
        &mut self,
        lookup: impl Fn(&str) -> Option<String>,
        file: BTreeMap<String, String>,
    ) -> Result<(), ProfileError> {
        let env = &mut self.request.env.0;
        for name in &self.secrets {
            if let (false, Some(value)) = (env.contains_key(name), lookup(name)) {
                env.insert(name.clone(), value);
            }
        }
        for (name, value) in file {
            env.entry(name).or_insert(value);
        }
        match self.secrets.iter().find(|name| !env.contains_key(*name)) {
            Some(name) => Err(ProfileError::Secret { name: name.clone() }),
            None => Ok(()),
        }
    }
}

/// Parses a duration (ISO 8601, or like `1h 30m`) into milliseconds.
fn milliseconds<'de, D: Deserializer<'de>>(from: D) -> Result<Option<u64>, D::Error> {
    let text = String::deserialize(from)?;
    let duration = text
        .parse::<jiff::SignedDuration>()
        .ok()
        .and_then(|duration| u64::try_from(duration.as_millis()).ok());
    match duration {
        Some(ms) => Ok(Some(ms)),
        None => Err(serde::de::Error::custom(format!(
            "{text:?} is not a duration; write it like \"5s\", \"500ms\" or \"8h\""
        ))),
    }
}

#[cfg(test)]
mod tests;
