//! Removes the placeholders of protected paths after a run, unless another agent works in the directory.

use std::ffi::OsString;
use std::io;
use std::path::Path;
use std::process::ExitCode;

use colibri_jail_core::Placeholder;
use rustix::fs::{FlockOperation, flock};

use crate::{SandboxError, cannot, paths, placeholder, report};

/// Cleans each directory; one that cannot be cleaned is reported, and does not prevent the next.
pub(crate) fn clean(directories: &[OsString]) -> Result<ExitCode, SandboxError> {
    for directory in directories {
        let directory = Path::new(directory);
        if let Err(error) = clean_directory(directory) {
            let error = cannot(format!("remove placeholders in {}", directory.display()))(error);
            report(&error.to_string());
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn clean_directory(directory: &Path) -> io::Result<()> {
    if let (Some(parent), Some(name)) = (
        directory.parent(),
        directory.file_name().and_then(|name| name.to_str()),
    ) {
        // It may be a placeholder itself; one that is in use is a mount point only in another namespace, so its lock decides.
        if let Ok(parent) = paths::open_directory_without_links(parent)
            && flock(&parent, FlockOperation::NonBlockingLockExclusive).is_ok()
        {
            placeholder::remove(&parent, name, Placeholder::Directory)?;
        }
    }
    let directory = match paths::open_directory_without_links(directory) {
        Ok(directory) => directory,
        Err(rustix::io::Errno::NOTDIR | rustix::io::Errno::NOENT) => return Ok(()),
        Err(error) => return Err(error.into()),
    };
    match flock(&directory, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => {}
        // Another agent needs them, and removes them later.
        Err(rustix::io::Errno::WOULDBLOCK) => return Ok(()),
        Err(error) => return Err(error.into()),
    }
    paths::each_placeholder(&directory, |parent, name, kind| {
        placeholder::remove(parent, name, kind)
    })
}
