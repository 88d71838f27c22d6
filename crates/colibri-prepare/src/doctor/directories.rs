//! Checks of the state directory and of the socket directory: the rules of the daemon's start, and free space.

use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;

use colibri_priv::Finding;
use colibri_sys::ownership::{Ownership, UnsafeDirectory};
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
    let fail = |problem: String, fix| vec![Finding::fail(format!("{what} {problem}"), fix)];
    if !path.is_absolute() {
        return fail("is not an absolute path".to_owned(), another);
    }
    let private = match check_directory(path, &what, another, Ownership::check_trusted_directory) {
        Err(problem) => return vec![problem],
        Ok(None) => Finding::ok(format!("{what} does not exist; it is created when needed")),
        Ok(Some(_)) => match try_write(path) {
            Ok(()) => Finding::ok(format!("{what} is private and writable")),
            Err(error) => {
                let fix = match error.kind() {
                    io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
                        "free space on its disk; running agents wait until then"
                    }
                    io::ErrorKind::ReadOnlyFilesystem => {
                        "mount it writable, or set another one in COLIBRI_STATE_DIR"
                    }
                    _ => another,
                };
                return fail(format!("cannot be written: {error}"), fix);
            }
        },
    };
    std::iter::once(private).chain(check_space(path)).collect()
}

/// Checks the directory of the socket, and the socket if it exists.
pub(super) fn check_socket(path: &Path) -> Vec<Finding> {
    let another = "set another socket in COLIBRI_SOCKET, or pass --socket";
    let fail = |what: String| Finding::fail(what, another);
    let shown = path.display();
    if path.as_os_str().as_bytes().len() >= SOCKET_PATH_BYTES {
        return vec![fail(format!(
            "socket path {shown} has {SOCKET_PATH_BYTES} bytes or more"
        ))];
    }
    let Some(directory) = path.parent().filter(|directory| directory.is_absolute()) else {
        return vec![fail(format!("socket path {shown} is not absolute"))];
    };
    let what = format!("socket directory {}", directory.display());
    let rule = Ownership::check_socket_directory;
    let existing = match check_directory(directory, &what, another, rule) {
        Ok(existing) => existing,
        Err(problem) => return vec![problem],
    };
    let mut findings = vec![match existing {
        None => Finding::ok(format!("{what} does not exist; it is created when needed")),
        // The daemon starts there: its clients check who owns the process at the socket.
        Some(ownership) if !ownership.is_own_or_roots() => {
            return vec![fail(format!(
                "{what} belongs to uid {}, who can replace the socket",
                ownership.uid
            ))];
        }
        Some(_) => match try_write(directory) {
            Ok(()) => Finding::ok(format!("{what} is safe and writable")),
            Err(error) => fail(format!("{what} cannot be written: {error}")),
        },
    }];
    if let Ok(socket) = fs::symlink_metadata(path)
        && socket.mode() & 0o007 != 0
    {
        findings.push(Finding::fail(
            format!(
                "socket {shown} is accessible to every user (mode {})",
                Ownership::from(&socket)
            ),
            format!("run: chmod 600 {shown}"),
        ));
    }
    findings
}

/// Checks a directory by the rule of the daemon's start. Returns `None` for a missing one that the daemon can
/// create.
fn check_directory(
    path: &Path,
    what: &str,
    another: &str,
    rule: fn(Ownership) -> Result<(), UnsafeDirectory>,
) -> Result<Option<Ownership>, Finding> {
    let fail = |problem: String| Finding::fail(format!("{what} {problem}"), another);
    match fs::metadata(path) {
        Ok(data) if data.is_dir() => {
            let ownership = Ownership::from(&data);
            rule(ownership).map_err(|UnsafeDirectory { problem, fix }| match fix {
                Some(fix) => Finding::fail(
                    format!("{what} {problem}"),
                    format!("{fix} {}", path.display()),
                ),
                None => fail(problem),
            })?;
            Ok(Some(ownership))
        }
        Ok(_) => Err(fail("is not a directory".to_owned())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let ancestor = path.ancestors().skip(1).find(|ancestor| ancestor.exists());
            let ancestor = ancestor.unwrap_or(Path::new("/"));
            match access(ancestor, Access::WRITE_OK | Access::EXEC_OK) {
                Ok(()) => Ok(None),
                Err(error) => Err(fail(format!(
                    "cannot be created in {}: {}",
                    ancestor.display(),
                    io::Error::from(error)
                ))),
            }
        }
        Err(error) => Err(fail(format!("cannot be read: {error}"))),
    }
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
