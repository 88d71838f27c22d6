//! The command line: one definition for parsing, help and completions.

mod separator;
mod spawn;

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, CommandFactory, Parser, Subcommand, ValueEnum};
use clap_complete::Shell;

use colibri_client::WallTime;

pub(crate) use self::spawn::{OfProfile, Spawn};

/// Parses the command line of this process; prints help or a usage error and exits if it contains no command.
pub(crate) fn parse() -> Arguments {
    let words: Vec<_> = std::env::args_os().collect();
    Arguments::try_parse_from(&words).unwrap_or_else(|error| {
        let words: Vec<String> = words
            .iter()
            .map(|word| word.to_string_lossy().into_owned())
            .collect();
        separator::explained(error, Arguments::command(), &words).exit()
    })
}

/// Run AI coding agents unattended, each confined in a jail; watch, prompt and stop them.
///
/// Exit codes: 0 done; 1 the operation failed; 2 usage; 3 no daemon. `run`, `wait` and `attach` exit with
/// the agent's own code, 128+N if signal N ended it; 127 if its program was not found, 126 if it cannot be
/// executed, and 125 if Colibri itself failed or the agent's exit status is unknown.
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
    /// Socket of the daemon (default: $COLIBRI_SOCKET, else that of your running daemon, else colibri/colibri.sock in $XDG_RUNTIME_DIR; see colibri(1))
    #[arg(long, global = true, value_name = "PATH")]
    pub(crate) socket: Option<PathBuf>,
    /// Do not start a daemon if none is running
    #[arg(long, global = true)]
    pub(crate) no_autostart: bool,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Run an agent in the foreground: forward its output, input and signals, exit with its code
    Run(Spawn),
    /// Start an agent in the background and print its id
    Spawn(Background),
    /// Print the exact program and arguments that would be executed; starts nothing, needs no daemon
    Explain {
        #[command(flatten)]
        spawn: Spawn,
        /// Print one JSON object
        #[arg(long)]
        json: bool,
    },
    /// List the profiles of the settings file, for --profile
    Profiles {
        /// Print one JSON object
        #[arg(long)]
        json: bool,
    },
    /// Check the settings file, or make the daemon read it again
    #[command(subcommand)]
    Config(Config),
    /// List agents: running ones first, then ended ones, each the newest first
    Ps(List),
    /// Show details of agents: state and since when, tool, turns, tokens, cost, errors
    Status {
        /// Agents: id, name, or unique id prefix of at least 4 characters
        #[arg(value_name = "AGENT", required = true, value_parser = agent)]
        ids: Vec<String>,
        /// Print one JSON object for each agent
        #[arg(long)]
        json: bool,
    },
    /// Print the output of an agent
    Logs(Logs),
    /// Print the events of these agents until they have ended, or of all agents, new ones included
    Events(Events),
    /// List the runs of an agent with a restart policy, and the offsets of their output
    Runs {
        /// Agent: id, name, or unique id prefix of at least 4 characters
        #[arg(value_name = "AGENT", value_parser = agent)]
        id: String,
        /// Print one JSON array
        #[arg(long)]
        json: bool,
    },
    /// Attach to an agent: show its formatted output, send typed lines as prompts; Ctrl-C detaches
    Attach(Attach),
    /// Send an agent a prompt in the form that its runtime expects, and wait until it has accepted it
    Prompt {
        /// Agent: id, name, or unique id prefix of at least 4 characters
        #[arg(value_name = "AGENT", value_parser = agent)]
        id: String,
        /// The prompt; `-` reads it from standard input
        #[arg(allow_hyphen_values = true)]
        text: String,
        /// Deliver it before the next request to the model, if the agent is working
        #[arg(long, conflicts_with = "follow_up")]
        steer: bool,
        /// Deliver it when the current turn has ended, if the agent is working
        #[arg(long)]
        follow_up: bool,
        /// Wait until the turn has ended, and print the agent's answer
        #[arg(long)]
        wait: bool,
        /// Maximum time to wait [default: 30s, with --wait unlimited once the prompt is accepted]
        #[arg(long, value_name = "DURATION", value_parser = duration)]
        timeout: Option<Duration>,
    },
    /// Cancel the current turn of an agent; the agent keeps running
    Abort {
        /// Agent: id, name, or unique id prefix of at least 4 characters
        #[arg(value_name = "AGENT", value_parser = agent)]
        id: String,
        /// Maximum time to wait until the agent has accepted it
        #[arg(long, value_name = "DURATION", default_value = "30s", value_parser = duration)]
        timeout: Duration,
    },
    /// Send a line to an agent's standard input, unchanged
    Send {
        /// Agent: id, name, or unique id prefix of at least 4 characters
        #[arg(value_name = "AGENT", value_parser = agent)]
        id: String,
        /// The line; `-` sends standard input instead
        #[arg(allow_hyphen_values = true, required_unless_present = "close")]
        line: Option<String>,
        /// Close its standard input, after the line if there is one
        #[arg(long)]
        close: bool,
    },
    /// Wait until agents have ended, and exit with their code: of several, the first that is not 0
    Wait {
        /// Agents: id, name, or unique id prefix of at least 4 characters
        #[arg(value_name = "AGENT", required = true, value_parser = agent)]
        ids: Vec<String>,
    },
    /// End agents: signal, grace, KILL, and verify that no process is left
    Kill {
        /// Agents: id, name, or unique id prefix of at least 4 characters
        #[arg(value_name = "AGENT", required = true, value_parser = agent)]
        ids: Vec<String>,
        /// The first signal
        #[arg(long, value_name = "SIGNAL", default_value = "TERM")]
        signal: String,
        /// Time between the first signal and KILL
        #[arg(long, value_name = "DURATION", default_value = "5s", value_parser = duration)]
        grace: Duration,
    },
    /// Restart agents now, whatever their restart policy, and print the id of each
    ///
    /// A running agent keeps its id: its current run is ended, and the next one starts at once. An ended agent is
    /// spawned again with the same options and gets a new id.
    Restart {
        /// Agents: id, name, or unique id prefix of at least 4 characters
        #[arg(value_name = "AGENT", required = true, value_parser = agent)]
        ids: Vec<String>,
        /// Time between TERM and KILL for a running agent
        #[arg(long, value_name = "DURATION", default_value = "5s", value_parser = duration)]
        grace: Duration,
    },
    /// Delete agents that have ended, and their output
    Rm {
        /// Agents: id, name, or unique id prefix of at least 4 characters
        #[arg(value_name = "AGENT", required = true, value_parser = agent)]
        ids: Vec<String>,
        /// Kill agents that run first
        #[arg(short, long)]
        force: bool,
    },
    /// Delete all agents that have ended, and their output
    Prune {
        /// Only agents that ended at least this long ago, like 7d or 12h
        #[arg(long, value_name = "AGE", value_parser = age)]
        older_than: Option<Duration>,
        /// Only print what would be deleted
        #[arg(long)]
        dry_run: bool,
    },
    /// Show all agents in a live table; attach, prompt and kill from there
    Top,
    /// Check whether agents can run here, and print how to fix what is missing
    Doctor {
        /// Print one JSON object
        #[arg(long)]
        json: bool,
    },
    /// Stop the daemon; agents keep running, and the next daemon adopts them
    Shutdown,
    /// Print a completion script, e.g. colibri completions bash > ~/.local/share/bash-completion/completions/colibri
    Completions {
        /// The shell
        shell: Shell,
    },
}

impl Command {
    /// Returns whether the exit code of the command is that of an agent.
    pub(crate) fn exits_as_agent(&self) -> bool {
        matches!(self, Self::Run(_) | Self::Wait { .. } | Self::Attach(_))
    }
}

#[derive(Debug, Subcommand)]
pub(crate) enum Config {
    /// Report all errors in the settings file, each with its line; exit with 1 if there is one
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

#[derive(Debug, Args)]
pub(crate) struct Background {
    #[command(flatten)]
    pub(crate) spawn: Spawn,
    /// Send this prompt once the agent runs, in the form that its runtime expects
    #[arg(
        long,
        value_name = "TEXT",
        conflicts_with = "no_input",
        allow_hyphen_values = true
    )]
    pub(crate) prompt: Option<String>,
}

#[derive(Debug, Args)]
pub(crate) struct List {
    /// Print one JSON array
    #[arg(long)]
    pub(crate) json: bool,
    /// List only agents that run
    #[arg(long)]
    pub(crate) running: bool,
    /// Print only ids, one a line
    #[arg(short, long, conflicts_with = "json")]
    pub(crate) quiet: bool,
    /// List at most this many agents, the first ones in the order of the list
    #[arg(long, value_name = "COUNT")]
    pub(crate) last: Option<usize>,
}

#[derive(Debug, Args)]
pub(crate) struct Logs {
    /// Agent: id, name, or unique id prefix of at least 4 characters
    #[arg(value_name = "AGENT", value_parser = agent)]
    pub(crate) id: String,
    /// Keep printing until the agent has ended
    #[arg(short, long)]
    pub(crate) follow: bool,
    /// Print only this stream; by default stdout goes to stdout and stderr to stderr
    #[arg(long, value_enum)]
    pub(crate) stream: Option<LogStream>,
    /// Start at this byte (default: the oldest kept one)
    #[arg(long, value_name = "OFFSET")]
    pub(crate) from: Option<u64>,
    /// Start with the last COUNT lines
    #[arg(long, value_name = "COUNT", conflicts_with_all = ["from", "since"])]
    pub(crate) tail: Option<u64>,
    /// Start at output of this time or later: an age like 10m, or a time like 2026-01-31T12:00:00Z
    #[arg(long, value_name = "TIME", conflicts_with = "from", value_parser = since)]
    pub(crate) since: Option<jiff::Timestamp>,
    /// Print the time of its first byte before each line (UTC)
    #[arg(long)]
    pub(crate) timestamps: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Events {
    /// Agents: id, name, or unique id prefix of at least 4 characters
    #[arg(value_name = "AGENT", value_parser = agent)]
    pub(crate) ids: Vec<String>,
    /// Also print the agents' output; of named agents from the first byte on
    #[arg(long)]
    pub(crate) output: bool,
    /// Print one JSON object a line
    #[arg(long)]
    pub(crate) json: bool,
    /// The default; accepted for scripts of earlier versions
    #[arg(long, hide = true)]
    reconnect: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Attach {
    /// Agent: id, name, or unique id prefix of at least 4 characters
    #[arg(value_name = "AGENT", value_parser = agent)]
    pub(crate) id: String,
    /// Print its output unchanged
    #[arg(long)]
    pub(crate) raw: bool,
    /// Do not send typed lines
    #[arg(long)]
    pub(crate) no_input: bool,
    /// Show all kept output first, instead of only its end
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

/// Checks an agent selector before any request is sent. An empty one is usually an unset shell variable.
fn agent(text: &str) -> Result<String, String> {
    if colibri_client::is_blank(text) {
        return Err(
            "an empty id or name selects no agent; give an id or a name that colibri ps shows"
                .to_owned(),
        );
    }
    Ok(text.to_owned())
}

/// Checks the name for a new agent.
fn name(text: &str) -> Result<String, colibri_types::AgentNameError> {
    Ok(text.parse::<colibri_types::AgentName>()?.to_string())
}

/// Parses a duration like `500ms`, `5s` or `1h30m`; a plain number is seconds.
fn duration(text: &str) -> Result<Duration, String> {
    if let Ok(time) = text.parse::<WallTime>() {
        return Ok(time.duration());
    }
    text.parse::<jiff::SignedDuration>()
        .ok()
        .and_then(|duration| Duration::try_from(duration).ok())
        .ok_or_else(|| "give one like 500ms, 5s or 1h30m, or a whole number of seconds".to_owned())
}

/// Parses an age like `7d` or `12h`. The unit is required: older agents are deleted, and a plain `7` may mean days.
fn age(text: &str) -> Result<Duration, String> {
    match text.parse::<u64>() {
        Ok(_) => Err("give it with a unit, like 7d, 12h or 30m".to_owned()),
        Err(_) => duration(text).map_err(|_| "give one like 7d, 12h or 30m".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
        for plain in [
            &["colibri", "run", "--wall-time", "5", "--", "sh"][..],
            &["colibri", "kill", "a", "--grace", "5"],
            &["colibri", "prompt", "a", "hi", "--timeout", "5"],
        ] {
            assert!(Arguments::try_parse_from(plain).is_ok(), "{plain:?}");
        }
        for bad in [
            &["colibri", "run"][..],
            &["colibri", "run", "sh"],
            &["colibri", "kill", "a", "--grace", "soon"],
            &["colibri", "prune", "--older-than", "7"],
        ] {
            assert_eq!(
                Arguments::try_parse_from(bad).unwrap_err().exit_code(),
                2,
                "{bad:?}"
            );
        }
    }
}
