#![doc = include_str!("../README.md")]
#![forbid(unsafe_code)]

mod acp;
mod agent;
mod codex;
mod files;
mod input;
mod queue;
mod session;
mod terminals;

use std::io::{self, Write};
use std::process::ExitCode;

use clap::{Parser, ValueEnum};

/// Exit code for a failure of the adapter itself, as of `colibri run`.
const FAILURE: u8 = 125;

/// Holds the session of an agent with a stateful protocol
#[derive(Debug, Parser)]
#[command(name = "colibri-adapter", version, about)]
struct Options {
    /// Protocol that the agent speaks
    protocol: Protocol,
    /// Run this prompt, then end the agent
    #[arg(long, value_name = "TEXT")]
    prompt: Option<String>,
    /// Continue this session of the agent
    #[arg(long, value_name = "ID")]
    session: Option<String>,
    /// Let the agent ask before it runs commands (codex)
    #[arg(long)]
    ask: bool,
    /// Program of the agent, and its arguments
    #[arg(last = true, required = true, value_name = "PROGRAM")]
    command: Vec<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Protocol {
    /// Agent Client Protocol
    Acp,
    /// codex app-server
    Codex,
}

/// A failure of the adapter itself.
#[derive(Debug, thiserror::Error)]
enum AdapterError {
    #[error("cannot {action}: {error}")]
    Io {
        action: String,
        #[source]
        error: io::Error,
    },
    #[error("no program to run; give one after --")]
    NoProgram,
}

impl AdapterError {
    fn io(action: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        move |error| Self::Io {
            action: action.into(),
            error,
        }
    }
}

fn main() -> ExitCode {
    let options = Options::parse();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    let result = runtime
        .map_err(AdapterError::io("start the adapter"))
        .and_then(|runtime| {
            let result = runtime.block_on(session::run(options));
            // A blocked read of standard input would delay the end.
            runtime.shutdown_background();
            result
        });
    match result {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            let _ = writeln!(io::stderr(), "colibri-adapter: {error}");
            ExitCode::from(FAILURE)
        }
    }
}
