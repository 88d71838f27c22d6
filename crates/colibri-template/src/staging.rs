//! A private directory beside the template, which contains everything until the template is complete.

use std::ffi::{OsStr, OsString};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

use rustix::fs::{AtFlags, Dir, FlockOperation, Mode, OFlags};
use rustix::io::Errno;

use crate::error::TemplateError;
use crate::target::Target;
use crate::tree;

/// Name of the root of the template in the staging directory.
const ROOT: &str = "root";

/// A directory `.NAME.colibri-init.PID` beside the template NAME. Its lock shows that its process runs. It is removed when
/// dropped; a later run for the same template removes that of a killed process.
#[derive(Debug)]
pub(crate) struct Staging<'a> {
    target: &'a Target,
    name: OsString,
    directory: OwnedFd,
}

impl<'a> Staging<'a> {
    /// Creates the directory, and removes those of killed processes.
    pub(crate) fn create(target: &'a Target) -> Result<Self, TemplateError> {
        let mut prefix = OsString::from(".");
        prefix.push(&target.name);
        prefix.push(".colibri-init.");
        let failed = |error: Errno| {
            let hint = "give a directory whose parent this user can write";
            TemplateError::target(&target.directory, format!("its parent: {error}; {hint}"))
        };
        remove_stale(target, &prefix).map_err(failed)?;
        let mut name = prefix;
        name.push(std::process::id().to_string());
        rustix::fs::mkdirat(&target.parent, &name, Mode::RWXU).map_err(failed)?;
        let directory = open(target, &name).and_then(|directory| {
            rustix::fs::flock(&directory, FlockOperation::NonBlockingLockExclusive)?;
            Ok(directory)
        });
        Ok(Self {
            directory: directory.map_err(failed)?,
            target,
            name,
        })
    }

    /// Returns the open directory.
    pub(crate) fn directory(&self) -> &OwnedFd {
        &self.directory
    }

    /// Creates the root of the template, and opens it.
    pub(crate) fn create_root(&self) -> Result<OwnedFd, TemplateError> {
        let create = || -> Result<OwnedFd, Errno> {
            rustix::fs::mkdirat(&self.directory, ROOT, Mode::RWXU)?;
            let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            rustix::fs::openat(&self.directory, ROOT, flags, Mode::empty())
        };
        create().map_err(TemplateError::file("create", self.root_path()))
    }

    /// Returns the path of the root.
    pub(crate) fn root_path(&self) -> PathBuf {
        self.target.directory.with_file_name(&self.name).join(ROOT)
    }

    /// Moves the complete root to the path of the template.
    pub(crate) fn publish(&self) -> Result<(), TemplateError> {
        // rename(2) replaces an empty directory, and fails for any other.
        rustix::fs::renameat(
            &self.directory,
            ROOT,
            &self.target.parent,
            &self.target.name,
        )
        .map_err(|error| {
            let hint = "remove it, or give another path";
            TemplateError::target(&self.target.directory, format!("{error}; {hint}"))
        })
    }
}

impl Drop for Staging<'_> {
    fn drop(&mut self) {
        // A directory that cannot be removed is removed by the next run.
        let _ = tree::remove(&self.target.parent, &self.name);
    }
}

fn open(target: &Target, name: &OsStr) -> Result<OwnedFd, Errno> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::openat(&target.parent, name, flags, Mode::empty())
}

/// Removes the staging directories of this user whose process has ended.
fn remove_stale(target: &Target, prefix: &OsStr) -> Result<(), Errno> {
    let mut names = Vec::new();
    for entry in Dir::read_from(target.parent.as_fd())? {
        let entry = entry?;
        let name = OsStr::from_bytes(entry.file_name().to_bytes());
        if name.as_bytes().starts_with(prefix.as_bytes()) {
            names.push(name.to_owned());
        }
    }
    for name in names {
        let stat = rustix::fs::statat(&target.parent, &name, AtFlags::SYMLINK_NOFOLLOW);
        if !stat.is_ok_and(|stat| stat.st_uid == rustix::process::geteuid().as_raw()) {
            continue;
        }
        let lock = FlockOperation::NonBlockingLockExclusive;
        // Held until the directory is removed.
        let Ok(directory) = open(target, &name) else {
            continue;
        };
        if rustix::fs::flock(&directory, lock).is_ok() {
            tree::remove(&target.parent, &name)?;
        }
    }
    Ok(())
}
