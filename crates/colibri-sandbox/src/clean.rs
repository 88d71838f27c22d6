//! After a run: removes the placeholders of protected paths, unless another agent works in the directory, and links in directories of
//! git repositories.

use std::ffi::{OsStr, OsString};
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use colibri_jail_core::{GIT_DIRECTORY, PROTECTED_IN_GIT, PROTECTED_PATHS, Placeholder};
use colibri_sys::regular_file;
use rustix::fs::{
    AtFlags, CWD, Dir, FileType, Mode, OFlags, ResolveFlags, Stat, fstat, openat2, readlinkat,
    renameat, statat, unlinkat,
};
use rustix::io::Errno;
use rustix::path::Arg;

use crate::lock::Exclusive;
use crate::paths::{BARE_NAMES, MISSING};
use crate::{EXIT_FAILURE, SandboxError, cannot, index, placeholder, report};

/// Directory of the histories of references in a repository, to which git appends lines.
const LOGS: &str = "logs";
/// Directories of a repository in which no links are searched: they are large, and git writes no words of users there.
const LARGE: &[&str] = &["annex", "lfs", "objects"];
/// Maximum size of an index, in bytes.
const MAX_INDEX: u64 = 256 << 20;
/// Maximum depth of other directories that are searched for links.
const MAX_DEPTH: usize = 64;
/// Maximum number of entries there that are searched.
const MAX_ENTRIES: usize = 1_000_000;
/// Names in the directory of a repository to which git writes, and which are examined first.
const WRITTEN: &[&str] = &[
    "AUTO_MERGE",
    "CHERRY_PICK_HEAD",
    "COMMIT_EDITMSG",
    "EDIT_DESCRIPTION",
    "FETCH_HEAD",
    "MERGE_HEAD",
    "MERGE_MODE",
    "MERGE_MSG",
    "MERGE_RR",
    "NOTES_EDITMSG",
    "ORIG_HEAD",
    "REVERT_HEAD",
    "SQUASH_MSG",
    "TAG_EDITMSG",
    "description",
    "index",
    LOGS,
    "packed-refs",
    "shallow",
];

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

/// Cleans each part; a failure or a link that was removed is reported, does not prevent the next, and makes the exit code 125. `None`
/// for a usage error.
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
    let mut cleaner = Cleaner::default();
    for (part, path) in &parts {
        if let Err(error) = cleaner.clean(*part, path)
            && error.kind() != io::ErrorKind::NotFound
        {
            let action = format!("remove placeholders and links in {}", path.display());
            cleaner.problem(&cannot(action)(error).to_string());
        }
    }
    Some(Ok(ExitCode::from(match cleaner.has_problems {
        true => EXIT_FAILURE,
        false => 0,
    })))
}

/// What is known while parts are cleaned. A workspace precedes the parts in it.
#[derive(Default)]
struct Cleaner {
    has_problems: bool,
    /// Held until the end, because parts in a workspace follow it.
    locks: Vec<Exclusive>,
    /// Workspaces of other agents, which need the placeholders and remove them later.
    busy: Vec<PathBuf>,
}

impl Cleaner {
    fn problem(&mut self, message: &str) {
        self.has_problems = true;
        report(message);
    }

    fn clean(&mut self, part: Part, path: &Path) -> io::Result<()> {
        let is_busy = self.busy.iter().any(|busy| path.starts_with(busy));
        match part {
            Part::Path if is_busy => Ok(()),
            Part::Path => remove_path(path),
            Part::Logs => {
                let logs = open_own_directory(CWD, path)?;
                self.remove_links(&logs, MAX_DEPTH, &mut { MAX_ENTRIES })
            }
            Part::Workspace | Part::Git => {
                let directory = match open_own_directory(CWD, path) {
                    // A mounted file.
                    Err(Errno::NOTDIR) => return Ok(()),
                    other => other?,
                };
                let tree = match path.parent() {
                    Some(tree) if part == Part::Git && path.ends_with(GIT_DIRECTORY) => {
                        Some(open_own_directory(CWD, tree)?)
                    }
                    _ => None,
                };
                let removes_placeholders = self.lock(tree.as_ref().unwrap_or(&directory))?;
                if !removes_placeholders {
                    self.busy.push(path.to_owned());
                }
                match part {
                    Part::Git => {
                        if let Some(tree) = tree {
                            remove_bare_names(&tree, removes_placeholders)?;
                        }
                        self.clean_git(&directory, removes_placeholders)
                    }
                    _ => self.clean_workspace(&directory, removes_placeholders),
                }
            }
        }
    }

    /// Locks a directory until the end. Returns whether no other agent needs the placeholders in it.
    fn lock(&mut self, directory: &OwnedFd) -> io::Result<bool> {
        match Exclusive::try_lock(directory) {
            Ok(Some(lock)) => self.locks.push(lock),
            Ok(None) => return Ok(false),
            // Without locks, a placeholder that is removed ends the sandbox which it protects.
            Err(_) => {}
        }
        Ok(true)
    }

    fn clean_workspace(
        &mut self,
        directory: &OwnedFd,
        removes_placeholders: bool,
    ) -> io::Result<()> {
        match open_own_directory(directory, GIT_DIRECTORY) {
            Ok(git) => self.clean_git(&git, removes_placeholders)?,
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => {}
            Err(error) => return Err(error.into()),
        }
        let has = |name: &str, kind| {
            let found = statat(directory, name, AtFlags::SYMLINK_NOFOLLOW);
            found.is_ok_and(|found| FileType::from_raw_mode(found.st_mode) == kind)
        };
        let is_bare = has("HEAD", FileType::RegularFile)
            && has("objects", FileType::Directory)
            && has("refs", FileType::Directory);
        if is_bare {
            // A bare repository.
            self.clean_git(directory, removes_placeholders)?;
        }
        let names = PROTECTED_PATHS.iter().chain(PROTECTED_IN_GIT);
        for (name, kind) in names.filter(|_| removes_placeholders) {
            placeholder::remove(directory, name, *kind)?;
        }
        remove_bare_names(directory, removes_placeholders)
    }

    /// Removes links, also while another agent works there: git never makes them.
    fn clean_git(&mut self, git: &OwnedFd, removes_placeholders: bool) -> io::Result<()> {
        for (name, kind) in PROTECTED_IN_GIT.iter().filter(|_| removes_placeholders) {
            placeholder::remove(git, name, *kind)?;
        }
        if is_link(git, OsStr::new("config"))? {
            // The user has made the directory of links to another one.
            return Ok(());
        }
        for name in WRITTEN {
            self.remove_link(git, OsStr::new(name))?;
        }
        let mut directories = Vec::new();
        for entry in Dir::read_from(git)? {
            let entry = entry?;
            let name = OsStr::from_bytes(entry.file_name().to_bytes());
            let is_protected = PROTECTED_IN_GIT.iter().any(|(other, _)| name == *other);
            // Users move large directories, such as objects, to other disks.
            let is_kept = || statat(git, name, AtFlags::empty()).is_ok_and(is_directory);
            if may_be_link(entry.file_type()) && !is_protected && !is_kept() {
                self.remove_link(git, name)?;
            }
            if is_index(name) {
                self.refuse_index(git, name)?;
            }
            let is_other = name != "." && name != ".." && !LARGE.iter().any(|large| name == *large);
            if entry.file_type() == FileType::Directory && is_other && !is_protected {
                directories.push(name.to_owned());
            }
        }
        for name in directories {
            let directory = match open_own_directory(git, &*name) {
                Ok(directory) => directory,
                Err(Errno::NOENT | Errno::NOTDIR) => continue,
                Err(error) => return Err(error.into()),
            };
            let searched = self.remove_links(&directory, MAX_DEPTH, &mut { MAX_ENTRIES });
            if let Err(error) = searched {
                // git makes a new one.
                self.set_aside(git, &name, &format!("it may contain links: {error}"))?;
            }
        }
        Ok(())
    }

    /// Sets an index aside whose entries git would write to places outside of the working tree, or into `.git`.
    fn refuse_index(&mut self, git: &OwnedFd, name: &OsStr) -> io::Result<()> {
        let read = |name: &str| -> io::Result<Vec<u8>> {
            let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC | OFlags::NOFOLLOW;
            let file = openat2(git, name, flags, Mode::empty(), ResolveFlags::NO_SYMLINKS)?;
            regular_file::read_open(&file.into(), MAX_INDEX)
        };
        let config = read("config").unwrap_or_default();
        let is_sha256 = String::from_utf8_lossy(&config)
            .to_ascii_lowercase()
            .contains("sha256");
        let bytes = name
            .to_str()
            .map_or_else(|| Err(io::ErrorKind::InvalidFilename.into()), read);
        let problem = match bytes {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(error) => Some(format!("it cannot be read: {error}")),
            Ok(bytes) => index::problem(&bytes, if is_sha256 { 32 } else { 20 }),
        };
        match problem {
            Some(problem) => self.set_aside(git, name, &problem),
            None => Ok(()),
        }
    }

    /// Renames what git would use. The new name says where it comes from.
    fn set_aside(&mut self, git: &OwnedFd, name: &OsStr, problem: &str) -> io::Result<()> {
        let mut aside = OsString::from("colibri-refused-");
        aside.push(name);
        aside.push(format!("-{}", std::process::id()));
        renameat(git, name, git, &aside)?;
        self.problem(&format!(
            "renamed {} of a git repository to {}: {problem}",
            name.display(),
            aside.display()
        ));
        Ok(())
    }

    fn remove_links(
        &mut self,
        directory: &OwnedFd,
        depth: usize,
        left: &mut usize,
    ) -> io::Result<()> {
        let mut directories = Vec::new();
        for entry in Dir::read_from(directory)? {
            let entry = entry?;
            let name = OsStr::from_bytes(entry.file_name().to_bytes());
            *left = left
                .checked_sub(1)
                .ok_or_else(|| io::Error::other("it has too many entries"))?;
            match entry.file_type() {
                FileType::Directory if name == "." || name == ".." => {}
                FileType::Directory => directories.push(name.to_owned()),
                kind if may_be_link(kind) => self.remove_link(directory, name)?,
                _ => {}
            }
        }
        let deeper = depth.checked_sub(1);
        for name in directories {
            let deeper = deeper.ok_or_else(|| io::Error::other("its directories are too deep"))?;
            self.remove_links(&open_own_directory(directory, &name)?, deeper, left)?;
        }
        Ok(())
    }

    /// Removes a symbolic link or a FIFO from a directory of a git repository: git creates none there, would write words of the agent to
    /// the file that a link names, and would wait for a FIFO.
    fn remove_link(&mut self, directory: &OwnedFd, name: &OsStr) -> io::Result<()> {
        let found = match statat(directory, name, AtFlags::SYMLINK_NOFOLLOW) {
            Err(Errno::NOENT) => return Ok(()),
            other => FileType::from_raw_mode(other?.st_mode),
        };
        let target = match found {
            FileType::Symlink => readlinkat(directory, name, Vec::new())?,
            FileType::Fifo => c"a FIFO".to_owned(),
            _ => return Ok(()),
        };
        // Old versions of git made HEAD such a link.
        if name == "HEAD" && target.to_bytes().starts_with(b"refs/") {
            return Ok(());
        }
        unlinkat(directory, name, AtFlags::empty())?;
        let (name, target) = (name.display(), target.to_string_lossy());
        self.problem(&format!(
            "removed {name}, a link to {target} in a directory of a git repository, because git would have used its target"
        ));
        Ok(())
    }
}

fn is_directory(found: Stat) -> bool {
    FileType::from_raw_mode(found.st_mode) == FileType::Directory
}

fn may_be_link(kind: FileType) -> bool {
    matches!(kind, FileType::Symlink | FileType::Fifo | FileType::Unknown)
}

/// Returns whether git reads a file of this name as an index.
fn is_index(name: &OsStr) -> bool {
    name == "index" || name.as_bytes().starts_with(b"sharedindex.")
}

fn remove_bare_names(directory: &OwnedFd, removes_placeholders: bool) -> io::Result<()> {
    for name in BARE_NAMES.iter().filter(|_| removes_placeholders) {
        placeholder::remove(directory, name, Placeholder::Socket)?;
    }
    Ok(())
}

/// Opens a directory without links in its path. An agent may have taken the right to read it from its owner.
fn open_own_directory(directory: impl AsFd, path: impl Arg + Copy) -> Result<OwnedFd, Errno> {
    let open = |flags: OFlags| {
        let flags = flags | OFlags::DIRECTORY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        openat2(
            &directory,
            path,
            flags,
            Mode::empty(),
            ResolveFlags::NO_SYMLINKS,
        )
    };
    let found = open(OFlags::PATH)?;
    let mode = Mode::from_raw_mode(fstat(&found)?.st_mode);
    if !mode.contains(Mode::RWXU) {
        // Of another owner, this fails, and opening it reports that.
        let descriptor = format!("/proc/self/fd/{}", found.as_raw_fd());
        let _ = rustix::fs::chmod(
            descriptor,
            (mode | Mode::RWXU) & Mode::from_raw_mode(0o7777),
        );
    }
    open(OFlags::RDONLY)
}

fn remove_path(path: &Path) -> io::Result<()> {
    let (Some(parent), Some(name)) = (path.parent(), path.file_name().and_then(OsStr::to_str))
    else {
        return Ok(());
    };
    placeholder::remove(&open_own_directory(CWD, parent)?, name, MISSING)
}

fn is_link(directory: &OwnedFd, name: &OsStr) -> io::Result<bool> {
    match statat(directory, name, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(found) => Ok(FileType::from_raw_mode(found.st_mode) == FileType::Symlink),
        Err(Errno::NOENT) => Ok(false),
        Err(error) => Err(error.into()),
    }
}
