//! The command line: one definition for parsing, help and completions.

use std::collections::BTreeMap;
use std::env::VarError;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};
use clap_complete::Shell;
use colibri_client::{
    AgentRuntime, Cpus, Env, JailConfig, Limits, MountConfig, RestartParams, RestartWhen, Size,
    SpawnParams, WallTime,
};
use colibri_spawner::env_file::{self, Readers};

use crate::error::CliError;

/// Run AI coding agents unattended, each confined in a jail; watch, feed and stop them.
///
/// Exit codes: 0 done; 1 the operation failed; 2 usage; 3 no daemon. `run`, `wait` and `attach` exit with
/// the agent's own code, 128+N if signal N ended it.
#[derive(Debug, Parser)]
#[command(name = "colibri", version, max_term_width = 100)]
pub(crate) struct Arguments {
    #[command(flatten)]
    pub(crate) global: Global,
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Args)]
pub(crate) struct Global {
    /// The daemon's socket (default: $COLIBRI_SOCKET, else colibri/colibri.sock in $XDG_RUNTIME_DIR or /var/run)
    #[arg(long, global = true, value_name = "PATH")]
    pub(crate) socket: Option<PathBuf>,
    /// Do not start a daemon where none listens
    #[arg(long, global = true)]
    pub(crate) no_autostart: bool,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Run an agent in the foreground: its output here, its input from here, its exit code
    Run(Spawn),
    /// Start an agent in the background and print its id
    Spawn(Spawn),
    /// Print the exact program and arguments that would be executed; starts nothing, needs no daemon
    Explain {
        #[command(flatten)]
        spawn: Spawn,
        /// Print one JSON object
        #[arg(long)]
        json: bool,
    },
    /// List the profiles of the settings file, which --profile may name
    Profiles {
        /// Print one JSON object
        #[arg(long)]
        json: bool,
    },
    /// Check the settings file, or have the daemon read it again
    #[command(subcommand)]
    Config(Config),
    /// List agents
    Ps {
        /// Print one JSON array
        #[arg(long)]
        json: bool,
    },
    /// Show what is known of an agent: its state and since when, tool, turns, tokens, cost, errors
    Status {
        /// Agent: id, beginning of an id, or name
        id: String,
        /// Print one JSON object
        #[arg(long)]
        json: bool,
    },
    /// Print what an agent has written
    Logs(Logs),
    /// Print what happens to agents: of these until they have ended, or of all, also those to come
    Events(Events),
    /// List the runs of an agent that was started again, and where their output is
    Runs {
        /// Agent: id, beginning of an id, or name
        id: String,
        /// Print one JSON array
        #[arg(long)]
        json: bool,
    },
    /// Watch an agent as people read it, and talk to it: what is typed is sent as prompts; Ctrl-C detaches
    Attach(Attach),
    /// Give an agent something to do, in the words of its runtime, and wait until it has taken it
    Prompt {
        /// Agent: id, beginning of an id, or name
        id: String,
        /// The prompt; `-` takes all of standard input instead
        #[arg(allow_hyphen_values = true)]
        text: String,
        /// If it works, it hears this before its model is asked next
        #[arg(long, conflicts_with = "follow_up")]
        steer: bool,
        /// If it works, it begins with this when it is done
        #[arg(long)]
        follow_up: bool,
        /// How long to wait for its answer
        #[arg(long, value_name = "DURATION", default_value = "30s", value_parser = duration)]
        timeout: Duration,
    },
    /// End what an agent does now, and not the agent
    Abort {
        /// Agent: id, beginning of an id, or name
        id: String,
        /// How long to wait for its answer
        #[arg(long, value_name = "DURATION", default_value = "30s", value_parser = duration)]
        timeout: Duration,
    },
    /// Send a line to an agent's standard input, as it is
    Send {
        /// Agent: id, beginning of an id, or name
        id: String,
        /// The line; `-` sends all of standard input instead
        #[arg(allow_hyphen_values = true, required_unless_present = "close")]
        line: Option<String>,
        /// Close its standard input, behind the line if there is one
        #[arg(long)]
        close: bool,
    },
    /// Wait until an agent has ended and exit with its code
    Wait {
        /// Agent: id, beginning of an id, or name
        id: String,
    },
    /// End an agent: signal, grace, KILL, and verify that nothing is left
    Kill {
        /// Agent: id, beginning of an id, or name
        id: String,
        /// The first signal
        #[arg(long, value_name = "SIGNAL", default_value = "TERM")]
        signal: String,
        /// How long to wait before KILL
        #[arg(long, value_name = "DURATION", default_value = "5s", value_parser = duration)]
        grace: Duration,
    },
    /// Forget an agent that has ended, and delete its output
    Rm {
        /// Agent: id, beginning of an id, or name
        id: String,
        /// End it first if it runs
        #[arg(short, long)]
        force: bool,
    },
    /// Watch all agents in a live table on the terminal; from there attach, prompt and kill
    Top,
    /// Look whether agents can be run here, and say how to mend what is missing
    Doctor {
        /// Print one JSON object
        #[arg(long)]
        json: bool,
    },
    /// End the daemon; agents go on, and the next daemon adopts them
    Shutdown,
    /// Print a completion script, e.g. colibri completions bash > ~/.local/share/bash-completion/completions/colibri
    Completions {
        /// The shell
        shell: Shell,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum Config {
    /// Look for mistakes in the settings file: all of them, each with its line; exits with 1 if there is one
    Check {
        /// This file, and not the usual one
        #[arg(long, value_name = "FILE")]
        config: Option<PathBuf>,
    },
    /// Have the daemon read its settings file again, and say what that changed
    Reload {
        /// Print one JSON object
        #[arg(long)]
        json: bool,
    },
}

#[derive(Debug, Clone, Args)]
pub(crate) struct Spawn {
    /// Start from this profile of the settings file; options here win over it
    #[arg(long, value_name = "NAME")]
    pub(crate) profile: Option<String>,
    /// Enter this persistent jail (FreeBSD); takes precedence over --jail-path
    #[arg(long, value_name = "NAME")]
    jail_name: Option<String>,
    /// Confine to a jail or sandbox with this root directory, gone when the agent ends
    #[arg(long, value_name = "PATH")]
    jail_path: Option<String>,
    /// IPv4 of the jail: inherit, disable (with bubblewrap: no network at all), new, or addresses
    #[arg(long, value_name = "POLICY")]
    jail_ip4: Option<String>,
    /// The user inside the jail
    #[arg(long, value_name = "USER")]
    jail_user: Option<String>,
    /// Give it this directory: writable at the same path in the jail, and where it starts
    #[arg(long, value_name = "DIR")]
    workspace: Option<PathBuf>,
    /// Give it a directory or file of the host, at the same path in the jail or at TARGET; :ro keeps it from writing (repeatable)
    #[arg(long, value_name = "SOURCE[:TARGET][:ro]")]
    mount: Vec<MountConfig>,
    /// Let it connect to this place only, through a proxy (repeatable); it has no other network then
    #[arg(long, value_name = "HOST:PORT")]
    allow: Vec<String>,
    /// The host name that it sees in the jail
    #[arg(long, value_name = "NAME")]
    hostname: Option<String>,
    /// Memory of all its processes together, like 512M or 2G
    #[arg(long, value_name = "SIZE")]
    memory: Option<Size>,
    /// How many processes and threads it may have at once
    #[arg(long, value_name = "COUNT")]
    processes: Option<u32>,
    /// How many processors it may keep busy, like 1.5
    #[arg(long, value_name = "NUMBER")]
    cpu: Option<Cpus>,
    /// How many files each of its processes may have open
    #[arg(long, value_name = "COUNT")]
    open_files: Option<u32>,
    /// End it so long after its first start, whatever it does, like 90s, 30m or 8h
    #[arg(long, value_name = "DURATION")]
    wall_time: Option<WallTime>,
    /// Run it also where a limit cannot be enforced
    #[arg(long)]
    best_effort: bool,
    /// Set an environment variable of the agent (repeatable)
    #[arg(long = "env", value_name = "NAME=VALUE", value_parser = variable)]
    env: Vec<(String, String)>,
    /// Set the variables in this file of NAME=VALUE lines (repeatable); --env and --secret win over it
    #[arg(long, value_name = "FILE")]
    env_file: Vec<PathBuf>,
    /// Set this variable to the value that it has here (repeatable): what is secret is in no argument list
    #[arg(long = "secret", value_name = "NAME")]
    secrets: Vec<String>,
    /// Working directory, inside the jail if there is one (default: without a jail here, in a jail /)
    #[arg(long, value_name = "DIR")]
    cwd: Option<String>,
    /// Close its standard input at once, for what reads all of that before it begins, as pi --mode json does
    #[arg(long)]
    no_input: bool,
    /// How the agent's output is read [default: generic]
    #[arg(long, value_enum)]
    runtime: Option<Runtime>,
    /// A label for people
    #[arg(long, value_name = "LABEL")]
    name: Option<String>,
    /// Start it again when it has ended: never, on-failure or always
    #[arg(long, value_enum, value_name = "POLICY")]
    restart: Option<Restart>,
    /// The longest wait before the first restart; it doubles with each further one [default: 1s]
    #[arg(long, value_name = "DURATION", value_parser = duration, requires = "restart")]
    restart_delay: Option<Duration>,
    /// No wait before a restart is longer; a run as long sets the wait back [default: 5m]
    #[arg(long, value_name = "DURATION", value_parser = duration, requires = "restart")]
    restart_max_delay: Option<Duration>,
    /// Give up after so many restarts within the window [default: 10]
    #[arg(long, value_name = "COUNT", requires = "restart")]
    restart_limit: Option<u32>,
    /// The window of --restart-limit [default: 1h]
    #[arg(long, value_name = "DURATION", value_parser = duration, requires = "restart")]
    restart_window: Option<Duration>,
    /// The agent's program and its arguments; with --profile those of the profile by default
    #[arg(
        last = true,
        required_unless_present = "profile",
        value_name = "PROGRAM [ARG]"
    )]
    command: Vec<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Runtime {
    Pi,
    Zot,
    Generic,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Restart {
    Never,
    OnFailure,
    Always,
}

impl From<Restart> for RestartWhen {
    fn from(restart: Restart) -> Self {
        match restart {
            Restart::Never => Self::Never,
            Restart::OnFailure => Self::OnFailure,
            Restart::Always => Self::Always,
        }
    }
}

/// What a profile says that decides what is to be asked for.
#[derive(Debug, Default)]
pub(crate) struct OfProfile {
    /// It has a jail or a working directory, so that this one is not meant.
    pub(crate) has_place: bool,
    /// Variables that are to be taken from here.
    pub(crate) secrets: Vec<String>,
}

impl Spawn {
    /// As the daemon is asked.
    pub(crate) fn into_params(self, of_profile: &OfProfile) -> Result<SpawnParams, CliError> {
        let env = self.variables(of_profile)?;
        let workspace = self.workspace.map(absolute);
        let mut mounts = self.mount;
        mounts.extend(workspace.clone().map(|source| MountConfig {
            source,
            ..MountConfig::default()
        }));
        let jail = JailConfig {
            name: self.jail_name,
            path: self.jail_path,
            ip4: self.jail_ip4,
            user: self.jail_user,
            mounts,
            workdir: workspace,
            hostname: self.hostname,
            allow: self.allow,
            limits: Limits {
                memory: self.memory,
                processes: self.processes,
                cpu: self.cpu,
                open_files: self.open_files,
                wall_time: self.wall_time,
            },
            best_effort: self.best_effort,
        };
        let jail = (jail != JailConfig::default()).then_some(jail);
        let here = || {
            std::env::current_dir()
                .ok()
                .and_then(|here| here.into_os_string().into_string().ok())
        };
        let placed = of_profile.has_place || jail.as_ref().is_some_and(JailConfig::is_jail);
        let cwd = self.cwd.or_else(|| if placed { None } else { here() });
        let mut words = self.command.into_iter();
        let program = words.next();
        let args = program.is_some().then(|| words.collect());
        Ok(SpawnParams {
            profile: self.profile,
            program,
            args,
            env: Env(env),
            cwd,
            jail,
            runtime: self.runtime.map(|runtime| match runtime {
                Runtime::Pi => AgentRuntime::Pi,
                Runtime::Zot => AgentRuntime::Zot,
                Runtime::Generic => AgentRuntime::Generic,
            }),
            name: self.name,
            no_input: self.no_input,
            restart: self.restart.map(|policy| RestartParams {
                policy: policy.into(),
                delay_ms: self.restart_delay.map(milliseconds),
                max_delay_ms: self.restart_max_delay.map(milliseconds),
                limit: self.restart_limit,
                window_ms: self.restart_window.map(milliseconds),
            }),
        })
    }

    /// Those of `--env`, then of `--secret` and the profile's secrets, then of `--env-file`, the later file first.
    fn variables(&self, of_profile: &OfProfile) -> Result<BTreeMap<String, String>, CliError> {
        let mut variables = BTreeMap::new();
        for path in &self.env_file {
            variables.extend(env_file::read(path, Readers::Anybody)?);
        }
        for name in self.secrets.iter().chain(&of_profile.secrets) {
            let given = self.env.iter().any(|(given, _)| given == name);
            match std::env::var(name) {
                Ok(value) => drop(variables.insert(name.clone(), value)),
                Err(_)
                    if given || (variables.contains_key(name) && !self.secrets.contains(name)) => {}
                Err(VarError::NotPresent) => return Err(CliError::NoSecret(name.clone())),
                Err(VarError::NotUnicode(_)) => return Err(CliError::SecretNotText(name.clone())),
            }
        }
        variables.extend(self.env.iter().cloned());
        Ok(variables)
    }
}

/// The whole path of a directory that was named from here. What leads through a link is left to the daemon to
/// refuse, unless `..` makes it mean something else.
fn absolute(path: PathBuf) -> String {
    let up = path
        .components()
        .any(|part| part == std::path::Component::ParentDir);
    let whole = if up {
        path.canonicalize()
    } else {
        std::path::absolute(&path)
    };
    whole.unwrap_or(path).to_string_lossy().into_owned()
}

fn milliseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

#[derive(Debug, Args)]
pub(crate) struct Logs {
    /// Agent: id, beginning of an id, or name
    pub(crate) id: String,
    /// Go on printing until the agent has ended
    #[arg(short, long)]
    pub(crate) follow: bool,
    /// Only this output; without it stdout goes to stdout and stderr to stderr
    #[arg(long, value_enum)]
    pub(crate) stream: Option<LogStream>,
    /// Start at this byte (default: the oldest that is kept)
    #[arg(long, value_name = "OFFSET")]
    pub(crate) from: Option<u64>,
    /// Start at what came at or after this time: so long ago, like 10m, or like 2026-01-31T12:00:00Z
    #[arg(long, value_name = "TIME", conflicts_with = "from", value_parser = since)]
    pub(crate) since: Option<jiff::Timestamp>,
    /// Put in front of each line when its first byte came (UTC)
    #[arg(long)]
    pub(crate) timestamps: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Events {
    /// Agents: id, beginning of an id, or name
    #[arg(value_name = "AGENT")]
    pub(crate) ids: Vec<String>,
    /// Also print what they write; of named agents from the first byte on
    #[arg(long)]
    pub(crate) output: bool,
    /// Print one JSON object a line
    #[arg(long)]
    pub(crate) json: bool,
    /// Wait for the next daemon when this one ends, and say that there is a gap
    #[arg(long)]
    pub(crate) reconnect: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Attach {
    /// Agent: id, beginning of an id, or name
    pub(crate) id: String,
    /// Print its bytes as they are
    #[arg(long)]
    pub(crate) raw: bool,
    /// Only watch: send nothing of what is typed
    #[arg(long)]
    pub(crate) no_input: bool,
    /// Show all that is kept of its output first, and not only the end of it
    #[arg(long)]
    pub(crate) all: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum LogStream {
    Stdout,
    Stderr,
}

fn since(text: &str) -> Result<jiff::Timestamp, String> {
    crate::logs::since(text, jiff::Timestamp::now())
}

fn variable(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((name, value)) if !name.is_empty() => Ok((name.to_owned(), value.to_owned())),
        _ => Err("give it as NAME=VALUE".to_owned()),
    }
}

fn duration(text: &str) -> Result<Duration, String> {
    text.parse::<jiff::SignedDuration>()
        .ok()
        .and_then(|duration| Duration::try_from(duration).ok())
        .ok_or_else(|| "give it like 5s, 500ms or 2m".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_definition_is_sound_and_its_help_is_reviewed() {
        Arguments::command().debug_assert();
        let mut command = Arguments::command();
        command.build();
        let mut shown = command.render_long_help().to_string();
        for sub in command
            .get_subcommands_mut()
            .filter(|sub| !sub.is_hide_set() && sub.get_name() != "help")
        {
            shown.push_str(&format!(
                "\n==== {} ====\n{}",
                sub.get_name().to_owned(),
                sub.render_help()
            ));
        }
        insta::assert_snapshot!(shown);
    }

    #[test]
    fn what_stands_behind_the_two_dashes_is_the_agents() {
        let parsed = Arguments::try_parse_from([
            "colibri",
            "run",
            "--jail-path",
            "/",
            "--",
            "sh",
            "--json",
            "-x",
        ]);
        let Ok(Arguments {
            command: Command::Run(spawn),
            ..
        }) = parsed
        else {
            panic!("{parsed:?}")
        };
        let params = spawn.into_params(&OfProfile::default()).unwrap();
        assert_eq!(
            (params.program.as_deref(), params.args),
            (Some("sh"), Some(vec!["--json".to_owned(), "-x".to_owned()]))
        );
        assert_eq!(params.cwd, None, "a jail starts at its own root");
        for bad in [
            &["colibri", "run"][..],
            &["colibri", "run", "sh"],
            &["colibri", "kill", "a", "--grace", "soon"],
        ] {
            assert_eq!(
                Arguments::try_parse_from(bad).unwrap_err().exit_code(),
                2,
                "{bad:?}"
            );
        }
    }
}
