//! Files below a root directory. No operation follows a symbolic link or leaves the root.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;

use rustix::fs::{
    AtFlags, Dir, FileType, Mode, OFlags, RawMode, Stat, Timespec, Timestamps, UTIME_OMIT,
};
use rustix::io::Errno;
use rustix::process::{Gid, Uid};

use crate::archive_path::ArchivePath;
use crate::error::TemplateError;

/// Mode of directories that an archive implies, but does not contain.
const IMPLIED_DIRECTORY: u32 = 0o755;
/// Maximum size of a file that is read into memory, in bytes.
const MAX_READ: u64 = 4 << 20;

/// Owner, mode and time of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Attributes {
    /// Permission bits with setuid, setgid and sticky bit.
    pub(crate) mode: u32,
    /// Owner and group; `None` keeps those of this process.
    pub(crate) owner: Option<(u32, u32)>,
    /// Modification time in seconds since 1970; `None` is now.
    pub(crate) mtime: Option<i64>,
}

/// The content of a small file.
#[derive(Debug)]
pub(crate) struct StoredFile {
    pub(crate) content: Vec<u8>,
    pub(crate) attributes: Attributes,
}

/// A root directory.
#[derive(Debug)]
pub(crate) struct Tree {
    root: OwnedFd,
}

/// Opens a directory relative to another, but not through a symbolic link.
fn open_directory(parent: impl AsFd, name: &OsStr) -> Result<OwnedFd, Errno> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::openat(parent, name, flags, Mode::empty())
}

fn mode(bits: u32) -> Mode {
    Mode::from_raw_mode(RawMode::try_from(bits & 0o7777).unwrap_or(0))
}

fn file_type(stat: &Stat) -> FileType {
    FileType::from_raw_mode(stat.st_mode)
}

/// Returns the type of a file, without following a symbolic link; `None` if it does not exist.
fn type_of(parent: impl AsFd, name: &OsStr) -> Result<Option<FileType>, Errno> {
    match rustix::fs::statat(parent, name, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(stat) => Ok(Some(file_type(&stat))),
        Err(Errno::NOENT) => Ok(None),
        Err(error) => Err(error),
    }
}

impl Tree {
    /// Returns the tree below an open directory.
    pub(crate) fn new(root: OwnedFd) -> Self {
        Self { root }
    }

    /// Opens the directory that contains `path`, and returns it with the last component. Creates missing directories if
    /// `create`.
    fn parent<'p>(
        &self,
        path: &'p ArchivePath,
        create: bool,
    ) -> Result<(OwnedFd, &'p OsStr), TemplateError> {
        let (parents, name) = path
            .split()
            .ok_or_else(|| TemplateError::prepare("the root itself cannot be replaced"))?;
        Ok((self.walk(path, parents, create)?, name))
    }

    fn walk(
        &self,
        path: &ArchivePath,
        components: &[OsString],
        create: bool,
    ) -> Result<OwnedFd, TemplateError> {
        let failed = TemplateError::file("open a directory of", path.to_string());
        let mut directory = match self.root.try_clone() {
            Ok(root) => root,
            Err(error) => return Err(failed(error)),
        };
        for component in components {
            let mut opened = open_directory(&directory, component);
            if create && matches!(opened, Err(Errno::NOENT)) {
                match rustix::fs::mkdirat(&directory, component, mode(IMPLIED_DIRECTORY)) {
                    Ok(()) | Err(Errno::EXIST) => {}
                    Err(error) => return Err(failed(error.into())),
                }
                opened = open_directory(&directory, component);
                if let Ok(created) = &opened {
                    // mkdir(2) applies the umask.
                    let changed = rustix::fs::fchmod(created, mode(IMPLIED_DIRECTORY));
                    if let Err(error) = changed {
                        return Err(failed(error.into()));
                    }
                }
            }
            directory = match opened {
                Ok(opened) => opened,
                // FreeBSD reports EMLINK for a symbolic link (open(2), O_NOFOLLOW), or ENOTDIR as Linux does.
                Err(Errno::LOOP | Errno::MLINK | Errno::NOTDIR) => {
                    return Err(TemplateError::NotADirectory {
                        path: path.to_string(),
                        component: component.display().to_string(),
                    });
                }
                Err(error) => return Err(failed(error.into())),
            };
        }
        Ok(directory)
    }

    /// Returns the type of the file at a path; `None` if it or a directory on the way does not exist.
    pub(crate) fn kind(&self, path: &ArchivePath) -> Result<Option<FileType>, TemplateError> {
        let Some((parents, name)) = path.split() else {
            return Ok(Some(FileType::Directory));
        };
        let mut directory = self.walk(path, &[], false)?;
        for component in parents {
            let opened = open_directory(&directory, component);
            directory = match opened {
                Ok(opened) => opened,
                Err(Errno::NOENT) => return Ok(None),
                Err(_) => return self.walk(path, parents, false).map(|_| None),
            };
        }
        type_of(&directory, name).map_err(TemplateError::file("examine", path.to_string()))
    }

    /// Creates a directory, or changes the attributes of an existing one. Replaces anything else.
    pub(crate) fn directory(
        &self,
        path: &ArchivePath,
        attributes: &Attributes,
    ) -> Result<(), TemplateError> {
        if path.split().is_none() {
            let root = self.walk(path, &[], false)?;
            return apply(&root, attributes).map_err(TemplateError::file(
                "change the attributes of",
                path.to_string(),
            ));
        }
        let (parent, name) = self.parent(path, true)?;
        let create = || -> Result<(), Errno> {
            match type_of(&parent, name)? {
                Some(FileType::Directory) => {}
                found => {
                    if found.is_some() {
                        rustix::fs::unlinkat(&parent, name, AtFlags::empty())?;
                    }
                    rustix::fs::mkdirat(&parent, name, mode(0o700))?;
                }
            }
            apply(&open_directory(&parent, name)?, attributes)
        };
        create().map_err(TemplateError::file("create directory", path.to_string()))
    }

    /// Creates a file with the rest of `content`, replacing a file or directory at the path. Returns the number of bytes.
    /// `read_error` wraps an error of `content`.
    pub(crate) fn file(
        &self,
        path: &ArchivePath,
        attributes: &Attributes,
        content: &mut impl Read,
        read_error: impl Fn(&io::Error) -> TemplateError,
    ) -> Result<u64, TemplateError> {
        let (parent, name) = self.parent(path, true)?;
        remove(&parent, name).map_err(TemplateError::file("replace", path.to_string()))?;
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW;
        let opened = rustix::fs::openat(&parent, name, flags | OFlags::CLOEXEC, mode(0o600));
        let file = opened.map_err(TemplateError::file("create", path.to_string()))?;
        let mut file = File::from(file);
        let mut buffer = vec![0; 64 * 1024];
        let mut written = 0;
        loop {
            let count = match content.read(&mut buffer) {
                Ok(0) => break,
                Ok(count) => count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(read_error(&error)),
            };
            io::Write::write_all(&mut file, &buffer[..count])
                .map_err(TemplateError::file("write", path.to_string()))?;
            written += count as u64;
        }
        apply(&file, attributes).map_err(TemplateError::file(
            "change the attributes of",
            path.to_string(),
        ))?;
        Ok(written)
    }

    /// Creates a symbolic link, replacing a file at the path. The target is not interpreted.
    pub(crate) fn symlink(
        &self,
        path: &ArchivePath,
        target: &[u8],
        attributes: &Attributes,
    ) -> Result<(), TemplateError> {
        let (parent, name) = self.parent(path, true)?;
        let create = || -> Result<(), Errno> {
            remove(&parent, name)?;
            rustix::fs::symlinkat(OsStr::from_bytes(target), &parent, name)?;
            if let Some((uid, gid)) = attributes.owner {
                let (uid, gid) = (Uid::from_raw(uid), Gid::from_raw(gid));
                let flags = AtFlags::SYMLINK_NOFOLLOW;
                rustix::fs::chownat(&parent, name, Some(uid), Some(gid), flags)?;
            }
            if let Some(times) = times(attributes) {
                rustix::fs::utimensat(&parent, name, &times, AtFlags::SYMLINK_NOFOLLOW)?;
            }
            Ok(())
        };
        create().map_err(TemplateError::file(
            "create symbolic link",
            path.to_string(),
        ))
    }

    /// Creates a hard link to a file or symbolic link below the root, replacing a file at the path.
    pub(crate) fn hard_link(
        &self,
        path: &ArchivePath,
        target: &ArchivePath,
    ) -> Result<(), TemplateError> {
        if path == target {
            return match self.kind(target)? {
                Some(FileType::RegularFile) => Ok(()),
                _ => Err(TemplateError::file("link", path.to_string())(Errno::NOENT)),
            };
        }
        match self.kind(target)? {
            Some(FileType::RegularFile | FileType::Symlink) => {}
            Some(_) => {
                let error = io::Error::other(format!("{target} is not a file"));
                return Err(TemplateError::file("link", path.to_string())(error));
            }
            None => {
                let error = io::Error::other(format!("{target} does not exist"));
                return Err(TemplateError::file("link", path.to_string())(error));
            }
        }
        let (parent, name) = self.parent(path, true)?;
        remove(&parent, name).map_err(TemplateError::file("replace", path.to_string()))?;
        let (target_parent, target_name) = self.parent(target, false)?;
        rustix::fs::linkat(&target_parent, target_name, &parent, name, AtFlags::empty())
            .map_err(TemplateError::file("link", path.to_string()))
    }

    /// Removes a file, or a directory with its content. It is not an error if it does not exist.
    pub(crate) fn remove(&self, path: &ArchivePath) -> Result<(), TemplateError> {
        if self.kind(path)?.is_none() {
            return Ok(());
        }
        let (parent, name) = self.parent(path, false)?;
        remove(&parent, name).map_err(TemplateError::file("remove", path.to_string()))
    }

    /// Removes the content of a directory. It is not an error if it does not exist.
    pub(crate) fn remove_content(&self, path: &ArchivePath) -> Result<(), TemplateError> {
        if self.kind(path)? != Some(FileType::Directory) {
            return Ok(());
        }
        let directory = self.walk(path, path.components(), false)?;
        remove_entries(&directory).map_err(TemplateError::file("remove", path.to_string()))
    }

    /// Returns the names in a directory; none if it does not exist.
    pub(crate) fn names(&self, path: &ArchivePath) -> Result<Vec<OsString>, TemplateError> {
        if self.kind(path)? != Some(FileType::Directory) {
            return Ok(Vec::new());
        }
        let directory = self.walk(path, path.components(), false)?;
        entry_names(&directory).map_err(TemplateError::file("read", path.to_string()))
    }

    /// Creates a private file at the root, for reading and writing.
    pub(crate) fn create_new(&self, name: &str) -> Result<File, TemplateError> {
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
        rustix::fs::openat(&self.root, name, flags, mode(0o600))
            .map(File::from)
            .map_err(TemplateError::file("create", name))
    }

    /// Opens a regular file; `None` if it does not exist.
    pub(crate) fn open(&self, path: &ArchivePath) -> Result<Option<File>, TemplateError> {
        if self.kind(path)?.is_none() {
            return Ok(None);
        }
        let (parent, name) = self.parent(path, false)?;
        let open = || -> io::Result<File> {
            let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
            let file = rustix::fs::openat(&parent, name, flags, Mode::empty())?;
            match file_type(&rustix::fs::fstat(&file)?) {
                FileType::RegularFile => Ok(File::from(file)),
                _ => Err(io::Error::other("it is not a regular file")),
            }
        };
        let opened = open().map_err(TemplateError::file("open", path.to_string()));
        opened.map(Some)
    }

    /// Reads a regular file of limited size; `None` if it does not exist.
    pub(crate) fn read(&self, path: &ArchivePath) -> Result<Option<StoredFile>, TemplateError> {
        let Some(file) = self.open(path)? else {
            return Ok(None);
        };
        let read = || -> io::Result<StoredFile> {
            let metadata = file.metadata()?;
            let is_root = rustix::process::geteuid().is_root();
            let attributes = Attributes {
                mode: metadata.mode() & 0o7777,
                owner: is_root.then_some((metadata.uid(), metadata.gid())),
                mtime: None,
            };
            Ok(StoredFile {
                content: colibri_sys::regular_file::read_open(&file, MAX_READ)?,
                attributes,
            })
        };
        let read = read().map_err(TemplateError::file("read", path.to_string()));
        read.map(Some)
    }

    /// Writes a file as a whole, replacing one at the path.
    pub(crate) fn write(
        &self,
        path: &ArchivePath,
        attributes: &Attributes,
        content: &[u8],
    ) -> Result<(), TemplateError> {
        let read_error = |error: &io::Error| TemplateError::prepare(error.to_string());
        self.file(path, attributes, &mut &content[..], read_error)
            .map(drop)
    }
}

/// Sets owner, mode and time of an open file.
fn apply(file: impl AsFd, attributes: &Attributes) -> Result<(), Errno> {
    let file = file.as_fd();
    if let Some((uid, gid)) = attributes.owner {
        rustix::fs::fchown(file, Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)))?;
    }
    // After the owner: chown(2) clears setuid and setgid bits.
    rustix::fs::fchmod(file, mode(attributes.mode))?;
    if let Some(times) = times(attributes) {
        rustix::fs::futimens(file, &times)?;
    }
    Ok(())
}

fn times(attributes: &Attributes) -> Option<Timestamps> {
    let time = |tv_sec, tv_nsec| Timespec { tv_sec, tv_nsec };
    Some(Timestamps {
        last_access: time(0, UTIME_OMIT),
        last_modification: time(attributes.mtime?, 0),
    })
}

fn entry_names(directory: impl AsFd) -> Result<Vec<OsString>, Errno> {
    let mut names = Vec::new();
    for entry in Dir::read_from(directory)? {
        let entry = entry?;
        let name = entry.file_name().to_bytes();
        if name != b"." && name != b".." {
            names.push(OsStr::from_bytes(name).to_owned());
        }
    }
    Ok(names)
}

fn remove_entries(directory: &OwnedFd) -> Result<(), Errno> {
    entry_names(directory)?
        .iter()
        .try_for_each(|name| remove(directory, name))
}

/// Removes a file, or a directory with its content; never through a symbolic link. It is not an error if it does not exist.
pub(crate) fn remove(parent: impl AsFd, name: &OsStr) -> Result<(), Errno> {
    let parent = parent.as_fd();
    match type_of(parent, name)? {
        None => Ok(()),
        Some(FileType::Directory) => {
            remove_entries(&open_directory(parent, name)?)?;
            rustix::fs::unlinkat(parent, name, AtFlags::REMOVEDIR)
        }
        Some(_) => rustix::fs::unlinkat(parent, name, AtFlags::empty()),
    }
}
