//! The command line: one definition for parsing, help and completions.

mod separator;
mod spawn;
mod values;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use clap::{ArgGroup, Args, CommandFactory, Parser, Subcommand};
use clap_complete::Shell;
use colibri_client::{Size, Stream};
use colibri_template::{AgentUserName, ArchivePath, DatasetName, Digest};

use self::spawn::variable;
pub(crate) use self::spawn::{ProfileSettings, Spawn, is_project, milliseconds};
use self::values::{age, agent, duration, one_of, parsed, since};
use crate::connect::lookup;
use crate::error::CliError;
use crate::output;
use crate::terminal::DetachKeys;

/// Parses the command line of this process. Prints help or a usage error and exits if it contains no command.
pub(crate) fn parse() -> CliArguments {
    let words: Vec<_> = std::env::args_os().collect();
    CliArguments::try_parse_from(&words).unwrap_or_else(|error| {
        let words: Vec<String> = words
            .iter()
            .map(|word| word.to_string_lossy().into_owned())
            .collect();
        let error = separator::explain(error, CliArguments::command(), &words);
        // clap quotes words as they are.
        let plain = error.render().to_string();
        if error.use_stderr() && output::printable(&plain) != plain {
            output::message(plain.trim_end());
            std::process::exit(error.exit_code());
        }
        error.exit()
    })
}

/// Run AI coding agents unattended, each confined in a jail; watch, prompt and stop them.
///
/// Exit codes: 0 success; 1 the operation failed; 2 usage error; 3 no daemon. `run`, `wait` and `attach` exit with
/// the agent's own code, 128+N if signal N ended it; 127 if its program was not found, 126 if it cannot be
/// executed, and 125 if Colibri itself failed or the agent's exit status is unknown.
#[derive(Debug, Parser)]
#[command(name = "colibri", version, max_term_width = 100)]
pub(crate) struct CliArguments {
    #[command(flatten)]
    pub(crate) global: Global,
    #[command(subcommand)]
    pub(crate) command: CliCommand,
}

#[derive(Debug, Clone, Args)]
pub(crate) struct Global {
    /// Socket of the daemon [default: $COLIBRI_SOCKET, else the socket of your running daemon, else $XDG_RUNTIME_DIR/colibri/colibri.sock; see colibri(1)]
    #[arg(long, global = true, value_name = "PATH")]
    pub(crate) socket: Option<PathBuf>,
    /// Do not start a daemon if none is running
    #[arg(long, global = true)]
    pub(crate) no_autostart: bool,
}

#[derive(Debug, Subcommand)]
pub(crate) enum CliCommand {
    /// Run an agent in the foreground: forward output, input and signals, and exit with its code
    Run(Run),
    /// Start an agent in the background and print its id
    Spawn(Background),
    /// Print the exact command line that confines an agent; starts nothing and needs no daemon
    Explain {
        #[command(flatten)]
        spawn: Spawn,
        /// Print one JSON object
        #[arg(long)]
        json: bool,
    },
    /// List the agents for --agent: whether they are installed and have a login, and how to install them; or show one
    Agents {
        /// Show what this agent is given
        #[arg(value_name = "NAME")]
        name: Option<String>,
        /// Print one JSON object
        #[arg(long)]
        json: bool,
    },
    /// List the profiles for --profile
    Profiles {
        /// Print one JSON object
        #[arg(long)]
        json: bool,
    },
    /// Check the settings file, or make the daemon read it again
    #[command(subcommand)]
    Config(Config),
    /// List agents: running ones first, then ended ones, each newest first
    Ps(PsArgs),
    /// Show details of agents: state, tool, turns, tokens, cost, errors
    Status {
        #[command(flatten)]
        agents: AgentArgs,
        /// Print one JSON object for each agent
        #[arg(long)]
        json: bool,
    },
    /// Print the output of an agent
    Logs(LogsArgs),
    /// Print the events of agents: of these until they have ended, or of all, including new ones
    Events(EventsArgs),
    /// List the runs of an agent with a restart policy, with the offsets of their output
    Runs {
        #[command(flatten)]
        agent: AgentArg,
        /// Print one JSON array
        #[arg(long)]
        json: bool,
    },
    /// Attach to an agent: show its formatted output, send typed lines as prompts, and detach at Ctrl-C; or show its terminal
    Attach(AttachArgs),
    /// Send an agent a prompt, and wait until the agent has accepted it
    Prompt(PromptArgs),
    /// Cancel the current turn of an agent; the agent keeps running
    Abort {
        #[command(flatten)]
        agent: AgentArg,
        /// Maximum time to wait until the agent has accepted the command
        #[arg(long, value_name = "DURATION", default_value = "30s", value_parser = duration)]
        timeout: Duration,
    },
    /// Send a line to the standard input of an agent, unchanged
    Send(SendArgs),
    /// Wait until agents have ended, and exit with their code: for several agents, the first that is not 0
    Wait {
        #[command(flatten)]
        agents: AgentArgs,
    },
    /// End agents: send a signal, wait, send KILL, and verify that no process is left
    Kill(KillArgs),
    /// Continue the session of an ended agent, in the same workspace and home, and print the id of the new agent
    ///
    /// The values of variables are not stored: keys of the preset are taken from the environment again, others with --secret.
    Resume(ResumeArgs),
    /// Restart agents now, regardless of their restart policy, and print the id of each
    ///
    /// A running agent keeps its id: its current run is ended, and the next run starts immediately. An ended agent is
    /// spawned again with the same options and gets a new id. The values of its variables are not stored: give them again.
    Restart {
        #[command(flatten)]
        agents: AgentArgs,
        /// Time between TERM and KILL for a running agent
        #[arg(long, value_name = "DURATION", default_value = "5s", value_parser = duration)]
        grace: Duration,
        #[command(flatten)]
        variables: VariableArgs,
    },
    /// Delete ended agents and their output
    Rm {
        #[command(flatten)]
        agents: AgentArgs,
        /// Kill running agents first
        #[arg(short, long)]
        force: bool,
    },
    /// Delete all ended agents and their output
    Prune {
        /// Delete only agents that ended at least this long ago, like 7d or 12h
        #[arg(long, value_name = "AGE", value_parser = age)]
        older_than: Option<jiff::Timestamp>,
        /// Only print what would be deleted
        #[arg(long)]
        dry_run: bool,
    },
    /// Serve an editor by the Agent Client Protocol on standard input and output: each session is an agent in a sandbox
    #[command(mut_args(hide_refused))]
    Acp(Box<Acp>),
    /// Serve an agent by the Model Context Protocol on standard input and output: it starts and leads other agents
    Mcp(McpArgs),
    /// Show all agents in a live table; attach to, prompt and kill them there
    Top,
    /// Check whether this host can run agents, and print how to fix problems
    Doctor {
        /// Print one JSON object
        #[arg(long)]
        json: bool,
    },
    /// Create root directories for jails
    #[command(subcommand)]
    Jail(JailCommand),
    /// Stop the daemon; agents keep running, and the next daemon adopts them
    Shutdown,
    /// Print a completion script, e.g. colibri completions bash > ~/.local/share/bash-completion/completions/colibri
    Completions {
        /// The shell
        shell: Shell,
    },
}

impl CliCommand {
    /// Returns whether the exit code of the command is that of an agent.
    pub(crate) fn exits_as_agent(&self) -> bool {
        matches!(self, Self::Run(_) | Self::Wait { .. } | Self::Attach(_))
    }
}

/// One agent.
#[derive(Debug, Args)]
pub(crate) struct AgentArg {
    /// Agent: id, name, or unique id prefix of at least 4 characters
    #[arg(value_name = "AGENT", value_parser = agent)]
    pub(crate) id: String,
}

/// At least one agent.
#[derive(Debug, Args)]
pub(crate) struct AgentArgs {
    /// Agents: id, name, or unique id prefix of at least 4 characters
    #[arg(value_name = "AGENT", required = true, value_parser = agent)]
    pub(crate) ids: Vec<String>,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Config {
    /// Report all errors in the settings file, each with its line; exit with 1 on an error
    Check {
        /// Check this file instead of the default one
        #[arg(long, value_name = "FILE")]
        config: Option<PathBuf>,
    },
    /// Make the daemon read its settings file again, and print what changed
    Reload {
        /// Print one JSON object
        #[arg(long)]
        json: bool,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum JailCommand {
    /// Create a template, the root directory of jails, from a verified system archive or OCI image
    ///
    /// `colibri run --jail-path` and `--jail-template` use it. Nothing of the archive is executed. Needs no daemon. On FreeBSD
    /// it needs root.
    Init(Box<JailInit>),
}

#[derive(Debug, Args)]
pub(crate) struct JailInit {
    /// The directory to create, or an empty one
    pub(crate) directory: PathBuf,
    /// Archive: file or https URL of base.txz, or of an OCI image layout in a tar archive
    #[arg(long, value_name = "SOURCE")]
    pub(crate) from: String,
    /// Digest of the archive, or of the image's index.json or manifest; required except for a local image
    #[arg(long, value_name = "sha256:HEX", value_parser = parsed::<Digest>)]
    pub(crate) digest: Option<Digest>,
    /// Take the digest from this file: a release's MANIFEST or CHECKSUM.SHA256, or output of sha256sum
    #[arg(long, value_name = "FILE", conflicts_with = "digest")]
    pub(crate) checksums: Option<PathBuf>,
    /// User to create for agents, unless the archive contains it
    #[arg(long, value_name = "NAME", default_value = "agent", value_parser = parsed::<AgentUserName>)]
    pub(crate) user: AgentUserName,
    /// Create no user
    #[arg(long, conflicts_with = "user")]
    pub(crate) no_user: bool,
    /// Create this directory inside, for a workspace or another mount; repeatable
    #[arg(long = "mount-point", value_name = "DIRECTORY", value_parser = parsed::<ArchivePath>)]
    pub(crate) mount_points: Vec<ArchivePath>,
    /// Copy the host's /etc/resolv.conf
    #[arg(long)]
    pub(crate) resolv_conf: bool,
    /// Keep setuid and setgid bits
    #[arg(long)]
    pub(crate) keep_setuid: bool,
    /// Create this ZFS dataset, mount it at the directory, and take its snapshot @colibri
    #[arg(long, value_name = "DATASET", value_parser = parsed::<DatasetName>)]
    pub(crate) zfs: Option<DatasetName>,
    /// Maximum size of the unpacked archive, like 4G [default: 16G]
    #[arg(long, value_name = "SIZE")]
    pub(crate) max_size: Option<Size>,
    /// Print one JSON object
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Run {
    #[command(flatten)]
    pub(crate) spawn: Spawn,
    /// Print the output of an agent with a preset unchanged, not as a transcript
    #[arg(long, requires = "agent")]
    pub(crate) raw: bool,
    /// Keys that detach from the terminal of -t; the agent keeps running
    #[arg(long, value_name = "KEYS", default_value = DetachKeys::DEFAULT, requires = "terminal", value_parser = parsed::<DetachKeys>)]
    pub(crate) detach_keys: DetachKeys,
}

#[derive(Debug, Args)]
pub(crate) struct Background {
    #[command(flatten)]
    pub(crate) spawn: Spawn,
    /// Send this prompt as soon as the agent runs
    #[arg(
        long,
        value_name = "TEXT",
        conflicts_with = "no_input",
        allow_hyphen_values = true
    )]
    pub(crate) prompt: Option<String>,
}

/// Options of `spawn` that `acp` refuses: the session of the editor determines them.
const REFUSED_BY_ACP: [&str; 7] = [
    "task",
    "workspace",
    "cwd",
    "name",
    "no_input",
    "restart",
    "terminal",
];

fn hide_refused(arg: clap::Arg) -> clap::Arg {
    let is_refused = REFUSED_BY_ACP.contains(&arg.get_id().as_str());
    if is_refused { arg.hide(true) } else { arg }
}

/// The options of `acp`.
#[derive(Debug, Args)]
#[command(group = ArgGroup::new("preset").args(["agent"]).required(true).conflicts_with_all(REFUSED_BY_ACP))]
pub(crate) struct Acp {
    #[command(flatten)]
    pub(crate) spawn: Spawn,
}

#[derive(Debug, Args)]
pub(crate) struct McpArgs {
    /// Start all agents from this profile of the settings file
    #[arg(long, value_name = "NAME")]
    pub(crate) profile: Option<String>,
    /// Let agents work in this directory and those below it [default: the current directory]
    #[arg(long, value_name = "DIR")]
    pub(crate) workspace: Option<PathBuf>,
    /// Maximum number of agents that run at the same time
    #[arg(long, value_name = "COUNT", default_value = "8", value_parser = clap::value_parser!(u16).range(1..=256))]
    pub(crate) max_agents: u16,
    /// Do not kill the agents at the end of the connection
    #[arg(long)]
    pub(crate) keep: bool,
}

#[derive(Debug, Args)]
pub(crate) struct ResumeArgs {
    #[command(flatten)]
    pub(crate) agent: AgentArg,
    /// Prompt for the agent, which ends after it; without one, the agent reads prompts of colibri prompt
    #[arg(value_name = "PROMPT")]
    pub(crate) prompt: Option<String>,
    /// Preset of the agent [default: the one that it was started by]
    #[arg(long = "agent", value_name = "NAME")]
    pub(crate) preset: Option<String>,
    #[command(flatten)]
    pub(crate) variables: VariableArgs,
    /// Further arguments of the agent [default: those of the ended agent]
    #[arg(last = true, value_name = "ARG")]
    pub(crate) args: Vec<String>,
}

/// Variables of an agent that is started again.
#[derive(Debug, Args)]
pub(crate) struct VariableArgs {
    /// Set an environment variable (repeatable)
    #[arg(long = "env", value_name = "NAME=VALUE", value_parser = variable)]
    env: Vec<(String, String)>,
    /// Set a variable to its value in this environment (repeatable)
    #[arg(long = "secret", value_name = "NAME")]
    secrets: Vec<String>,
}

impl VariableArgs {
    /// Reports that no variable is given.
    pub(crate) fn is_empty(&self) -> bool {
        self.env.is_empty() && self.secrets.is_empty()
    }

    /// Returns the variables with their values.
    pub(crate) fn resolve(&self) -> Result<BTreeMap<String, String>, CliError> {
        let mut variables = BTreeMap::new();
        for name in &self.secrets {
            let value = lookup(name).ok_or_else(|| {
                CliError::Message(format!(
                    "cannot pass secret {name}: it is not set in the environment; set it"
                ))
            })?;
            variables.insert(name.clone(), value);
        }
        variables.extend(self.env.iter().cloned());
        Ok(variables)
    }
}

#[derive(Debug, Args)]
pub(crate) struct SendArgs {
    #[command(flatten)]
    pub(crate) agent: AgentArg,
    /// The line; `-` sends all of standard input instead
    #[arg(allow_hyphen_values = true, required_unless_present = "close")]
    pub(crate) line: Option<String>,
    /// Close the agent's standard input, after the line if one is given
    #[arg(long)]
    pub(crate) close: bool,
}

#[derive(Debug, Args)]
pub(crate) struct KillArgs {
    #[command(flatten)]
    pub(crate) agents: AgentArgs,
    /// The first signal
    #[arg(long, value_name = "SIGNAL", default_value = "TERM")]
    pub(crate) signal: String,
    /// Time between the first signal and KILL
    #[arg(long, value_name = "DURATION", default_value = "5s", value_parser = duration)]
    pub(crate) grace: Duration,
}

#[derive(Debug, Args)]
pub(crate) struct PsArgs {
    /// Print one JSON array
    #[arg(long)]
    pub(crate) json: bool,
    /// List only running agents
    #[arg(long)]
    pub(crate) running: bool,
    /// Print only ids, one per line
    #[arg(short, long, conflicts_with = "json")]
    pub(crate) quiet: bool,
    /// List at most this many agents, from the start of the list
    #[arg(long, value_name = "COUNT")]
    pub(crate) last: Option<usize>,
}

#[derive(Debug, Args)]
pub(crate) struct LogsArgs {
    #[command(flatten)]
    pub(crate) agent: AgentArg,
    /// Keep printing until the agent has ended
    #[arg(short, long)]
    pub(crate) follow: bool,
    /// Print only this stream; by default stdout goes to stdout and stderr to stderr
    #[arg(long, value_parser = one_of::<Stream>(&["stdout", "stderr"]))]
    pub(crate) stream: Option<Stream>,
    /// Start at this byte [default: the oldest kept byte]
    #[arg(long, value_name = "OFFSET")]
    pub(crate) from: Option<u64>,
    /// Start with the last COUNT lines
    #[arg(long, value_name = "COUNT", conflicts_with_all = ["from", "since"])]
    pub(crate) tail: Option<u64>,
    /// Start at output of this time or later: an age like 10m, or a time like 2026-01-31T12:00:00Z
    #[arg(long, value_name = "TIME", conflicts_with = "from", value_parser = since)]
    pub(crate) since: Option<jiff::Timestamp>,
    /// Print a timestamp (UTC) before each line: the time of its first byte
    #[arg(long)]
    pub(crate) timestamps: bool,
}

#[derive(Debug, Args)]
pub(crate) struct EventsArgs {
    /// Agents: id, name, or unique id prefix of at least 4 characters
    #[arg(value_name = "AGENT", value_parser = agent)]
    pub(crate) ids: Vec<String>,
    /// Also print output; of named agents from the first byte on
    #[arg(long)]
    pub(crate) output: bool,
    /// Print one JSON object per line
    #[arg(long)]
    pub(crate) json: bool,
    /// The default; accepted for compatibility with earlier versions
    #[arg(long, hide = true)]
    reconnect: bool,
}

#[derive(Debug, Args)]
pub(crate) struct PromptArgs {
    #[command(flatten)]
    pub(crate) agent: AgentArg,
    /// The prompt; `-` reads it from standard input
    #[arg(allow_hyphen_values = true)]
    pub(crate) text: String,
    /// If the agent is working, deliver it before the next request to the model
    #[arg(long, conflicts_with = "follow_up")]
    pub(crate) steer: bool,
    /// If the agent is working, deliver it when the current turn has ended
    #[arg(long)]
    pub(crate) follow_up: bool,
    /// Wait until the turn has ended, and print the agent's answer
    #[arg(long)]
    pub(crate) wait: bool,
    /// Maximum time to wait [default: 30s, with --wait unlimited once the prompt is accepted]
    #[arg(long, value_name = "DURATION", value_parser = duration)]
    pub(crate) timeout: Option<Duration>,
}

#[derive(Debug, Args)]
pub(crate) struct AttachArgs {
    #[command(flatten)]
    pub(crate) agent: AgentArg,
    /// Print the output unchanged
    #[arg(long)]
    pub(crate) raw: bool,
    /// Do not send what is typed
    #[arg(long)]
    pub(crate) no_input: bool,
    /// Keys that detach from the terminal of an agent
    #[arg(long, value_name = "KEYS", default_value = DetachKeys::DEFAULT, value_parser = parsed::<DetachKeys>)]
    pub(crate) detach_keys: DetachKeys,
    /// Show all kept output first, instead of only the last MiB
    #[arg(long)]
    pub(crate) all: bool,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn definition_is_valid_and_help_matches_snapshot() {
        CliArguments::command().debug_assert();
        let mut command = CliArguments::command();
        command.build();
        let mut help = command.render_long_help().to_string();
        for sub in command
            .get_subcommands_mut()
            .filter(|sub| !sub.is_hide_set() && sub.get_name() != "help")
        {
            help.push_str(&format!(
                "\n==== {} ====\n{}",
                sub.get_name().to_owned(),
                sub.render_help()
            ));
        }
        insta::assert_snapshot!(help);
    }

    #[test]
    fn arguments_after_separator_belong_to_the_agent() {
        let parsed = CliArguments::try_parse_from([
            "colibri",
            "run",
            "--jail-path",
            "/",
            "--",
            "sh",
            "--json",
            "-x",
        ]);
        let Ok(CliArguments {
            command: CliCommand::Run(run),
            ..
        }) = parsed
        else {
            panic!("{parsed:?}")
        };
        let params = run.spawn.into_request(&ProfileSettings::default()).unwrap();
        assert_eq!(
            (params.program.as_deref(), params.args),
            (Some("sh"), Some(vec!["--json".to_owned(), "-x".to_owned()]))
        );
        assert_eq!(params.cwd, None, "a jail starts at its own root");
        for plain in [
            &["colibri", "run", "--wall-time", "5", "--", "sh"][..],
            &["colibri", "kill", "a", "--grace", "5"],
            &["colibri", "prompt", "a", "hi", "--timeout", "5"],
        ] {
            assert!(CliArguments::try_parse_from(plain).is_ok(), "{plain:?}");
        }
        for bad in [
            &["colibri", "run"][..],
            &["colibri", "run", "sh"],
            &["colibri", "kill", "a", "--grace", "soon"],
            &["colibri", "prune", "--older-than", "7"],
        ] {
            assert_eq!(
                CliArguments::try_parse_from(bad).unwrap_err().exit_code(),
                2,
                "{bad:?}"
            );
        }
    }
}
