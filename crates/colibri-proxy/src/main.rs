//! `colibri-proxy`: the only way out of a sandbox whose agent may connect to some places only; see the README.

#![deny(unsafe_code)]

mod handover;
mod request;
mod serve;
mod sys;

use std::ffi::{OsStr, OsString};
use std::io::{self, Write};
use std::net::{Ipv4Addr, TcpListener};
use std::os::unix::process::CommandExt;
use std::process::{Command, ExitCode, Stdio};

use colibri_jail_core::{Destination, JailError};

const USAGE: &str = "usage: colibri-proxy run HOST:PORT... -- COMMAND [ARG...]
       colibri-proxy enter PROGRAM [ARG...]

The only way out of a sandbox whose agent may connect to some places only.
Started by the Colibri daemon; not for use by hand.
";
/// Where the agent finds the proxy, in its own network.
const PORT: u16 = 3128;
/// In the environment between `run` and `enter`: the number of the descriptor that leads to `serve`.
const HANDOVER: &str = "COLIBRI_PROXY_FD";
/// As env(1) and others that execute a command: it is not they who failed.
const NOT_FOUND: u8 = 127;
const NOT_STARTED: u8 = 125;

/// Why nothing is executed.
#[derive(Debug, thiserror::Error)]
enum ProxyError {
    #[error("{0}")]
    Destination(#[from] JailError),
    #[error("{doing} failed: {error}")]
    System {
        doing: &'static str,
        error: io::Error,
    },
    #[error("{} cannot be executed: {error}", program.to_string_lossy())]
    Exec { program: OsString, error: io::Error },
    #[error("{HANDOVER} names no descriptor; this part is started by colibri-proxy run")]
    NoHandover,
}

impl ProxyError {
    fn system(doing: &'static str) -> impl FnOnce(io::Error) -> Self {
        move |error| Self::System { doing, error }
    }
}

fn main() -> ExitCode {
    let arguments: Vec<OsString> = std::env::args_os().skip(1).collect();
    let result = match arguments.split_first() {
        Some((word, rest)) if word == "run" => {
            split(rest).map(|(allow, command)| run(allow, command))
        }
        Some((word, rest)) if word == "enter" => rest
            .split_first()
            .map(|(program, args)| enter(program, args)),
        Some((word, rest)) if word == "serve" => rest
            .split_first()
            .map(|(parent, allow)| serve(parent, allow)),
        Some((word, [])) if word == "--help" || word == "-h" => {
            let _ = io::stdout().write_all(USAGE.as_bytes());
            return ExitCode::SUCCESS;
        }
        Some((word, [])) if word == "--version" => {
            let version = concat!("colibri-proxy ", env!("CARGO_PKG_VERSION"), "\n");
            let _ = io::stdout().write_all(version.as_bytes());
            return ExitCode::SUCCESS;
        }
        _ => None,
    };
    match result {
        None => {
            let _ = io::stderr().write_all(USAGE.as_bytes());
            ExitCode::from(2)
        }
        Some(Ok(())) => ExitCode::SUCCESS,
        Some(Err(error)) => {
            say(&error);
            ExitCode::from(match error {
                ProxyError::Exec { error, .. } if error.kind() == io::ErrorKind::NotFound => {
                    NOT_FOUND
                }
                _ => NOT_STARTED,
            })
        }
    }
}

/// One line on standard error, which is the agent's.
fn say(what: &dyn std::fmt::Display) {
    let _ = io::stderr().write_all(format!("colibri-proxy: {what}\n").as_bytes());
}

/// What stands before `--`, and the command behind it.
fn split(words: &[OsString]) -> Option<(&[OsString], &[OsString])> {
    let place = words.iter().position(|word| word == "--")?;
    let (allow, behind) = words.split_at(place);
    let command = behind.get(1..)?;
    (!allow.is_empty() && !command.is_empty()).then_some((allow, command))
}

fn destinations(words: &[OsString]) -> Result<Vec<Destination>, JailError> {
    words
        .iter()
        .map(|word| word.to_string_lossy().parse())
        .collect()
}

/// Starts `serve`, and becomes the command. `serve` ends with this process, whatever that has become.
fn run(allow: &[OsString], command: &[OsString]) -> Result<(), ProxyError> {
    destinations(allow)?;
    let (outside, inside) = handover::pair().map_err(ProxyError::system("making a socket pair"))?;
    let own = std::env::current_exe().map_err(ProxyError::system("finding this program"))?;
    let mut serve = Command::new(own);
    serve
        .arg("serve")
        .arg(std::process::id().to_string())
        .args(allow)
        // The agent's environment may hold secrets, and is of no use to it.
        .env_clear()
        .envs(std::env::var_os("COLIBRI_AGENT_ID").map(|id| ("COLIBRI_AGENT_ID", id)))
        .current_dir("/")
        .stdin(Stdio::from(outside))
        .stdout(Stdio::null());
    serve
        .spawn()
        .map_err(ProxyError::system("starting the proxy"))?;
    let number =
        handover::leave_open(&inside).map_err(ProxyError::system("keeping the socket open"))?;
    let (program, args) = command.split_first().unwrap_or((&command[0], &[]));
    Err(execute(program, args, Some(number)))
}

/// In the sandbox: opens the port, hands it out, and becomes the agent.
fn enter(program: &OsStr, args: &[OsString]) -> Result<(), ProxyError> {
    let number = std::env::var(HANDOVER)
        .ok()
        .and_then(|number| number.parse().ok());
    let outside = number
        .and_then(sys::take_socket)
        .ok_or(ProxyError::NoHandover)?;
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, PORT)).map_err(ProxyError::system(
        "opening the proxy's port in the sandbox",
    ))?;
    handover::give(&outside, &listener)
        .map_err(ProxyError::system("handing the proxy its port"))?;
    drop((outside, listener));
    Err(execute(program, args, None))
}

fn execute(program: &OsStr, args: &[OsString], handover: Option<i32>) -> ProxyError {
    let mut command = Command::new(program);
    command.args(args).env_remove(HANDOVER);
    if let Some(number) = handover {
        command.env(HANDOVER, number.to_string());
    }
    ProxyError::Exec {
        error: command.exec(),
        program: program.to_owned(),
    }
}

/// Outside: serves the port that comes through standard input, until `parent` ends.
fn serve(parent: &OsStr, allow: &[OsString]) -> Result<(), ProxyError> {
    let allow = destinations(allow)?;
    sys::end_with(parent.to_string_lossy().parse().ok())
        .map_err(ProxyError::system("watching the sandbox"))?;
    // Signals are meant for the agent; this ends after it.
    for signal in sys::IGNORED {
        signal_hook::flag::register(*signal, std::sync::Arc::default())
            .map_err(ProxyError::system("ignoring signals"))?;
    }
    let listener = handover::take(io::stdin()).map_err(ProxyError::system("receiving the port"))?;
    serve::serve(listener, allow).map_err(ProxyError::system("serving"))
}
