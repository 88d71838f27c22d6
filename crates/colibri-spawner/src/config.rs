//! What a caller asks for, what is kept of it on disk, and the agent's id.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use colibri_jail_core::{JailConfig, Limits, Umask};
use colibri_shim::restart::RestartPolicy;
use serde::{Deserialize, Serialize};

use crate::SpawnError;

/// Characters of an id: no look-alikes, and a letter first so that it never reads as a number.
const ALPHABET: &[u8] = b"abcdefghjkmnpqrstuvwxyz23456789";
const ID_LEN: usize = 10;

/// An agent's id: short lower-case letters and digits, safe as a file name and in a jail's name.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct AgentId(String);

impl AgentId {
    /// A new random id. Whoever uses it makes sure that it is not taken.
    #[must_use]
    pub fn random() -> Self {
        let letters = ALPHABET
            .iter()
            .filter(|byte| byte.is_ascii_lowercase())
            .count();
        let id = (0..ID_LEN)
            .map(|position| {
                fastrand::usize(
                    ..if position == 0 {
                        letters
                    } else {
                        ALPHABET.len()
                    },
                )
            })
            .filter_map(|index| ALPHABET.get(index).map(|byte| char::from(*byte)))
            .collect();
        Self(id)
    }

    /// The id as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for AgentId {
    type Err = SpawnError;

    fn from_str(text: &str) -> Result<Self, SpawnError> {
        let valid = (1..=32).contains(&text.len())
            && text
                .bytes()
                .all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit());
        if valid {
            Ok(Self(text.to_owned()))
        } else {
            Err(SpawnError::BadId(text.chars().take(40).collect()))
        }
    }
}

impl TryFrom<String> for AgentId {
    type Error = SpawnError;

    fn try_from(text: String) -> Result<Self, SpawnError> {
        text.parse()
    }
}

impl From<AgentId> for String {
    fn from(id: AgentId) -> Self {
        id.0
    }
}

impl fmt::Display for AgentId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// What is to run, and how confined. Also the shape of a request on the wire.
#[derive(Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct AgentSpawnConfig {
    /// The agent's program: a path, or a name that is searched in its `PATH`.
    pub program: String,
    /// Arguments after the program's name.
    #[serde(default)]
    pub args: Vec<String>,
    /// Environment on top of the base that the host gives.
    #[serde(default)]
    pub env: BTreeMap<String, String>,
    /// Working directory, inside the jail where there is one. Default `/`.
    #[serde(default)]
    pub cwd: Option<String>,
    /// Confinement; without it the agent runs as the daemon's user, unconfined.
    #[serde(default)]
    pub jail: Option<JailConfig>,
    /// Which agent program it is, for reading its events.
    #[serde(default)]
    pub runtime: Option<String>,
    /// A label for people.
    #[serde(default)]
    pub name: Option<String>,
    /// Its standard input is at its end from the start.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub no_input: bool,
    /// Its file mode creation mask; absent: 022.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub umask: Option<Umask>,
    /// Whether it is started again when it has ended; without it, never.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub restart: Option<RestartPolicy>,
    /// The entry of the settings file's `[[autostart]]` that it was started for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub autostart: Option<String>,
}

/// Shows the names of `env` and never the values: they may be secrets.
impl fmt::Debug for AgentSpawnConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AgentSpawnConfig")
            .field("program", &self.program)
            .field("args", &self.args)
            .field("env", &self.env.keys().collect::<Vec<_>>())
            .field("cwd", &self.cwd)
            .field("jail", &self.jail)
            .field("runtime", &self.runtime)
            .field("name", &self.name)
            .field("no_input", &self.no_input)
            .field("umask", &self.umask)
            .field("restart", &self.restart)
            .field("autostart", &self.autostart)
            .finish()
    }
}

/// `spec.json`: the request as it is kept, and how it was carried out.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AgentSpec {
    /// The agent's id.
    pub id: AgentId,
    /// The request; every value of `env` is replaced.
    #[serde(flatten)]
    pub config: AgentSpawnConfig,
    /// Name of the engine that confines it.
    pub engine: String,
    /// Name of the privilege backend; `none` where nothing was elevated.
    pub privilege: String,
    /// The first process cannot be seen to end with the agent's exact status, and why.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exit_note: Option<String>,
    /// Limits that it runs without, and why.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub warnings: Vec<String>,
    /// When the spawn was accepted, in nanoseconds since 1970.
    pub created_at_ns: u64,
}

impl AgentSpawnConfig {
    /// Its limits; none where nothing is said.
    #[must_use]
    pub fn limits(&self) -> Limits {
        self.jail
            .as_ref()
            .map(|jail| jail.limits.clone())
            .unwrap_or_default()
    }

    /// Whether it asks for a jail.
    #[must_use]
    pub fn is_jailed(&self) -> bool {
        self.jail.as_ref().is_some_and(JailConfig::is_jail)
    }

    /// A copy that may be written to disk and logs: the values of `env` are gone.
    #[must_use]
    pub fn redacted(&self) -> Self {
        let mut copy = self.clone();
        for value in copy.env.values_mut() {
            "<redacted>".clone_into(value);
        }
        copy
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_cannot_leave_the_state_directory() {
        for bad in [
            "",
            ".",
            "..",
            "../x",
            "a/b",
            "A",
            "a b",
            "a\0",
            "a-b",
            &"a".repeat(33),
        ] {
            assert!(bad.parse::<AgentId>().is_err(), "{bad:?}");
        }
        for _ in 0..1000 {
            let id = AgentId::random();
            assert_eq!(id.as_str().parse::<AgentId>().unwrap(), id);
            assert!(id.as_str().starts_with(|c: char| c.is_ascii_lowercase()));
        }
    }

    #[test]
    fn environment_values_are_neither_kept_nor_shown() {
        let config = AgentSpawnConfig {
            program: "p".into(),
            env: BTreeMap::from([("TOKEN".into(), "s3cret".into())]),
            ..AgentSpawnConfig::default()
        };
        assert!(!format!("{config:?}").contains("s3cret"));
        let kept = serde_json::to_string(&config.redacted()).unwrap();
        assert!(kept.contains("TOKEN") && !kept.contains("s3cret"));
    }

    #[test]
    fn a_jail_with_an_unknown_field_is_refused_and_a_missing_jail_is_none() {
        let parse = serde_json::from_str::<AgentSpawnConfig>;
        assert_eq!(parse(r#"{"program":"p","extra":1}"#).unwrap().jail, None);
        assert!(parse(r#"{"program":"p","jail":{"pth":"/"}}"#).is_err());
    }
}
