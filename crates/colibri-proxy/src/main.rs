//! `colibri-proxy`: the only network of a sandbox; see the README.

#![forbid(unsafe_code)]

mod connect;
mod credential;
mod framing;
mod headers;
mod http;
mod lockdown;
mod policy;
mod reporter;
mod resolver;
mod run;
mod serve;
mod server;
mod settings;
mod socks;
mod streams;
mod tls;
mod tunnel;

use std::ffi::{OsStr, OsString};
use std::io::{self, Write};
use std::net::{Ipv4Addr, TcpListener};
use std::os::unix::process::CommandExt;
use std::process::{Command, ExitCode};

use colibri_jail_core::{PROXY_PORT, PROXY_VARIABLE};
use colibri_sys::socket_passing;

const USAGE: &str = "usage: colibri-proxy run [OPTION VALUE]... RULE... -- COMMAND [ARG...]
       colibri-proxy enter [--listen PORT]... PROGRAM [ARG...]

HTTP and SOCKS5 proxy with an allow list for a sandbox without a network.
The Colibri daemon starts it; do not start it manually.

Rules:
  HOST:PORT[,PORT...]                    HTTP and TLS; *.DOMAIN for all subdomains
  tcp:HOST:PORT[,PORT...]                any TCP connection
  [METHOD[,METHOD...] ]https://HOST/PATH requests, where * is a whole segment

Options of run:
  --credential NAME@HOST[=HEADER: TEMPLATE]
                     add the key in COLIBRI_CREDENTIAL_NAME to requests for HOST
  --ca FD            provide the certificate of the proxy's authority at FD
  --ca-bundle FD     provide all root certificates at FD
  --events FD        write refusals to FD, as lines of JSON
";
/// Exit code if the program does not exist, as of env(1).
const EXIT_NOT_FOUND: u8 = 127;
/// Exit code if the proxy itself fails, as of env(1).
const EXIT_FAILURE: u8 = 125;

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
                Some((arguments @ [_, ..], [_, program, args @ ..])) => {
                    Some(run::run(arguments, program, args))
                }
                _ => None,
            }
        }
        [part, arguments @ ..] if part == "enter" => enter(arguments),
        [part, parent] if part == "serve" => Some(serve::serve(parent)),
        [part, parent] if part == "resolve" => Some(serve::resolve(parent)),
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
            reporter::write_line(&error.to_string());
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

/// Runs in the sandbox: opens the ports, sends the listening sockets to `serve`, and executes the agent. Returns `None` if the
/// arguments are invalid.
fn enter(mut arguments: &[OsString]) -> Option<Result<ExitCode, ProxyError>> {
    let mut ports = Vec::new();
    while let [option, port, rest @ ..] = arguments
        && option == "--listen"
    {
        ports.push(port.to_str()?.parse::<u16>().ok()?);
        arguments = rest;
    }
    let [program, args @ ..] = arguments else {
        return None;
    };
    let execution = Execution {
        program,
        args,
        socket: None,
        removed: Vec::new(),
    };
    Some(pass_ports(&ports).map(|()| execution.execute()))
}

/// Opens the proxy's port and these ports, and sends the listening sockets to `serve`.
fn pass_ports(ports: &[u16]) -> Result<(), ProxyError> {
    let socket = std::env::var(PROXY_VARIABLE)
        .ok()
        .and_then(|number| number.parse().ok())
        .and_then(colibri_sys::descriptors::take_inherited_socket)
        .ok_or_else(|| {
            format!(
                "{PROXY_VARIABLE} does not name a socket; start this part with colibri-proxy run"
            )
        })?;
    let bind = |port| TcpListener::bind((Ipv4Addr::LOCALHOST, port));
    let proxy = bind(PROXY_PORT).map_err(failed("open the proxy's port in the sandbox"))?;
    let mut listeners = vec![proxy];
    for port in ports {
        match bind(*port) {
            Ok(listener) => listeners.push(listener),
            Err(error) => reporter::write_line(&format!(
                "cannot open port {port} in the sandbox: {error}; connect to it through the proxy"
            )),
        }
    }
    socket_passing::send(&socket, &listeners).map_err(failed("send the listening socket"))
}

/// A program that replaces this process.
struct Execution<'a> {
    program: &'a OsStr,
    args: &'a [OsString],
    /// Number of the connection to `serve`, which the program inherits.
    socket: Option<i32>,
    /// Variables that the program does not get.
    removed: Vec<OsString>,
}

impl Execution<'_> {
    /// Executes the program; returns the exit code of a failure, as of env(1).
    fn execute(self) -> ExitCode {
        let mut command = Command::new(self.program);
        command.args(self.args).env_remove(PROXY_VARIABLE);
        for name in self.removed {
            command.env_remove(name);
        }
        if let Some(number) = self.socket {
            command.env(PROXY_VARIABLE, number.to_string());
        }
        let error = command.exec();
        reporter::write_line(&format!(
            "cannot execute {}: {error}",
            self.program.to_string_lossy()
        ));
        ExitCode::from(match error.kind() {
            io::ErrorKind::NotFound => EXIT_NOT_FOUND,
            _ => EXIT_FAILURE,
        })
    }
}
