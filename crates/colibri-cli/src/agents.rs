//! `colibri agents`, and the presets of `--agent`.

use std::collections::BTreeMap;

use colibri_client::{JailConfig, SpawnRequest};
use colibri_config::ConfigFile;
use colibri_presets::{AgentPlan, Host, Mode, Preset, Session, find, with_builtin};
use serde::Serialize;

use crate::args::Spawn;
use crate::connect::lookup;
use crate::error::CliError;
use crate::output;

/// Returns the presets of Colibri and of the settings file.
pub(crate) fn presets() -> Result<BTreeMap<String, Preset>, CliError> {
    let file = ConfigFile::read(None, lookup)?;
    Ok(with_builtin(&file.agents)?)
}

/// How a missing login is handled.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum MissingLogin {
    /// Fails the command.
    Fail,
    /// Prints a message and continues.
    Warn,
}

/// Returns what the preset of `--agent` adds to the request; `None` without one.
pub(crate) fn request(
    spawn: &Spawn,
    missing_login: MissingLogin,
) -> Result<Option<SpawnRequest>, CliError> {
    let Some(name) = &spawn.agent else {
        return Ok(None);
    };
    let presets = presets()?;
    let preset = find(&presets, name)?;
    let mode = match (&spawn.task, spawn.ask) {
        (task, _) if spawn.terminal => Mode::Terminal(task.as_deref()),
        (Some(prompt), _) => Mode::Once(prompt),
        (None, true) => Mode::Asking,
        (None, false) => Mode::Driven,
    };
    let host = Host::new(lookup);
    let plan = preset.plan(name, &mode, Session::New, &host)?;
    if !spawn.gives_variables() {
        let checked = preset.check_login(name, &plan);
        match (checked, missing_login) {
            (Ok(()), _) => {}
            (Err(error), MissingLogin::Fail) => return Err(error.into()),
            (Err(error), MissingLogin::Warn) => output::message(&error.to_string()),
        }
    }
    report_exposed_keys(&plan);
    let mut request = plan.request;
    let args = request.args.get_or_insert_default();
    args.extend(spawn.command.iter().cloned());
    request.added_args.clone_from(&spawn.command);
    if cfg!(not(target_os = "linux"))
        && let Some(jail) = &mut request.jail
    {
        // Only the sandboxes of Linux have homes and credentials.
        jail.home_files.clear();
        for credential in std::mem::take(&mut jail.credentials) {
            let host = credential.split_once('@').map_or("", |(_, host)| host);
            jail.allow.push(match host.contains(':') {
                true => host.to_owned(),
                false => format!("{host}:443"),
            });
        }
    }
    Ok(Some(request))
}

/// Names the keys that the agent can read.
pub(crate) fn report_exposed_keys(plan: &AgentPlan) {
    for key in &plan.exposed_keys {
        output::message(&format!(
            "the agent can read the key {key}, which is not replaced by a placeholder: its URL is not https, or the agent needs the key itself"
        ));
    }
}

/// Adds what a preset adds to the options of a user. Without a jail, the agent uses the settings and the network of the user.
pub(crate) fn with_preset(options: SpawnRequest, preset: Option<SpawnRequest>) -> SpawnRequest {
    let Some(mut preset) = preset else {
        return options;
    };
    let has_jail = options.jail.as_ref().is_some_and(JailConfig::is_jail);
    if !has_jail && options.profile.is_none() {
        preset.jail = None;
    }
    options.or(preset)
}

/// Returns whether the agent of a preset can ask before it uses its tools.
pub(crate) fn can_ask(name: &str) -> Result<bool, CliError> {
    Ok(find(&presets()?, name)?.ask_args.is_some())
}

/// Shows what the preset adds to a request.
pub(crate) fn explain(request: &SpawnRequest) {
    for line in description(request) {
        output::message(&line);
    }
}

/// Returns what an agent is given, a line each. Contains no values of variables.
fn description(request: &SpawnRequest) -> Vec<String> {
    let mut lines = Vec::new();
    let mut add = |what: &str, values: Vec<String>| {
        if !values.is_empty() {
            lines.push(format!("{what}: {}", values.join(", ")));
        }
    };
    let words = request.program.iter().chain(request.args.iter().flatten());
    add(
        "command",
        vec![words.cloned().collect::<Vec<_>>().join(" ")],
    );
    let runtime = request.runtime.map(|runtime| runtime.to_string());
    add("runtime", runtime.into_iter().collect());
    add("variables", request.env.keys().cloned().collect());
    let Some(jail) = &request.jail else {
        return lines;
    };
    let mounts = jail.mounts.iter().map(|mount| mount.source.clone());
    add("read-only", mounts.collect());
    let files = jail.home_files.iter();
    // The plan adds an empty file only so that the daemon provides a home.
    let files = files.filter(|file| file.content.as_deref() != Some(""));
    let copies = files.map(|file| match &file.source {
        Some(source) => format!("{source} as ~/{}", file.target),
        None => format!("~/{} (new)", file.target),
    });
    add("copies in a private home", copies.collect());
    add("hosts", jail.allow.clone());
    add("keys that the proxy adds", jail.credentials.clone());
    lines
}

/// An agent in the list.
#[derive(Debug, Serialize)]
struct Listed {
    name: String,
    about: String,
    installed: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    program: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    version: Option<String>,
    /// Variables and files of a login that exist.
    logins: Vec<String>,
    install: String,
    login_hint: String,
    /// Variables with a key.
    keys: Vec<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    given: Vec<String>,
}

impl Listed {
    fn new(name: &str, preset: &Preset, with_details: bool) -> Self {
        let host = Host::new(lookup);
        let modes = [Mode::Driven, Mode::Once("PROMPT"), Mode::Terminal(None)];
        let plan = modes
            .iter()
            .find_map(|mode| preset.plan(name, mode, Session::New, &host).ok());
        let installed = preset.installed(name, &host).ok();
        Self {
            name: name.to_owned(),
            about: preset.about.clone(),
            installed: installed.is_some(),
            version: installed.as_ref().and_then(|program| program.version()),
            program: installed.map(|program| program.path.display().to_string()),
            logins: plan
                .as_ref()
                .map_or_else(Vec::new, |plan| plan.logins.clone()),
            install: preset.install.clone(),
            login_hint: preset.login_hint.clone(),
            keys: preset.keys.iter().map(|key| key.name.clone()).collect(),
            given: match (with_details, &plan) {
                (true, Some(plan)) => description(&plan.request),
                _ => Vec::new(),
            },
        }
    }

    fn page(&self) -> String {
        let mut page = String::new();
        let mut row = |name: &str, value: &str| {
            if !value.is_empty() {
                page.push_str(&format!("{name:<10}  {}\n", output::sanitize(value, 2000)));
            }
        };
        row("agent", &format!("{} ({})", self.name, self.about));
        row(
            "program",
            self.program.as_deref().unwrap_or("not installed"),
        );
        row("version", self.version.as_deref().unwrap_or_default());
        row("install", &self.install);
        match self.logins.as_slice() {
            [] => {
                let keys = match self.keys.is_empty() {
                    true => String::new(),
                    false => format!("set {}", self.keys.join(" or ")),
                };
                let ways = [keys, self.login_hint.clone()].into_iter();
                let ways: Vec<String> = ways.filter(|way| !way.is_empty()).collect();
                row("login", &format!("none; {}", ways.join("; or ")));
            }
            logins => row("login", &logins.join(", ")),
        }
        for line in &self.given {
            row("given", line);
        }
        page
    }
}

/// Lists the agents, or shows one.
pub(crate) fn agents(name: Option<&str>, json: bool) -> Result<u8, CliError> {
    let presets = presets()?;
    if let Some(name) = name {
        let preset = find(&presets, name)?;
        let listed = Listed::new(name, preset, true);
        output::print_result(json, &listed, Listed::page)?;
        return Ok(0);
    }
    let listed: Vec<Listed> = presets
        .iter()
        .map(|(name, preset)| Listed::new(name, preset, false))
        .collect();
    output::print_result(json, &listed, |listed| table(listed))?;
    Ok(0)
}

fn table(agents: &[Listed]) -> String {
    let mut table = format!(
        "{:<10}  {:<13}  {:<24}  {}\n",
        "NAME", "VERSION", "LOGIN", "INSTALL"
    );
    for agent in agents {
        let version = match (&agent.version, agent.installed) {
            (Some(version), _) => version.as_str(),
            (None, true) => "installed",
            (None, false) => "not installed",
        };
        let login = agent.logins.first().map_or("-", String::as_str);
        let install = if agent.installed { "-" } else { &agent.install };
        table.push_str(&format!(
            "{:<10}  {:<13}  {:<24}  {}\n",
            output::sanitize(&agent.name, 10),
            output::sanitize(version, 13),
            output::sanitize(login, 24),
            output::sanitize(install, 80),
        ));
    }
    table
}
