//! Masks and protects paths in the sandbox, by mounts. Every path is opened once, without links, and used by its descriptor.

use std::ffi::OsStr;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use colibri_jail_core::{
    EMPTY_INSIDE, GIT_DIRECTORY, PROTECTED_IN_GIT, PROTECTED_PATHS, Placeholder,
};
use rustix::fs::{
    CWD, FileType, FlockOperation, Mode, OFlags, ResolveFlags, flock, fstat, openat, openat2,
};
use rustix::io::Errno;
use rustix::mount::{MoveMountFlags, OpenTreeFlags, move_mount, open_tree};
use rustix::path::Arg;

use crate::{SandboxError, cannot, placeholder};

/// The file by which git recognizes a directory as a repository.
const BARE_HEAD: (&str, Placeholder) = ("HEAD", Placeholder::Socket);
/// Timeout for the lock on a writable directory.
const LOCK_TIMEOUT: Duration = Duration::from_secs(5);
/// Delay before the lock is tried again.
const LOCK_RETRY: Duration = Duration::from_millis(10);

/// What covers masked paths: an empty directory, and a device that cannot be opened where devices are denied.
pub(crate) struct Covers {
    directory: OwnedFd,
    file: OwnedFd,
}

impl Covers {
    /// Opens the covers.
    pub(crate) fn open() -> Result<Self, SandboxError> {
        let open = |path: &str| open_path(Path::new(path)).map_err(cannot(format!("open {path}")));
        Ok(Self {
            directory: open(EMPTY_INSIDE)?,
            file: open("/dev/null")?,
        })
    }

    /// Covers a path, if it exists.
    pub(crate) fn mask(&self, path: &Path) -> Result<(), SandboxError> {
        let target = match open_path(path) {
            Ok(target) => target,
            Err(Errno::NOENT | Errno::NOTDIR | Errno::ACCESS) => return Ok(()),
            Err(error) => return Err(cannot(format!("mask {}", path.display()))(error)),
        };
        let masked = || -> io::Result<()> {
            let cover = match file_type(&target)? {
                FileType::Directory => clone_tree(&self.directory)?,
                _ => clone_tree(&self.file)?,
            };
            colibri_sys::mounts::restrict(&cover, true)?;
            attach(&cover, &target)
        };
        match masked() {
            // It ended meanwhile.
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            other => other.map_err(cannot(format!("mask {}", path.display()))),
        }
    }
}

/// Makes the directories above a path immovable, if it is in one of these writable directories: an agent that renames one of them could
/// reach the path by another name, also in a later run.
pub(crate) fn pin_parents(path: &Path, writable: &[PathBuf]) -> Result<(), SandboxError> {
    for directory in writable
        .iter()
        .filter(|directory| path.starts_with(directory))
    {
        let parents: Vec<&Path> = path
            .ancestors()
            .skip(1)
            .take_while(|parent| parent != directory && parent.starts_with(directory))
            .collect();
        for parent in parents.into_iter().rev() {
            let failed = || format!("protect {}", parent.display());
            match open_without_links(parent) {
                Ok(opened) => bind(&opened, false).map_err(cannot(failed()))?,
                // Nothing is below it.
                Err(Errno::NOENT) => break,
                Err(error) => return Err(cannot(failed())(error)),
            }
        }
    }
    Ok(())
}

/// Makes an existing path in a writable directory read-only.
pub(crate) fn make_read_only(path: &Path, writable: &[PathBuf]) -> Result<(), SandboxError> {
    pin_parents(path, writable)?;
    match open_without_links(path) {
        Ok(target) => bind(&target, true).map_err(cannot(format!("protect {}", path.display()))),
        Err(Errno::NOENT) => create_read_only(path).map_err(cannot(format!(
            "create a placeholder for {}",
            path.display()
        ))),
        Err(error) => Err(cannot(format!("protect {}", path.display()))(error)),
    }
}

/// Creates a read-only directory as a placeholder, if the directory above it exists.
fn create_read_only(path: &Path) -> io::Result<()> {
    let (Some(parent), Some(name)) = (path.parent(), path.file_name().and_then(OsStr::to_str))
    else {
        return Ok(());
    };
    let parent = match open_directory_without_links(parent) {
        Ok(parent) => parent,
        Err(Errno::NOENT) => return Ok(()),
        Err(error) => return Err(error.into()),
    };
    match placeholder::create(&parent, name, Placeholder::Directory) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(error),
        _ => bind(&open_in(&parent, name)?, true),
    }
}

/// Moves a mount to its target, whose path must contain no link.
pub(crate) fn move_to(staged: &Path, target: &Path) -> Result<(), SandboxError> {
    let failed = |error| {
        let (target, hint) = (
            target.display(),
            "the path must exist in the sandbox without symbolic links",
        );
        SandboxError::from(format!("cannot mount at {target}: {error}; {hint}"))
    };
    let moved = || -> io::Result<()> {
        let point = open_without_links(target)?;
        attach(&open_without_links(staged)?, &point)
    };
    moved().map_err(failed)
}

/// Opens a path. A link in it is refused, and one at its end is opened itself.
fn open_without_links(path: &Path) -> Result<OwnedFd, Errno> {
    let flags = OFlags::PATH | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    openat2(CWD, path, flags, Mode::empty(), ResolveFlags::NO_SYMLINKS)
}

/// Opens a directory to change its entries; none of the parts of its path may be a link.
pub(crate) fn open_directory_without_links(path: &Path) -> Result<OwnedFd, Errno> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    openat2(CWD, path, flags, Mode::empty(), ResolveFlags::NO_SYMLINKS)
}

/// Opens a path for use as a mount point. Links are followed, because the mask of what a link shows is needed.
fn open_path(path: &Path) -> Result<OwnedFd, Errno> {
    openat(CWD, path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())
}

fn file_type(file: &impl AsFd) -> io::Result<FileType> {
    Ok(FileType::from_raw_mode(fstat(file)?.st_mode))
}

/// Returns a copy of the mount of a file or directory, with the mounts in it.
pub(crate) fn clone_tree(file: &impl AsFd) -> io::Result<OwnedFd> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE
        | OpenTreeFlags::OPEN_TREE_CLOEXEC
        | OpenTreeFlags::AT_EMPTY_PATH
        | OpenTreeFlags::AT_RECURSIVE;
    Ok(open_tree(file, "", flags)?)
}

/// Mounts a copy on what `target` names.
fn attach(mount: &impl AsFd, target: &impl AsFd) -> io::Result<()> {
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
    Ok(move_mount(mount, "", target, "", flags)?)
}

/// Protects the paths of [`PROTECTED_PATHS`] in a writable directory, if `path` is one, except `unprotected`. Returns a lock that
/// keeps the placeholders, for the life of the sandbox.
pub(crate) fn protect(
    path: &Path,
    unprotected: &[PathBuf],
) -> Result<Option<OwnedFd>, SandboxError> {
    let Some(directory) = open_locked(path)? else {
        return Ok(None);
    };
    let protection = Protection { unprotected };
    if open_in(&directory, "HEAD").is_ok() && open_in(&directory, "objects").is_ok() {
        // A bare repository.
        protection.apply_names_in_git(&directory, path)?;
    }
    for (name, placeholder) in PROTECTED_PATHS {
        let shown = path.join(name);
        if protection.is_open(&shown) {
            continue;
        }
        if *name != GIT_DIRECTORY {
            protection.apply(&directory, name, &shown, *placeholder)?;
            continue;
        }
        match open_in(&directory, *name) {
            Ok(git)
                if is_repository(&git).map_err(cannot(format!("read {}", shown.display())))? =>
            {
                protection.apply_in_git(&directory, &git, &shown)?;
            }
            _ => {
                protection.apply(&directory, name, &shown, *placeholder)?;
                // Without it, git takes the directory for no bare repository.
                let (name, placeholder) = BARE_HEAD;
                protection.apply(&directory, name, &path.join(name), placeholder)?;
            }
        }
    }
    Ok(Some(directory))
}

/// Protects the names of [`PROTECTED_IN_GIT`] in the directory of a git repository or worktree. Returns a lock as [`protect`].
pub(crate) fn protect_git(
    path: &Path,
    unprotected: &[PathBuf],
) -> Result<Option<OwnedFd>, SandboxError> {
    let Some(directory) = open_locked(path)? else {
        return Ok(None);
    };
    Protection { unprotected }.apply_names_in_git(&directory, path)?;
    Ok(Some(directory))
}

/// Opens a directory with a shared lock; `None` for a file. Another agent removes no placeholder while it is held.
fn open_locked(path: &Path) -> Result<Option<OwnedFd>, SandboxError> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    let directory = match openat(CWD, path, flags, Mode::empty()) {
        Ok(directory) => directory,
        Err(Errno::NOTDIR) => return Ok(None),
        Err(error) => return Err(cannot(format!("open {}", path.display()))(error)),
    };
    let deadline = Instant::now() + LOCK_TIMEOUT;
    // The end of another agent holds the lock for a moment.
    while let Err(error) = flock(&directory, FlockOperation::NonBlockingLockShared) {
        if error != Errno::WOULDBLOCK || Instant::now() > deadline {
            let action = format!(
                "lock {}, because another program holds an exclusive lock (flock(2)); wait until it ends, or find it with lslocks(8)",
                path.display()
            );
            return Err(cannot(action)(error));
        }
        std::thread::sleep(LOCK_RETRY);
    }
    Ok(Some(directory))
}

/// Returns whether a `.git` is a directory with files; an empty one may be a placeholder.
fn is_repository(git: &OwnedFd) -> io::Result<bool> {
    if file_type(git)? != FileType::Directory {
        return Ok(false);
    }
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    Ok(!placeholder::is_empty(&openat(
        git,
        ".",
        flags,
        Mode::empty(),
    )?)?)
}

/// Opens a path in a directory. A link in it is refused, and one at its end is opened itself.
fn open_in(directory: &impl AsFd, path: impl Arg) -> Result<OwnedFd, Errno> {
    openat2(
        directory,
        path,
        OFlags::PATH | OFlags::CLOEXEC | OFlags::NOFOLLOW,
        Mode::empty(),
        ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS,
    )
}

/// The exceptions of a protection.
struct Protection<'a> {
    unprotected: &'a [PathBuf],
}

impl Protection<'_> {
    fn is_open(&self, path: &Path) -> bool {
        self.unprotected.iter().any(|open| path.starts_with(open))
    }

    /// Returns whether a path inside `path` is unprotected.
    fn opens_inside(&self, path: &Path) -> bool {
        self.unprotected
            .iter()
            .any(|open| open != path && open.starts_with(path))
    }

    /// Makes a name in a directory read-only.
    fn apply(
        &self,
        directory: &OwnedFd,
        name: &str,
        shown: &Path,
        placeholder: Placeholder,
    ) -> Result<(), SandboxError> {
        let target = match open_in(directory, name) {
            Err(Errno::NOENT) if placeholder == Placeholder::Nothing => return Ok(()),
            Err(Errno::NOENT) => {
                match placeholder::create(directory, name, placeholder) {
                    Ok(()) => {}
                    // Another agent in the directory created it meanwhile.
                    Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                    // A mount in the directory is read-only: nothing can be created there.
                    Err(error) if error.kind() == io::ErrorKind::ReadOnlyFilesystem => {
                        return Ok(());
                    }
                    Err(error) => {
                        let action = format!("create a placeholder for {}", shown.display());
                        return Err(cannot(action)(error));
                    }
                }
                open_in(directory, name)
            }
            other => other,
        };
        let target = target.map_err(cannot(format!("protect {}", shown.display())))?;
        let found = fstat(&target).map_err(cannot(format!("read {}", shown.display())))?;
        let file_type = FileType::from_raw_mode(found.st_mode);
        if file_type == FileType::Symlink {
            return Err(unprotectable(
                shown,
                "it is a symbolic link, which an agent could replace",
            ));
        }
        if file_type == FileType::RegularFile && found.st_nlink > 1 {
            return Err(unprotectable(
                shown,
                "it has another hard link, by which an agent could write to it",
            ));
        }
        let opened: Vec<OwnedFd> = match self.opens_inside(shown) {
            true => self.copies_of_open_paths(&target, shown)?,
            false => Vec::new(),
        };
        bind(&target, true).map_err(cannot(format!("protect {}", shown.display())))?;
        // The unprotected paths inside become writable again.
        if !opened.is_empty() {
            let covered =
                open_in(directory, name).map_err(cannot(format!("open {}", shown.display())))?;
            let inside = self
                .unprotected
                .iter()
                .filter_map(|open| open.strip_prefix(shown).ok());
            for (path, copy) in inside.zip(&opened) {
                let attached = || -> io::Result<()> { attach(copy, &open_in(&covered, path)?) };
                attached().map_err(cannot(format!("unprotect {}", shown.join(path).display())))?;
            }
        }
        Ok(())
    }

    /// Returns writable copies of the unprotected paths inside a path.
    fn copies_of_open_paths(
        &self,
        target: &OwnedFd,
        shown: &Path,
    ) -> Result<Vec<OwnedFd>, SandboxError> {
        let inside = self
            .unprotected
            .iter()
            .filter_map(|open| open.strip_prefix(shown).ok());
        let copy = |path: &Path| -> io::Result<OwnedFd> { clone_tree(&open_in(target, path)?) };
        inside
            .map(|path| {
                copy(path).map_err(cannot(format!("unprotect {}", shown.join(path).display())))
            })
            .collect()
    }

    /// Makes a directory `.git` immovable, and the names of [`PROTECTED_IN_GIT`] in it read-only.
    fn apply_in_git(
        &self,
        directory: &OwnedFd,
        git: &OwnedFd,
        shown: &Path,
    ) -> Result<(), SandboxError> {
        bind(git, false).map_err(cannot(format!("protect {}", shown.display())))?;
        let git = open_in(directory, GIT_DIRECTORY)
            .map_err(cannot(format!("open {}", shown.display())))?;
        self.apply_names_in_git(&git, shown)
    }

    fn apply_names_in_git(&self, git: &OwnedFd, shown: &Path) -> Result<(), SandboxError> {
        for (name, placeholder) in PROTECTED_IN_GIT {
            let inside = shown.join(name);
            if !self.is_open(&inside) {
                self.apply(git, name, &inside, *placeholder)?;
            }
        }
        Ok(())
    }
}

/// Mounts a file or directory on itself.
fn bind(target: &OwnedFd, read_only: bool) -> io::Result<()> {
    let mount = clone_tree(target)?;
    colibri_sys::mounts::restrict(&mount, read_only)?;
    attach(&mount, target)
}

fn unprotectable(path: &Path, cause: &str) -> SandboxError {
    let path = path.display();
    format!(
        "cannot protect {path}: {cause}; replace it by a separate file, or give --unprotect {path}"
    )
    .into()
}

/// Calls `act` for each name that a placeholder can have in a directory: the directory of the name, and the name.
pub(crate) fn each_placeholder(
    directory: &OwnedFd,
    act: impl Fn(&OwnedFd, &str, Placeholder) -> io::Result<()>,
) -> io::Result<()> {
    if let Ok(git) = open_in(directory, GIT_DIRECTORY)
        && file_type(&git)? == FileType::Directory
    {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let git = openat(&git, OsStr::new("."), flags, Mode::empty())?;
        for (name, placeholder) in PROTECTED_IN_GIT {
            act(&git, name, *placeholder)?;
        }
    }
    let names = PROTECTED_PATHS.iter().chain(PROTECTED_IN_GIT);
    for (name, placeholder) in names.chain([&BARE_HEAD]) {
        act(directory, name, *placeholder)?;
    }
    Ok(())
}
