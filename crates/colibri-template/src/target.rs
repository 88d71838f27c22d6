//! The directory that becomes a template.

use std::ffi::OsString;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use colibri_sys::ownership::Ownership;
use rustix::fs::{Mode, OFlags};

use crate::error::TemplateError;

/// A directory that does not exist yet or is empty, and its parent directory.
#[derive(Debug)]
pub(crate) struct Target {
    /// The path without symbolic links in its parent.
    pub(crate) directory: PathBuf,
    pub(crate) parent: OwnedFd,
    pub(crate) name: OsString,
}

impl Target {
    /// Checks that a template can be created at `directory`.
    pub(crate) fn check(directory: &Path) -> Result<Self, TemplateError> {
        let failed = |problem: &str| TemplateError::target(directory, problem);
        let (Some(parent), Some(name)) = (directory.parent(), directory.file_name()) else {
            return Err(failed(
                "it is not a path of a directory; give one like /usr/local/jails/agents",
            ));
        };
        if !directory.is_absolute() {
            return Err(failed("its path is not absolute; give an absolute path"));
        }
        let parent = parent
            .canonicalize()
            .map_err(|error| failed(&format!("{error}; run: mkdir -p {}", parent.display())))?;
        let canonical = parent.join(name);
        check_empty(&canonical).map_err(|problem| failed(&problem))?;
        // As root, every user who can rename a directory on the path could redirect external programs.
        if rustix::process::geteuid().is_root() {
            for ancestor in parent.ancestors() {
                let metadata = ancestor.metadata();
                let metadata = metadata.map_err(|error| failed(&error.to_string()))?;
                let ownership = Ownership::from(&metadata);
                if ownership.entries_are_replaceable() || !ownership.is_own_or_roots() {
                    return Err(failed(&format!(
                        "{} can be changed by other users (uid {}, mode {ownership}); create it below a directory that only root can write",
                        ancestor.display(),
                        ownership.uid,
                    )));
                }
            }
        }
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let opened = rustix::fs::open(&parent, flags, Mode::empty());
        Ok(Self {
            parent: opened.map_err(TemplateError::file("open", &parent))?,
            directory: canonical,
            name: name.to_owned(),
        })
    }
}

/// Refuses anything but an empty directory or nothing; the error is the problem.
fn check_empty(directory: &Path) -> Result<(), String> {
    let metadata = match directory.symlink_metadata() {
        Ok(metadata) => metadata,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error.to_string()),
    };
    if !metadata.is_dir() {
        return Err("it exists and is not a directory; remove it, or give another path".to_owned());
    }
    let mut entries = directory.read_dir().map_err(|error| error.to_string())?;
    match entries.next() {
        None => Ok(()),
        Some(_) => Err("it is not empty; remove its content, or give another path".to_owned()),
    }
}
