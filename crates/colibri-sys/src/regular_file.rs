//! Regular files named by users. A FIFO or a device at such a path could block its reader.

use std::ffi::OsString;
use std::fs::{File, FileType, OpenOptions};
use std::io::{self, Read};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt, PermissionsExt};
use std::path::{Component, Path, PathBuf};

use rustix::fs::{AtFlags, CWD, Mode, OFlags, Stat, fstat, openat, readlinkat, statat};
use rustix::io::Errno;

/// Flags with which a file of any type is opened without blocking.
const OPEN: OFlags = OFlags::NONBLOCK
    .union(OFlags::CLOEXEC)
    .union(OFlags::NOCTTY);
/// Directories of the system, in which nothing is a workspace; `/` and `/var` without those in them are two more.
const SYSTEM: &[&str] = &["/etc", "/nix", "/proc", "/run", "/usr", "/var/run"];
/// Maximum number of links in a path, as of the kernel (path_resolution(7)).
const MAX_LINKS: usize = 40;

/// Opens a regular file for reading. Never blocks, unlike a plain open(2) of a FIFO without a writer.
///
/// # Errors
/// The file cannot be opened, or is not a regular file.
pub fn open(path: &Path) -> io::Result<File> {
    let file = OpenOptions::new()
        .read(true)
        .custom_flags(OPEN.bits().cast_signed())
        .open(path)?;
    require_regular(file)
}

/// Opens a regular file as [`open`], but follows only symbolic links of root in directories of the system: others may be those of an agent,
/// which would choose a file that it cannot read itself.
///
/// # Errors
/// As for [`open`]; or the path contains another link.
pub fn open_without_links(path: &Path) -> io::Result<File> {
    let parts = |path: &Path| -> Vec<OsString> {
        let named = path.components().filter_map(|part| match part {
            Component::Normal(name) => Some(name.to_owned()),
            Component::ParentDir => Some("..".into()),
            _ => None,
        });
        named.collect()
    };
    let root = || openat(CWD, "/", OFlags::PATH | OFlags::CLOEXEC, Mode::empty());
    let mut rest = parts(&std::path::absolute(path)?);
    rest.reverse();
    let (mut directory, mut path): (OwnedFd, PathBuf) = (root()?, "/".into());
    let mut links = 0;
    while let Some(name) = rest.pop() {
        let kind = if rest.is_empty() {
            OPEN
        } else {
            OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC
        };
        let opened = openat(&directory, &name, kind | OFlags::NOFOLLOW, Mode::empty());
        // The error of a link differs between systems and flags.
        let error = match opened {
            Ok(file) if rest.is_empty() => return require_regular(file.into()),
            Ok(opened) => {
                directory = opened;
                match name == ".." {
                    true => drop(path.pop()),
                    false => path.push(&name),
                }
                continue;
            }
            Err(error) => error,
        };
        let Ok(target) = readlinkat(&directory, &name, Vec::new()) else {
            return Err(error.into());
        };
        // No agent can write in these directories, so the link does not change meanwhile.
        let is_system = [Path::new("/"), Path::new("/var")].contains(&path.as_path())
            || SYSTEM.iter().any(|known| path.starts_with(known));
        let is_trusted = |data: Stat| data.st_uid == 0 && data.st_mode & 0o022 == 0;
        let owner = statat(&directory, &name, AtFlags::SYMLINK_NOFOLLOW)?.st_uid;
        if !is_system || owner != 0 || !is_trusted(fstat(&directory)?) {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                format!(
                    "{} in its path is a symbolic link, which an agent could have made; give the path without links",
                    Path::new(&name).display()
                ),
            ));
        }
        links += 1;
        if links > MAX_LINKS {
            return Err(Errno::LOOP.into());
        }
        let target = PathBuf::from(OsString::from_vec(target.into_bytes()));
        if target.is_absolute() {
            (directory, path) = (root()?, "/".into());
        }
        rest.extend(parts(&target).into_iter().rev());
    }
    Err(io::ErrorKind::IsADirectory.into())
}

/// Returns the file if it is a regular one.
fn require_regular(file: File) -> io::Result<File> {
    let file_type = file.metadata()?.file_type();
    if file_type.is_file() {
        return Ok(file);
    }
    if file_type.is_dir() {
        return Err(io::Error::from(io::ErrorKind::IsADirectory));
    }
    let name = type_name(file_type);
    Err(io::Error::new(
        io::ErrorKind::InvalidInput,
        format!("it is {name}; give a regular file"),
    ))
}

fn type_name(file_type: FileType) -> &'static str {
    if file_type.is_fifo() {
        "a FIFO"
    } else if file_type.is_socket() {
        "a socket"
    } else if file_type.is_block_device() || file_type.is_char_device() {
        "a device"
    } else {
        "not a regular file"
    }
}

/// Reads an open file of at most `limit` bytes.
///
/// # Errors
/// The file cannot be read, or is longer (`FileTooLarge`).
pub fn read_open(file: &File, limit: u64) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    file.take(limit + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > limit {
        return Err(io::Error::new(
            io::ErrorKind::FileTooLarge,
            format!("it is longer than {limit} bytes"),
        ));
    }
    Ok(bytes)
}

/// Opens and reads a regular file of at most `limit` bytes.
///
/// # Errors
/// See [`open`] and [`read_open`].
pub fn read(path: &Path, limit: u64) -> io::Result<Vec<u8>> {
    read_open(&open(path)?, limit)
}

/// Returns whether `path` is a regular file with an execute permission bit.
#[must_use]
pub fn is_executable(path: &Path) -> bool {
    path.metadata()
        .is_ok_and(|metadata| metadata.is_file() && metadata.permissions().mode() & 0o111 != 0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::fs::{CWD, FileType, Mode, mknodat};

    #[test]
    fn other_file_types_are_refused_without_blocking() {
        let dir = tempfile::tempdir().unwrap();
        let (fifo, file) = (dir.path().join("fifo"), dir.path().join("file"));
        mknodat(CWD, &fifo, FileType::Fifo, Mode::from_raw_mode(0o600), 0).unwrap();
        std::fs::write(&file, "abc").unwrap();
        std::os::unix::fs::symlink(&fifo, dir.path().join("link")).unwrap();
        let _socket = std::os::unix::net::UnixListener::bind(dir.path().join("socket")).unwrap();
        for (path, part) in [
            (fifo, "a FIFO"),
            (dir.path().join("link"), "a FIFO"),
            (dir.path().to_owned(), "directory"),
            ("/dev/null".into(), "a device"),
            (dir.path().join("absent"), "No such file"),
        ] {
            let error = read(&path, 10).unwrap_err().to_string();
            assert!(error.contains(part), "{}: {error}", path.display());
        }
        // open(2) itself fails for a socket.
        assert!(read(&dir.path().join("socket"), 10).is_err());
        assert_eq!(read(&file, 3).unwrap(), b"abc");
        assert!(read(&file, 2).is_err());
    }

    #[test]
    fn links_that_an_agent_could_have_made_are_not_followed() {
        use std::os::unix::fs::symlink;
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().canonicalize().unwrap();
        std::fs::create_dir(root.join("d")).unwrap();
        std::fs::write(root.join("d/file"), "abc").unwrap();
        symlink("d", root.join("directory")).unwrap();
        symlink("d/file", root.join("link")).unwrap();
        symlink("loop", root.join("loop")).unwrap();
        assert!(open_without_links(&root.join("d/file")).is_ok());
        assert!(open_without_links(&root.join("d/../d/./file")).is_ok());
        for (name, part) in [
            ("link", "link in its path is a symbolic link"),
            ("directory/file", "directory in its path is"),
            ("loop", "loop in its path is"),
            ("d", "directory"),
            ("absent/file", "No such file"),
            ("d/file/x", "Not a directory"),
            ("..", "directory"),
        ] {
            let error = open_without_links(&root.join(name)).unwrap_err();
            assert!(error.to_string().contains(part), "{name}: {error}");
        }
        // A link of root in a directory of the system.
        if cfg!(target_os = "linux") {
            assert!(open_without_links(Path::new("/proc/self/status")).is_ok());
        }
    }
}
