//! After a run: removes the placeholders of protected paths, unless another agent works in the directory, and links in directories of
//! git repositories.

use std::ffi::{OsStr, OsString};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use colibri_jail_core::{GIT_DIRECTORY, PROTECTED_IN_GIT, PROTECTED_PATHS};
use rustix::fs::{AtFlags, Dir, FileType, FlockOperation, flock, readlinkat, statat, unlinkat};
use rustix::io::Errno;

use crate::paths::{BARE_HEAD, MISSING, open_directory_in, open_directory_without_links};
use crate::{SandboxError, cannot, placeholder, report};

/// Directory of the histories of references in a repository, to which git appends lines.
const LOGS: &str = "logs";
/// Maximum depth of directories in [`LOGS`] that are searched for links.
const MAX_DEPTH: usize = 16;
/// Maximum number of entries there that are searched.
const MAX_ENTRIES: usize = 10_000;

/// What is cleaned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Part {
    /// A directory with the protected paths of a project.
    Workspace,
    /// The directory of a git repository or worktree.
    Git,
    /// The directory [`LOGS`] of a repository.
    Logs,
    /// A path that may be a placeholder.
    Path,
}

/// Cleans each part; one that cannot be cleaned is reported, and does not prevent the next. `None` for a usage error.
pub(crate) fn clean(words: &[OsString]) -> Option<Result<ExitCode, SandboxError>> {
    let parse = |pair: &[OsString]| {
        let [option, path] = pair else { return None };
        let part = match option.to_str()? {
            "--workspace" => Part::Workspace,
            "--git" => Part::Git,
            "--logs" => Part::Logs,
            "--path" => Part::Path,
            _ => return None,
        };
        Some((part, PathBuf::from(path)))
    };
    let parts: Vec<(Part, PathBuf)> = words.chunks(2).map(parse).collect::<Option<_>>()?;
    let (mut locked, mut busy) = (Vec::new(), Vec::new());
    for (part, path) in &parts {
        let done = match part {
            Part::Workspace | Part::Git => lock(path),
            _ => continue,
        };
        match done {
            Ok(Lock::Held(directory)) => locked.push((*part, path, directory)),
            // The other agent needs the placeholders, and removes them later.
            Ok(Lock::Busy) => busy.push(path),
            Ok(Lock::NoDirectory) => {}
            Err(error) => report_failure(path, &error),
        }
    }
    for (part, path, directory) in &locked {
        let done = match part {
            Part::Git => clean_git(directory),
            _ => clean_workspace(directory),
        };
        done.unwrap_or_else(|error| report_failure(path, &error));
    }
    for (part, path) in &parts {
        let done = match part {
            Part::Logs => open_directory_without_links(path)
                .map_err(io::Error::from)
                .and_then(|logs| remove_links(&logs, MAX_DEPTH, &mut { MAX_ENTRIES })),
            Part::Path if !busy.iter().any(|busy| path.starts_with(busy)) => remove_path(path),
            _ => continue,
        };
        match done {
            Err(error) if error.kind() != io::ErrorKind::NotFound => report_failure(path, &error),
            _ => {}
        }
    }
    Some(Ok(ExitCode::SUCCESS))
}

fn report_failure(path: &Path, error: &io::Error) {
    let action = format!("remove placeholders and links in {}", path.display());
    report(&cannot(action)(error).to_string());
}

/// The result of an attempt to lock a directory.
enum Lock {
    Held(OwnedFd),
    Busy,
    NoDirectory,
}

fn lock(path: &Path) -> io::Result<Lock> {
    let directory = match open_directory_without_links(path) {
        Ok(directory) => directory,
        Err(Errno::NOTDIR | Errno::NOENT) => return Ok(Lock::NoDirectory),
        Err(error) => return Err(error.into()),
    };
    match flock(&directory, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(Lock::Held(directory)),
        Err(Errno::WOULDBLOCK) => Ok(Lock::Busy),
        Err(error) => Err(error.into()),
    }
}

fn clean_workspace(directory: &OwnedFd) -> io::Result<()> {
    match open_directory_in(directory, GIT_DIRECTORY) {
        Ok(git) => clean_git(&git)?,
        Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => {}
        Err(error) => return Err(error.into()),
    }
    let exists = |name: &&str| statat(directory, *name, AtFlags::SYMLINK_NOFOLLOW).is_ok();
    if ["HEAD", "objects", "refs"].iter().all(exists) {
        // A bare repository.
        clean_git(directory)?;
    }
    let names = PROTECTED_PATHS.iter().chain(PROTECTED_IN_GIT);
    for (name, kind) in names.chain([&BARE_HEAD]) {
        placeholder::remove(directory, name, *kind)?;
    }
    Ok(())
}

fn clean_git(git: &OwnedFd) -> io::Result<()> {
    for (name, kind) in PROTECTED_IN_GIT {
        placeholder::remove(git, name, *kind)?;
    }
    if is_link(git, OsStr::new("config"))? {
        // The user has made the directory of links to another one.
        return Ok(());
    }
    remove_links(git, 0, &mut { MAX_ENTRIES })?;
    match open_directory_in(git, LOGS) {
        Ok(logs) => remove_links(&logs, MAX_DEPTH, &mut { MAX_ENTRIES }),
        Err(_) => Ok(()),
    }
}

fn remove_path(path: &Path) -> io::Result<()> {
    let (Some(parent), Some(name)) = (path.parent(), path.file_name().and_then(OsStr::to_str))
    else {
        return Ok(());
    };
    placeholder::remove(&open_directory_without_links(parent)?, name, MISSING)
}

fn is_link(directory: &OwnedFd, name: &OsStr) -> io::Result<bool> {
    match statat(directory, name, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(found) => Ok(FileType::from_raw_mode(found.st_mode) == FileType::Symlink),
        Err(Errno::NOENT) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

/// Removes symbolic links from a directory of a git repository: git creates none there, and would write to the files that they name,
/// with words of the agent.
fn remove_links(directory: &OwnedFd, depth: usize, left: &mut usize) -> io::Result<()> {
    let mut directories = Vec::new();
    for entry in Dir::read_from(directory)? {
        let entry = entry?;
        let name = OsStr::from_bytes(entry.file_name().to_bytes());
        let Some(fewer) = left.checked_sub(1) else {
            return Err(io::Error::other("it has too many entries to find links"));
        };
        *left = fewer;
        let is_directory = entry.file_type() == FileType::Directory;
        if is_directory && depth > 0 && name != "." && name != ".." {
            directories.push(name.to_owned());
        }
        let is_protected = PROTECTED_IN_GIT.iter().any(|(other, _)| name == *other);
        if is_directory || is_protected || !is_link(directory, name)? {
            continue;
        }
        let target = readlinkat(directory, name, Vec::new())?;
        // Old versions of git made HEAD such a link.
        if name == "HEAD" && depth == 0 && target.to_bytes().starts_with(b"refs/") {
            continue;
        }
        unlinkat(directory, name, AtFlags::empty())?;
        let (name, target) = (name.display(), target.to_string_lossy());
        report(&format!(
            "removed the link {name} to {target} from a directory of a git repository: git would have written to its target"
        ));
    }
    for name in directories {
        remove_links(&open_directory_in(directory, &name)?, depth - 1, left)?;
    }
    Ok(())
}
