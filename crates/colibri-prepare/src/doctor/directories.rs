//! Checks of the state directory and of the socket directory: owner, permissions and free space.

use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;

use colibri_priv::Finding;
use colibri_sys::ownership::Ownership;
use rustix::fs::{Access, access, statvfs};

/// Free space below which the check fails, in bytes.
const MIN_FREE_BYTES: u64 = 1 << 20;
/// Free space below which the check warns, in bytes.
const LOW_FREE_BYTES: u64 = 256 << 20;
/// Number of free inodes below which the check warns; an agent needs about ten.
const LOW_FREE_INODES: u64 = 1000;
/// Size of `sun_path`, which includes a terminating NUL, in bytes (unix(7), unix(4)).
const SOCKET_PATH_BYTES: usize = if cfg!(target_os = "linux") { 108 } else { 104 };

/// Checks the state directory and its file system.
pub(super) fn check_state(path: &Path) -> Vec<Finding> {
    let another = "set another one in COLIBRI_STATE_DIR, or pass --state-dir";
    let what = format!("state directory {}", path.display());
    let Some(found) = look_up(path, &what, another) else {
        return vec![Finding::fail(
            format!("{what} is not an absolute path"),
            another,
        )];
    };
    let data = match found {
        DirectoryLookup::Finding(finding)
            if finding.status == colibri_priv::FindingStatus::Fail =>
        {
            return vec![finding];
        }
        DirectoryLookup::Finding(finding) => {
            return std::iter::once(finding).chain(check_space(path)).collect();
        }
        DirectoryLookup::Exists(data) => data,
    };
    let ownership = Ownership::from(&data);
    if !ownership.is_own() {
        return vec![Finding::fail(
            format!("{what} belongs to uid {}, not to this user", ownership.uid),
            another,
        )];
    }
    if ownership.is_writable_by_others() {
        return vec![Finding::fail(
            format!(
                "{what} is writable by others (mode {ownership}), so its content cannot be trusted"
            ),
            format!("check its content, then run: chmod 700 {}", path.display()),
        )];
    }
    if let Err(error) = try_write(path) {
        let fix = match error.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
                "free space on its disk; running agents wait until then"
            }
            io::ErrorKind::ReadOnlyFilesystem => {
                "mount it writable, or set another one in COLIBRI_STATE_DIR"
            }
            _ => another,
        };
        return vec![Finding::fail(
            format!("{what} cannot be written: {error}"),
            fix,
        )];
    }
    std::iter::once(Finding::ok(format!("{what} is private and writable")))
        .chain(check_space(path))
        .collect()
}

/// Checks the directory of the socket, and the socket if it exists.
pub(super) fn check_socket(path: &Path) -> Vec<Finding> {
    let another = "set another socket in COLIBRI_SOCKET, or pass --socket";
    if path.as_os_str().as_bytes().len() >= SOCKET_PATH_BYTES {
        let what = format!(
            "socket path {} has {SOCKET_PATH_BYTES} bytes or more",
            path.display()
        );
        return vec![Finding::fail(what, another)];
    }
    let directory = path.parent().unwrap_or(Path::new(""));
    let what = format!("socket directory {}", directory.display());
    let data = match look_up(directory, &what, another) {
        None => {
            return vec![Finding::fail(
                format!("socket path {} is not absolute", path.display()),
                another,
            )];
        }
        Some(DirectoryLookup::Finding(finding)) => return vec![finding],
        Some(DirectoryLookup::Exists(data)) => data,
    };
    let ownership = Ownership::from(&data);
    if ownership.entries_are_replaceable() {
        return vec![Finding::fail(
            format!("{what} is writable by others (mode {ownership})"),
            format!("run: chmod 700 {}", directory.display()),
        )];
    }
    if !ownership.is_own_or_roots() {
        return vec![Finding::fail(
            format!(
                "{what} belongs to uid {}, who can replace the socket",
                ownership.uid
            ),
            another,
        )];
    }
    let mut findings = vec![match try_write(directory) {
        Ok(()) => Finding::ok(format!("{what} is safe and writable")),
        Err(error) => Finding::fail(format!("{what} cannot be written: {error}"), another),
    }];
    if let Ok(socket) = fs::symlink_metadata(path)
        && socket.mode() & 0o007 != 0
    {
        findings.push(Finding::fail(
            format!(
                "socket {} is accessible to every user (mode {:04o})",
                path.display(),
                socket.mode() & 0o7777
            ),
            format!("run: chmod 600 {}", path.display()),
        ));
    }
    findings
}

/// A directory that was looked up.
enum DirectoryLookup {
    Exists(fs::Metadata),
    /// It does not exist or is unusable.
    Finding(Finding),
}

/// Looks up a directory. A missing one is acceptable if the daemon can create it. Returns `None` for a relative path.
fn look_up(path: &Path, what: &str, another: &str) -> Option<DirectoryLookup> {
    if !path.is_absolute() {
        return None;
    }
    Some(match fs::metadata(path) {
        Ok(data) if data.is_dir() => DirectoryLookup::Exists(data),
        Ok(_) => {
            DirectoryLookup::Finding(Finding::fail(format!("{what} is not a directory"), another))
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let ancestor = path.ancestors().skip(1).find(|ancestor| ancestor.exists());
            let ancestor = ancestor.unwrap_or(Path::new("/"));
            DirectoryLookup::Finding(match access(ancestor, Access::WRITE_OK | Access::EXEC_OK) {
                Ok(()) => Finding::ok(format!("{what} does not exist; it is created when needed")),
                Err(error) => Finding::fail(
                    format!(
                        "{what} cannot be created in {}: {}",
                        ancestor.display(),
                        io::Error::from(error)
                    ),
                    another,
                ),
            })
        }
        Err(error) => DirectoryLookup::Finding(Finding::fail(
            format!("{what} cannot be read: {error}"),
            another,
        )),
    })
}

/// Writes, syncs and removes a small file: the mode does not show a full or read-only file system.
fn try_write(directory: &Path) -> io::Result<()> {
    let path = directory.join(format!(
        ".colibri-doctor-{}-{}",
        std::process::id(),
        fastrand::u32(..)
    ));
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&path)?;
    let written = file.write_all(&[0; 4096]).and_then(|()| file.sync_all());
    fs::remove_file(&path)?;
    written
}

/// Checks the free space of the file system of `path`, or of its nearest existing ancestor.
fn check_space(path: &Path) -> Option<Finding> {
    let existing = path.ancestors().find(|ancestor| ancestor.exists())?;
    let disk = statvfs(existing).ok()?;
    let free = disk.f_bavail.saturating_mul(disk.f_frsize);
    let what = format!("{} MiB are free for output", free >> 20);
    let fix = "free space, limit kept output with retain_bytes in colibri.toml, or remove ended agents with colibri rm";
    if disk.f_files > 0 && disk.f_favail < LOW_FREE_INODES {
        let what = format!(
            "the disk of the state directory has {} free inodes",
            disk.f_favail
        );
        return Some(Finding::warn(what, fix));
    }
    Some(match free {
        free if free < MIN_FREE_BYTES => Finding::fail(what, fix),
        free if free < LOW_FREE_BYTES => Finding::warn(what, fix),
        _ => Finding::ok(what),
    })
}
