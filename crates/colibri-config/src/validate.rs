//! Goes through a file's tables key by key, so that each mistake is found, and not the first one only.
//!
//! A value is read alone, as a table of one key: what serde says then is about that value, and its place is
//! known. The keys are those of the types themselves.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::path::Path;

use colibri_jail_core::{EngineRegistry, JailConfig};
use colibri_priv::PrivMode;
use colibri_types::{AgentRuntime, SpawnRequest};
use serde::de::DeserializeOwned;
use toml::Spanned;
use toml::de::{DeString, DeTable, DeValue, Deserializer};

use crate::diagnostic::{Diagnostic, Source};
use crate::fields::{fields_of, nearest};
use crate::file::{Autostart, ConfigFile};
use crate::profile::{Profile, ProfileKeys};
use crate::settings::{MetricsAddress, PartialSettings, SettingsError, checked};

type Span = Range<usize>;
type Key<'i> = Spanned<DeString<'i>>;
type Item<'i> = Spanned<DeValue<'i>>;

const PROFILE: &str = "profile";
const AUTOSTART: &str = "autostart";

/// The file as far as it can be understood, what is wrong in it, and of each of these whether it is about the
/// settings (or the whole text).
pub(crate) fn validate(path: &Path, text: &str) -> (ConfigFile, Vec<Diagnostic>, Vec<bool>) {
    let mut source = Source::new(path, text);
    let (root, errors) = DeTable::parse_recoverable(text);
    let mut walk = Walk::default();
    if errors.is_empty() {
        walk.root(root.get_ref());
    } else {
        // What follows from a misread line would only confuse.
        for error in errors {
            let at = error.span().unwrap_or(0..0);
            source.hide_unknown(at.start);
            walk.wrong(at, error.message().to_owned());
        }
    }
    walk.secret.into_iter().for_each(|span| source.hide(span));
    walk.found.sort_by_key(|found| found.at.start);
    let of_settings = walk.found.iter().map(|found| found.of_settings).collect();
    let problems = walk
        .found
        .into_iter()
        .map(|found| source.problem(&found.at, found.message))
        .collect();
    walk.file.source = Some(source);
    (walk.file, problems, of_settings)
}

/// Returns all keys that a profile may have.
pub(crate) fn profile_keys() -> Vec<&'static str> {
    let mut keys = fields_of::<ProfileKeys>().to_vec();
    keys.extend(fields_of::<SpawnRequest>());
    keys.sort_unstable();
    keys.dedup();
    keys
}

struct Found {
    at: Span,
    message: String,
    of_settings: bool,
}

#[derive(Default)]
struct Walk {
    file: ConfigFile,
    found: Vec<Found>,
    secret: Vec<Span>,
    beyond_settings: bool,
}

impl Walk {
    fn wrong(&mut self, at: Span, message: impl Into<String>) {
        self.found.push(Found {
            at,
            message: message.into(),
            of_settings: !self.beyond_settings,
        });
    }

    fn root<'i>(&mut self, root: &DeTable<'i>) {
        let known: Vec<&str> = fields_of::<PartialSettings>()
            .iter()
            .copied()
            .chain([PROFILE, AUTOSTART])
            .collect();
        let mut settings = DeTable::new();
        for (key, value) in root {
            let name = key.get_ref().as_ref();
            if [PROFILE, AUTOSTART].contains(&name) || !self.is_known(key, value, &known) {
                continue;
            }
            self.file.positions.insert(name.to_owned(), value.span());
            if let Some(alone) = self.alone::<PartialSettings>(key, value) {
                match wrong_setting(&alone) {
                    None => drop(settings.insert(key.clone(), value.clone())),
                    Some(message) => self.wrong(value.span(), message),
                }
            }
        }
        self.file.settings = read(settings).unwrap_or_default();
        let settings = &self.file.settings;
        let checks = [
            settings.journal().err(),
            settings.log().err(),
            settings.retention().err(),
        ];
        for error in checks.into_iter().flatten() {
            let key = match error {
                SettingsError::SegmentBytes(_) => "segment_bytes",
                SettingsError::RetainBytes { .. } => "retain_bytes",
                SettingsError::LogBytes(_) => "log_max_bytes",
                SettingsError::LogKeep(_) => "log_keep",
                SettingsError::RetainEndedFor { .. } => "retain_ended_for",
                _ => "fsync_interval_ms",
            };
            let at = self.file.positions.get(key).cloned().unwrap_or(0..0);
            self.wrong(at, error.to_string());
        }
        self.beyond_settings = true;
        if let Some(profiles) = root.get(PROFILE) {
            self.profiles(profiles);
        }
        if let Some(entries) = root.get(AUTOSTART) {
            self.autostart(entries);
        }
    }

    fn profiles(&mut self, item: &Item<'_>) {
        let Some(profiles) = item.get_ref().as_table() else {
            self.hide(item);
            return self.wrong(
                item.span(),
                "a profile is a table; write it as [profile.NAME]",
            );
        };
        for (key, value) in profiles {
            let name = key.get_ref().as_ref();
            let Some(table) = value.get_ref().as_table() else {
                self.hide(value);
                self.wrong(
                    key.span(),
                    format!("profile {name:?} is no table; write it as [profile.NAME]"),
                );
                continue;
            };
            let usable = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
            if name.is_empty() || name.starts_with('-') || !name.chars().all(usable) {
                self.wrong(
                    key.span(),
                    "a profile's name has letters, digits, '-', '_' and '.', and no '-' in front",
                );
            }
            let profile = self.profile(table, &key.span(), &[]);
            self.file.profiles.insert(name.to_owned(), profile);
        }
    }

    /// Reads a profile, or the part of an entry that is one: the keys `more` are looked at elsewhere.
    fn profile(&mut self, table: &DeTable<'_>, place: &Span, more: &[&'static str]) -> Profile {
        let before = self.found.len();
        let mut known = profile_keys();
        known.retain(|key| *key != PROFILE || more.contains(key));
        let mut good = DeTable::new();
        for (key, value) in table {
            let name = key.get_ref().as_ref();
            if !self.is_known(key, value, &known) || more.contains(&name) {
                continue;
            }
            let usable = match (name, value.get_ref().as_table()) {
                ("env", variables) => self.variables(value, variables),
                ("jail", Some(jail)) => self.jail(jail),
                ("runtime", None) => self.runtime(value),
                _ => true,
            };
            let Some(alone) = usable.then(|| self.alone::<Profile>(key, value)).flatten() else {
                continue;
            };
            if let Some(path) = &alone.env_file {
                self.file.env_files.push((path.clone(), value.span()));
            }
            match wrong_value(alone) {
                None => drop(good.insert(key.clone(), value.clone())),
                Some(message) => self.wrong(value.span(), message),
            }
        }
        let profile: Profile = read(good).unwrap_or_default();
        if self.found.len() == before
            && profile
                .request
                .restart
                .as_ref()
                .is_none_or(|restart| restart.policy.is_none())
        {
            for name in profile_keys()
                .into_iter()
                .filter(|name| name.starts_with("restart_"))
            {
                if let (Some(value), true) = (table.get(name), more.is_empty()) {
                    self.wrong(
                        value.span(),
                        format!("{name} does nothing without restart; set restart = \"on-failure\" or \"always\" with it"),
                    );
                }
            }
        }
        if self.found.len() == before
            && let Some(message) = unusable(profile.request.clone())
        {
            self.wrong(place.clone(), message);
        }
        profile
    }

    /// Whether `env` is a table of texts. What serde would say of another shows the value.
    fn variables(&mut self, item: &Item<'_>, variables: Option<&DeTable<'_>>) -> bool {
        self.hide(item);
        let Some(variables) = variables else {
            self.wrong(
                item.span(),
                "env is a table of texts; write env = { NAME = \"value\" }",
            );
            return false;
        };
        let mut usable = true;
        for (name, value) in variables {
            if !value.get_ref().is_str() {
                self.wrong(
                    name.span(),
                    format!(
                        "the value of variable {} is no text; put it into quotes",
                        name.get_ref()
                    ),
                );
                usable = false;
            }
        }
        usable
    }

    /// Whether the runtime is known.
    fn runtime(&mut self, item: &Item<'_>) -> bool {
        let name = item.get_ref().as_str().unwrap_or_default();
        if AgentRuntime::NAMES.contains(&name) || !item.get_ref().is_str() {
            return true;
        }
        self.wrong(item.span(), unknown("runtime", name, AgentRuntime::NAMES));
        false
    }

    /// Looks at each field of a jail, with a root where it takes one to mean something.
    fn jail(&mut self, jail: &DeTable<'_>) -> bool {
        let before = self.found.len();
        for (key, value) in jail {
            if !self.is_known(key, value, fields_of::<JailConfig>()) {
                continue;
            }
            if let Some(alone) = self.alone::<JailConfig>(key, value) {
                let request = SpawnRequest {
                    jail: Some(alone),
                    ..SpawnRequest::default()
                };
                if let Some(message) = unusable(request) {
                    self.wrong(value.span(), message);
                }
            }
        }
        self.found.len() == before
    }

    fn autostart(&mut self, item: &Item<'_>) {
        let mut taken = BTreeSet::new();
        let entries = item.get_ref().as_array().map(|entries| entries.iter());
        let tables: Option<Vec<_>> = entries.and_then(|entries| {
            entries
                .map(|entry| Some((entry.get_ref().as_table()?, entry.span())))
                .collect()
        });
        let Some(tables) = tables else {
            self.hide(item);
            return self.wrong(
                item.span(),
                "autostart is a list of tables; write each entry as [[autostart]]",
            );
        };
        for (table, place) in tables {
            let before = self.found.len();
            let mut own = self.profile(table, &place, &[PROFILE]);
            own.request.profile = match table
                .get(PROFILE)
                .map(|item| (item.get_ref().as_str(), item.span()))
            {
                None => None,
                Some((None, at)) => {
                    self.wrong(at, "profile is the name of one, in quotes");
                    continue;
                }
                Some((Some(name), at)) => {
                    if !self.file.profiles.contains_key(name) {
                        let known: Vec<&str> =
                            self.file.profiles.keys().map(String::as_str).collect();
                        let message = unknown("profile", name, &known);
                        self.wrong(at, message);
                        continue;
                    }
                    Some(name.to_owned())
                }
            };
            let Some(key) = own
                .request
                .name
                .clone()
                .or_else(|| own.request.profile.clone())
            else {
                self.wrong(
                    place,
                    "an agent that starts with the daemon has a name or a profile; set name",
                );
                continue;
            };
            if !taken.insert(key.clone()) {
                let at = table.get("name").or_else(|| table.get(PROFILE));
                let message = format!(
                    "there is an entry {key:?} already, and each is started once; give this one another name"
                );
                self.wrong(at.map_or(place, Spanned::span), message);
                continue;
            }
            let entry = Autostart { key, own };
            if self.found.len() == before {
                let merged = entry.merged(&self.file.profiles);
                let message = match merged {
                    Ok(profile) => unspawnable(profile.request),
                    Err(error) => Some(error.to_string()),
                };
                if let Some(message) = message {
                    self.wrong(place, message);
                    continue;
                }
            }
            self.file.autostart.push(entry);
        }
    }

    /// Complains of a key that is none of these. Its value may be meant for `env`.
    fn is_known(&mut self, key: &Key<'_>, value: &Item<'_>, known: &[&str]) -> bool {
        let name = key.get_ref().as_ref();
        if known.contains(&name) {
            return true;
        }
        self.hide(value);
        self.wrong(key.span(), unknown("key", name, known));
        false
    }

    /// Reads a table that has this key only.
    fn alone<T: DeserializeOwned>(&mut self, key: &Key<'_>, value: &Item<'_>) -> Option<T> {
        let mut table = DeTable::new();
        table.insert(key.clone(), value.clone());
        match read(table) {
            Ok(value) => Some(value),
            Err(error) => {
                self.wrong(
                    error
                        .span()
                        .filter(|span| !span.is_empty())
                        .unwrap_or(value.span()),
                    error.message(),
                );
                None
            }
        }
    }

    /// Shows nothing of a value, nor of what is in it.
    fn hide(&mut self, item: &Item<'_>) {
        match item.get_ref() {
            DeValue::Table(table) => table.values().for_each(|value| self.hide(value)),
            DeValue::Array(list) => list.iter().for_each(|value| self.hide(value)),
            _ => self.secret.push(item.span()),
        }
    }
}

fn read<T: DeserializeOwned>(table: DeTable<'_>) -> Result<T, toml::de::Error> {
    T::deserialize(Deserializer::from(Spanned::new(0..0, table)))
}

/// That a name is not one of these, with the near one, or all of them.
fn unknown(what: &str, name: &str, known: &[&str]) -> String {
    let name: String = name.chars().take(60).collect();
    match (nearest(&name, known), known) {
        (Some(near), _) => format!("unknown {what} {name:?}; did you mean {near:?}?"),
        (None, []) => format!("unknown {what} {name:?}; there is none"),
        (None, known) => format!("unknown {what} {name:?}; there are: {}", known.join(", ")),
    }
}

/// What is wrong with a setting that is alone.
fn wrong_setting(alone: &PartialSettings) -> Option<String> {
    let paths = [
        &alone.socket,
        &alone.state_dir,
        &alone.shim,
        &alone.proxy,
        &alone.cgroup,
    ];
    let helper = alone.helper.as_ref().map(Path::new);
    let mut paths = paths
        .into_iter()
        .flatten()
        .map(|path| path.as_path())
        .chain(helper);
    if let Some(path) = paths.find(|path| !path.is_absolute()) {
        return Some(format!(
            "{:?} is not an absolute path; give it from the root",
            path.display()
        ));
    }
    let engine = alone.engine.as_ref();
    if let Some(Err(error)) = engine.map(|name| EngineRegistry::builtin().by_name(name)) {
        return Some(error.to_string());
    }
    let metrics = alone
        .metrics
        .as_ref()
        .map(|place| place.parse::<MetricsAddress>());
    if let Some(Err(error)) = metrics {
        return Some(error.to_string());
    }
    if let Err(error) = checked(&alone.hook) {
        return Some(error.to_string());
    }
    let privilege = alone.privilege.as_ref().map(|name| PrivMode::parse(name));
    privilege
        .and_then(Result::err)
        .map(|error| error.to_string())
}

/// What is wrong with a value of a profile that is alone.
fn wrong_value(alone: Profile) -> Option<String> {
    if let Some(path) = &alone.env_file
        && !path.is_absolute()
    {
        return Some(format!(
            "{:?} is not an absolute path; give it from the root",
            path.display()
        ));
    }
    let env: BTreeMap<_, _> = alone
        .secrets
        .iter()
        .map(|name| (name.clone(), String::new()))
        .collect();
    let mut request = alone.request;
    if !env.is_empty() {
        request.env.0 = env;
    }
    unusable(request)
}

/// Why nothing could be spawned of it, whatever fills its gaps.
fn unusable(mut request: SpawnRequest) -> Option<String> {
    request.program.get_or_insert_with(|| "agent".to_owned());
    if let Some(jail) = &mut request.jail
        && !jail.is_jail()
    {
        // Whether it is to be a jail at all, a request says; and so whether these are allowed.
        jail.path = Some("/".to_owned());
        request.env.0.clear();
    }
    unspawnable(request)
}

/// Returns why a request is invalid on every host.
fn unspawnable(request: SpawnRequest) -> Option<String> {
    match request.resolve() {
        Err(error) => Some(error.to_string()),
        Ok(config) => config
            .validate("colibri-ID")
            .err()
            .map(|error| error.to_string()),
    }
}
