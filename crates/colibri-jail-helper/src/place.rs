//! Files and directories reached step by step from `/`, by descriptor and without following a link, so that
//! nobody can put another one in between a check and its use.

use std::fs::{File, Metadata};
use std::io::{self, Read};
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;

use colibri_jail_core::JailPath;

use crate::sys;

/// Why a place cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PlaceError {
    #[error("{0} is a symbolic link or no directory; write the path without links")]
    Link(String),
    #[error("{0} belongs to uid {1}; as root: chown root {0}")]
    Owner(String, u32),
    #[error("{0} can be written by others (mode {1:o}); as root: chmod go-w {0}")]
    Writable(String, u32),
    #[error("{0} is not an ordinary file")]
    NotAFile(String),
    #[error("{0} has more than {1} bytes")]
    TooLong(String, u64),
    #[error("{0} is not UTF-8")]
    NotText(String),
    #[error("{0}: {1}")]
    Io(String, io::Error),
}

/// Who may change what is on the way.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Trust {
    /// Nobody but root: every directory on the way is root's, and so is the last one.
    RootOnly,
    /// Anybody: nothing on the way is a link, and that is all.
    NoLinks,
}

/// Opens the directory `path`.
pub(crate) fn directory(path: &JailPath, trust: Trust) -> Result<OwnedFd, PlaceError> {
    let root = sys::open_root().map_err(|error| PlaceError::Io("/".to_owned(), error))?;
    directory_in(&root, path, trust)
}

/// Opens the directory that `path` is where `root` is `/`.
pub(crate) fn directory_in(
    root: &OwnedFd,
    path: &JailPath,
    trust: Trust,
) -> Result<OwnedFd, PlaceError> {
    let mut shown = String::from("/");
    let mut place = root
        .try_clone()
        .map_err(|error| PlaceError::Io(shown.clone(), error))?;
    check(&shown, place.try_clone(), trust)?;
    for part in path.as_str().split('/').filter(|part| !part.is_empty()) {
        if !shown.ends_with('/') {
            shown.push('/');
        }
        shown.push_str(part);
        place =
            sys::open_directory_at(&place, part).map_err(|error| match error.raw_os_error() {
                // FreeBSD says EMLINK for O_NOFOLLOW (open(2)).
                Some(libc::ELOOP | libc::ENOTDIR | libc::EMLINK) => PlaceError::Link(shown.clone()),
                _ => PlaceError::Io(shown.clone(), error),
            })?;
        check(&shown, place.try_clone(), trust)?;
    }
    Ok(place)
}

fn check(shown: &str, place: io::Result<OwnedFd>, trust: Trust) -> Result<(), PlaceError> {
    if trust == Trust::NoLinks {
        return Ok(());
    }
    let data = place
        .and_then(|place| File::from(place).metadata())
        .map_err(|error| PlaceError::Io(shown.to_owned(), error))?;
    only_root_writes(shown, &data)
}

/// Owner and mode, as read from the open descriptor.
pub(crate) fn only_root_writes(shown: &str, data: &Metadata) -> Result<(), PlaceError> {
    if data.uid() != 0 {
        return Err(PlaceError::Owner(shown.to_owned(), data.uid()));
    }
    if data.mode() & 0o022 != 0 {
        return Err(PlaceError::Writable(shown.to_owned(), data.mode() & 0o7777));
    }
    Ok(())
}

/// Reads a file that only root could have written, whole and at most `limit` bytes long.
pub(crate) fn read_of_root(path: &JailPath, limit: u64) -> Result<String, PlaceError> {
    let (above, name) = parent(path);
    let above = directory(&above, Trust::RootOnly)?;
    let shown = path.as_str();
    let file = sys::open_file_at(&above, name).map_err(|error| match error.raw_os_error() {
        Some(libc::ELOOP | libc::EMLINK) => PlaceError::Link(shown.to_owned()),
        _ => PlaceError::Io(shown.to_owned(), error),
    })?;
    let file = File::from(file);
    let data = file
        .metadata()
        .map_err(|error| PlaceError::Io(shown.to_owned(), error))?;
    if !data.is_file() {
        return Err(PlaceError::NotAFile(shown.to_owned()));
    }
    only_root_writes(shown, &data)?;
    text(shown, file, limit)
}

/// Reads an open file as text, at most `limit` bytes of it.
pub(crate) fn text(shown: &str, file: File, limit: u64) -> Result<String, PlaceError> {
    let mut bytes = Vec::new();
    file.take(limit + 1)
        .read_to_end(&mut bytes)
        .map_err(|error| PlaceError::Io(shown.to_owned(), error))?;
    if bytes.len() as u64 > limit {
        return Err(PlaceError::TooLong(shown.to_owned(), limit));
    }
    String::from_utf8(bytes).map_err(|_| PlaceError::NotText(shown.to_owned()))
}

/// The directory that holds `path`, and its name there.
pub(crate) fn parent(path: &JailPath) -> (JailPath, &str) {
    match path.as_str().rsplit_once('/') {
        Some(("", name)) => (JailPath::root(), name),
        // A normal path cut at a slash is a normal path.
        Some((above, name)) => (above.parse().unwrap_or_else(|_| JailPath::root()), name),
        None => (JailPath::root(), ""),
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
    fn a_path_is_cut_at_its_last_slash() {
        for (whole, above, name) in [("/a", "/", "a"), ("/a/b/c", "/a/b", "c"), ("/", "/", "")] {
            let whole: JailPath = whole.parse().unwrap();
            assert_eq!(parent(&whole), (above.parse().unwrap(), name));
        }
    }

    #[test]
    fn links_anywhere_on_the_way_are_refused() {
        let dir = tempfile::tempdir_in("/var/tmp").unwrap();
        fs::create_dir_all(dir.path().join("a/b")).unwrap();
        symlink(dir.path().join("a"), dir.path().join("link")).unwrap();
        assert!(directory(&path(&dir.path().join("a/b")), Trust::NoLinks).is_ok());
        for bad in ["link", "link/b"] {
            let refused = directory(&path(&dir.path().join(bad)), Trust::NoLinks).unwrap_err();
            assert!(matches!(refused, PlaceError::Link(_)), "{bad}: {refused}");
        }
    }

    #[test]
    fn a_directory_that_others_write_is_not_roots_alone() {
        // /var/tmp is everybody's.
        let dir = tempfile::tempdir_in("/var/tmp").unwrap();
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o700)).unwrap();
        let refused = directory(&path(dir.path()), Trust::RootOnly).unwrap_err();
        assert!(matches!(refused, PlaceError::Writable(..)), "{refused}");
        let file = dir.path().join("file");
        fs::write(&file, "").unwrap();
        assert!(read_of_root(&path(&file), 10).is_err());
    }

    #[test]
    fn a_text_that_is_too_long_or_no_text_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("file");
        for (bytes, good) in [(&b"12345"[..], true), (b"123456", false), (b"\xff", false)] {
            fs::write(&file, bytes).unwrap();
            assert_eq!(text("file", File::open(&file).unwrap(), 5).is_ok(), good);
        }
    }
}
