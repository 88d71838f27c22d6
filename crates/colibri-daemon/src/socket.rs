//! The listening socket: its directory, its mode, its lock, and what a dead daemon left of it.

use std::fs::{self, DirBuilder, File, OpenOptions, Permissions, TryLockError};
use std::io;
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use colibri_sys::ownership::Ownership;
use colibri_sys::passwd;
use rustix::fs::{Gid, Mode, chown};
use tokio::net::UnixListener;

/// A process that was just forked by a daemon killed at that moment holds its locks until it executes
/// its program: so long a second daemon waits before it believes that the first one lives.
const FORKED: Duration = Duration::from_secs(1);

/// Why the socket cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SocketError {
    #[error(
        "another colibri-daemon listens at {0}; use that one, or name another socket with --socket"
    )]
    InUse(PathBuf),
    #[error(
        "socket directory {path} can be written by others (mode {mode:04o}); run: chmod 700 {path}"
    )]
    Open { path: PathBuf, mode: u32 },
    #[error("socket path {0} has no directory; give an absolute path")]
    NoDirectory(PathBuf),
    #[error("{0} exists and is not a socket; remove it, or name another path with --socket")]
    NotASocket(PathBuf),
    #[error("socket group {0:?} is unknown; give a group of /etc/group, or its number")]
    UnknownGroup(String),
    #[error("socket {path}: {source}; name another one with --socket or COLIBRI_SOCKET")]
    Io { path: PathBuf, source: io::Error },
}

/// The socket, as long as this daemon listens. Dropping it removes the file.
pub(crate) struct Listening {
    pub(crate) listener: UnixListener,
    /// The group that may use it besides the daemon's own user.
    pub(crate) group: Option<u32>,
    path: PathBuf,
    _lock: File,
}

impl Listening {
    /// Listens at `path` with mode 0600 in a directory 0700, or 0660 in 0750 with a group. A socket that a
    /// dead daemon left is replaced.
    pub(crate) async fn open(path: &Path, group: Option<&str>) -> Result<Self, SocketError> {
        let failed = |source| SocketError::Io {
            path: path.to_owned(),
            source,
        };
        let group = group.map(group_id).transpose()?;
        let directory = path
            .parent()
            .filter(|directory| directory.is_absolute())
            .ok_or_else(|| SocketError::NoDirectory(path.to_owned()))?;
        let existed = directory.exists();
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(directory)
            .map_err(failed)?;
        let metadata = fs::metadata(directory).map_err(failed)?;
        let ownership = Ownership::from(&metadata);
        if ownership.entries_are_replaceable() {
            return Err(SocketError::Open {
                path: directory.to_owned(),
                mode: ownership.mode,
            });
        }
        if let (Some(group), false) = (group, existed) {
            chown(directory, None, Some(Gid::from_raw(group)))
                .map_err(|error| failed(error.into()))?;
            fs::set_permissions(directory, Permissions::from_mode(0o750)).map_err(failed)?;
        }
        let mut lock_path = path.as_os_str().to_owned();
        lock_path.push(".lock");
        let lock_file = OpenOptions::new()
            .append(true)
            .create(true)
            .mode(0o600)
            .open(&lock_path)
            .map_err(failed)?;
        if !lock(&lock_file).map_err(failed)? {
            return Err(SocketError::InUse(path.to_owned()));
        }
        match fs::symlink_metadata(path) {
            Ok(data) if !data.file_type().is_socket() => {
                return Err(SocketError::NotASocket(path.to_owned()));
            }
            // Whoever listened here held the lock, so nobody does.
            Ok(_) => fs::remove_file(path).map_err(failed)?,
            Err(_) => {}
        }
        let mode = if group.is_some() { 0o660 } else { 0o600 };
        // Born with its mode: between bind and chmod anybody could connect.
        let before = rustix::process::umask(Mode::from_raw_mode(0o777 & !mode));
        let bound = UnixListener::bind(path);
        rustix::process::umask(before);
        let listener = bound.map_err(failed)?;
        if let Some(group) = group {
            chown(path, None, Some(Gid::from_raw(group))).map_err(|error| failed(error.into()))?;
        }
        Ok(Self {
            listener,
            group,
            path: path.to_owned(),
            _lock: lock_file,
        })
    }
}

impl Drop for Listening {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.path);
    }
}

/// Takes an exclusive lock that lasts as long as the file is open; `false` where another process has it.
pub(crate) fn lock(file: &File) -> io::Result<bool> {
    let until = Instant::now() + FORKED;
    loop {
        match file.try_lock() {
            Ok(()) => return Ok(true),
            Err(TryLockError::WouldBlock) if Instant::now() < until => {
                std::thread::sleep(Duration::from_millis(20));
            }
            Err(TryLockError::WouldBlock) => return Ok(false),
            Err(TryLockError::Error(error)) => return Err(error),
        }
    }
}

/// A group's number, by number or by name in group(5).
fn group_id(group: &str) -> Result<u32, SocketError> {
    if let Ok(number) = group.parse() {
        return Ok(number);
    }
    passwd::host_group(group).ok_or_else(|| SocketError::UnknownGroup(group.to_owned()))
}
