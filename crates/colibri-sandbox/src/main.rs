//! `colibri-sandbox`: completes a sandbox of bubblewrap; see the README.

#![deny(unsafe_code)]

#[cfg(target_os = "linux")]
mod clean;
#[cfg(target_os = "linux")]
mod confine;
#[cfg(target_os = "linux")]
mod enter;
#[cfg(target_os = "linux")]
mod index;
#[cfg(target_os = "linux")]
mod lock;
#[cfg(target_os = "linux")]
mod options;
#[cfg(target_os = "linux")]
mod paths;
#[cfg(target_os = "linux")]
mod placeholder;
#[cfg(target_os = "linux")]
mod pre_exec;
#[cfg(target_os = "linux")]
mod private_user;
#[cfg(target_os = "linux")]
mod run;
#[cfg(target_os = "linux")]
mod watch;

use std::io::{self, Write};
use std::process::ExitCode;

const USAGE: &str = "usage: colibri-sandbox run [OPTION...] -- BWRAP [ARG...]
       colibri-sandbox enter [OPTION...] -- PROGRAM [ARG...]
       colibri-sandbox clean [--workspace|--git|--logs|--path PATH]...

Completes a sandbox of bubblewrap: the user of the agent, masked and protected
paths, seccomp and Landlock. The Colibri daemon starts it; do not start it
manually.
";
/// Exit code if the sandbox itself fails.
const EXIT_FAILURE: u8 = 125;

/// Why the sandbox failed: the operation, its object, the cause and a hint.
type SandboxError = Box<dyn std::error::Error>;

/// Returns the error for an operation on an object.
#[cfg(target_os = "linux")]
fn cannot<E: std::fmt::Display>(action: impl std::fmt::Display) -> impl FnOnce(E) -> SandboxError {
    move |error| format!("cannot {action}: {error}").into()
}

#[cfg(target_os = "linux")]
fn execute(words: Vec<std::ffi::OsString>) -> Option<Result<ExitCode, SandboxError>> {
    let [part, words @ ..] = words.as_slice() else {
        return None;
    };
    match part.to_str()? {
        "run" => Some(options::Run::parse(words)?.and_then(run::run)),
        "enter" => Some(options::Enter::parse(words)?.and_then(enter::enter)),
        "clean" => clean::clean(words),
        "hold-namespace" if words.is_empty() => Some(private_user::hold_namespace()),
        _ => None,
    }
}

#[cfg(not(target_os = "linux"))]
fn execute(_words: Vec<std::ffi::OsString>) -> Option<Result<ExitCode, SandboxError>> {
    Some(Err("colibri-sandbox is for Linux".into()))
}

/// Writes one line to standard error. A path in it may contain any characters.
fn report(message: &str) {
    let printable = message.replace(colibri_jail_core::is_unprintable, "?");
    let _ = io::stderr().write_all(format!("colibri-sandbox: {printable}\n").as_bytes());
}

fn main() -> ExitCode {
    let words: Vec<_> = std::env::args_os().skip(1).collect();
    match words.as_slice() {
        [option] if option == "--help" || option == "-h" => {
            let _ = io::stdout().write_all(USAGE.as_bytes());
            return ExitCode::SUCCESS;
        }
        [option] if option == "--version" => {
            let version = concat!("colibri-sandbox ", env!("CARGO_PKG_VERSION"), "\n");
            let _ = io::stdout().write_all(version.as_bytes());
            return ExitCode::SUCCESS;
        }
        _ => {}
    }
    match execute(words) {
        Some(Ok(code)) => code,
        Some(Err(error)) => {
            report(&error.to_string());
            ExitCode::from(EXIT_FAILURE)
        }
        None => {
            let _ = io::stderr().write_all(USAGE.as_bytes());
            ExitCode::from(2)
        }
    }
}
