//! Opens files named by users: only regular files, because a FIFO or a device could block the daemon.

use std::fs::{File, OpenOptions};
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
    let kind = file.metadata()?.file_type();
    if kind.is_file() {
        return Ok(file);
    }
    if kind.is_dir() {
        return Err(io::Error::from(io::ErrorKind::IsADirectory));
    }
    let what = match () {
        () if kind.is_fifo() => "a FIFO",
        () if kind.is_socket() => "a socket",
        () if kind.is_block_device() || kind.is_char_device() => "a device",
        () => "no regular file",
    };
    Err(io::Error::new(
        io::ErrorKind::InvalidInput,
        format!("it is {what}; give a regular file"),
    ))
}

/// Reads a regular file of at most `limit` bytes.
///
/// # Errors
/// As [`open`], or it is longer.
pub fn read(path: &Path, limit: u64) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    open(path)?.take(limit + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > limit {
        return Err(io::Error::new(
            io::ErrorKind::FileTooLarge,
            format!("it is longer than {limit} bytes"),
        ));
    }
    Ok(bytes)
}

/// Reports whether `path` is a regular file with an execute permission bit.
#[must_use]
pub fn is_executable(path: &Path) -> bool {
    path.metadata()
        .is_ok_and(|data| data.is_file() && data.permissions().mode() & 0o111 != 0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::fs::{CWD, FileType, Mode, mknodat};

    #[test]
    fn only_regular_files_are_opened_and_nothing_waits() {
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
