//! `colibri-shim DIRECTORY`: owns one agent until the agent and all its descendants have ended.
//!
//! The spawner starts it with a [`Launch`] on stdin. The README of the crate describes its life.

#![deny(unsafe_code)]

mod agent_process;
mod cgroup;
mod connection;
mod control_server;
mod descendants;
mod elevation;
mod held;
mod input;
mod kill_sequence;
mod monitor;
mod network_events;
mod output;
mod poll;
mod pre_exec;
mod run_commands;
mod runs;
mod signals;
mod supervisor;
mod terminal;

use std::error::Error;
use std::io::{self, BufRead, Write};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

use colibri_shim::control::PROTOCOL;
use colibri_shim::launch::{Launch, LaunchReport};
use colibri_shim::layout;
use colibri_sys::process;
use rustix::fs::Mode;
use signal_hook::consts::SIGXFSZ;

use crate::connection::Connection;
use crate::output::{Offsets, Outputs};
use crate::runs::Runs;
use crate::signals::Signals;
use crate::supervisor::Supervisor;

const USAGE: &str = "usage: colibri-shim DIRECTORY\n\nOwns one agent. The Colibri daemon starts it with a launch request on standard input; do not start it manually.\n";

/// Returns a function for `map_err` that reports a failed launch.
fn cannot<E: Error + 'static>(action: impl Into<String>) -> impl FnOnce(E) -> LaunchReport {
    let action = action.into();
    move |error| {
        let mut causes = std::iter::successors(Some(&error as &dyn Error), |&error| error.source());
        LaunchReport::Failed {
            message: format!("cannot {action}: {error}"),
            errno: causes.find_map(|cause| cause.downcast_ref::<io::Error>()?.raw_os_error()),
        }
    }
}

fn main() -> ExitCode {
    let arguments: Vec<_> = std::env::args_os().skip(1).collect();
    let directory = match &arguments[..] {
        [option] if option == "--help" || option == "-h" => {
            let _ = io::stdout().write_all(USAGE.as_bytes());
            return ExitCode::SUCCESS;
        }
        [option] if option == "--version" => {
            let _ = writeln!(io::stdout(), "colibri-shim {}", env!("CARGO_PKG_VERSION"));
            return ExitCode::SUCCESS;
        }
        [directory] => PathBuf::from(directory),
        _ => {
            let _ = io::stderr().write_all(USAGE.as_bytes());
            return ExitCode::from(2);
        }
    };
    match start(&directory) {
        Ok((supervisor, pid)) => {
            report(&LaunchReport::Started {
                pid,
                protocol: PROTOCOL,
            });
            match supervisor.run(starter_connection()) {
                Ok(()) => ExitCode::SUCCESS,
                Err(error) => {
                    let _ = writeln!(io::stderr(), "colibri-shim: {error}");
                    ExitCode::FAILURE
                }
            }
        }
        Err(failed) => {
            report(&failed);
            ExitCode::FAILURE
        }
    }
}

/// Starts the agent. The order of the steps ensures that a failure leaves no process and no cgroup. Returns the
/// supervisor and the pid of the first process.
fn start(directory: &Path) -> Result<(Supervisor, i32), LaunchReport> {
    // An agent could leave its jail through an inherited directory descriptor.
    colibri_sys::descriptors::close_from(3).map_err(cannot(
        "close inherited descriptors, which needs a system with close_range(2), such as Linux 5.9 or FreeBSD 13",
    ))?;
    colibri_sys::signals::reset_inherited();
    // A handler makes writes beyond RLIMIT_FSIZE fail with EFBIG. SIG_IGN would too, but the agent would inherit it.
    signal_hook::flag::register(SIGXFSZ, Arc::default()).map_err(cannot("catch signals"))?;
    rustix::process::umask(Mode::from_raw_mode(0o077));
    // Detaches from the terminal's signals. It fails only for the leader of a process group, such as a shim that an
    // interactive shell started.
    let _ = rustix::process::setsid();
    // Relative paths keep the socket's address short (unix(7): 108 bytes, unix(4): 104).
    std::env::set_current_dir(directory).map_err(cannot(format!(
        "enter agent directory {}",
        directory.display()
    )))?;
    // A pre-started shim does all that needs no launch request before it blocks on reading one.
    descendants::become_reaper().map_err(cannot("become the reaper of the agent's descendants"))?;
    let listener = UnixListener::bind(layout::CONTROL)
        .and_then(|listener| listener.set_nonblocking(true).map(|()| listener))
        .map_err(cannot(format!("create control socket {}", layout::CONTROL)))?;
    let signals = Signals::catch().map_err(cannot("catch signals"))?;
    let shim_pid = rustix::process::getpid().as_raw_nonzero().get();
    let shim = process::find(shim_pid).ok().flatten();
    let launch = read_launch().map_err(cannot("read the launch request on stdin"))?;
    let outputs = Outputs::open(launch.journal).map_err(cannot("open a journal"))?;
    let start_agent = format!("start {} in {}", launch.program, launch.cwd);
    let mut runs = Runs::new(launch, shim.map_or(0, |process| process.start));
    let prepared = runs.begin(Offsets::default()).run(&signals.child_ended);
    let agent = prepared.and_then(|()| runs.start()).map_err(|source| {
        // The error names the failed command. The post-run commands undo the others as far as possible.
        let _ = runs.post_run().run(&signals.child_ended);
        runs.release();
        cannot(start_agent)(source)
    })?;
    let pid = agent.pid.as_raw_nonzero().get();
    // Without its record the agent could not be adopted. It is killed at the exit of this process.
    runs.write_shim_record(pid)
        .map_err(cannot(format!("write {}", layout::SHIM)))?;
    let directory = directory.to_owned();
    let supervisor = Supervisor::new(runs, agent, outputs, listener, signals, directory);
    Ok((supervisor, pid))
}

/// Reads the launch request. A line without an end is incomplete: its sender ended while it wrote.
fn read_launch() -> io::Result<Launch> {
    let mut line = Vec::new();
    io::stdin().lock().read_until(b'\n', &mut line)?;
    if line.last() != Some(&b'\n') {
        return Err(io::Error::other(
            "it is incomplete, because its sender ended",
        ));
    }
    Ok(serde_json::from_slice(&line)?)
}

/// Writes the answer to the launch request. Its receiver may have ended.
fn report(report: &LaunchReport) {
    if let Ok(mut line) = serde_json::to_vec(report) {
        line.push(b'\n');
        let _ = io::stdout().write_all(&line);
        let _ = io::stdout().flush();
    }
}

/// Returns stdin as a control connection, and redirects stdin and stdout to /dev/null.
fn starter_connection() -> Option<Connection> {
    let connection = Connection::from_stdin(io::stdin()).ok();
    if let Ok(null) = std::fs::File::open("/dev/null") {
        let _ = rustix::stdio::dup2_stdin(&null);
        let _ = rustix::stdio::dup2_stdout(&null);
    }
    connection
}
