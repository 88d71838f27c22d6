#![doc = include_str!("../README.md")]
#![forbid(unsafe_code)]

mod diagnostic;
pub mod env_file;
mod fields;
mod file;
mod profile;
mod settings;
mod validate;

pub use diagnostic::Diagnostic;
pub use file::{Autostart, ConfigError, ConfigFile, ConfigSources, DaemonConfig, default_paths};
pub use profile::{Profile, ProfileError};
pub use settings::{
    Defaults, FsyncPolicy, Hook, HookError, HookSettings, LogLimits, MetricsAddress,
    MetricsAddressError, PartialSettings, Registries, Retention, Settings, SettingsChanges,
    SettingsError,
};
