//! Opens files and directories component by component from `/`, by descriptor and without following links, so that
//! a path cannot change between its check and its use.

use std::fs::{File, Metadata};
use std::io::{self, Read};
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;

use colibri_jail_core::JailPath;

use crate::sys;

/// Why a path cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum OpenError {
    #[error("{0} is not an absolute, normal path; write it without '.', '..' and doubled slashes")]
    NotNormal(String),
    #[error(
        "{0} leads through a symbolic link, or is not a directory; write the path without links"
    )]
    Link(String),
    #[error("{0} belongs to uid {1}; as root run: chown root {0}")]
    Owner(String, u32),
    #[error("{0} has the unsafe mode {1:o}; as root run: chmod {2} {0}")]
    Mode(String, u32, &'static str),
    #[cfg(target_os = "freebsd")]
    #[error(
        "{0} can be renamed or replaced by other users than root; use another path, or a directory above it that belongs to root and that only root can write"
    )]
    Movable(String),
    #[error("{0} is not a regular file")]
    NotAFile(String),
    #[error("{0} is longer than {1} bytes")]
    TooLong(String, u64),
    #[error("{0} is not UTF-8")]
    NotUtf8(String),
    #[error("cannot open {0}: {1}")]
    Io(String, io::Error),
}

/// Which components of a path are checked for ownership.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Trust {
    /// Every directory from `/` to the last one belongs to root and is writable by root only.
    RootOnly,
    /// Directories may belong to any user; links are refused all the same.
    AnyOwner,
}

/// Parses a path that is compiled into this program.
pub(crate) fn fixed_path(text: &str) -> Result<JailPath, OpenError> {
    text.parse()
        .map_err(|_| OpenError::NotNormal(text.to_owned()))
}

/// Opens the directory `path`.
pub(crate) fn directory(path: &JailPath, trust: Trust) -> Result<OwnedFd, OpenError> {
    let root = File::open("/").map_err(|error| OpenError::Io("/".to_owned(), error))?;
    directory_in(root.into(), path, trust)
}

/// Opens the directory that a process with the root directory `root` knows as `path`.
pub(crate) fn directory_in(
    root: OwnedFd,
    path: &JailPath,
    trust: Trust,
) -> Result<OwnedFd, OpenError> {
    let mut shown = String::from("/");
    let mut directory = checked(&shown, root, trust)?;
    for component in path.as_str().split('/').filter(|part| !part.is_empty()) {
        if !shown.ends_with('/') {
            shown.push('/');
        }
        shown.push_str(component);
        directory = checked(&shown, directory_at(&directory, component, &shown)?, trust)?;
    }
    Ok(directory)
}

/// Opens a directory in an open directory; `shown` is its path in messages.
pub(crate) fn directory_at(dir: &OwnedFd, name: &str, shown: &str) -> Result<OwnedFd, OpenError> {
    sys::open_directory_at(dir, name).map_err(|error| open_error(shown, error))
}

/// Returns `directory` if its owner and mode satisfy `trust`.
fn checked(shown: &str, directory: OwnedFd, trust: Trust) -> Result<OwnedFd, OpenError> {
    if trust == Trust::AnyOwner {
        return Ok(directory);
    }
    let file = File::from(directory);
    check_root_only(shown, &metadata(shown, &file)?, 0o022)?;
    Ok(file.into())
}

/// Returns the reason why a path cannot be opened.
pub(crate) fn open_error(shown: &str, error: io::Error) -> OpenError {
    match error.raw_os_error() {
        // FreeBSD returns EMLINK for a link with O_NOFOLLOW (open(2)).
        Some(libc::ELOOP | libc::ENOTDIR | libc::EMLINK) => OpenError::Link(shown.to_owned()),
        _ => OpenError::Io(shown.to_owned(), error),
    }
}

/// Checks that only root can rename or replace `file`, which is in the directory `parent`. Access lists are not read.
#[cfg(target_os = "freebsd")]
pub(crate) fn check_fixed(shown: &str, parent: &File, file: &File) -> Result<(), OpenError> {
    let (parent, file) = (metadata(shown, parent)?, metadata(shown, file)?);
    match is_fixed(parent.uid(), parent.mode(), file.uid()) {
        true => Ok(()),
        false => Err(OpenError::Movable(shown.to_owned())),
    }
}

/// Reports whether only root can rename or replace a file, by the owner and mode of its directory and its own owner
/// (rename(2), sticky(7)).
#[cfg(any(target_os = "freebsd", test))]
fn is_fixed(parent_owner: u32, parent_mode: u32, owner: u32) -> bool {
    let is_sticky = parent_mode & 0o1000 != 0;
    parent_owner == 0 && (parent_mode & 0o022 == 0 || is_sticky && owner == 0)
}

fn metadata(shown: &str, file: &File) -> Result<Metadata, OpenError> {
    file.metadata()
        .map_err(|error| OpenError::Io(shown.to_owned(), error))
}

/// Checks that root owns a file and that its mode has none of the bits `forbidden`.
fn check_root_only(shown: &str, data: &Metadata, forbidden: u32) -> Result<(), OpenError> {
    if data.uid() != 0 {
        return Err(OpenError::Owner(shown.to_owned(), data.uid()));
    }
    if data.mode() & forbidden != 0 {
        let fix = if forbidden == 0o077 { "go=" } else { "go-w" };
        return Err(OpenError::Mode(shown.to_owned(), data.mode() & 0o7777, fix));
    }
    Ok(())
}

/// Opens the directory `path` and checks that only root can list it, or creates it so.
pub(crate) fn private_directory(path: &JailPath) -> Result<OwnedFd, OpenError> {
    let (parent, name) = split_parent(path)?;
    let parent = directory(&parent, Trust::RootOnly)?;
    match sys::make_directory_at(&parent, name, 0o700) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
            return Err(OpenError::Io(path.to_string(), error));
        }
        _ => {}
    }
    let file = File::from(directory(path, Trust::RootOnly)?);
    check_root_only(path.as_str(), &metadata(path.as_str(), &file)?, 0o077)?;
    Ok(file.into())
}

/// Opens a regular file that only root can write, in directories that only root can write.
pub(crate) fn root_owned_file(path: &JailPath) -> Result<File, OpenError> {
    let (parent, name) = split_parent(path)?;
    let parent = directory(&parent, Trust::RootOnly)?;
    let file = regular_file_at(&parent, name, path.as_str())?;
    check_root_only(path.as_str(), &metadata(path.as_str(), &file)?, 0o022)?;
    Ok(file)
}

/// Opens a regular file in an open directory; `shown` is its path in messages.
pub(crate) fn regular_file_at(dir: &OwnedFd, name: &str, shown: &str) -> Result<File, OpenError> {
    let file = sys::open_file_at(dir, name).map_err(|error| open_error(shown, error))?;
    let file = File::from(file);
    if !metadata(shown, &file)?.is_file() {
        return Err(OpenError::NotAFile(shown.to_owned()));
    }
    Ok(file)
}

/// Reads a file that only root can write, at most `limit` bytes of it.
pub(crate) fn read_root_owned(path: &str, limit: u64) -> Result<String, OpenError> {
    read_text(path, root_owned_file(&fixed_path(path)?)?, limit)
}

/// Reads an open file as text. A file of more than `limit` bytes is an error.
pub(crate) fn read_text(shown: &str, file: File, limit: u64) -> Result<String, OpenError> {
    let bytes = read(shown, file, limit)?;
    String::from_utf8(bytes).map_err(|_| OpenError::NotUtf8(shown.to_owned()))
}

/// Reads at most `limit` bytes of an open file; more are an error.
pub(crate) fn read(shown: &str, file: File, limit: u64) -> Result<Vec<u8>, OpenError> {
    let mut bytes = Vec::new();
    file.take(limit + 1)
        .read_to_end(&mut bytes)
        .map_err(|error| OpenError::Io(shown.to_owned(), error))?;
    if bytes.len() as u64 > limit {
        return Err(OpenError::TooLong(shown.to_owned(), limit));
    }
    Ok(bytes)
}

/// Splits `path` into its parent directory and its last component, which is empty for `/`.
pub(crate) fn split_parent(path: &JailPath) -> Result<(JailPath, &str), OpenError> {
    match path.as_str().rsplit_once('/') {
        None | Some(("", _)) => Ok((JailPath::root(), path.as_str().trim_start_matches('/'))),
        Some((parent, name)) => Ok((fixed_path(parent)?, name)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::{PermissionsExt, symlink};

    fn path(text: &std::path::Path) -> JailPath {
        text.to_str().unwrap().parse().unwrap()
    }

    #[test]
    fn path_is_split_at_its_last_slash() {
        for (whole, parent, name) in [("/a", "/", "a"), ("/a/b/c", "/a/b", "c"), ("/", "/", "")] {
            let whole: JailPath = whole.parse().unwrap();
            assert_eq!(
                split_parent(&whole).unwrap(),
                (parent.parse().unwrap(), name)
            );
        }
    }

    #[test]
    fn link_in_any_component_is_refused() {
        let dir = tempfile::tempdir_in("/var/tmp").unwrap();
        fs::create_dir_all(dir.path().join("a/b")).unwrap();
        symlink(dir.path().join("a"), dir.path().join("link")).unwrap();
        assert!(directory(&path(&dir.path().join("a/b")), Trust::AnyOwner).is_ok());
        for bad in ["link", "link/b"] {
            let refused = directory(&path(&dir.path().join(bad)), Trust::AnyOwner).unwrap_err();
            assert!(matches!(refused, OpenError::Link(_)), "{bad}: {refused}");
        }
    }

    #[test]
    fn file_is_fixed_where_others_cannot_rename_it() {
        for (parent_owner, parent_mode, owner, fixed) in [
            (0, 0o755, 0, true),
            (0, 0o755, 1001, true),
            (0, 0o1777, 0, true),
            (0, 0o1777, 1001, false),
            (0, 0o777, 0, false),
            (0, 0o775, 0, false),
            (1001, 0o755, 0, false),
            (1001, 0o1777, 0, false),
        ] {
            let answer = is_fixed(parent_owner, parent_mode, owner);
            assert_eq!(answer, fixed, "{parent_owner} {parent_mode:o} {owner}");
        }
    }

    #[test]
    fn world_writable_directory_is_not_root_only() {
        let dir = tempfile::tempdir_in("/var/tmp").unwrap();
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o700)).unwrap();
        let refused = directory(&path(dir.path()), Trust::RootOnly).unwrap_err();
        assert!(matches!(refused, OpenError::Mode(..)), "{refused}");
        let file = dir.path().join("file");
        fs::write(&file, "").unwrap();
        assert!(read_root_owned(file.to_str().unwrap(), 10).is_err());
    }

    #[test]
    fn long_or_non_utf8_file_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("file");
        for (bytes, good) in [(&b"12345"[..], true), (b"123456", false), (b"\xff", false)] {
            fs::write(&file, bytes).unwrap();
            assert_eq!(
                read_text("file", File::open(&file).unwrap(), 5).is_ok(),
                good
            );
        }
    }
}
