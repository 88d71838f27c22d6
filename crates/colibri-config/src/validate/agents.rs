//! Validation of `[profile.NAME]` tables and `[[autostart]]` entries.

use std::collections::{BTreeMap, BTreeSet};

use colibri_jail_core::JailConfig;
use colibri_presets::Preset;
use colibri_types::{AgentRuntime, SpawnRequest};
use toml::Spanned;
use toml::de::DeTable;

use super::{Item, Span, Validator, check_absolute, read, unknown};
use crate::fields::fields_of;
use crate::file::Autostart;
use crate::profile::{Profile, ProfileKeys};

/// Table of all profiles, and the key of an autostart entry that names its profile.
pub(super) const PROFILE: &str = "profile";
/// List of agents that start with the daemon.
pub(super) const AUTOSTART: &str = "autostart";

/// Table of all presets of agents.
pub(super) const AGENT: &str = "agent";

/// Returns all keys that a profile may have.
pub(crate) fn profile_keys() -> Vec<&'static str> {
    let mut keys = fields_of::<ProfileKeys>().to_vec();
    keys.extend(fields_of::<SpawnRequest>());
    keys.retain(|key| !OF_CLIENTS.contains(key));
    keys.sort_unstable();
    keys.dedup();
    keys
}

/// Parameters of a spawn request that a client derives from a preset, or from an ended agent.
const OF_CLIENTS: [&str; 4] = ["adapter", "added_args", "preset", "resumes"];

/// Returns whether a profile or a preset may have this name.
fn is_name(name: &str) -> bool {
    let allowed = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    !name.is_empty() && !name.starts_with('-') && name.chars().all(allowed)
}

/// A table with the keys of a profile.
#[derive(Clone, Copy, PartialEq, Eq)]
enum TableKind {
    Profile,
    /// May name a profile, and may override single fields of its restart policy.
    Autostart,
}

impl Validator {
    pub(super) fn agents(&mut self, root: &DeTable<'_>) {
        if let Some(profiles) = root.get(PROFILE) {
            self.profiles(profiles);
        }
        if let Some(presets) = root.get(AGENT) {
            self.presets(presets);
        }
        if let Some(entries) = root.get(AUTOSTART) {
            self.autostart(entries);
        }
    }

    fn presets(&mut self, item: &Item<'_>) {
        let Some(presets) = item.get_ref().as_table() else {
            return self.report(item.span(), "a preset is a table; write it as [agent.NAME]");
        };
        let known = fields_of::<Preset>();
        for (key, value) in presets {
            let name = key.get_ref().as_ref();
            let Some(table) = value.get_ref().as_table() else {
                let message = format!("preset {name:?} is not a table; write it as [agent.NAME]");
                self.report(key.span(), message);
                continue;
            };
            if !is_name(name) {
                self.report(
                    key.span(),
                    "the name of a preset is invalid; use letters, digits, '-', '_' and '.', and do not start it with '-'",
                );
            }
            let mut valid = DeTable::new();
            for (key, value) in table {
                if self.check_key(key, value, known)
                    && self.read_one::<Preset>(key, value).is_some()
                {
                    valid.insert(key.clone(), value.clone());
                }
            }
            let preset: Preset = read(valid).unwrap_or_default();
            let files = preset.home_files.iter().chain(&preset.login_files);
            if let Some(file) = files.into_iter().find(|file| !file.starts_with("~/")) {
                let message = format!("{file:?} is not in the home; write it as ~/PATH");
                self.report(key.span(), message);
            }
            self.file.agents.insert(name.to_owned(), preset);
        }
        if let Err(error) = colibri_presets::with_builtin(&self.file.agents) {
            self.report(item.span(), error.to_string());
        }
    }

    fn profiles(&mut self, item: &Item<'_>) {
        let Some(profiles) = item.get_ref().as_table() else {
            self.mask(item);
            return self.report(
                item.span(),
                "a profile is a table; write it as [profile.NAME]",
            );
        };
        for (key, value) in profiles {
            let name = key.get_ref().as_ref();
            let Some(table) = value.get_ref().as_table() else {
                self.mask(value);
                self.report(
                    key.span(),
                    format!("profile {name:?} is not a table; write it as [profile.NAME]"),
                );
                continue;
            };
            if !is_name(name) {
                self.report(
                    key.span(),
                    "the name of a profile is invalid; use letters, digits, '-', '_' and '.', and do not start it with '-'",
                );
            }
            let profile = self.profile(table, &key.span(), TableKind::Profile);
            self.file.profiles.insert(name.to_owned(), profile);
        }
    }

    /// Validates the keys of a profile. The key `profile` of an autostart entry is validated by its caller.
    fn profile(&mut self, table: &DeTable<'_>, span: &Span, kind: TableKind) -> Profile {
        let mistakes_before = self.mistakes.len();
        let mut known = profile_keys();
        known.retain(|key| *key != PROFILE || kind == TableKind::Autostart);
        let mut valid = DeTable::new();
        for (key, value) in table {
            let name = key.get_ref().as_ref();
            if !self.check_key(key, value, &known) || name == PROFILE {
                continue;
            }
            let valid_inside = match (name, value.get_ref().as_table()) {
                ("env", variables) => self.check_env(value, variables),
                ("jail", Some(jail)) => self.check_jail(jail),
                ("runtime", None) => self.check_runtime(value),
                _ => true,
            };
            if !valid_inside {
                continue;
            }
            let Some(profile) = self.read_one::<Profile>(key, value) else {
                continue;
            };
            if let Some(path) = &profile.env_file {
                self.file.env_files.push((path.clone(), value.span()));
            }
            match check_profile_key(profile) {
                None => drop(valid.insert(key.clone(), value.clone())),
                Some(message) => self.report(value.span(), message),
            }
        }
        let profile: Profile = read(valid).unwrap_or_default();
        if self.mistakes.len() == mistakes_before && kind == TableKind::Profile {
            self.check_restart_keys(table, &profile);
        }
        if self.mistakes.len() == mistakes_before
            && let Some(message) = unusable_as_part(profile.request.clone())
        {
            self.report(span.clone(), message);
        }
        profile
    }

    /// Reports keys of a restart policy in a profile without `restart`.
    fn check_restart_keys(&mut self, table: &DeTable<'_>, profile: &Profile) {
        let restart = profile.request.restart.as_ref();
        if restart.is_some_and(|restart| restart.policy.is_some()) {
            return;
        }
        for (name, value) in table {
            let name = name.get_ref();
            if name.starts_with("restart_") {
                self.report(
                    value.span(),
                    format!(
                        "{name} has no effect without restart; set restart = \"on-failure\" or \"always\" with it"
                    ),
                );
            }
        }
    }

    /// Reports an `env` that is not a table of strings. The messages of serde would contain the value.
    fn check_env(&mut self, item: &Item<'_>, variables: Option<&DeTable<'_>>) -> bool {
        self.mask(item);
        let Some(variables) = variables else {
            self.report(
                item.span(),
                "env is not a table of strings; write env = { NAME = \"value\" }",
            );
            return false;
        };
        let mut valid = true;
        for (name, value) in variables {
            if !value.get_ref().is_str() {
                let name_text = name.get_ref();
                self.report(
                    name.span(),
                    format!(
                        "the value of variable {name_text} is not a string; put it into quotes"
                    ),
                );
                valid = false;
            }
        }
        valid
    }

    /// Reports an unknown runtime.
    fn check_runtime(&mut self, item: &Item<'_>) -> bool {
        let name = item.get_ref().as_str().unwrap_or_default();
        if AgentRuntime::NAMES.contains(&name) || !item.get_ref().is_str() {
            return true;
        }
        self.report(item.span(), unknown("runtime", name, AgentRuntime::NAMES));
        false
    }

    /// Validates each key of a jail separately, with a root directory where the key needs one.
    fn check_jail(&mut self, jail: &DeTable<'_>) -> bool {
        let mistakes_before = self.mistakes.len();
        for (key, value) in jail {
            if !self.check_key(key, value, fields_of::<JailConfig>()) {
                continue;
            }
            if let Some(jail) = self.read_one::<JailConfig>(key, value) {
                let request = SpawnRequest {
                    jail: Some(jail),
                    ..SpawnRequest::default()
                };
                if let Some(message) = unusable_as_part(request) {
                    self.report(value.span(), message);
                }
            }
        }
        self.mistakes.len() == mistakes_before
    }

    fn autostart(&mut self, item: &Item<'_>) {
        let mut keys = BTreeSet::new();
        let entries = item.get_ref().as_array().map(|entries| entries.iter());
        let tables: Option<Vec<_>> = entries.and_then(|entries| {
            entries
                .map(|entry| Some((entry.get_ref().as_table()?, entry.span())))
                .collect()
        });
        let Some(tables) = tables else {
            self.mask(item);
            return self.report(
                item.span(),
                "autostart is a list of tables; write each entry as [[autostart]]",
            );
        };
        for (table, span) in tables {
            if let Some(entry) = self.autostart_entry(table, span, &mut keys) {
                self.file.autostart.push(entry);
            }
        }
    }

    /// Validates an entry. `keys` are those of the entries before it.
    fn autostart_entry(
        &mut self,
        table: &DeTable<'_>,
        span: Span,
        keys: &mut BTreeSet<String>,
    ) -> Option<Autostart> {
        let mistakes_before = self.mistakes.len();
        let mut options = self.profile(table, &span, TableKind::Autostart);
        if let Some(item) = table.get(PROFILE) {
            let Some(name) = item.get_ref().as_str() else {
                self.report(
                    item.span(),
                    "profile is not a name; put the name of a profile into quotes",
                );
                return None;
            };
            if !self.file.profiles.contains_key(name) {
                let known: Vec<&str> = self.file.profiles.keys().map(String::as_str).collect();
                let message = unknown("profile", name, &known);
                self.report(item.span(), message);
                return None;
            }
            options.request.profile = Some(name.to_owned());
        }
        let request = &options.request;
        let Some(key) = request.name.clone().or_else(|| request.profile.clone()) else {
            self.report(
                span,
                "an autostart entry needs a name or a profile; set name",
            );
            return None;
        };
        if !keys.insert(key.clone()) {
            let named_by = table.get("name").or_else(|| table.get(PROFILE));
            self.report(
                named_by.map_or(span, Spanned::span),
                format!("another entry is called {key:?}, and names are unique; set another name"),
            );
            return None;
        }
        let entry = Autostart { key, options };
        if self.mistakes.len() == mistakes_before {
            let message = match entry.merged(&self.file.profiles) {
                Ok(profile) => unusable(profile.request),
                Err(error) => Some(error.to_string()),
            };
            if let Some(message) = message {
                self.report(span, message);
                return None;
            }
        }
        Some(entry)
    }
}

/// Returns why one key of a profile is invalid.
fn check_profile_key(profile: Profile) -> Option<String> {
    if let Some(message) = profile.env_file.as_deref().and_then(check_absolute) {
        return Some(message);
    }
    let mut request = profile.request;
    let secrets: BTreeMap<_, _> = profile
        .secrets
        .into_iter()
        .map(|name| (name, String::new()))
        .collect();
    if !secrets.is_empty() {
        request.env.0 = secrets;
    }
    unusable_as_part(request)
}

/// Returns why no request that this one is a part of can be spawned.
fn unusable_as_part(mut request: SpawnRequest) -> Option<String> {
    request.program.get_or_insert_with(|| "agent".to_owned());
    if let Some(jail) = &mut request.jail
        && !jail.is_jail()
    {
        // Whether the agent is jailed, and therefore which variables are allowed, depends on the rest of the request.
        jail.path = Some("/".to_owned());
        request.env.0.clear();
    }
    unusable(request)
}

/// Returns why a request is invalid on every host.
fn unusable(request: SpawnRequest) -> Option<String> {
    match request.resolve() {
        Err(error) => Some(error.to_string()),
        Ok(config) => config
            .validate("colibri-ID")
            .err()
            .map(|error| error.to_string()),
    }
}
