//! The settings file: its profiles, its errors, and reloading it.

use std::path::Path;

use colibri_client::{AgentRuntime, Client, JailConfig, ProfileInfo, ReloadResult, SpawnRequest};
use colibri_config::{ConfigError, ConfigSources, SettingsError, default_paths};

use crate::agents::MissingLogin;
use crate::args::{Global, ProfileSettings, Spawn};
use crate::connect::{connect, lookup, settings};
use crate::default_jail::DefaultJail;
use crate::error::CliError;
use crate::output::{self, sanitize};
use crate::tables::jail_name;

/// Returns the spawn request for these options, with the secrets that the daemon's profile requires.
pub(crate) async fn spawn_params(
    global: &Global,
    client: &Client,
    spawn: Spawn,
) -> Result<SpawnRequest, CliError> {
    let default_jail = DefaultJail::of(&settings(global)?);
    let agent = crate::agents::request(&spawn, MissingLogin::Fail)?;
    let with_agent = |request| crate::agents::with_preset(request, agent);
    let Some(name) = &spawn.profile else {
        let request = spawn.into_request(&ProfileSettings {
            default_jail,
            ..ProfileSettings::default()
        });
        return request.map(with_agent);
    };
    // The daemon refuses an unknown profile, and lists the known ones.
    let mut profiles = client.list_profiles().await?.profiles.into_iter();
    let profile = profiles.find(|profile| profile.name == *name);
    let mut profile_settings =
        profile.map_or_else(ProfileSettings::default, |profile| ProfileSettings {
            default_jail: DefaultJail::default(),
            has_jail: profile.jail.as_ref().is_some_and(JailConfig::is_jail),
            has_cwd: profile.cwd.is_some(),
            // A secret that the profile may set itself is optional here.
            secrets: profile
                .secrets
                .into_iter()
                .filter(|name| {
                    let may_be_set = profile.env.contains(name) || profile.env_file.is_some();
                    !may_be_set || std::env::var_os(name).is_some()
                })
                .collect(),
        });
    profile_settings.default_jail = default_jail;
    spawn.into_request(&profile_settings).map(with_agent)
}

/// Lists the daemon's profiles.
pub(crate) async fn profiles(global: &Global, json: bool) -> Result<u8, CliError> {
    let found = connect(global).await?.list_profiles().await?;
    if !json && found.profiles.is_empty() {
        output::message(match found.file {
            Some(_) => {
                "the daemon's settings file has no profiles; add one as colibri-daemon(8) describes"
            }
            None => {
                "the daemon has no settings file and no profiles; create one as colibri-daemon(8) describes"
            }
        });
    } else {
        output::print_result(json, &found, |found| profile_table(&found.profiles))?;
    }
    Ok(0)
}

/// Validates a settings file and the files that it names, as a daemon does when it starts.
pub(crate) fn check(path: Option<&Path>) -> Result<u8, CliError> {
    let sources = ConfigSources {
        path: path.map(Path::to_owned),
        ..ConfigSources::default()
    };
    let file = sources.load(lookup)?.file;
    let Some(path) = file.path() else {
        let paths: Vec<_> = default_paths(lookup)
            .iter()
            .map(|path| path.display().to_string())
            .collect();
        output::message(&format!(
            "no settings file exists; create it at {}",
            paths.join(" or ")
        ));
        return Ok(0);
    };
    let unusable = file.unusable_env_files();
    if !unusable.is_empty() {
        return Err(SettingsError::from(ConfigError(unusable)).into());
    }
    let summary = format!(
        "{}: no errors; profiles: {}; agents that start with the daemon: {}\n",
        path.display(),
        names(file.profiles.keys()),
        names(file.autostart.iter().map(|entry| &entry.key)),
    );
    output::print(summary)?;
    Ok(0)
}

/// Makes the daemon read its settings file again; exits with 1 if an agent could not be started.
pub(crate) async fn reload(global: &Global, json: bool) -> Result<u8, CliError> {
    let result = connect(global).await?.reload_config().await?;
    output::print_result(json, &result, reload_report)?;
    Ok(u8::from(!result.not_started.is_empty()))
}

fn names<'a>(names: impl Iterator<Item = &'a String>) -> String {
    let names: Vec<&str> = names.map(String::as_str).collect();
    match names.is_empty() {
        true => "none".to_owned(),
        false => names.join(", "),
    }
}

fn profile_table(profiles: &[ProfileInfo]) -> String {
    let mut table = format!(
        "{:<16}  {:<7}  {:<16}  {:<10}  {:<20}  COMMAND\n",
        "NAME", "RUNTIME", "JAIL", "RESTART", "SECRETS"
    );
    for profile in profiles {
        let words = profile.program.iter().chain(profile.args.iter().flatten());
        let command: Vec<&str> = words.map(String::as_str).collect();
        let restart = serde_json::to_value(profile.restart).unwrap_or_default();
        let or_none = |text: String| match text.as_str() {
            "" => "-".to_owned(),
            _ => text,
        };
        table.push_str(&format!(
            "{:<16}  {:<7}  {:<16}  {:<10}  {:<20}  {}\n",
            sanitize(&profile.name, 16),
            profile.runtime.map_or("-", AgentRuntime::as_str),
            sanitize(jail_name(profile.jail.as_ref()), 16),
            restart.as_str().unwrap_or("-"),
            sanitize(&or_none(profile.secrets.join(",")), 20),
            sanitize(&or_none(command.join(" ")), 60),
        ));
    }
    table
}

fn reload_report(result: &ReloadResult) -> String {
    let file = result.file.as_deref().unwrap_or("no settings file");
    let mut lines = vec![format!("reloaded: {file}")];
    let mut line = |title: &str, names: &[String]| {
        if !names.is_empty() {
            lines.push(format!("{title}: {}", names.join(", ")));
        }
    };
    line(
        "settings changed for agents started from now on",
        &result.settings,
    );
    line(
        "settings changed that need a restart of the daemon",
        &result.needs_restart,
    );
    for (section, changes) in [
        ("profiles", &result.profiles),
        ("autostart", &result.autostart),
    ] {
        line(&format!("{section} added"), &changes.added);
        line(&format!("{section} changed"), &changes.changed);
        line(&format!("{section} removed"), &changes.removed);
    }
    if lines.len() == 1 {
        lines.push("no changes".to_owned());
    }
    for started in &result.started {
        lines.push(format!("started {}: {}", started.name, started.id));
    }
    for failed in &result.not_started {
        lines.push(format!("not started {}: {}", failed.name, failed.error));
    }
    let lines: Vec<String> = lines
        .iter()
        .map(|line| sanitize(line, usize::MAX))
        .collect();
    lines.join("\n") + "\n"
}

#[cfg(test)]
mod tests {
    use super::*;
    use colibri_client::{AutostartFailure, AutostartedAgent, ChangedNames, RestartWhen};

    #[test]
    fn profiles_and_reload_results_are_formatted() {
        let profile = ProfileInfo {
            name: "review".into(),
            program: Some("pi".into()),
            args: Some(vec!["--mode".into(), "json\x1b[2J".into()]),
            runtime: Some(colibri_client::AgentRuntime::Pi),
            jail: Some(JailConfig {
                path: Some("/srv/agent".into()),
                ..JailConfig::default()
            }),
            secrets: vec!["API_KEY".into()],
            restart: Some(RestartWhen::OnFailure),
            ..ProfileInfo::default()
        };
        let bare = ProfileInfo {
            name: "bare".into(),
            ..ProfileInfo::default()
        };
        let words = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect();
        let result = ReloadResult {
            file: Some("/etc/colibri.toml".into()),
            settings: words(&["fsync", "retain_bytes"]),
            needs_restart: words(&["engine"]),
            profiles: ChangedNames {
                added: words(&["fix"]),
                changed: words(&["review"]),
                removed: words(&["old"]),
            },
            autostart: ChangedNames {
                added: words(&["night", "day"]),
                ..ChangedNames::default()
            },
            started: vec![AutostartedAgent {
                name: "night".into(),
                id: "k3x9abcdef".into(),
            }],
            not_started: vec![AutostartFailure {
                name: "day".into(),
                error: "no program is named".into(),
            }],
        };
        insta::assert_snapshot!(format!(
            "{}\n{}\n{}",
            profile_table(&[bare, profile]),
            reload_report(&result),
            reload_report(&ReloadResult::default())
        ));
    }
}
