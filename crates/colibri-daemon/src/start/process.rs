//! State of the process itself: session, working directory, stdio, priority and limits.

use std::fs::OpenOptions;
use std::io;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use super::DaemonArguments;

/// Redirects stdio to /dev/null: the program that started the daemon in the background reads its stderr until the daemon
/// listens.
pub(super) fn release_stdio() {
    if let Ok(null) = OpenOptions::new().read(true).write(true).open("/dev/null") {
        let _ = rustix::stdio::dup2_stdin(&null);
        let _ = rustix::stdio::dup2_stdout(&null);
        let _ = rustix::stdio::dup2_stderr(&null);
    }
}

/// Leaves the session, the working directory and the scheduling priority of the caller, so that the caller's file system
/// can be unmounted, and makes the paths in the arguments absolute. Resource limits do not change: an ordinary user cannot raise
/// a limit that the caller has lowered.
///
/// # Errors
/// A path cannot be made absolute, or the working directory cannot be changed.
pub(super) fn detach(arguments: &mut DaemonArguments) -> io::Result<()> {
    // Fails only if the process is already a session leader.
    let _ = rustix::process::setsid();
    let DaemonArguments {
        socket,
        state_dir,
        config,
        ..
    } = arguments;
    for path in [socket, state_dir, config].into_iter().flatten() {
        *path = std::path::absolute(&*path)?;
    }
    std::env::set_current_dir("/")?;
    // An ordinary user may not lower the nice value (getpriority(2)); a warning is logged later.
    let _ = rustix::process::setpriority_process(None, 0);
    Ok(())
}

/// Logs a warning if the daemon has a low scheduling priority, which its agents inherit.
pub(super) fn warn_of_low_priority() {
    if let Ok(nice) = rustix::process::getpriority_process(None)
        && nice > 0
    {
        tracing::warn!(
            nice,
            "the daemon and its agents run with low priority, inherited from the program that started the daemon; start the daemon with nice 0"
        );
    }
}

/// Raises the soft limit of open files to the hard limit (setrlimit(2)): every running agent takes a descriptor. Returns
/// the previous soft limit, if it was lower. Agents get that one back: programs that use select(2), which supports
/// descriptors below 1024 only, rely on a low soft limit.
///
/// # Errors
/// The system refuses.
pub(super) fn raise_open_files() -> io::Result<Option<u64>> {
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    if current == maximum {
        return Ok(None);
    }
    let raised = Rlimit {
        current: maximum,
        maximum,
    };
    setrlimit(Resource::Nofile, raised)?;
    Ok(current)
}
