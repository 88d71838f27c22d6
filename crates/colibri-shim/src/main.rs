//! `colibri-shim DIRECTORY`: owns one agent until it and all its descendants are gone.
//!
//! Started by the spawner with a [`Launch`] on stdin; see the crate's README for its life.

#![deny(unsafe_code)]

mod agent;
mod cgroup;
mod input;
mod peer;
mod run_commands;
mod runs;

mod stream;
mod supervise;
mod sys;
mod teardown;
mod watchers;

use std::io::{self, BufRead, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{SystemTime, UNIX_EPOCH};

use colibri_shim::control::PROTOCOL;
use colibri_shim::launch::{Launch, LaunchReport};
use colibri_shim::{layout, process};
use rustix::fs::Mode;
use rustix::process::Signal;

use crate::peer::Peer;
use crate::runs::Runs;
use crate::stream::Stream;
use crate::supervise::Supervisor;

const USAGE: &str = "usage: colibri-shim DIRECTORY\n\nOwns one agent. Started by the Colibri daemon with a launch request on standard input; not for use by hand.\n";

/// What keeps a shim from starting its agent.
#[derive(Debug, thiserror::Error)]
enum ShimError {
    #[error("agent directory {0} cannot be entered: {1}")]
    Directory(PathBuf, io::Error),
    #[error("launch request on stdin cannot be read: {0}")]
    Launch(io::Error),
    #[error("launch request on stdin was cut off: whoever started this shim has gone")]
    CutOff,
    #[error(
        "inherited descriptors cannot be closed: {0}; the system must have close_range(2), as Linux 5.9 and FreeBSD 13 have"
    )]
    Descriptors(io::Error),
    #[error("cannot become the reaper of the agent's descendants: {0}")]
    Reaper(io::Error),
    #[error("journal cannot be opened: {0}")]
    Journal(#[from] colibri_journal::JournalError),
    #[error("control socket {file} cannot be created: {0}", file = layout::CONTROL)]
    Control(io::Error),
    #[error("signals cannot be watched: {0}")]
    Signals(io::Error),
    #[error("{program} cannot be started in {cwd}: {error}")]
    Exec {
        program: String,
        cwd: String,
        error: io::Error,
    },
    #[error("{file} cannot be written: {0}", file = layout::SHIM)]
    Record(io::Error),
}

impl ShimError {
    /// The system's own number, where it was the system that refused.
    fn errno(&self) -> Option<i32> {
        use colibri_journal::JournalError;
        match self {
            Self::Directory(_, error)
            | Self::Launch(error)
            | Self::Descriptors(error)
            | Self::Reaper(error)
            | Self::Journal(JournalError::Io { source: error, .. })
            | Self::Control(error)
            | Self::Signals(error)
            | Self::Exec { error, .. }
            | Self::Record(error) => error.raw_os_error(),
            Self::Journal(_) | Self::CutOff => None,
        }
    }
}

fn main() -> ExitCode {
    let mut arguments = std::env::args_os().skip(1);
    let directory = match (arguments.next(), arguments.next()) {
        (Some(word), None) if word == "--help" || word == "-h" => {
            let _ = io::stdout().write_all(USAGE.as_bytes());
            return ExitCode::SUCCESS;
        }
        (Some(word), None) if word == "--version" => {
            let version = concat!("colibri-shim ", env!("CARGO_PKG_VERSION"), "\n");
            let _ = io::stdout().write_all(version.as_bytes());
            return ExitCode::SUCCESS;
        }
        (Some(directory), None) => PathBuf::from(directory),
        _ => {
            let _ = io::stderr().write_all(USAGE.as_bytes());
            return ExitCode::from(2);
        }
    };
    match start(&directory) {
        Ok(supervisor) => {
            report(&LaunchReport::Started {
                pid: supervisor.agent_pid(),
                protocol: PROTOCOL,
            });
            match supervisor.run(connection()) {
                Ok(()) => ExitCode::SUCCESS,
                Err(error) => {
                    let _ = writeln!(io::stderr(), "colibri-shim: {error}");
                    ExitCode::FAILURE
                }
            }
        }
        Err(error) => {
            report(&LaunchReport::Failed {
                message: error.to_string(),
                errno: error.errno(),
            });
            ExitCode::FAILURE
        }
    }
}

/// Everything up to the running agent, in the order in which a failure leaves nothing behind.
fn start(directory: &Path) -> Result<Supervisor, ShimError> {
    // An agent could leave its jail through an inherited directory descriptor.
    colibri_sys::descriptors::close_from(3).map_err(ShimError::Descriptors)?;
    colibri_sys::signals::reset_inherited();
    // A handler makes writes beyond RLIMIT_FSIZE fail with EFBIG. SIG_IGN would too, but the agent would inherit it.
    colibri_sys::signals::catch(Signal::XFSZ);
    rustix::process::umask(Mode::from_raw_mode(0o077));
    // A session of its own: no terminal's signal reaches it. It fails only for a group leader, which
    // somebody who starts the shim from an interactive shell makes it.
    let _ = rustix::process::setsid();
    // Entered, so that a long path does not break the socket's address (unix(7): 108 bytes, unix(4): 104).
    std::env::set_current_dir(directory)
        .map_err(|error| ShimError::Directory(directory.to_owned(), error))?;
    // What needs no request is done while that is still being written.
    sys::become_reaper().map_err(ShimError::Reaper)?;
    let listener = UnixListener::bind(layout::CONTROL).map_err(ShimError::Control)?;
    listener.set_nonblocking(true).map_err(ShimError::Control)?;
    let signals = supervise::Signals::watch().map_err(ShimError::Signals)?;
    let own = rustix::process::getpid().as_raw_nonzero().get();
    let shim_start = process::find(own).ok().flatten();
    let launch = read_launch()?;
    let options = launch.journal;
    let stdout = Stream::new(Path::new(layout::STDOUT), &options)?;
    let stderr = Stream::new(Path::new(layout::STDERR), &options)?;
    let mut runs = Runs::new(launch, shim_start.map_or(0, |process| process.start));
    let prepared = runs.begin([0, 0]).run(&signals.child());
    let agent = prepared.and_then(|()| runs.start()).map_err(|error| {
        // The error names the failed command; the clean-up then undoes the others as far as possible.
        let _ = runs.clean_up().run(&signals.child());
        runs.end();
        ShimError::Exec {
            program: runs.program().to_owned(),
            cwd: runs.cwd().to_owned(),
            error,
        }
    })?;
    // An agent without a record could not be found again: end it (it dies with this process).
    runs.announce(agent.pid.as_raw_nonzero().get())
        .map_err(ShimError::Record)?;
    Ok(Supervisor::new(
        runs,
        agent,
        stdout,
        stderr,
        OwnedFd::from(listener),
        signals,
        directory.to_owned(),
    ))
}

/// Whoever started the shim may die while it writes: half a request is no request.
fn read_launch() -> Result<Launch, ShimError> {
    let mut line = Vec::new();
    let read = io::stdin().lock().read_until(b'\n', &mut line);
    read.map_err(ShimError::Launch)?;
    if line.last() != Some(&b'\n') {
        return Err(ShimError::CutOff);
    }
    serde_json::from_slice(&line).map_err(|error| ShimError::Launch(error.into()))
}

/// Answers whoever started the shim. Nobody may be there any more.
fn report(report: &LaunchReport) {
    if let Ok(mut line) = serde_json::to_vec(report) {
        line.push(b'\n');
        let _ = io::stdout().write_all(&line);
        let _ = io::stdout().flush();
    }
}

/// Stdin as a control connection, whose other end may be gone already; stdio leads nowhere afterwards.
fn connection() -> Option<Peer> {
    let peer = Peer::of_starter(io::stdin()).ok();
    if let Ok(null) = std::fs::File::open("/dev/null") {
        let _ = rustix::stdio::dup2_stdin(&null);
        let _ = rustix::stdio::dup2_stdout(&null);
    }
    peer
}

/// Nanoseconds since 1970.
fn now_ns() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| {
            u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
        })
}
