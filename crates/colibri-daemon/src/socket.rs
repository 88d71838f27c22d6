//! The listening Unix socket: its directory, mode and lock file, and the replacement of a stale socket.

use std::fs::{self, DirBuilder, File, OpenOptions, Permissions, TryLockError};
use std::io;
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use colibri_sys::ownership::{Ownership, UnsafeDirectory};
use colibri_sys::passwd;
use rustix::fs::{Gid, Mode, chown};
use tokio::net::UnixListener;
use tokio::sync::Semaphore;

use crate::errors::StartError;

/// Timeout for a lock of another process. A process that was forked by a daemon just before the daemon was killed holds
/// the daemon's locks until it executes its program.
const LOCK_TIMEOUT: Duration = Duration::from_secs(1);

/// Delay after a failed accept, for example without free descriptors.
const ACCEPT_RETRY_DELAY: Duration = Duration::from_millis(100);

/// A socket at which this daemon listens. Dropping it removes the file.
pub(crate) struct ListeningSocket {
    pub(crate) listener: UnixListener,
    /// Group whose members may connect, besides the daemon's user.
    pub(crate) group: Option<u32>,
    path: PathBuf,
    _lock: File,
}

impl ListeningSocket {
    /// Listens at `path`: mode 0600 in a directory of mode 0700, or with a group 0660 and 0750. Replaces a socket at which
    /// no process listens.
    ///
    /// # Errors
    /// Another daemon listens there, other users can write to the directory, or the system refuses.
    pub(crate) async fn open(path: &Path, group: Option<&str>) -> Result<Self, StartError> {
        let refused = |problem: &str| format!("cannot listen at {}: {problem}", path.display());
        let failed =
            |error: io::Error| refused(&format!("{error}; pass --socket or set COLIBRI_SOCKET"));
        let group_name = group.unwrap_or_default();
        let group = group.map(group_id).transpose()?;
        let directory = path
            .parent()
            .filter(|directory| directory.is_absolute())
            .ok_or_else(|| refused("the path is not absolute; pass an absolute path"))?;
        let existed = directory.exists();
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(directory)
            .map_err(failed)?;
        let metadata = fs::metadata(directory).map_err(failed)?;
        if let Err(UnsafeDirectory { problem, fix }) =
            Ownership::from(&metadata).check_socket_directory()
        {
            let (shown, fix) = (directory.display(), fix.unwrap_or("run: chmod 700"));
            return Err(format!(
                "cannot listen in {shown}: the directory {problem}; {fix} {shown}"
            )
            .into());
        }
        let give_to_group = |path: &Path, group: u32| {
            chown(path, None, Some(Gid::from_raw(group))).map_err(|error| {
                let (error, shown) = (io::Error::from(error), directory.display());
                // A file gets the group of its directory on FreeBSD (open(2)), and that of its creator on Linux.
                let hint = match cfg!(target_os = "freebsd") {
                    true => format!("run as root: chgrp {group_name} {shown} && chmod 750 {shown}"),
                    false => "add the daemon's user to this group".to_owned(),
                };
                refused(&format!(
                    "cannot set its group {group_name}: {error}; {hint}"
                ))
            })
        };
        if let (Some(group), false) = (group, existed) {
            give_to_group(directory, group)?;
            fs::set_permissions(directory, Permissions::from_mode(0o750)).map_err(failed)?;
        }
        let mut lock_path = path.as_os_str().to_owned();
        lock_path.push(".lock");
        let Some(lock_file) = lock(Path::new(&lock_path)).map_err(failed)? else {
            let problem = "another colibri-daemon listens there; use that daemon or pass --socket";
            return Err(refused(problem).into());
        };
        match fs::symlink_metadata(path) {
            Ok(data) if !data.file_type().is_socket() => {
                let problem = "the file exists and is not a socket; remove it or pass --socket";
                return Err(refused(problem).into());
            }
            // A listening daemon would hold the lock, so the socket is stale.
            Ok(_) => fs::remove_file(path).map_err(failed)?,
            Err(_) => {}
        }
        let mode = if group.is_some() { 0o660 } else { 0o600 };
        // By the umask, because other users could connect between bind(2) and chmod(2).
        let before = rustix::process::umask(Mode::from_raw_mode(0o777 & !mode));
        let bound = UnixListener::bind(path);
        rustix::process::umask(before);
        let listener = bound.map_err(failed)?;
        if let Some(group) = group {
            give_to_group(path, group)?;
        }
        Ok(Self {
            listener,
            group,
            path: path.to_owned(),
            _lock: lock_file,
        })
    }
}

impl Drop for ListeningSocket {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.path);
    }
}

/// Accepts connections and handles each in a task while a slot is free; more wait in the listener's backlog. Returns when
/// the slots are closed.
pub(crate) async fn accept_all<S, A, Accepting, Handling>(
    slots: &Arc<Semaphore>,
    accept: impl Fn() -> Accepting,
    handle: impl Fn(S) -> Handling,
) where
    Accepting: Future<Output = io::Result<(S, A)>>,
    Handling: Future<Output = ()> + Send + 'static,
{
    while let Ok(slot) = slots.clone().acquire_owned().await {
        match accept().await {
            Ok((stream, _)) => {
                let handling = handle(stream);
                tokio::spawn(async move {
                    handling.await;
                    drop(slot);
                });
            }
            Err(error) => {
                tracing::error!(%error, "cannot accept connection");
                tokio::time::sleep(ACCEPT_RETRY_DELAY).await;
            }
        }
    }
}

/// Creates a file if it does not exist, and takes an exclusive lock that lasts until the file is closed; returns `None` if
/// another process holds the lock.
pub(crate) fn lock(path: &Path) -> io::Result<Option<File>> {
    let file = OpenOptions::new()
        .append(true)
        .create(true)
        .mode(0o600)
        .open(path)?;
    let until = Instant::now() + LOCK_TIMEOUT;
    loop {
        match file.try_lock() {
            Ok(()) => return Ok(Some(file)),
            Err(TryLockError::WouldBlock) if Instant::now() < until => {
                std::thread::sleep(Duration::from_millis(20));
            }
            Err(TryLockError::WouldBlock) => return Ok(None),
            Err(TryLockError::Error(error)) => return Err(error),
        }
    }
}

/// Returns the number of a group, given by number or by name in group(5).
fn group_id(group: &str) -> Result<u32, String> {
    let number = group.parse().ok();
    number.or_else(|| passwd::host_group(group)).ok_or_else(|| {
        format!(
            "cannot use socket group {group:?}: no such group; set a group from /etc/group or its number"
        )
    })
}
