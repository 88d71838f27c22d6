//! Locks on writable directories: while an agent works in one, the end of another agent removes no placeholder there.
//!
//! They are on files in a directory of the user that every sandbox masks. An agent can lock what it can read, so the directories
//! themselves are not locked. Without a lock, the removal of a placeholder ends the sandbox that it protects.

use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use colibri_sys::known_daemons::KnownDaemons;
use rustix::fs::{FlockOperation, OFlags, flock, fstat};
use rustix::io::{Errno, FdFlags, fcntl_setfd};

/// Timeout for a lock: longer than that of the clean-up after another agent.
const TIMEOUT: Duration = Duration::from_secs(35);
/// Delay before a lock is tried again.
const RETRY: Duration = Duration::from_millis(10);
/// Maximum number of times that a lock file is replaced meanwhile.
const MAX_REPLACED: usize = 100;

/// An exclusive lock.
pub(crate) struct Exclusive {
    file: File,
    path: PathBuf,
}

impl Exclusive {
    /// Locks a directory; `None` while another agent works in it.
    pub(crate) fn try_lock(directory: &impl AsFd) -> io::Result<Option<Self>> {
        let data = fstat(directory)?;
        let path = path_of(data.st_dev, data.st_ino)?;
        for _ in 0..MAX_REPLACED {
            let file = open(&path)?;
            match flock(&file, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) if is_current(&file, &path) => return Ok(Some(Self { file, path })),
                Ok(()) => {}
                Err(Errno::WOULDBLOCK) => return Ok(None),
                Err(error) => return Err(error.into()),
            }
        }
        Ok(None)
    }
}

impl Drop for Exclusive {
    /// Removes the file before the lock ends: one that waits for it finds that the file is not current.
    fn drop(&mut self) {
        if is_current(&self.file, &self.path) {
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// Locks a directory, for this process and its children; `None` if locks cannot be used here.
///
/// # Errors
/// The end of another agent takes too long.
pub(crate) fn shared(directory: &Path) -> io::Result<Option<OwnedFd>> {
    let Ok(path) = fs::metadata(directory).and_then(|data| path_of(data.dev(), data.ino())) else {
        return Ok(None);
    };
    let deadline = Instant::now() + TIMEOUT;
    loop {
        let file = open(&path)?;
        match flock(&file, FlockOperation::NonBlockingLockShared) {
            Ok(()) if is_current(&file, &path) => {
                fcntl_setfd(&file, FdFlags::empty())?;
                return Ok(Some(file.into()));
            }
            Ok(()) => {}
            Err(Errno::WOULDBLOCK) => std::thread::sleep(RETRY),
            Err(error) => return Err(error.into()),
        }
        if Instant::now() > deadline {
            return Err(io::Error::other(
                "another agent ended there, and its clean-up lasts; start this one again",
            ));
        }
    }
}

/// Returns the path of the lock file of a directory.
fn path_of(device: u64, inode: u64) -> io::Result<PathBuf> {
    let name = format!("lock-{device:x}-{inode:x}");
    Ok(KnownDaemons::of_user().create()?.join(name))
}

fn open(path: &Path) -> io::Result<File> {
    let flags = OFlags::NOFOLLOW.union(OFlags::CLOEXEC);
    File::options()
        .create(true)
        .truncate(false)
        .write(true)
        .mode(0o600)
        .custom_flags(flags.bits().cast_signed())
        .open(path)
}

/// Returns whether the path still names the file.
fn is_current(file: &File, path: &Path) -> bool {
    let identity = |data: fs::Metadata| (data.dev(), data.ino());
    let open = file.metadata().map(identity);
    let named = fs::symlink_metadata(path).map(identity);
    matches!((open, named), (Ok(open), Ok(named)) if open == named)
}
