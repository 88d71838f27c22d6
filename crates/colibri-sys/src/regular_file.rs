//! Regular files named by users. A FIFO or a device at such a path could block its reader.

use std::fs::{File, FileType, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt, PermissionsExt};
use std::path::Path;

use rustix::fs::OFlags;

/// Opens a regular file for reading. Never blocks, unlike a plain open(2) of a FIFO without a writer.
///
/// # Errors
/// The file cannot be opened, or is not a regular file.
pub fn open(path: &Path) -> io::Result<File> {
    let flags = OFlags::NONBLOCK | OFlags::CLOEXEC | OFlags::NOCTTY;
    let file = OpenOptions::new()
        .read(true)
        .custom_flags(flags.bits().cast_signed())
        .open(path)?;
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
}
