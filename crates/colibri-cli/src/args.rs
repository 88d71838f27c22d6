//! The command line: one definition for parsing, help and completions.

mod spawn;

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};
use clap_complete::Shell;

pub(crate) use self::spawn::{OfProfile, Spawn};

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
    /// The daemon's socket (default: $COLIBRI_SOCKET, else that of your running daemon, else colibri/colibri.sock in $XDG_RUNTIME_DIR; see colibri(1))
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
        /// Agent: id, name, or unique id prefix of at least 4 characters
        #[arg(value_name = "AGENT", value_parser = agent)]
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
        /// Agent: id, name, or unique id prefix of at least 4 characters
        #[arg(value_name = "AGENT", value_parser = agent)]
        id: String,
        /// Print one JSON array
        #[arg(long)]
        json: bool,
    },
    /// Watch an agent as people read it, and talk to it: what is typed is sent as prompts; Ctrl-C detaches
    Attach(Attach),
    /// Give an agent something to do, in the words of its runtime, and wait until it has taken it
    Prompt {
        /// Agent: id, name, or unique id prefix of at least 4 characters
        #[arg(value_name = "AGENT", value_parser = agent)]
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
        /// Agent: id, name, or unique id prefix of at least 4 characters
        #[arg(value_name = "AGENT", value_parser = agent)]
        id: String,
        /// How long to wait for its answer
        #[arg(long, value_name = "DURATION", default_value = "30s", value_parser = duration)]
        timeout: Duration,
    },
    /// Send a line to an agent's standard input, as it is
    Send {
        /// Agent: id, name, or unique id prefix of at least 4 characters
        #[arg(value_name = "AGENT", value_parser = agent)]
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
        /// Agent: id, name, or unique id prefix of at least 4 characters
        #[arg(value_name = "AGENT", value_parser = agent)]
        id: String,
    },
    /// End an agent: signal, grace, KILL, and verify that nothing is left
    Kill {
        /// Agent: id, name, or unique id prefix of at least 4 characters
        #[arg(value_name = "AGENT", value_parser = agent)]
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
        /// Agent: id, name, or unique id prefix of at least 4 characters
        #[arg(value_name = "AGENT", value_parser = agent)]
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

#[derive(Debug, Args)]
pub(crate) struct Logs {
    /// Agent: id, name, or unique id prefix of at least 4 characters
    #[arg(value_name = "AGENT", value_parser = agent)]
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
    /// Agents: id, name, or unique id prefix of at least 4 characters
    #[arg(value_name = "AGENT", value_parser = agent)]
    pub(crate) ids: Vec<String>,
    /// Also print what they write; of named agents from the first byte on
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

/// Checks what selects an agent before anything is asked: an empty one is most often an unset variable.
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
fn name(text: &str) -> Result<String, colibri_spawner::NameError> {
    Ok(text.parse::<colibri_spawner::AgentName>()?.to_string())
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
