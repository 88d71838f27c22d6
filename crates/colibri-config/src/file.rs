//! The settings file: settings, profiles, and agents that start with the daemon.
//!
//! The daemon, its reload, `colibri config check` and whatever else reads the file read it here, so they all
//! say the same about it: everything that is wrong, with its place.

use std::collections::BTreeMap;
use std::fmt;
use std::ops::Range;
use std::path::{Path, PathBuf};

use colibri_priv::BackendRegistry;

use crate::diagnostic::{Diagnostic, Source};
use crate::env_file::{self, Readers};
use crate::profile::{Profile, ProfileError};
use crate::settings::{PartialSettings, SettingsError};
use crate::validate::validate;
use colibri_sys::regular_file;

/// A settings file that was read; or none, which says nothing.
#[derive(Clone, Default)]
pub struct ConfigFile {
    /// The settings.
    pub settings: PartialSettings,
    /// Profiles by name.
    pub profiles: BTreeMap<String, Profile>,
    /// Agents that start with the daemon.
    pub autostart: Vec<Autostart>,
    pub(crate) source: Option<Source>,
    /// Where the value of a setting is.
    pub(crate) positions: BTreeMap<String, Range<usize>>,
    /// Where the environment file of a profile or entry is named.
    pub(crate) env_files: Vec<(PathBuf, Range<usize>)>,
}

/// An entry of `[[autostart]]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Autostart {
    /// What it is known by: its name, or else its profile's. No other entry has it.
    pub key: String,
    /// What it says itself.
    pub own: Profile,
}

impl Autostart {
    /// What is to be spawned for it; its label is its key where nothing else is said.
    ///
    /// # Errors
    /// There is no such profile.
    pub fn merged(&self, profiles: &BTreeMap<String, Profile>) -> Result<Profile, ProfileError> {
        let mut merged = self.own.clone().over(profiles)?;
        merged.request.name.get_or_insert_with(|| self.key.clone());
        Ok(merged)
    }
}

/// Everything that is wrong in a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConfigError(pub Vec<Diagnostic>);

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, problem) in self.0.iter().enumerate() {
            write!(f, "{}{problem}", if at == 0 { "" } else { "\n" })?;
        }
        Ok(())
    }
}

impl std::error::Error for ConfigError {}

impl ConfigFile {
    /// What a text says. Looks at nothing but the text.
    ///
    /// # Errors
    /// All that is wrong in it.
    pub fn parse(path: &Path, text: &str) -> Result<Self, ConfigError> {
        let (file, problems, _) = validate(path, text);
        match problems.is_empty() {
            true => Ok(file),
            false => Err(ConfigError(problems)),
        }
    }

    /// Only the settings: what is wrong in a profile does not keep anybody from the daemon's socket.
    ///
    /// # Errors
    /// All that is wrong in the settings, or what makes the whole text no TOML.
    pub fn parse_settings(path: &Path, text: &str) -> Result<PartialSettings, ConfigError> {
        let (file, mut problems, of_settings) = validate(path, text);
        let mut keep = of_settings.into_iter();
        problems.retain(|_| keep.next().unwrap_or(true));
        match problems.is_empty() {
            true => Ok(file.settings),
            false => Err(ConfigError(problems)),
        }
    }

    /// Reads the file named, or the first usual one that exists; without one there are no settings.
    ///
    /// # Errors
    /// The file cannot be read, or something is wrong in it.
    pub fn read(
        named: Option<&Path>,
        lookup: impl Fn(&str) -> Option<String>,
    ) -> Result<Self, SettingsError> {
        match text(named, lookup)? {
            None => Ok(Self::default()),
            Some((path, text)) => Ok(Self::parse(&path, &text)?),
        }
    }

    /// Reads the settings only, as [`ConfigFile::parse_settings`].
    ///
    /// # Errors
    /// The file cannot be read, or something is wrong in its settings.
    pub fn read_settings(
        named: Option<&Path>,
        lookup: impl Fn(&str) -> Option<String>,
    ) -> Result<PartialSettings, SettingsError> {
        match text(named, lookup)? {
            None => Ok(PartialSettings::default()),
            Some((path, text)) => Ok(Self::parse_settings(&path, &text)?),
        }
    }

    /// Where it was read.
    #[must_use]
    pub fn path(&self) -> Option<&Path> {
        self.source.as_ref().map(|source| source.path.as_path())
    }

    /// Looks whether the privilege backend that the file names is one of these.
    ///
    /// # Errors
    /// It is not.
    pub fn check_privilege(&self, known: &BackendRegistry) -> Result<(), ConfigError> {
        match self
            .settings
            .privilege
            .as_deref()
            .map(|name| known.get(name))
        {
            Some(Err(error)) => Err(self.wrong("privilege", &error.to_string())),
            _ => Ok(()),
        }
    }

    /// Looks at the environment files that profiles name: those that could not be used now.
    #[must_use]
    pub fn unusable_env_files(&self) -> Vec<Diagnostic> {
        let look = |(path, span): &(PathBuf, Range<usize>)| {
            let error = env_file::read(path, Readers::Owner).err()?;
            Some(self.source.as_ref()?.problem(span, error.to_string()))
        };
        self.env_files.iter().filter_map(look).collect()
    }

    fn wrong(&self, setting: &str, message: &str) -> ConfigError {
        let at = self.positions.get(setting).cloned().unwrap_or(0..0);
        let problem = |source: &Source| source.problem(&at, message.to_owned());
        ConfigError(self.source.iter().map(problem).collect())
    }
}

/// Maximum size of a settings file, in bytes.
const MAX_BYTES: u64 = 4 << 20;

/// The file named, or the first usual one that exists.
fn text(
    named: Option<&Path>,
    lookup: impl Fn(&str) -> Option<String>,
) -> Result<Option<(PathBuf, String)>, SettingsError> {
    let Some(path) = named
        .map(Path::to_owned)
        .or_else(|| default_paths(lookup).into_iter().find(|path| path.exists()))
    else {
        return Ok(None);
    };
    let text = regular_file::read(&path, MAX_BYTES).and_then(|bytes| {
        String::from_utf8(bytes).map_err(|_| {
            let kind = std::io::ErrorKind::InvalidData;
            std::io::Error::new(kind, "it is not UTF-8")
        })
    });
    match text {
        Ok(text) => Ok(Some((path, text))),
        Err(source) => Err(SettingsError::Unreadable { path, source }),
    }
}

/// Where a settings file is looked for, in order.
#[must_use]
pub fn default_paths(lookup: impl Fn(&str) -> Option<String>) -> Vec<PathBuf> {
    let own = lookup("XDG_CONFIG_HOME")
        .map(PathBuf::from)
        .or_else(|| Some(PathBuf::from(lookup("HOME")?).join(".config")))
        .map(|directory| directory.join("colibri/colibri.toml"));
    let system = if cfg!(target_os = "freebsd") {
        "/usr/local/etc/colibri/colibri.toml"
    } else {
        "/etc/colibri/colibri.toml"
    };
    own.into_iter().chain([PathBuf::from(system)]).collect()
}

#[cfg(test)]
mod tests;
