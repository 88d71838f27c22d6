//! The two directories: who owns them, who can write them, and whether there is room.

use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;

use colibri_priv::Finding;
use colibri_sys::ownership::Ownership;
use rustix::fs::{Access, access, statvfs};

/// Less than this does for nothing.
const NO_ROOM: u64 = 1 << 20;
/// Less than this is soon full.
const LITTLE_ROOM: u64 = 256 << 20;
/// Every agent takes about ten files.
const FEW_FILES: u64 = 1000;
/// What `sun_path` holds with a NUL behind it (unix(7), unix(4)).
const SOCKET_PATH: usize = if cfg!(target_os = "linux") { 108 } else { 104 };

/// The state directory and its disk.
pub(super) fn state(path: &Path) -> Vec<Finding> {
    let another = "name another one in COLIBRI_STATE_DIR, or with --state-dir";
    let what = format!("state directory {}", path.display());
    let Some(found) = existing(path, &what, another) else {
        return vec![Finding::fail(
            format!("{what} is no absolute path"),
            another,
        )];
    };
    let data = match found {
        Place::Finding(finding) if finding.status == colibri_priv::FindingStatus::Fail => {
            return vec![finding];
        }
        Place::Finding(finding) => return std::iter::once(finding).chain(room(path)).collect(),
        Place::There(data) => data,
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
                "{what} can be written by others (mode {ownership}), so what is in it cannot be trusted"
            ),
            format!(
                "look at what is in it, then run: chmod 700 {}",
                path.display()
            ),
        )];
    }
    if let Err(error) = writable(path) {
        let fix = match error.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
                "make room on its disk; agents that run wait until there is"
            }
            io::ErrorKind::ReadOnlyFilesystem => {
                "mount it writable, or name another one in COLIBRI_STATE_DIR"
            }
            _ => another,
        };
        return vec![Finding::fail(
            format!("{what} cannot be written: {error}"),
            fix,
        )];
    }
    std::iter::once(Finding::ok(format!("{what} is private and writable")))
        .chain(room(path))
        .collect()
}

/// The directory of the socket, and the socket if it is there.
pub(super) fn socket(path: &Path) -> Vec<Finding> {
    let another = "name another socket in COLIBRI_SOCKET, or with --socket";
    if path.as_os_str().as_bytes().len() >= SOCKET_PATH {
        let what = format!(
            "socket path {} has {SOCKET_PATH} bytes or more",
            path.display()
        );
        return vec![Finding::fail(what, another)];
    }
    let directory = path.parent().unwrap_or(Path::new(""));
    let what = format!("socket directory {}", directory.display());
    let data = match existing(directory, &what, another) {
        None => {
            return vec![Finding::fail(
                format!("socket path {} is not absolute", path.display()),
                another,
            )];
        }
        Some(Place::Finding(finding)) => return vec![finding],
        Some(Place::There(data)) => data,
    };
    let ownership = Ownership::from(&data);
    if ownership.entries_are_replaceable() {
        return vec![Finding::fail(
            format!("{what} can be written by others (mode {ownership})"),
            format!("run: chmod 700 {}", directory.display()),
        )];
    }
    if !ownership.is_own_or_roots() {
        return vec![Finding::fail(
            format!(
                "{what} belongs to uid {}, who can put another socket there",
                ownership.uid
            ),
            another,
        )];
    }
    let mut findings = vec![match writable(directory) {
        Ok(()) => Finding::ok(format!("{what} is safe and writable")),
        Err(error) => Finding::fail(format!("{what} cannot be written: {error}"), another),
    }];
    if let Ok(socket) = fs::symlink_metadata(path)
        && socket.mode() & 0o007 != 0
    {
        findings.push(Finding::fail(
            format!(
                "socket {} is open to everybody (mode {:04o})",
                path.display(),
                socket.mode() & 0o7777
            ),
            format!("run: chmod 600 {}", path.display()),
        ));
    }
    findings
}

enum Place {
    There(fs::Metadata),
    Finding(Finding),
}

/// The directory, or what is to be said where there is none: it is made at start, if that is possible. `None`: the
/// path is not absolute.
fn existing(path: &Path, what: &str, another: &str) -> Option<Place> {
    if !path.is_absolute() {
        return None;
    }
    Some(match fs::metadata(path) {
        Ok(data) if data.is_dir() => Place::There(data),
        Ok(_) => Place::Finding(Finding::fail(format!("{what} is no directory"), another)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let above = path.ancestors().skip(1).find(|above| above.exists());
            let above = above.unwrap_or(Path::new("/"));
            Place::Finding(match access(above, Access::WRITE_OK | Access::EXEC_OK) {
                Ok(()) => Finding::ok(format!("{what} is not there yet; it is made when needed")),
                Err(error) => Finding::fail(
                    format!(
                        "{what} cannot be made in {}: {}",
                        above.display(),
                        io::Error::from(error)
                    ),
                    another,
                ),
            })
        }
        Err(error) => Place::Finding(Finding::fail(
            format!("{what} cannot be looked at: {error}"),
            another,
        )),
    })
}

/// Writes a little and takes it away: a mode does not tell of a full disk or a read-only one.
fn writable(directory: &Path) -> io::Result<()> {
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

/// What is free on the disk of `path`, or of where it will be.
fn room(path: &Path) -> Option<Finding> {
    let there = path.ancestors().find(|place| place.exists())?;
    let disk = statvfs(there).ok()?;
    let free = disk.f_bavail.saturating_mul(disk.f_frsize);
    let what = format!("{} MiB are free for output", free >> 20);
    let fix = "make room, or bound what is kept: retain_bytes in colibri.toml; colibri rm forgets an agent";
    if disk.f_files > 0 && disk.f_favail < FEW_FILES {
        let what = format!(
            "the disk of the state directory has room for {} more files",
            disk.f_favail
        );
        return Some(Finding::warn(what, fix));
    }
    Some(match free {
        none if none < NO_ROOM => Finding::fail(what, fix),
        little if little < LITTLE_ROOM => Finding::warn(what, fix),
        _ => Finding::ok(what),
    })
}
