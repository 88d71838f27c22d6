//! Sockets, files and directories that stand for protected paths that do not exist, so that a mount can cover them.
//!
//! A placeholder is recognized by its time of modification, which no tool sets by chance, and by its content. So those that a
//! crash leaves are recognized too.

use std::io::{self, Write};
use std::os::fd::{AsFd, OwnedFd};

use colibri_jail_core::Placeholder;
use rustix::fs::{
    AtFlags, Dir, FileType, Mode, OFlags, Stat, Timespec, Timestamps, futimens, mkdirat, mknodat,
    openat, statat, unlinkat, utimensat,
};

/// Time of modification of every placeholder, in seconds since 1970: a moment of the year 1975.
const MARK: i64 = 173_820_611;

/// Creates the placeholder `name` in a directory. `Nothing` creates none.
///
/// # Errors
/// The file system, or the name exists.
pub(crate) fn create(directory: &impl AsFd, name: &str, kind: Placeholder) -> io::Result<()> {
    let mark = Timespec {
        tv_sec: MARK,
        tv_nsec: 0,
    };
    let times = Timestamps {
        last_access: mark,
        last_modification: mark,
    };
    let file: OwnedFd = match kind {
        Placeholder::Nothing => return Ok(()),
        Placeholder::Socket => {
            mknodat(
                directory,
                name,
                FileType::Socket,
                Mode::from_raw_mode(0o644),
                0,
            )?;
            return Ok(utimensat(
                directory,
                name,
                &times,
                AtFlags::SYMLINK_NOFOLLOW,
            )?);
        }
        Placeholder::Directory => {
            mkdirat(directory, name, Mode::from_raw_mode(0o755))?;
            let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            openat(directory, name, flags, Mode::empty())?
        }
        Placeholder::File(content) => {
            let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
            let file = openat(directory, name, flags, Mode::from_raw_mode(0o644))?;
            let mut file = std::fs::File::from(file);
            file.write_all(content.as_bytes())?;
            file.into()
        }
    };
    futimens(file, &times)?;
    Ok(())
}

/// Removes `name` from a directory if it is a placeholder that nothing changed.
///
/// # Errors
/// The file system.
pub(crate) fn remove(directory: &impl AsFd, name: &str, kind: Placeholder) -> io::Result<()> {
    let found = match statat(directory, name, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(found) => found,
        Err(rustix::io::Errno::NOENT) => return Ok(()),
        Err(error) => return Err(error.into()),
    };
    if !is_marked(&found) {
        return Ok(());
    }
    let file_type = FileType::from_raw_mode(found.st_mode);
    match kind {
        Placeholder::Socket if file_type == FileType::Socket => {
            unlinkat(directory, name, AtFlags::empty())?;
        }
        Placeholder::File(content)
            if file_type == FileType::RegularFile && has_length(&found, content) =>
        {
            unlinkat(directory, name, AtFlags::empty())?;
        }
        // rmdir(2) fails on a directory with files, which changed its time too.
        Placeholder::Directory if file_type == FileType::Directory => {
            unlinkat(directory, name, AtFlags::REMOVEDIR)?;
        }
        _ => {}
    }
    Ok(())
}

/// Returns whether a directory has no entries.
///
/// # Errors
/// The file system.
pub(crate) fn is_empty(directory: &impl AsFd) -> io::Result<bool> {
    let mut entries = Dir::read_from(directory)?;
    let other = entries.find(|entry| {
        entry.as_ref().map_or(true, |entry| {
            !matches!(entry.file_name().to_bytes(), b"." | b"..")
        })
    });
    Ok(other.is_none())
}

// The types of the fields differ between architectures.
#[allow(clippy::useless_conversion, clippy::unnecessary_cast)]
fn is_marked(found: &Stat) -> bool {
    i64::from(found.st_mtime) == MARK && found.st_mtime_nsec as i64 == 0
}

#[allow(clippy::cast_sign_loss)]
fn has_length(found: &Stat, content: &str) -> bool {
    found.st_size as u64 == content.len() as u64
}
