//! Named sets of what a spawn request may hold, and how a request is laid over one. Pure, but for the environment
//! file that [`Profile::resolve`] reads.
//!
//! A request, an entry of `[[autostart]]` and a profile are of one type, in which everything may be absent: to
//! use a profile is to fill the gaps of a request.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::path::PathBuf;

use colibri_jail_core::{JailConfig, MountConfig};
use colibri_shim::restart::{RestartPolicy, RestartWhen};
use serde::{Deserialize, Deserializer};
use serde_json::Value;

use crate::env_file::{self, Readers};
use crate::{AgentSpawnConfig, SpawnError};

/// What `runtime` may be. Those who read the agents' events know them; a test of the daemon's holds this to it.
pub const RUNTIMES: &[&str] = &["pi", "zot", "generic"];

/// A profile; also a request. Durations are in milliseconds, and written like `500ms`, `5s` or `8h` in a file.
#[derive(Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Profile {
    /// The agent's program.
    pub program: Option<String>,
    /// Its arguments. They belong to `program`: whoever names another program takes none of these.
    pub args: Option<Vec<String>>,
    /// Variables of the agent.
    pub env: BTreeMap<String, String>,
    /// A file of more variables; those of `env` win over it.
    pub env_file: Option<PathBuf>,
    /// Variables whose values come from the environment of whoever asks, unless `env` has them; they win over
    /// `env_file`.
    pub secrets: BTreeSet<String>,
    /// Working directory, inside the jail where there is one.
    pub cwd: Option<String>,
    /// Confinement.
    pub jail: Option<JailConfig>,
    /// How the agent's output is read: one of [`RUNTIMES`].
    pub runtime: Option<String>,
    /// A label for people.
    pub name: Option<String>,
    /// When it is started again.
    pub restart: Option<RestartWhen>,
    /// The longest wait before the first restart.
    #[serde(rename = "restart_delay", deserialize_with = "milliseconds")]
    pub restart_delay_ms: Option<u64>,
    /// No wait is longer.
    #[serde(rename = "restart_max_delay", deserialize_with = "milliseconds")]
    pub restart_max_delay_ms: Option<u64>,
    /// It is given up after so many restarts within the window.
    pub restart_limit: Option<u32>,
    /// The window of the limit.
    #[serde(rename = "restart_window", deserialize_with = "milliseconds")]
    pub restart_window_ms: Option<u64>,
}

/// Why a profile cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ProfileError {
    /// There is no profile of that name.
    #[error("there is no profile {name:?}; {}", known_profiles(.known))]
    Unknown {
        /// As asked for.
        name: String,
        /// Those that there are.
        known: Vec<String>,
    },
    /// Neither the request nor a profile says what to run.
    #[error("no program is named; give one, or a profile that has one")]
    NoProgram,
    /// Whoever asks has not given a secret.
    #[error(
        "the secret {name} is not there; set it in the environment of whoever starts the agent, or give it a value in env"
    )]
    Secret {
        /// The variable.
        name: String,
    },
    /// Two jails cannot be one.
    #[error("the jail of the profile and that of the request cannot be merged: {0}")]
    Jail(String),
}

fn known_profiles(known: &[String]) -> String {
    match known {
        [] => "the settings file has none; write one as [profile.NAME]".to_owned(),
        known => format!("the settings file has: {}", known.join(", ")),
    }
}

/// Shows the names of `env` and never the values: they may be secrets.
impl fmt::Debug for Profile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Profile")
            .field("program", &self.program)
            .field("args", &self.args)
            .field("env", &self.env.keys().collect::<Vec<_>>())
            .field("env_file", &self.env_file)
            .field("secrets", &self.secrets)
            .field("cwd", &self.cwd)
            .field("jail", &self.jail)
            .field("runtime", &self.runtime)
            .field("name", &self.name)
            .field("restart", &self.restart)
            .field("restart_delay_ms", &self.restart_delay_ms)
            .field("restart_max_delay_ms", &self.restart_max_delay_ms)
            .field("restart_limit", &self.restart_limit)
            .field("restart_window_ms", &self.restart_window_ms)
            .finish()
    }
}

impl Profile {
    /// This, with its gaps filled from `weaker`: maps and the jail field by field, lists of the jail one behind
    /// the other, everything else as a whole.
    ///
    /// # Errors
    /// The jails cannot be merged.
    pub fn or(self, weaker: Self) -> Result<Self, ProfileError> {
        let mut env = weaker.env;
        env.extend(self.env);
        let mut secrets = weaker.secrets;
        secrets.extend(self.secrets);
        // Where a jail starts is the same question.
        let workdir = self.jail.as_ref().and_then(|jail| jail.workdir.as_ref());
        let weaker_cwd = weaker.cwd.filter(|_| workdir.is_none());
        let weaker_args = weaker.args.filter(|_| self.program.is_none());
        Ok(Self {
            args: self.args.or(weaker_args),
            program: self.program.or(weaker.program),
            env,
            env_file: self.env_file.or(weaker.env_file),
            secrets,
            cwd: self.cwd.or(weaker_cwd),
            jail: match (self.jail, weaker.jail) {
                (Some(own), Some(weaker)) => Some(jail_or(&own, weaker)?),
                (own, weaker) => own.or(weaker),
            },
            runtime: self.runtime.or(weaker.runtime),
            name: self.name.or(weaker.name),
            restart: self.restart.or(weaker.restart),
            restart_delay_ms: self.restart_delay_ms.or(weaker.restart_delay_ms),
            restart_max_delay_ms: self.restart_max_delay_ms.or(weaker.restart_max_delay_ms),
            restart_limit: self.restart_limit.or(weaker.restart_limit),
            restart_window_ms: self.restart_window_ms.or(weaker.restart_window_ms),
        })
    }

    /// This request over the profile of that name.
    ///
    /// # Errors
    /// There is no such profile; the error lists those that there are.
    pub fn over(
        self,
        name: Option<&str>,
        profiles: &BTreeMap<String, Self>,
    ) -> Result<Self, ProfileError> {
        match name {
            None => Ok(self),
            Some(name) => match profiles.get(name) {
                Some(profile) => self.or(profile.clone()),
                None => Err(ProfileError::Unknown {
                    name: name.chars().take(60).collect(),
                    known: profiles.keys().cloned().collect(),
                }),
            },
        }
    }

    /// What to spawn, with every variable: those of `env`, then each secret by `lookup`, which gives a variable of
    /// whoever asks, then those of `env_file`, which is read.
    ///
    /// # Errors
    /// A secret has no value, the file cannot be used, or no program is named.
    pub fn resolve(
        mut self,
        lookup: impl Fn(&str) -> Option<String>,
    ) -> Result<AgentSpawnConfig, SpawnError> {
        let file = match &self.env_file {
            Some(path) => env_file::read(path, Readers::Owner)?,
            None => BTreeMap::new(),
        };
        self.fill(lookup, file)?;
        Ok(self.into_config()?)
    }

    fn fill(
        &mut self,
        lookup: impl Fn(&str) -> Option<String>,
        file: BTreeMap<String, String>,
    ) -> Result<(), ProfileError> {
        for name in &self.secrets {
            if let (false, Some(value)) = (self.env.contains_key(name), lookup(name)) {
                self.env.insert(name.clone(), value);
            }
        }
        for (name, value) in file {
            self.env.entry(name).or_insert(value);
        }
        match self
            .secrets
            .iter()
            .find(|name| !self.env.contains_key(*name))
        {
            Some(name) => Err(ProfileError::Secret { name: name.clone() }),
            None => Ok(()),
        }
    }

    /// What to spawn, without what `env_file` holds and without secrets that nobody has filled in.
    ///
    /// # Errors
    /// No program is named.
    pub fn into_config(self) -> Result<AgentSpawnConfig, ProfileError> {
        let default = RestartPolicy::default();
        Ok(AgentSpawnConfig {
            program: self.program.ok_or(ProfileError::NoProgram)?,
            args: self.args.unwrap_or_default(),
            env: self.env,
            cwd: self.cwd,
            jail: self.jail.filter(|jail| *jail != JailConfig::default()),
            runtime: self.runtime,
            name: self.name,
            restart: self.restart.map(|when| RestartPolicy {
                when,
                delay_ms: self.restart_delay_ms.unwrap_or(default.delay_ms),
                max_delay_ms: self.restart_max_delay_ms.unwrap_or(default.max_delay_ms),
                limit: self.restart_limit.unwrap_or(default.limit),
                window_ms: self.restart_window_ms.unwrap_or(default.window_ms),
            }),
            autostart: None,
        })
    }
}

/// `own` over `weaker`, whatever fields a jail has. Which jail it is, is one question, and what is mounted at one
/// place is another: an answer to it replaces the other's. Nothing that confines is dropped beside that: where it
/// does not go with the other jail, the spawn is refused.
fn jail_or(own: &JailConfig, mut weaker: JailConfig) -> Result<JailConfig, ProfileError> {
    if own.name.is_some() {
        weaker.path = None;
    }
    if own.path.is_some() && own.name.is_none() {
        weaker.name = None;
    }
    let at = |mount: &MountConfig| mount.target.clone().unwrap_or_else(|| mount.source.clone());
    weaker
        .mounts
        .retain(|mount| !own.mounts.iter().any(|over| at(over) == at(mount)));
    let failed = |error: serde_json::Error| ProfileError::Jail(error.to_string());
    let mut merged = serde_json::to_value(&weaker).map_err(failed)?;
    lay_over(&mut merged, serde_json::to_value(own).map_err(failed)?);
    serde_json::from_value(merged).map_err(failed)
}

/// Objects by key, lists one behind the other, anything else replaced. What says `null` says nothing.
fn lay_over(weaker: &mut Value, over: Value) {
    match (weaker, over) {
        (Value::Object(weaker), Value::Object(over)) => {
            for (key, value) in over {
                lay_over(weaker.entry(key).or_insert(Value::Null), value);
            }
        }
        (Value::Array(weaker), Value::Array(over)) => weaker.extend(over),
        (_, Value::Null) => {}
        (weaker, over) => *weaker = over,
    }
}

/// A duration as jiff reads it (ISO 8601, or like `1h 30m`), in milliseconds.
fn milliseconds<'de, D: Deserializer<'de>>(from: D) -> Result<Option<u64>, D::Error> {
    let text = String::deserialize(from)?;
    let duration = text
        .parse::<jiff::SignedDuration>()
        .ok()
        .and_then(|duration| u64::try_from(duration.as_millis()).ok());
    match duration {
        Some(ms) => Ok(Some(ms)),
        None => Err(serde::de::Error::custom(format!(
            "{text:?} is no duration; write it like \"5s\", \"500ms\" or \"8h\""
        ))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn profile(text: &str) -> Profile {
        toml::from_str(text).unwrap()
    }

    #[test]
    fn a_request_wins_and_its_gaps_are_filled() {
        for (request, weaker, merged) in [
            ("", "", ""),
            (
                "",
                "program = 'pi'\nargs = ['a']",
                "program = 'pi'\nargs = ['a']",
            ),
            (
                "program = 'sh'",
                "program = 'pi'\nargs = ['a']",
                "program = 'sh'",
            ),
            (
                "args = ['b']",
                "program = 'pi'\nargs = ['a']",
                "program = 'pi'\nargs = ['b']",
            ),
            (
                "program = 'sh'\nargs = []",
                "args = ['a']",
                "program = 'sh'\nargs = []",
            ),
            (
                "env = { A = '1', B = '1' }",
                "env = { B = '2', C = '2' }",
                "env = { A = '1', B = '1', C = '2' }",
            ),
            (
                "env_file = '/a'",
                "env_file = '/b'\nsecrets = ['S']",
                "env_file = '/a'\nsecrets = ['S']",
            ),
            (
                "secrets = ['S', 'T']",
                "secrets = ['R', 'S']",
                "secrets = ['R', 'S', 'T']",
            ),
            (
                "cwd = '/a'\nname = 'x'",
                "cwd = '/b'\nruntime = 'pi'",
                "cwd = '/a'\nname = 'x'\nruntime = 'pi'",
            ),
            (
                "restart = 'never'\nrestart_limit = 3",
                "restart = 'always'\nrestart_delay = '2s'\nrestart_limit = 5",
                "restart = 'never'\nrestart_delay = '2s'\nrestart_limit = 3",
            ),
            (
                "jail = { user = 'a' }",
                "jail = { path = '/s', user = 'b' }",
                "jail = { path = '/s', user = 'a' }",
            ),
            ("", "jail = { path = '/s' }", "jail = { path = '/s' }"),
            ("jail = { path = '/s' }", "", "jail = { path = '/s' }"),
            // Which jail it is, is one question.
            (
                "jail = { path = '/r' }",
                "jail = { name = 'web', user = 'u' }",
                "jail = { path = '/r', user = 'u' }",
            ),
            (
                "jail = { name = 'web' }",
                "jail = { path = '/r', ip4 = 'disable', allow = ['a:1'] }",
                "jail = { name = 'web', ip4 = 'disable', allow = ['a:1'] }",
            ),
            (
                "jail = { mounts = [{ source = '/a' }, { source = '/n', target = '/x' }] }",
                "jail = { mounts = [{ source = '/x', read_only = true }, { source = '/y' }] }",
                "jail = { mounts = [{ source = '/y' }, { source = '/a' }, { source = '/n', target = '/x' }] }",
            ),
            (
                "jail = { limits = { memory = '1G' }, allow = ['b:1'] }",
                "jail = { limits = { memory = '2G', wall_time = '8h' }, allow = ['a:1'] }",
                "jail = { limits = { memory = '1G', wall_time = '8h' }, allow = ['a:1', 'b:1'] }",
            ),
            (
                "jail = { workdir = '/w' }",
                "cwd = '/c'\njail = { path = '/' }",
                "jail = { path = '/', workdir = '/w' }",
            ),
            (
                "jail = { ip4 = 'disable' }",
                "jail = { path = '/r', ip4 = 'new' }",
                "jail = { path = '/r', ip4 = 'disable' }",
            ),
        ] {
            let found = profile(request).or(profile(weaker)).unwrap();
            assert_eq!(found, profile(merged), "{request} over {weaker}");
        }
    }

    #[test]
    fn fields_of_a_jail_that_are_maps_and_lists_are_merged_too() {
        let over = serde_json::json!({"a": {"x": 1}, "l": [2], "n": null, "s": "own"});
        let mut weaker =
            serde_json::json!({"a": {"x": 0, "y": 0}, "l": [1], "n": 3, "s": "w", "w": 1});
        lay_over(&mut weaker, over);
        let expected =
            serde_json::json!({"a": {"x": 1, "y": 0}, "l": [1, 2], "n": 3, "s": "own", "w": 1});
        assert_eq!(weaker, expected);
    }

    #[test]
    fn a_profile_is_found_by_its_name_and_the_known_ones_are_listed() {
        let profiles = BTreeMap::from([
            ("review".to_owned(), profile("program = 'pi'")),
            ("fix".to_owned(), profile("program = 'zot'")),
        ]);
        let used = Profile::default().over(Some("fix"), &profiles).unwrap();
        assert_eq!(used.program.as_deref(), Some("zot"));
        assert_eq!(
            Profile::default().over(None, &profiles).unwrap(),
            Profile::default()
        );
        let message = |name, profiles| {
            Profile::default()
                .over(Some(name), profiles)
                .unwrap_err()
                .to_string()
        };
        assert_eq!(
            message("fixx", &profiles),
            "there is no profile \"fixx\"; the settings file has: fix, review"
        );
        assert!(message("fix", &BTreeMap::new()).contains("[profile.NAME]"));
        assert_eq!(
            Profile::default().into_config().unwrap_err(),
            ProfileError::NoProgram
        );
    }

    #[test]
    fn variables_given_win_over_secrets_and_those_over_the_file() {
        let file = BTreeMap::from([
            ("A".to_owned(), "file".to_owned()),
            ("F".to_owned(), "file".to_owned()),
        ]);
        let with = |text: &str| {
            let mut profile = profile(text);
            profile.fill(
                |name| (name == "A").then(|| "asked".to_owned()),
                file.clone(),
            )?;
            Ok::<_, ProfileError>(profile)
        };
        for (text, a, f) in [
            ("", "file", "file"),
            ("secrets = ['A', 'F']", "asked", "file"),
            (
                "secrets = ['A']\nenv = { A = 'given', F = 'given' }",
                "given",
                "given",
            ),
        ] {
            let filled = with(text).unwrap();
            assert_eq!(
                (filled.env["A"].as_str(), filled.env["F"].as_str()),
                (a, f),
                "{text}"
            );
            assert!(!format!("{filled:?}").contains("asked"));
        }
        let error = with("secrets = ['A', 'B']").unwrap_err();
        assert_eq!(error, ProfileError::Secret { name: "B".into() });
    }

    #[test]
    fn durations_are_read_and_become_a_policy() {
        let config = profile(
            "program = 'p'\nrestart = 'on-failure'\nrestart_delay = '500ms'\nrestart_window = '1h 30m'\nrestart_max_delay = '24h'",
        )
        .into_config()
        .unwrap();
        assert_eq!(
            config.restart.unwrap(),
            RestartPolicy {
                when: RestartWhen::OnFailure,
                delay_ms: 500,
                max_delay_ms: 86_400_000,
                window_ms: 5_400_000,
                ..RestartPolicy::default()
            }
        );
        for bad in ["soon", "-5s", "", "5"] {
            let error = toml::from_str::<Profile>(&format!("restart_delay = '{bad}'")).unwrap_err();
            assert!(error.to_string().contains("no duration"), "{error}");
        }
    }

    fn any_profile() -> impl Strategy<Value = Profile> {
        use proptest::option::of;
        let text = || of("[a-c]");
        let jail =
            (text(), text(), text(), text()).prop_map(|(name, path, ip4, user)| JailConfig {
                name,
                path,
                ip4,
                user,
                ..JailConfig::default()
            });
        let env = proptest::collection::btree_map("[A-C]", "[a-c]", 0..3);
        let secrets = proptest::collection::btree_set("[A-C]", 0..3);
        let times = (of(0_u64..3), of(0_u64..3), of(0_u32..3));
        let texts = (
            text(),
            of(proptest::collection::vec("[a-c]", 0..3)),
            text(),
            text(),
            text(),
        );
        (texts, env, secrets, of(jail), times).prop_map(|(texts, env, secrets, jail, times)| {
            Profile {
                program: texts.0,
                args: texts.1,
                cwd: texts.2,
                runtime: texts.3,
                name: texts.4,
                env,
                secrets,
                jail,
                restart_delay_ms: times.0,
                restart_window_ms: times.1,
                restart_limit: times.2,
                ..Profile::default()
            }
        })
    }

    proptest! {
        #[test]
        fn nothing_changes_with_nothing_and_whatever_a_request_says_stays(
            request in any_profile(), weaker in any_profile(),
        ) {
            let nothing = Profile::default;
            prop_assert_eq!(&request.clone().or(nothing()).unwrap(), &request);
            prop_assert_eq!(&nothing().or(weaker.clone()).unwrap(), &weaker);
            let merged = request.clone().or(weaker.clone()).unwrap();
            // Laid over the result once more, it changes nothing: all of it is in there.
            prop_assert_eq!(&request.clone().or(merged.clone()).unwrap(), &merged);
            for (name, value) in &merged.env {
                let from = request.env.get(name).or(weaker.env.get(name));
                prop_assert_eq!(Some(value), from);
            }
            for (own, weaker, merged) in [
                (&request.program, &weaker.program, &merged.program),
                (&request.cwd, &weaker.cwd, &merged.cwd),
                (&request.name, &weaker.name, &merged.name),
            ] {
                prop_assert_eq!(own.as_ref().or(weaker.as_ref()), merged.as_ref());
            }
            // Nobody who asks for a confinement gets none.
            let asked = [&request, &weaker].iter().filter_map(|p| p.jail.as_ref()).any(|jail| jail.name.is_some() || jail.path.is_some());
            let given = merged.jail.as_ref().is_some_and(|jail| jail.name.is_some() || jail.path.is_some());
            prop_assert_eq!(asked, given);
        }
    }
}
