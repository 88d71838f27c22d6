//! What is said on the wire about the daemon's settings file: its profiles, and what a reload has changed.

use colibri_jail_core::JailConfig;
use colibri_types::{AgentRuntime, RestartWhen};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// A profile as it is shown: of its variables the names.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ProfileInfo {
    /// Its name.
    pub name: String,
    /// The program that is run where a request names none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub program: Option<String>,
    /// The program's arguments.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub args: Option<Vec<String>>,
    /// Which agent program it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub runtime: Option<AgentRuntime>,
    /// Confinement.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub jail: Option<JailConfig>,
    /// Working directory.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cwd: Option<String>,
    /// Names of variables that it sets.
    #[serde(default)]
    pub env: Vec<String>,
    /// The file that it takes more of them from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub env_file: Option<String>,
    /// Names of variables that a request must bring in `env`.
    #[serde(default)]
    pub secrets: Vec<String>,
    /// The label that its agents get.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub label: Option<String>,
    /// When they are started again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub restart: Option<RestartWhen>,
}

/// The result of `list-profiles`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ProfilesResult {
    /// The settings file; absent: there is none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub file: Option<String>,
    /// Profiles by name.
    pub profiles: Vec<ProfileInfo>,
}

/// Names that came, changed and went.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ChangedNames {
    /// Those that are new.
    pub added: Vec<String>,
    /// Those that are there as before, and say something else.
    pub changed: Vec<String>,
    /// Those that are gone.
    pub removed: Vec<String>,
}

impl ChangedNames {
    /// Nothing came, changed or went.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.added.is_empty() && self.changed.is_empty() && self.removed.is_empty()
    }
}

/// An agent that was started for an entry of `[[autostart]]`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct AutostartedAgent {
    /// The entry.
    pub name: String,
    /// The agent.
    pub id: String,
}

/// An entry of `[[autostart]]` whose agent could not be started.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct AutostartFailure {
    /// The entry.
    pub name: String,
    /// Why.
    pub error: String,
}

/// The result of `reload-config`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ReloadResult {
    /// The settings file that was read; absent: there is none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub file: Option<String>,
    /// Settings that changed and count from now on, for agents that are started from now on.
    pub settings: Vec<String>,
    /// Settings that changed and count once the daemon is restarted.
    pub needs_restart: Vec<String>,
    /// Profiles.
    pub profiles: ChangedNames,
    /// Entries of `[[autostart]]`. Agents that run are left alone.
    pub autostart: ChangedNames,
    /// Agents that were started.
    pub started: Vec<AutostartedAgent>,
    /// Agents that could not be started.
    pub not_started: Vec<AutostartFailure>,
}
