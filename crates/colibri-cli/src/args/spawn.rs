//! The options of `run`, `spawn` and `explain`, and their conversion into a spawn request.

use std::collections::BTreeMap;
use std::env::VarError;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::Args;
use clap::builder::PossibleValuesParser;
use colibri_client::{
    AgentRuntime, Cpus, Env, JailConfig, Limits, MountConfig, RestartPolicy, RestartWhen, Size,
    SpawnRequest, Umask, WallTime,
};
use colibri_config::env_file::{self, AllowedReaders};
use colibri_jail_core::{CredentialRule, HomeFile, Network, Restriction, View};
use colibri_types::AgentName;

use super::values::{duration, one_of};
use crate::default_jail::DefaultJail;
use crate::error::CliError;
use crate::output;
use crate::paths::{CurrentDir, normalize_in_jail};

#[derive(Debug, Clone, Default, Args)]
pub(crate) struct Spawn {
    /// Start from this profile of the settings file; options take precedence over it
    #[arg(long, value_name = "NAME")]
    pub(crate) profile: Option<String>,
    /// Run this agent by its preset: program, arguments, runtime, mounts, copies of its settings and login, hosts and keys; see colibri agents
    #[arg(long, value_name = "NAME")]
    pub(crate) agent: Option<String>,
    /// Let the agent of the preset ask before it runs commands, and read prompts of colibri prompt
    #[arg(long, requires = "agent", conflicts_with_all = ["task", "terminal"])]
    pub(crate) ask: bool,
    /// Prompt for the agent of the preset, which ends after it; without one, the agent reads prompts of colibri prompt
    #[arg(value_name = "PROMPT", requires = "agent")]
    pub(crate) task: Option<String>,
    /// Enter this persistent jail (FreeBSD); takes precedence over --jail-path
    #[arg(long, value_name = "NAME")]
    jail_name: Option<String>,
    /// Confine it to a jail or sandbox with this root directory, removed when the agent ends
    #[arg(long, value_name = "PATH")]
    jail_path: Option<PathBuf>,
    /// Create a jail with a separate root directory, made from this template and removed with it (FreeBSD); see colibri jail init
    #[arg(long, value_name = "PATH", conflicts_with = "jail_path")]
    jail_template: Option<PathBuf>,
    /// Mount a devfs with few devices at /dev of --jail-path; --jail-template always does (FreeBSD)
    #[arg(long)]
    jail_devfs: bool,
    /// Mount a fdescfs with linrdlnk at /dev/fd, for programs that open /dev/fd/N above 2 (FreeBSD)
    #[arg(long)]
    jail_fdescfs: bool,
    /// IPv4 of the jail: inherit, disable (with bubblewrap: no network at all), new, or addresses
    #[arg(long, value_name = "POLICY")]
    jail_ip4: Option<String>,
    /// User inside the jail
    #[arg(long, value_name = "USER")]
    jail_user: Option<String>,
    /// Start it without a jail, with all rights of the daemon's user
    #[arg(long, conflicts_with_all = ["jail_name", "jail_path", "jail_template"])]
    no_jail: bool,
    /// What a sandbox with the root / shows of the host (Linux): minimal [default], or host
    #[arg(long, value_parser = PossibleValuesParser::new(View::NAMES))]
    view: Option<String>,
    /// Network: none, host, or allow for the destinations of --allow [default with bubblewrap: none, or allow with --allow]
    #[arg(long, value_parser = PossibleValuesParser::new(Network::NAMES), conflicts_with = "jail_ip4")]
    network: Option<String>,
    /// Use this directory as the agent's home; without it, the home of a sandbox is empty and removed at the end (Linux)
    #[arg(long, value_name = "DIR")]
    home: Option<PathBuf>,
    /// Copy this file or directory into the agent's home, at the same path or at TARGET in it, unless it exists there; without --home the home is removed with the agent (Linux, repeatable)
    #[arg(long, value_name = "SOURCE[:TARGET]")]
    home_file: Vec<String>,
    /// Hide this path from the agent, besides those that every sandbox hides (Linux, repeatable)
    #[arg(long, value_name = "PATH")]
    deny: Vec<PathBuf>,
    /// Let the agent write this protected path of a workspace, like .git/hooks (Linux, repeatable)
    #[arg(long, value_name = "PATH")]
    unprotect: Vec<PathBuf>,
    /// Lift this restriction of sandboxes (Linux, repeatable)
    #[arg(long, value_name = "RESTRICTION", value_parser = PossibleValuesParser::new(Restriction::ALL.iter().map(|one| one.name())))]
    lift: Vec<String>,
    /// Let the agent create nested sandboxes, as codex and browsers do; lifts user-namespaces and landlock (Linux)
    #[arg(long)]
    nested_sandbox: bool,
    /// Refuse to start it if the kernel cannot enforce a restriction (Linux)
    #[arg(long)]
    strict: bool,
    /// Mount this directory writable at the same path in the jail, and use it as the working directory
    #[arg(long, value_name = "DIR")]
    workspace: Option<PathBuf>,
    /// Mount a directory or file of the host at the same path in the jail, or at TARGET; read-only with :ro (repeatable)
    #[arg(long, value_name = "SOURCE[:TARGET][:ro]")]
    mount: Vec<MountConfig>,
    /// Allow only what these rules name, through a proxy: HOST:PORT, *.DOMAIN:PORT, tcp:HOST:PORT, 'METHOD URL'; see colibri(1) (repeatable)
    #[arg(long, value_name = "RULE")]
    allow: Vec<String>,
    /// Let the proxy add the value of this variable to requests for HOST over TLS; the agent gets a placeholder. Also NAME@HOST=HEADER: TEMPLATE (Linux, repeatable)
    #[arg(long, value_name = "NAME@HOST")]
    credential: Vec<CredentialRule>,
    /// Host name inside the jail
    #[arg(long, value_name = "NAME")]
    hostname: Option<String>,
    /// Maximum memory of all its processes together, like 512M or 2G
    #[arg(long, value_name = "SIZE")]
    memory: Option<Size>,
    /// Maximum number of processes and threads
    #[arg(long, value_name = "COUNT")]
    processes: Option<u32>,
    /// Maximum number of CPUs, like 1.5
    #[arg(long, value_name = "NUMBER")]
    cpu: Option<Cpus>,
    /// Maximum number of open files of each process
    #[arg(long, value_name = "COUNT")]
    open_files: Option<u32>,
    /// Maximum time from its first start to its end, like 90s, 30m or 8h
    #[arg(long, value_name = "DURATION")]
    wall_time: Option<WallTime>,
    /// Run it even if a limit cannot be enforced
    #[arg(long)]
    best_effort: bool,
    /// Set an environment variable (repeatable)
    #[arg(long = "env", value_name = "NAME=VALUE", value_parser = variable)]
    env: Vec<(String, String)>,
    /// Set the variables in this file of NAME=VALUE lines; --env and --secret take precedence (repeatable)
    #[arg(long, value_name = "FILE")]
    env_file: Vec<PathBuf>,
    /// Set a variable to its value in this environment, which keeps it out of argument lists (repeatable)
    #[arg(long = "secret", value_name = "NAME")]
    secrets: Vec<String>,
    /// Working directory, inside the jail if there is one [default: the workspace, or the current one in the default sandbox and without a jail, else /]
    #[arg(long, value_name = "DIR")]
    cwd: Option<String>,
    /// Close its standard input immediately, for programs that read all input before they start, like pi --mode json
    #[arg(long)]
    no_input: bool,
    /// Give the agent a terminal; attach to it with colibri attach
    #[arg(short, long, conflicts_with = "no_input")]
    pub(crate) terminal: bool,
    /// File mode creation mask of the agent, octal [default: 022]
    #[arg(long, value_name = "MASK")]
    umask: Option<Umask>,
    /// Format of the agent's output [default: auto]
    #[arg(long, value_parser = one_of::<AgentRuntime>(AgentRuntime::NAMES))]
    runtime: Option<AgentRuntime>,
    /// Name of the agent, at most 64 characters, unique among running agents
    #[arg(long, value_name = "LABEL")]
    name: Option<AgentName>,
    /// When to restart it after it has ended
    #[arg(long, value_name = "POLICY", value_parser = one_of::<RestartWhen>(RestartWhen::NAMES))]
    restart: Option<RestartWhen>,
    /// Initial delay before a restart; it doubles with each further restart [default: 1s]
    #[arg(long, value_name = "DURATION", value_parser = duration, requires = "restart")]
    restart_delay: Option<Duration>,
    /// Maximum delay before a restart; a run of at least this time resets the delay [default: 5m]
    #[arg(long, value_name = "DURATION", value_parser = duration, requires = "restart")]
    restart_max_delay: Option<Duration>,
    /// Maximum number of restarts within the window [default: 10]
    #[arg(long, value_name = "COUNT", requires = "restart")]
    restart_limit: Option<u32>,
    /// Window of --restart-limit [default: 1h]
    #[arg(long, value_name = "DURATION", value_parser = duration, requires = "restart")]
    restart_window: Option<Duration>,
    /// The agent's program and its arguments [default with --profile: those of the profile]; with --agent further arguments
    #[arg(
        last = true,
        required_unless_present_any = ["profile", "agent"],
        value_name = "PROGRAM [ARG]"
    )]
    pub(crate) command: Vec<String>,
}

/// The settings of a profile, and of the settings file, on which the request depends.
#[derive(Debug, Default)]
pub(crate) struct ProfileSettings {
    /// The jail of an agent without an option for one.
    pub(crate) default_jail: DefaultJail,
    /// Whether the profile has a jail, so that `--cwd` is a path inside it.
    pub(crate) has_jail: bool,
    /// Whether the profile has a working directory, which replaces the default one.
    pub(crate) has_cwd: bool,
    /// Names of variables to set to their values in this environment.
    pub(crate) secrets: Vec<String>,
}

impl Spawn {
    /// Returns whether options set variables, which may contain a login.
    pub(crate) fn gives_variables(&self) -> bool {
        !self.env.is_empty()
            || !self.env_file.is_empty()
            || !self.secrets.is_empty()
            || !self.credential.is_empty()
    }

    /// Returns the options with this name.
    pub(crate) fn with_name(self, name: Option<AgentName>) -> Self {
        Self { name, ..self }
    }

    /// Returns the options for an agent that works in this directory of the host, and may write it.
    pub(crate) fn with_workspace(self, directory: PathBuf) -> Self {
        match self.no_jail {
            true => self.with_cwd(directory.to_string_lossy().into_owned()),
            false => Self {
                workspace: Some(directory),
                ..self
            },
        }
    }

    /// Returns the options for an agent that works in this directory, which another option or the profile shows it.
    pub(crate) fn with_cwd(self, directory: String) -> Self {
        Self {
            cwd: Some(directory),
            ..self
        }
    }

    /// Returns the spawn request.
    pub(crate) fn into_request(self, profile: &ProfileSettings) -> Result<SpawnRequest, CliError> {
        let env = self.variables(profile)?;
        let current_dir = CurrentDir::read();
        let absolute = |path: PathBuf| current_dir.normalize(&path);
        let names_jail = profile.has_jail
            || self.jail_name.is_some()
            || self.jail_path.is_some()
            || self.jail_template.is_some();
        if self.no_jail && profile.has_jail {
            return Err(CliError::Message(
                "--no-jail cannot remove the jail of the profile; give a profile without a jail, or no profile".to_owned(),
            ));
        }
        if self.no_jail {
            output::message("the agent has no jail (--no-jail): it can do what you can");
        }
        let default_jail = match names_jail || self.no_jail {
            true => None,
            false => profile.default_jail.jail()?,
        };
        let mut workspace = self.workspace.map(absolute).transpose()?;
        let is_confined = names_jail || default_jail.is_some();
        if workspace.is_none() && self.agent.is_some() && self.cwd.is_none() && is_confined {
            workspace = project_directory(&current_dir)?;
        }
        let home = self.home.map(absolute).transpose()?;
        let home_files = self
            .home_file
            .iter()
            .map(|text| home_file(text, &current_dir))
            .collect::<Result<_, _>>()?;
        let deny = self
            .deny
            .into_iter()
            .map(absolute)
            .collect::<Result<_, _>>()?;
        let unprotect = self
            .unprotect
            .into_iter()
            .map(absolute)
            .collect::<Result<_, _>>()?;
        let mut lift = self.lift;
        if self.nested_sandbox {
            lift.push(Restriction::UserNamespaces.name().to_owned());
        }
        let jail_path = self.jail_path.map(absolute).transpose()?;
        let jail_template = self.jail_template.map(absolute).transpose()?;
        let mut mounts = Vec::new();
        for mount in self.mount {
            mounts.push(MountConfig {
                source: current_dir.normalize(mount.source.as_ref())?,
                target: mount.target.as_deref().map(normalize_in_jail),
                ..mount
            });
        }
        mounts.extend(workspace.clone().map(|source| MountConfig {
            source,
            ..MountConfig::default()
        }));
        let jail = JailConfig {
            name: self.jail_name,
            path: jail_path,
            template: jail_template,
            devfs: self.jail_devfs,
            fdescfs: self.jail_fdescfs,
            ip4: self.jail_ip4,
            user: self.jail_user,
            mounts,
            workdir: workspace,
            hostname: self.hostname,
            allow: self.allow,
            credentials: self.credential.iter().map(ToString::to_string).collect(),
            network: self.network,
            view: self.view,
            home,
            home_files,
            deny,
            unprotect,
            lift,
            strict: self.strict,
            limits: Limits {
                memory: self.memory,
                processes: self.processes,
                cpu: self.cpu,
                open_files: self.open_files,
                wall_time: self.wall_time,
            },
            best_effort: self.best_effort,
        };
        let mut default_cwd = None;
        let jail = match default_jail {
            Some(default) => {
                let has_cwd = self.cwd.is_some() || jail.workdir.is_some() || profile.has_cwd;
                let mut jail = jail.or(default);
                if !has_cwd && profile.default_jail.is_builtin() {
                    default_cwd = show_current_directory(&mut jail, &current_dir)?;
                }
                jail
            }
            None => jail,
        };
        let jail = (jail != JailConfig::default()).then_some(jail);
        let confined = profile.has_jail || jail.as_ref().is_some_and(JailConfig::is_jail);
        let cwd = match self.cwd {
            Some(inside) if confined => Some(normalize_in_jail(&inside)),
            Some(outside) => Some(current_dir.normalize(outside.as_ref())?),
            None if confined || profile.has_cwd => default_cwd,
            None => Some(current_dir.text()?),
        };
        // Those of a preset are added to its own.
        let words = self.command.into_iter().filter(|_| self.agent.is_none());
        let mut words = words.collect::<Vec<_>>().into_iter();
        let program = words.next();
        let args = program.is_some().then(|| words.collect());
        Ok(SpawnRequest {
            profile: self.profile,
            program,
            args,
            env: Env(env),
            cwd,
            jail,
            runtime: self.runtime,
            preset: None,
            added_args: Vec::new(),
            resumes: None,
            adapter: None,
            name: self.name.map(|name| name.to_string()),
            no_input: self.no_input.then_some(true),
            terminal: self.terminal.then(crate::terminal::host_size),
            umask: self.umask,
            restart: self.restart.map(|policy| RestartPolicy {
                policy: Some(policy),
                delay_ms: self.restart_delay.map(milliseconds),
                max_delay_ms: self.restart_max_delay.map(milliseconds),
                limit: self.restart_limit,
                window_ms: self.restart_window.map(milliseconds),
            }),
        })
    }

    /// Returns the variables, by precedence those of `--env`, of `--secret`, `--credential` and the profile's secrets, of the last
    /// `--env-file`, and of earlier ones.
    fn variables(&self, profile: &ProfileSettings) -> Result<BTreeMap<String, String>, CliError> {
        let mut variables = BTreeMap::new();
        for path in &self.env_file {
            variables.extend(env_file::read(path, AllowedReaders::Everyone)?);
        }
        for name in self.secrets.iter().chain(&profile.secrets) {
            let is_set = self.env.iter().any(|(variable, _)| variable == name);
            match std::env::var(name) {
                Ok(value) => drop(variables.insert(name.clone(), value)),
                Err(_)
                    if is_set || (variables.contains_key(name) && !self.secrets.contains(name)) => {
                }
                Err(error) => {
                    let problem = match error {
                        VarError::NotPresent => {
                            "it is not set in the environment; set it, or pass it in a file with --env-file"
                        }
                        VarError::NotUnicode(_) => {
                            "its value is not UTF-8; encode it as text, e.g. with base64(1)"
                        }
                    };
                    return Err(CliError::Message(format!(
                        "cannot pass secret {name}: {problem}"
                    )));
                }
            }
        }
        for rule in &self.credential {
            // The daemon refuses a credential whose key is nowhere: a profile may have it too.
            if let Ok(key) = std::env::var(rule.name()) {
                variables.insert(rule.name().to_owned(), key);
            }
        }
        variables.extend(self.env.iter().cloned());
        Ok(variables)
    }
}

/// Parses `SOURCE[:TARGET]`. Without a target, the file has the same path in the home as in the user's home, or its name.
fn home_file(text: &str, current_dir: &CurrentDir) -> Result<HomeFile, CliError> {
    let (source, target) = match text.rsplit_once(':') {
        Some((source, target)) => (source, Some(target.to_owned())),
        None => (text, None),
    };
    let source = current_dir.normalize(source.as_ref())?;
    let path = Path::new(&source);
    let in_home =
        std::env::home_dir().and_then(|home| path.strip_prefix(home).ok().map(Path::to_owned));
    let name = || path.file_name().map(PathBuf::from);
    let target = target.or_else(|| in_home.or_else(name)?.to_str().map(str::to_owned));
    Ok(HomeFile {
        target: target.unwrap_or_default(),
        source: Some(source),
        content: None,
    })
}

/// Directories of the system, which the default sandbox does not show as the current directory: an agent of root's daemon could read
/// what only root may.
const SYSTEM: &[&str] = &[
    "/boot",
    "/dev",
    "/etc",
    "/proc",
    "/run",
    "/sys",
    "/var/backups",
    "/var/cache",
    "/var/db",
    "/var/lib",
    "/var/log",
    "/var/mail",
    "/var/run",
    "/var/spool",
];

/// Adds the current directory to the mounts of a sandbox, read-only, and returns it as the working directory. The home
/// directory and those above it are not shown.
fn show_current_directory(
    jail: &mut JailConfig,
    current: &CurrentDir,
) -> Result<Option<String>, CliError> {
    let directory = current.text()?;
    let path = Path::new(&directory);
    let shows = |mount: &MountConfig| mount.target.is_none() && path.starts_with(&mount.source);
    if jail.mounts.iter().any(shows) {
        return Ok(Some(directory));
    }
    if !is_project(path) {
        output::message(
            "the agent does not see the current directory, because it contains the home directory or is one of the system; change to the directory of a project, or give --workspace or --mount",
        );
        return Ok(None);
    }
    jail.mounts.push(MountConfig {
        source: directory.clone(),
        target: None,
        read_only: true,
    });
    Ok(Some(directory))
}

/// Returns whether a directory may be that of a project: it does not contain the home directory, and is none of the system.
pub(crate) fn is_project(path: &Path) -> bool {
    let is_system = SYSTEM.iter().any(|system| path.starts_with(system));
    let contains_home = std::env::home_dir().is_some_and(|home| home.starts_with(path));
    path != Path::new("/") && !is_system && !contains_home
}

/// Returns the current directory as the workspace of an agent with a preset, unless it cannot be that of a project.
fn project_directory(current: &CurrentDir) -> Result<Option<String>, CliError> {
    let directory = current.text()?;
    if !is_project(Path::new(&directory)) {
        return Ok(None);
    }
    output::message(&format!(
        "the agent may write the current directory {directory}; give another one with --workspace"
    ));
    Ok(Some(directory))
}

/// Returns a duration in milliseconds; saturates.
pub(crate) fn milliseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

pub(super) fn variable(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((name, value)) if !name.is_empty() => Ok((name.to_owned(), value.to_owned())),
        _ => Err("give NAME=VALUE".to_owned()),
    }
}
