//! Mounts of host directories and files in the root directory of one jail.
//!
//! Agents may replace directories in the root and above the source at any time, and nmount(2) and nullfs(5) follow links in
//! the paths that they get. So each source is first mounted on a stage, a path in a directory of root's, and compared with
//! what was opened without following links. Then the stage is mounted on the working directory, which was opened in the
//! same way. The kernel records the stage as the origin of that mount, so the clean-up finds it wherever it is.

use std::ffi::c_int;
use std::fs::{self, File};
use std::io;
use std::os::fd::AsRawFd;
use std::os::freebsd::fs::MetadataExt;
use std::os::unix::fs::MetadataExt as _;
use std::time::Instant;

use colibri_jail_core::{JAIL_ROOTS, JailName, JailPath};

use super::monitor::unmount_all;
use crate::request::MountRequest;
use crate::safe_open::{self, OpenError, Trust};
use crate::sys::{self, MountPoint};

/// Mounts all of `mounts` in a root directory.
pub(super) fn mount_all(
    jail: &JailName,
    root: &JailPath,
    mounts: &[MountRequest],
) -> Result<(), String> {
    for (number, mount) in mounts.iter().enumerate() {
        let path = format!("{}{number}", stages(jail));
        let stage = Stage { path, mount };
        let source = stage.mount_source()?;
        stage.mount_on_target(root, &source)?;
    }
    Ok(())
}

/// Removes the mounts and stages of a jail. None is not an error.
pub(super) fn remove_all(jail: &JailName, deadline: Instant) -> Result<(), String> {
    let prefix = stages(jail);
    let starts = |text: &[u8]| text.starts_with(prefix.as_bytes());
    // What is mounted from a stage is unmounted before the stage.
    unmount_all(&|mount: &MountPoint| starts(&mount.origin), deadline)?;
    unmount_all(&|mount: &MountPoint| starts(&mount.path), deadline)?;
    let entries = match fs::read_dir(JAIL_ROOTS) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        entries => entries.map_err(|error| format!("cannot list {JAIL_ROOTS}: {error}"))?,
    };
    for entry in entries.filter_map(Result::ok) {
        let path = entry.path();
        if !starts(path.as_os_str().as_encoded_bytes()) {
            continue;
        }
        let is_directory = entry.file_type().is_ok_and(|kind| kind.is_dir());
        let removed = match is_directory {
            true => fs::remove_dir(&path),
            false => fs::remove_file(&path),
        };
        removed.map_err(|error| format!("cannot remove {}: {error}", path.display()))?;
    }
    Ok(())
}

/// Returns the start of the paths of a jail's stages. A name of a jail contains no dot.
pub(super) fn stages(jail: &JailName) -> String {
    format!("{JAIL_ROOTS}/{jail}.")
}

/// A directory or file that was opened without following links, and its directory.
pub(super) struct OpenedPath<'a> {
    pub(super) target: File,
    parent: File,
    /// Name of the target in its directory.
    name: &'a str,
    is_directory: bool,
}

impl<'a> OpenedPath<'a> {
    /// Opens a path in a root directory.
    fn new(root: &JailPath, path: &'a JailPath) -> Result<Self, OpenError> {
        let root = safe_open::directory(root, Trust::AnyOwner)?;
        let (parent, name) = safe_open::split_parent(path)?;
        let parent = safe_open::directory_in(root, &parent, Trust::AnyOwner)?;
        let name = if name.is_empty() { "." } else { name };
        let shown = path.as_str();
        let (target, is_directory) = match safe_open::directory_at(&parent, name, shown) {
            Err(OpenError::Link(_)) => {
                let file = safe_open::regular_file_at(&parent, name, shown)?;
                (file, false)
            }
            directory => (directory?.into(), true),
        };
        Ok(Self {
            target,
            parent: parent.into(),
            name,
            is_directory,
        })
    }

    /// Opens a mount point in a root directory, and checks that only root can rename or replace it.
    ///
    /// rename(2) to a mount point never returns in FreeBSD 15.1, also after SIGKILL (`kern_renameat` in
    /// sys/kern/vfs_syscalls.c). A file is mounted by its name, which must still be that of the opened file.
    pub(super) fn mount_point(root: &JailPath, target: &'a JailPath) -> Result<Self, OpenError> {
        let opened = Self::new(root, target)?;
        let shown = root.join(target);
        safe_open::check_fixed(shown.as_str(), &opened.parent, &opened.target)?;
        Ok(opened)
    }
}

/// The place of one source.
struct Stage<'a> {
    path: String,
    mount: &'a MountRequest,
}

impl Stage<'_> {
    /// Mounts the source on the stage, and verifies that it is the one that was opened.
    fn mount_source(&self) -> Result<OpenedPath<'_>, String> {
        let source = &self.mount.source;
        let failed = |error: io::Error| format!("cannot mount {source} on {}: {error}", self.path);
        let opened = OpenedPath::new(&JailPath::root(), source)
            .map_err(|error| format!("cannot use mount source {source}: {error}"))?;
        match opened.is_directory {
            true => fs::create_dir(&self.path),
            false => File::create_new(&self.path).map(drop),
        }
        .map_err(|error| format!("cannot create {}: {error}", self.path))?;
        let options = [("target", source.as_str())];
        sys::mount("nullfs", &self.path, &options, libc::MNT_NOSUID).map_err(failed)?;
        let staged = fs::metadata(&self.path).map_err(failed)?;
        // nullfs changes only the device number of what it shows (null_getattr in sys/fs/nullfs/null_vnops.c). Two objects of one
        // file system have not the same numbers, and agents cannot choose those of another file system.
        let wanted = opened.target.metadata().map_err(failed)?;
        let numbers = |data: &fs::Metadata| {
            let birth = (data.st_birthtime(), data.st_birthtime_nsec());
            (data.st_ino(), data.st_gen(), birth)
        };
        match numbers(&staged) == numbers(&wanted) {
            true => Ok(opened),
            false => Err(format!(
                "mount source {source} was replaced while it was mounted; find the process that changes it"
            )),
        }
    }

    /// Mounts the stage on the mount point in the root directory.
    fn mount_on_target(&self, root: &JailPath, source: &OpenedPath<'_>) -> Result<(), String> {
        let (from, target) = (&self.mount.source, &self.mount.target);
        let refused =
            |error: OpenError| format!("cannot use mount target {target} of {root}: {error}");
        let opened = OpenedPath::mount_point(root, target).map_err(refused)?;
        if opened.is_directory != source.is_directory {
            return Err(format!(
                "mount target {target} of {root} is not of the kind of {from}; create a directory for a directory, and a file for a file"
            ));
        }
        let flags = match self.mount.read_only {
            true => libc::MNT_NOSUID | libc::MNT_RDONLY,
            false => libc::MNT_NOSUID,
        };
        let (directory, name) = match opened.is_directory {
            true => (&opened.target, "."),
            false => (&opened.parent, opened.name),
        };
        let failed =
            |error: io::Error| format!("cannot mount {from} on {target} of {root}: {error}");
        mount_in(directory, "nullfs", name, &[("target", &self.path)], flags).map_err(failed)?;
        // A file with several names can be reached by one that others can rename. nmount(2) checks before it mounts.
        if !opened.is_directory && opened.target.metadata().map_err(failed)?.nlink() != 1 {
            return Err(format!(
                "mount target {target} of {root} got another name while it was mounted; find the process that links it"
            ));
        }
        Ok(())
    }
}

/// Mounts a file system on a name in an open directory, or on the directory itself for `.`.
pub(super) fn mount_in(
    directory: &impl AsRawFd,
    kind: &str,
    name: &str,
    options: &[(&str, &str)],
    flags: c_int,
) -> io::Result<()> {
    let mounted =
        sys::change_directory(directory).and_then(|()| sys::mount(kind, name, options, flags));
    mounted.and(std::env::set_current_dir("/"))
}
