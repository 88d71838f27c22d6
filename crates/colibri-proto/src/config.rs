//! Results about the daemon's settings file: its profiles, and the changes of a reload.

use colibri_jail_core::JailConfig;
use colibri_types::{AgentRuntime, RestartWhen};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// A profile, without the values of its variables.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ProfileInfo {
    /// Name of the profile.
    pub name: String,
    /// Default program.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub program: Option<String>,
    /// Arguments of the default program.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub args: Option<Vec<String>>,
    /// Runtime of the agent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub runtime: Option<AgentRuntime>,
    /// Confinement.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub jail: Option<JailConfig>,
    /// Working directory.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cwd: Option<String>,
    /// Names of the environment variables that the profile sets.
    #[serde(default)]
    pub env: Vec<String>,
    /// File with further environment variables.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub env_file: Option<String>,
    /// Names of the environment variables that a request must set in `env`.
    #[serde(default)]
    pub secrets: Vec<String>,
    /// Default name of the agent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub label: Option<String>,
    /// Restart policy.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub restart: Option<RestartWhen>,
}

/// The result of `list-profiles`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ProfilesResult {
    /// Path of the settings file; absent if there is none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub file: Option<String>,
    /// All profiles, sorted by name.
    pub profiles: Vec<ProfileInfo>,
}

/// Names of added, changed and removed entries.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ChangedNames {
    /// Names of new entries.
    pub added: Vec<String>,
    /// Names of entries whose content changed.
    pub changed: Vec<String>,
    /// Names of removed entries.
    pub removed: Vec<String>,
}

impl ChangedNames {
    /// Reports whether nothing changed.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.added.is_empty() && self.changed.is_empty() && self.removed.is_empty()
    }
}

/// An agent that was started for an `[[autostart]]` entry.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct AutostartedAgent {
    /// Name of the entry.
    pub name: String,
    /// ID of the agent.
    pub id: String,
}

/// An `[[autostart]]` entry whose agent could not be started.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct AutostartFailure {
    /// Name of the entry.
    pub name: String,
    /// Error of the spawn.
    pub error: String,
}

/// The result of `reload-config`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ReloadResult {
    /// Path of the settings file that was read; absent if there is none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub file: Option<String>,
    /// Names of changed settings that are now in effect; settings of agents apply to agents that are started from now on.
    pub settings: Vec<String>,
    /// Names of changed settings that need a restart of the daemon.
    pub needs_restart: Vec<String>,
    /// Changed profiles.
    pub profiles: ChangedNames,
    /// Changed `[[autostart]]` entries. Running agents are not affected.
    pub autostart: ChangedNames,
    /// Agents that were started for entries.
    pub started: Vec<AutostartedAgent>,
    /// Entries whose agents could not be started.
    pub not_started: Vec<AutostartFailure>,
}
