//! How clients find a daemon: its default socket, and its record and lock in the state directory.

use std::fs::{self, File, TryLockError};
use std::io;
use std::path::{Path, PathBuf};

use crate::atomic_file::{self, Durability};
use serde::{Deserialize, Serialize};

/// Name of the record in the state directory.
const FILE: &str = "daemon.json";
/// Lock file in the state directory; a daemon holds an exclusive lock on it as long as it runs.
pub const DAEMON_LOCK: &str = "daemon.lock";
/// Maximum size of the record that is read, in bytes.
const MAX_LENGTH: u64 = 64 << 10;

/// Returns the default socket of the daemon: `$XDG_RUNTIME_DIR/colibri/colibri.sock`, else
/// `/var/run/colibri/colibri.sock` for root, else `colibri.sock` in the state directory. `lookup` returns the value of
/// an environment variable.
#[must_use]
pub fn default_socket(
    lookup: impl Fn(&str) -> Option<String>,
    state_dir: Option<&Path>,
) -> PathBuf {
    default_socket_of(lookup, state_dir, rustix::process::geteuid().is_root())
}

fn default_socket_of(
    lookup: impl Fn(&str) -> Option<String>,
    state_dir: Option<&Path>,
    is_root: bool,
) -> PathBuf {
    if let Some(directory) = lookup("XDG_RUNTIME_DIR").filter(|path| path.starts_with('/')) {
        return PathBuf::from(directory).join("colibri/colibri.sock");
    }
    match state_dir {
        Some(state_dir) if !is_root => state_dir.join("colibri.sock"),
        _ => PathBuf::from("/var/run/colibri/colibri.sock"),
    }
}

/// The record that a running daemon writes to `daemon.json` in its state directory.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DaemonFile {
    /// Process id of the daemon.
    pub pid: i32,
    /// Socket at which it listens.
    pub socket: PathBuf,
    /// Start time (RFC 3339).
    pub started_at: String,
}

impl DaemonFile {
    /// Writes the record atomically, readable only by the daemon's user.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn write(&self, state_dir: &Path) -> io::Result<()> {
        let content = serde_json::to_vec(self)?;
        atomic_file::replace(&state_dir.join(FILE), &content, Durability::Process)
    }

    /// Removes the record. A daemon calls this when it starts and when it stops.
    pub fn remove(state_dir: &Path) {
        let _ = fs::remove_file(state_dir.join(FILE));
    }

    /// Returns the record of the daemon that runs with this state directory, if it has written one.
    #[must_use]
    pub fn of_running(state_dir: &Path) -> Option<Self> {
        let record = Self::read(state_dir)?;
        let pid = rustix::process::Pid::from_raw(record.pid).filter(|_| record.pid > 0)?;
        // EPERM: the process exists and belongs to another user.
        let exists = rustix::process::test_kill_process(pid) != Err(rustix::io::Errno::SRCH);
        (exists && is_locked(state_dir)).then_some(record)
    }

    fn read(state_dir: &Path) -> Option<Self> {
        let path = state_dir.join(FILE);
        let data = fs::symlink_metadata(&path).ok()?;
        if !data.is_file() || data.len() > MAX_LENGTH {
            return None;
        }
        serde_json::from_slice(&fs::read(path).ok()?).ok()
    }
}

/// Returns whether a daemon runs with this state directory, even if it does not listen yet.
#[must_use]
pub fn is_locked(state_dir: &Path) -> bool {
    File::open(state_dir.join(DAEMON_LOCK))
        .is_ok_and(|file| matches!(file.try_lock_shared(), Err(TryLockError::WouldBlock)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn record_is_valid_only_while_its_daemon_runs() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(DaemonFile::of_running(dir.path()), None, "no file");
        let record = DaemonFile {
            pid: i32::try_from(std::process::id()).unwrap(),
            socket: "/run/x.sock".into(),
            started_at: "2026-01-01T00:00:00.000Z".into(),
        };
        record.write(dir.path()).unwrap();
        assert_eq!(DaemonFile::of_running(dir.path()), None, "no lock file");
        let lock = File::create(dir.path().join(DAEMON_LOCK)).unwrap();
        assert_eq!(DaemonFile::of_running(dir.path()), None, "not locked");
        lock.lock().unwrap();
        assert_eq!(DaemonFile::of_running(dir.path()), Some(record.clone()));
        let ended = DaemonFile {
            pid: i32::MAX,
            ..record
        };
        ended.write(dir.path()).unwrap();
        assert_eq!(DaemonFile::of_running(dir.path()), None, "no such process");
        fs::write(dir.path().join(FILE), "{").unwrap();
        assert_eq!(DaemonFile::of_running(dir.path()), None, "not a record");
        DaemonFile::remove(dir.path());
        assert!(!dir.path().join(FILE).exists());
    }

    #[test]
    fn default_socket_follows_the_documented_order() {
        let var_run = "/var/run/colibri/colibri.sock";
        for (runtime, state, is_root, socket) in [
            (
                Some("/run/user/1000"),
                Some("/s"),
                false,
                "/run/user/1000/colibri/colibri.sock",
            ),
            (
                Some("/run/user/0"),
                Some("/s"),
                true,
                "/run/user/0/colibri/colibri.sock",
            ),
            (None, Some("/s"), true, var_run),
            (None, Some("/s"), false, "/s/colibri.sock"),
            (Some(""), Some("/s"), false, "/s/colibri.sock"),
            (Some("relative"), Some("/s"), false, "/s/colibri.sock"),
            (None, None, false, var_run),
        ] {
            let lookup = |name: &str| {
                runtime
                    .filter(|_| name == "XDG_RUNTIME_DIR")
                    .map(str::to_owned)
            };
            let found = default_socket_of(lookup, state.map(Path::new), is_root);
            assert_eq!(found, PathBuf::from(socket), "{runtime:?} {state:?}");
        }
    }
}
