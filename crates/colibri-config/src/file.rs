//! The settings file: settings, profiles, and agents that start with the daemon.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::{Path, PathBuf};

use colibri_jail_core::JailConfig;
use colibri_sys::regular_file;

use crate::diagnostic::{Diagnostic, Source};
use crate::env_file::{self, AllowedReaders};
use crate::profile::{Profile, ProfileError};
use crate::settings::{PartialSettings, Registries, Settings, SettingsError};
use crate::validate::{Scope, validate};
use colibri_presets::Preset;

/// A validated settings file. The default is an absent file, which sets nothing.
#[derive(Clone, Default)]
pub struct ConfigFile {
    /// The settings.
    pub settings: PartialSettings,
    /// Profiles by name.
    pub profiles: BTreeMap<String, Profile>,
    /// Presets of agents by name, without those of Colibri.
    pub agents: BTreeMap<String, Preset>,
    /// Agents that start with the daemon.
    pub autostart: Vec<Autostart>,
    pub(crate) source: Option<Source>,
    /// Environment files of profiles and entries, and the spans that name them.
    pub(crate) env_files: Vec<(PathBuf, Range<usize>)>,
}

/// An entry of `[[autostart]]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Autostart {
    /// Unique key of the entry: its name, or else that of its profile.
    pub key: String,
    /// Options of the entry, without those of its profile.
    pub options: Profile,
}

impl Autostart {
    /// Returns the options with gaps filled from the profile. The default name of the agent is the key.
    ///
    /// # Errors
    /// The profile does not exist.
    pub fn merged(&self, profiles: &BTreeMap<String, Profile>) -> Result<Profile, ProfileError> {
        let mut merged = self.options.clone().with_named_profile(profiles)?;
        merged.request.name.get_or_insert_with(|| self.key.clone());
        Ok(merged)
    }
}

/// The settings of a daemon, from all sources.
#[derive(Clone)]
pub struct DaemonConfig {
    /// The settings file.
    pub file: ConfigFile,
    /// The settings of the file, and those that take precedence over them.
    pub partial: PartialSettings,
    /// The resolved settings.
    pub settings: Settings,
}

/// Where a daemon's settings come from.
#[derive(Clone, Default)]
pub struct ConfigSources {
    /// The settings file; see [`ConfigFile::read`].
    pub path: Option<PathBuf>,
    /// The settings that take precedence over the file.
    pub overrides: PartialSettings,
    /// The engines and privilege backends.
    pub registries: Registries,
}

impl ConfigSources {
    /// Reads the settings file and resolves the settings as a daemon does.
    ///
    /// # Errors
    /// The file cannot be read, or a setting is invalid. An unknown name in the file is reported with its position, unless
    /// an override replaces it.
    pub fn load(
        &self,
        lookup: impl Fn(&str) -> Option<String>,
    ) -> Result<DaemonConfig, SettingsError> {
        let file = read_scope(self.path.as_deref(), &lookup, Scope::Daemon(self))?;
        let partial = self.overrides.clone().or(file.settings.clone());
        let settings = Settings::resolve(&partial, lookup, &self.registries)?;
        Ok(DaemonConfig {
            file,
            partial,
            settings,
        })
    }
}

/// All mistakes of a settings file.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{}", shown(.0))]
pub struct ConfigError(pub Vec<Diagnostic>);

fn shown(diagnostics: &[Diagnostic]) -> String {
    let lines: Vec<_> = diagnostics.iter().map(Diagnostic::to_string).collect();
    lines.join("\n")
}

/// Returns the jail of a profile or an entry with its name, unless it only sets limits.
fn jail_of<'a>(name: &'a str, options: &'a Profile) -> Option<(&'a str, &'a JailConfig)> {
    let jail = options.request.jail.as_ref()?;
    jail.is_jail().then_some((name, jail))
}

impl ConfigFile {
    /// Returns the jails of profiles, with the names of the profiles.
    pub fn profile_jails(&self) -> impl Iterator<Item = (&str, &JailConfig)> {
        let profiles = self.profiles.iter();
        profiles.filter_map(|(name, profile)| jail_of(name, profile))
    }

    /// Returns the jails of `[[autostart]]` entries, with the keys of the entries. An entry without a jail may use that of its
    /// profile.
    pub fn autostart_jails(&self) -> impl Iterator<Item = (&str, &JailConfig)> {
        let entries = self.autostart.iter();
        entries.filter_map(|entry| jail_of(&entry.key, &entry.options))
    }

    /// Parses and validates a text. Does no I/O: `path` is used in messages.
    ///
    /// # Errors
    /// All mistakes in the text.
    pub fn parse(path: &Path, text: &str) -> Result<Self, ConfigError> {
        validate(path, text, Scope::File)
    }

    /// Reads the file at `named`, or the first of [`default_paths`] that exists. Without a file, nothing is set. The names of
    /// the engine and of the privilege backend are not checked; see [`ConfigSources::load`].
    ///
    /// # Errors
    /// The file cannot be read, or contains mistakes.
    pub fn read(
        named: Option<&Path>,
        lookup: impl Fn(&str) -> Option<String>,
    ) -> Result<Self, SettingsError> {
        read_scope(named, lookup, Scope::File)
    }

    /// Reads and validates only the settings: a client can find the daemon's socket in spite of a mistake in a profile.
    ///
    /// # Errors
    /// The file cannot be read, its settings contain mistakes, or its text a syntax error.
    pub fn read_settings(
        named: Option<&Path>,
        lookup: impl Fn(&str) -> Option<String>,
    ) -> Result<PartialSettings, SettingsError> {
        read_scope(named, lookup, Scope::Settings).map(|file| file.settings)
    }

    /// Returns the path of the file.
    #[must_use]
    pub fn path(&self) -> Option<&Path> {
        self.source.as_ref().map(|source| source.path.as_path())
    }

    /// Returns the file itself and the environment files that it names, which may contain secrets.
    pub fn private_files(&self) -> impl Iterator<Item = PathBuf> {
        let env_files = self.env_files.iter().map(|(path, _)| path.clone());
        self.path().map(Path::to_owned).into_iter().chain(env_files)
    }

    /// Reads the environment files of all profiles and entries, and returns a diagnostic for each unusable file.
    #[must_use]
    pub fn unusable_env_files(&self) -> Vec<Diagnostic> {
        let check = |(path, span): &(PathBuf, Range<usize>)| {
            let error = env_file::read(path, AllowedReaders::Owner).err()?;
            Some(self.source.as_ref()?.diagnostic(span, &error.to_string()))
        };
        self.env_files.iter().filter_map(check).collect()
    }
}

/// Maximum size of a settings file, in bytes.
const MAX_BYTES: u64 = 4 << 20;

/// Reads and validates the file at `named`, or the first of [`default_paths`] that exists.
fn read_scope(
    named: Option<&Path>,
    lookup: impl Fn(&str) -> Option<String>,
    scope: Scope<'_>,
) -> Result<ConfigFile, SettingsError> {
    let Some(path) = named
        .map(Path::to_owned)
        .or_else(|| default_paths(lookup).into_iter().find(|path| path.exists()))
    else {
        return Ok(ConfigFile::default());
    };
    let text = regular_file::read(&path, MAX_BYTES).and_then(|bytes| {
        String::from_utf8(bytes).map_err(|_| {
            let kind = std::io::ErrorKind::InvalidData;
            std::io::Error::new(kind, "it is not valid UTF-8")
        })
    });
    match text {
        Ok(text) => Ok(validate(&path, &text, scope)?),
        Err(source) => Err(SettingsError::Unreadable { path, source }),
    }
}

/// Returns the paths at which a settings file is searched, in order.
#[must_use]
pub fn default_paths(lookup: impl Fn(&str) -> Option<String>) -> Vec<PathBuf> {
    let user = lookup("XDG_CONFIG_HOME")
        .map(PathBuf::from)
        .or_else(|| Some(PathBuf::from(lookup("HOME")?).join(".config")))
        .map(|directory| directory.join("colibri/colibri.toml"));
    let system = if cfg!(target_os = "freebsd") {
        "/usr/local/etc/colibri/colibri.toml"
    } else {
        "/etc/colibri/colibri.toml"
    };
    user.into_iter().chain([PathBuf::from(system)]).collect()
}

#[cfg(test)]
mod tests;
