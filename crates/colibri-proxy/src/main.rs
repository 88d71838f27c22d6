//! `colibri-proxy`: HTTP proxy with an allow list for a sandbox without a network; see the README.

#![forbid(unsafe_code)]

mod request;
mod server;
mod socket_passing;

use std::ffi::{OsStr, OsString};
use std::fmt::Display;
use std::io::{self, Write};
use std::net::{Ipv4Addr, TcpListener};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::process::{Command, ExitCode, Stdio};

use colibri_jail_core::{Destination, JailError, PROXY_PORT, PROXY_VARIABLE};
use rustix::process::Pid;
use signal_hook::consts::{SIGALRM, SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGUSR1, SIGUSR2};

const USAGE: &str = "usage: colibri-proxy run HOST:PORT... -- COMMAND [ARG...]
       colibri-proxy enter PROGRAM [ARG...]

HTTP proxy with an allow list for a sandbox without a network.
The Colibri daemon starts it; do not start it manually.
";
/// Exit code if the program does not exist, as of env(1).
const EXIT_NOT_FOUND: u8 = 127;
/// Exit code if the proxy itself fails, as of env(1).
const EXIT_FAILURE: u8 = 125;
/// Signals that `serve` ignores: they are sent to all processes of an agent, and `serve` must outlive the agent.
const IGNORED_SIGNALS: &[i32] = &[SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGUSR1, SIGUSR2, SIGALRM];

/// Why the proxy failed: a message.
type ProxyError = Box<dyn std::error::Error>;

/// Returns the error for an operation of the system.
fn failed(action: &str) -> impl FnOnce(io::Error) -> ProxyError {
    move |error| format!("cannot {action}: {error}").into()
}

fn main() -> ExitCode {
    let arguments: Vec<OsString> = std::env::args_os().skip(1).collect();
    let result = match arguments.as_slice() {
        [part, arguments @ ..] if part == "run" => {
            let separator = arguments.iter().position(|argument| argument == "--");
            match separator.map(|separator| arguments.split_at(separator)) {
                Some((allow @ [_, ..], [_, program, args @ ..])) => Some(run(allow, program, args)),
                _ => None,
            }
        }
        [part, program, args @ ..] if part == "enter" => Some(enter(program, args)),
        [part, parent, allow @ ..] if part == "serve" => Some(serve(parent, allow)),
        [option] if option == "--help" || option == "-h" => Some(print(USAGE)),
        [option] if option == "--version" => Some(print(concat!(
            "colibri-proxy ",
            env!("CARGO_PKG_VERSION"),
            "\n"
        ))),
        _ => None,
    };
    match result {
        Some(Ok(code)) => code,
        Some(Err(error)) => {
            log(&error);
            ExitCode::from(EXIT_FAILURE)
        }
        None => {
            let _ = io::stderr().write_all(USAGE.as_bytes());
            ExitCode::from(2)
        }
    }
}

/// Writes a text to standard output.
fn print(text: &str) -> Result<ExitCode, ProxyError> {
    let _ = io::stdout().write_all(text.as_bytes());
    Ok(ExitCode::SUCCESS)
}

/// Writes one line to standard error, which is the agent's.
fn log(message: &dyn Display) {
    let _ = io::stderr().write_all(format!("colibri-proxy: {message}\n").as_bytes());
}

fn parse_destinations(arguments: &[OsString]) -> Result<Vec<Destination>, JailError> {
    arguments
        .iter()
        .map(|argument| argument.to_string_lossy().parse())
        .collect()
}

/// Starts `serve` and executes the program. `serve` ends when this process ends.
fn run(allow: &[OsString], program: &OsStr, args: &[OsString]) -> Result<ExitCode, ProxyError> {
    parse_destinations(allow)?;
    let (server_end, sandbox_end) = UnixStream::pair().map_err(failed("create a socket pair"))?;
    let proxy = std::env::current_exe().map_err(failed("find its own program"))?;
    Command::new(proxy)
        .arg("serve")
        .arg(std::process::id().to_string())
        .args(allow)
        // The agent's environment may contain secrets.
        .env_clear()
        .envs(std::env::var_os("COLIBRI_AGENT_ID").map(|id| ("COLIBRI_AGENT_ID", id)))
        .current_dir("/")
        .stdin(Stdio::from(OwnedFd::from(server_end)))
        .stdout(Stdio::null())
        .spawn()
        .map_err(failed("start the server"))?;
    let number = socket_passing::keep_open(&sandbox_end).map_err(failed("keep the socket open"))?;
    Ok(execute(program, args, Some(number)))
}

/// Runs in the sandbox: opens the port, sends the listening socket to `serve`, and executes the agent.
fn enter(program: &OsStr, args: &[OsString]) -> Result<ExitCode, ProxyError> {
    let socket = std::env::var(PROXY_VARIABLE)
        .ok()
        .and_then(|number| number.parse().ok())
        .and_then(colibri_sys::descriptors::take_inherited_socket)
        .ok_or_else(|| {
            format!(
                "{PROXY_VARIABLE} does not name a socket; start this part with colibri-proxy run"
            )
        })?;
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, PROXY_PORT))
        .map_err(failed("open the proxy's port in the sandbox"))?;
    socket_passing::send(&socket, &listener).map_err(failed("send the listening socket"))?;
    drop((socket, listener));
    Ok(execute(program, args, None))
}

/// Replaces this process by the program; returns the exit code of a failure, as of env(1).
fn execute(program: &OsStr, args: &[OsString], socket: Option<i32>) -> ExitCode {
    let mut command = Command::new(program);
    command.args(args).env_remove(PROXY_VARIABLE);
    if let Some(number) = socket {
        command.env(PROXY_VARIABLE, number.to_string());
    }
    let error = command.exec();
    log(&format!(
        "cannot execute {}: {error}",
        program.to_string_lossy()
    ));
    ExitCode::from(match error.kind() {
        io::ErrorKind::NotFound => EXIT_NOT_FOUND,
        _ => EXIT_FAILURE,
    })
}

/// Runs outside of the sandbox: receives the listening socket from standard input and serves it until the process
/// `parent` ends.
fn serve(parent: &OsStr, allow: &[OsString]) -> Result<ExitCode, ProxyError> {
    // On FreeBSD this process inherits the monitor's control socket, whose end the shim waits for. Linux before 5.9 lacks
    // the call, and has no such socket.
    let _ = colibri_sys::descriptors::close_from(3);
    let allow = parse_destinations(allow)?;
    let parent = parent
        .to_string_lossy()
        .parse()
        .ok()
        .and_then(Pid::from_raw);
    parent
        .ok_or(io::ErrorKind::InvalidInput.into())
        .and_then(colibri_sys::process::die_with_parent)
        .map_err(failed("watch the sandbox"))?;
    for signal in IGNORED_SIGNALS {
        signal_hook::flag::register(*signal, std::sync::Arc::default())
            .map_err(failed("ignore signals"))?;
    }
    let received =
        socket_passing::receive(io::stdin()).map_err(failed("receive the listening socket"))?;
    server::serve(received, allow).map_err(failed("serve"))?;
    Ok(ExitCode::SUCCESS)
}
