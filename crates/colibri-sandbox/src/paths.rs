//! Masks and protects paths in the sandbox, by mounts. Every path is opened once, without links, and used by its descriptor.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use colibri_jail_core::{
    EMPTY_INSIDE, GIT_DIRECTORY, PROTECTED_IN_GIT, PROTECTED_PATHS, Placeholder,
};
use rustix::fs::{CWD, FileType, Mode, OFlags, ResolveFlags, fstat, openat, openat2};
use rustix::io::Errno;
use rustix::mount::{MoveMountFlags, OpenTreeFlags, move_mount, open_tree};
use rustix::path::Arg;

use crate::{SandboxError, cannot, placeholder};

/// The names by which git recognizes a directory as a bare repository. Without one of them it does not, even if `.git` is invalid: a
/// socket stands for the first that does not exist. Another `HEAD` would make words of commands ambiguous.
pub(crate) const BARE_NAMES: [&str; 3] = ["refs", "objects", "HEAD"];
/// Placeholder of a missing path that is read-only: git reads it as an empty file, and finds no hooks in it.
pub(crate) const MISSING: Placeholder = Placeholder::File("");

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

/// Makes directories immovable that are, or are above, one of `paths` in one of these writable directories: an agent that renames one
/// of them could reach the path by another name, also in a later run.
pub(crate) fn pin<'a>(
    paths: impl Iterator<Item = &'a Path>,
    writable: &[PathBuf],
) -> Result<(), SandboxError> {
    let mut pinned = BTreeSet::new();
    for path in paths {
        for directory in writable.iter().filter(|outer| path.starts_with(outer)) {
            let parents = path.ancestors();
            pinned.extend(parents.take_while(|parent| parent != directory));
        }
    }
    // Parents precede children.
    for path in pinned {
        let failed = || format!("protect {}", path.display());
        match open_without_links(path) {
            Ok(opened) => bind(&opened, false).map_err(cannot(failed()))?,
            Err(Errno::NOENT | Errno::NOTDIR) => {}
            Err(error) => return Err(cannot(failed())(error)),
        }
    }
    Ok(())
}

/// Makes a path in a writable directory read-only; a missing one gets a placeholder, if the directory above it exists.
pub(crate) fn make_read_only(path: &Path) -> Result<(), SandboxError> {
    let protect = || -> io::Result<()> {
        let target = match open_without_links(path) {
            Err(Errno::NOENT) => {
                let (Some(parent), Some(name)) =
                    (path.parent(), path.file_name().and_then(OsStr::to_str))
                else {
                    return Ok(());
                };
                let parent = match open_directory_without_links(parent) {
                    Err(Errno::NOENT | Errno::NOTDIR) => return Ok(()),
                    other => other?,
                };
                match placeholder::create(&parent, name, MISSING) {
                    Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                        return Err(error);
                    }
                    _ => open_in(&parent, name)?,
                }
            }
            other => other?,
        };
        bind(&target, true)
    };
    protect().map_err(cannot(format!("protect {}", path.display())))
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
fn open_directory_without_links(path: &Path) -> Result<OwnedFd, Errno> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    openat2(CWD, path, flags, Mode::empty(), ResolveFlags::NO_SYMLINKS)
}

/// Opens a path for use in mounts. Links are followed, because the mask of what a link shows is needed.
pub(crate) fn open_path(path: &Path) -> Result<OwnedFd, Errno> {
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

/// Protects the paths of [`PROTECTED_PATHS`] in a writable directory, if `path` is one, except `unprotected`.
pub(crate) fn protect(path: &Path, unprotected: &[PathBuf]) -> Result<(), SandboxError> {
    let Some(directory) = open_if_directory(path)? else {
        return Ok(());
    };
    let protection = Protection { unprotected };
    if !protection.prevent_bare_repository(&directory, path)? {
        // It is one.
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
            _ => protection.apply(&directory, name, &shown, *placeholder)?,
        }
    }
    Ok(())
}

/// Protects the names of [`PROTECTED_IN_GIT`] in the directory of a git repository or worktree.
pub(crate) fn protect_git(path: &Path, unprotected: &[PathBuf]) -> Result<(), SandboxError> {
    let Some(directory) = open_if_directory(path)? else {
        return Ok(());
    };
    let protection = Protection { unprotected };
    if path.ends_with(GIT_DIRECTORY)
        && let Some(tree) = path.parent()
        && let Some(opened) = open_if_directory(tree)?
    {
        protection.prevent_bare_repository(&opened, tree)?;
    }
    protection.apply_names_in_git(&directory, path)
}

/// Opens a directory; `None` for a file and for what a mask hides.
fn open_if_directory(path: &Path) -> Result<Option<OwnedFd>, SandboxError> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    match openat(CWD, path, flags, Mode::empty()) {
        Ok(directory) => Ok(Some(directory)),
        Err(Errno::NOTDIR | Errno::NOENT) => Ok(None),
        Err(error) => Err(cannot(format!("open {}", path.display()))(error)),
    }
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

    /// Makes it impossible that the agent completes a bare repository. Returns whether the directory can become none.
    fn prevent_bare_repository(
        &self,
        directory: &OwnedFd,
        path: &Path,
    ) -> Result<bool, SandboxError> {
        for name in BARE_NAMES {
            if open_in(directory, name).is_err_and(|error| error == Errno::NOENT)
                || self.is_placeholder(directory, name)
            {
                self.apply(directory, name, &path.join(name), Placeholder::Socket)?;
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Returns whether a name is a socket, as of another agent in the directory.
    fn is_placeholder(&self, directory: &OwnedFd, name: &str) -> bool {
        let opened = open_in(directory, name).map_err(io::Error::from);
        opened
            .and_then(|opened| file_type(&opened))
            .is_ok_and(|kind| kind == FileType::Socket)
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
