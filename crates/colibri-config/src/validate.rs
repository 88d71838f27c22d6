//! Validation of a settings file, key by key, so that one pass reports all mistakes.
//!
//! Each value is deserialized separately, as a table of one key. An error of serde then concerns that value, whose
//! position is known. The allowed keys are the fields of the deserialized types.

mod agents;

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::Path;

use colibri_priv::BackendRegistry;
use serde::de::DeserializeOwned;
use toml::Spanned;
use toml::de::{DeString, DeTable, DeValue, Deserializer};

#[cfg(test)]
pub(crate) use self::agents::profile_keys;
use self::agents::{AGENT, AUTOSTART, PROFILE};
use crate::diagnostic::Source;
use crate::fields::{fields_of, nearest};
use crate::file::{ConfigError, ConfigFile, ConfigSources};
use crate::settings::{Defaults, PartialSettings, SettingsError};

type Span = Range<usize>;
type Key<'i> = Spanned<DeString<'i>>;
type Item<'i> = Spanned<DeValue<'i>>;

/// The part of a file that is validated.
#[derive(Clone, Copy)]
pub(crate) enum Scope<'a> {
    /// The settings without the names of the engine and the privilege backend, and the TOML syntax of the whole file.
    Settings,
    /// Also the profiles and autostart entries.
    File,
    /// Also the names of the engine and the privilege backend, for a daemon with these sources.
    Daemon(&'a ConfigSources),
}

/// Parses and validates the text of a settings file.
///
/// # Errors
/// All mistakes, sorted by position.
pub(crate) fn validate(
    path: &Path,
    text: &str,
    scope: Scope<'_>,
) -> Result<ConfigFile, ConfigError> {
    let mut source = Source::new(path, text);
    let (root, errors) = DeTable::parse_recoverable(text);
    let mut validator = Validator::default();
    if errors.is_empty() {
        validator.settings(root.get_ref());
        if let Scope::Daemon(sources) = scope {
            let registries = &sources.registries;
            let unknown = registries.unknown_names(&validator.file.settings, &sources.overrides);
            validator.report_settings(unknown);
        }
        if !matches!(scope, Scope::Settings) {
            validator.agents(root.get_ref());
        }
    }
    // After a syntax error, further mistakes would only be consequences of it.
    for error in errors {
        let span = error.span().unwrap_or_default();
        source.mask_unparsed(span.start);
        validator.report(span, error.message());
    }
    for span in validator.masked {
        source.mask(span);
    }
    let mut mistakes = validator.mistakes;
    mistakes.sort_by_key(|mistake| mistake.span.start);
    let diagnostics: Vec<_> = mistakes
        .iter()
        .map(|mistake| source.diagnostic(&mistake.span, &mistake.message))
        .collect();
    if !diagnostics.is_empty() {
        return Err(ConfigError(diagnostics));
    }
    let mut file = validator.file;
    file.source = Some(source);
    Ok(file)
}

struct Mistake {
    span: Span,
    message: String,
}

#[derive(Default)]
struct Validator {
    file: ConfigFile,
    /// Spans of the values of settings.
    positions: BTreeMap<String, Span>,
    mistakes: Vec<Mistake>,
    /// Values that no diagnostic may show.
    masked: Vec<Span>,
}

impl Validator {
    fn report(&mut self, span: Span, message: impl Into<String>) {
        self.mistakes.push(Mistake {
            span,
            message: message.into(),
        });
    }

    fn settings<'i>(&mut self, root: &DeTable<'i>) {
        let mut known = fields_of::<PartialSettings>().to_vec();
        known.extend([PROFILE, AUTOSTART, AGENT]);
        let mut valid = DeTable::new();
        for (key, value) in root {
            let name = key.get_ref().as_ref();
            if [PROFILE, AUTOSTART, AGENT].contains(&name) || !self.check_key(key, value, &known) {
                continue;
            }
            self.positions.insert(name.to_owned(), value.span());
            if let Some(settings) = self.read_one::<PartialSettings>(key, value) {
                match check_setting(&settings) {
                    None => drop(valid.insert(key.clone(), value.clone())),
                    Some(message) => self.report(value.span(), message),
                }
            }
        }
        self.file.settings = read(valid).unwrap_or_default();
        let settings = &self.file.settings;
        let errors = [
            settings.journal().err(),
            settings.log().err(),
            settings.retention().err(),
            settings.metrics_address().err(),
            settings.hooks().err(),
        ];
        self.report_settings(errors.into_iter().flatten());
    }

    /// Reports the values that these errors concern.
    fn report_settings(&mut self, errors: impl IntoIterator<Item = SettingsError>) {
        for error in errors {
            if let SettingsError::Value { setting, message } = error {
                let span = self.positions.get(setting).cloned();
                self.report(span.unwrap_or_default(), message);
            }
        }
    }

    /// Reports a key that is not in `known`. Its value is masked: it may be meant for `env`.
    fn check_key(&mut self, key: &Key<'_>, value: &Item<'_>, known: &[&str]) -> bool {
        let name = key.get_ref().as_ref();
        if known.contains(&name) {
            return true;
        }
        self.mask(value);
        self.report(key.span(), unknown("key", name, known));
        false
    }

    /// Deserializes a table that contains only this key; reports an error and returns `None`.
    fn read_one<T: DeserializeOwned>(&mut self, key: &Key<'_>, value: &Item<'_>) -> Option<T> {
        let mut table = DeTable::new();
        table.insert(key.clone(), value.clone());
        match read(table) {
            Ok(value) => Some(value),
            Err(error) => {
                let span = error.span().filter(|span| !span.is_empty());
                self.report(span.unwrap_or(value.span()), error.message());
                None
            }
        }
    }

    /// Masks a value and all values in it.
    fn mask(&mut self, item: &Item<'_>) {
        match item.get_ref() {
            DeValue::Table(table) => table.values().for_each(|value| self.mask(value)),
            DeValue::Array(list) => list.iter().for_each(|value| self.mask(value)),
            _ => self.masked.push(item.span()),
        }
    }
}

fn read<T: DeserializeOwned>(table: DeTable<'_>) -> Result<T, toml::de::Error> {
    T::deserialize(Deserializer::from(Spanned::new(0..0, table)))
}

/// Returns the message for an unknown name: it suggests a similar known name, or lists all.
fn unknown(what: &str, name: &str, known: &[&str]) -> String {
    let name: String = name.chars().take(60).collect();
    match (nearest(&name, known), known) {
        (Some(near), _) => format!("unknown {what} {name:?}; did you mean {near:?}?"),
        (None, []) => format!("unknown {what} {name:?}; the file has none"),
        (None, known) => format!("unknown {what} {name:?}; use one of: {}", known.join(", ")),
    }
}

/// Returns why one setting is invalid.
fn check_setting(settings: &PartialSettings) -> Option<String> {
    let paths = [
        &settings.socket,
        &settings.state_dir,
        &settings.shim,
        &settings.proxy,
        &settings.cgroup,
    ];
    let paths = paths.into_iter().flatten().map(|path| path.as_path());
    if let Some(message) = paths
        .chain(settings.helper.as_ref().map(Path::new))
        .find_map(check_absolute)
    {
        return Some(message);
    }
    if let Some(message) = settings.defaults.as_ref().and_then(Defaults::problem) {
        return Some(message.to_owned());
    }
    let error = BackendRegistry::check_name(settings.privilege.as_deref()?).err()?;
    Some(error.to_string())
}

/// Returns why a path is refused if it is not absolute.
fn check_absolute(path: &Path) -> Option<String> {
    let message = || {
        format!(
            "{:?} is not an absolute path; write its full path",
            path.display()
        )
    };
    (!path.is_absolute()).then(message)
}
