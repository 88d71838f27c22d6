//! Files of a running daemon in the state directory: its lock and `daemon.json`.

use std::fs::File;
use std::path::Path;

use colibri_sys::daemon::{DAEMON_LOCK, DaemonFile};

use super::failed;
use crate::errors::StartError;
use crate::{socket, times};

/// Writes `daemon.json`, in which clients that know only the state directory find the socket.
pub(super) fn write_daemon_file(state_dir: &Path, socket: &Path) {
    let record = DaemonFile {
        pid: rustix::process::getpid().as_raw_nonzero().get(),
        socket: socket.to_owned(),
        started_at: times::format_ms(times::now_ms()),
    };
    if let Err(error) = record.write(state_dir) {
        tracing::warn!(%error, "cannot write daemon.json in the state directory; clients must set the socket");
    }
}

/// Locks the state directory: two daemons must not supervise the same agents.
///
/// # Errors
/// Another daemon holds the lock, or the lock file cannot be opened.
pub(super) fn lock_state(state_dir: &Path) -> Result<File, StartError> {
    let lock = socket::lock(&state_dir.join(DAEMON_LOCK));
    if let Some(file) = lock.map_err(failed("lock daemon.lock in the state directory"))? {
        return Ok(file);
    }
    let running = DaemonFile::of_running(state_dir);
    let which =
        running.map(|other| format!(" (pid {}, socket {})", other.pid, other.socket.display()));
    Err(format!(
        "cannot use state directory {}: another colibri-daemon{} uses it; stop that daemon or pass --state-dir",
        state_dir.display(),
        which.unwrap_or_default()
    )
    .into())
}
