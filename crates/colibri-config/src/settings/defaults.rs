//! The table `[defaults]` of a settings file.

use colibri_jail_core::JailConfig;
use serde::Deserialize;

/// Confinement of agents that the command line starts without an option for a jail.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Defaults {
    /// Start agents without a jail.
    pub no_jail: bool,
    /// The jail.
    pub jail: Option<JailConfig>,
}
