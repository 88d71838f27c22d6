//! Files that are opened once for all runs of an agent: a path that is exchanged later changes nothing.

use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;

use colibri_types::HeldFile;

/// First number of the descriptors in the shim, above those in the runs.
#[cfg(target_os = "linux")]
const FIRST: i32 = 512;

/// An open file, and the number of its descriptor in each run.
pub(crate) struct OpenFile {
    pub(crate) file: OwnedFd,
    pub(crate) descriptor: i32,
}

/// Opens the files, without symbolic links.
///
/// # Errors
/// A file does not exist any more, is another one than the daemon checked, or its path has a symbolic link.
pub(crate) fn open(files: &[HeldFile]) -> io::Result<Vec<OpenFile>> {
    files.iter().map(open_file).collect()
}

fn open_file(held: &HeldFile) -> io::Result<OpenFile> {
    let failed =
        |error: io::Error| io::Error::new(error.kind(), format!("opening {}: {error}", held.path));
    let file = open_without_links(Path::new(&held.path)).map_err(failed)?;
    let found = rustix::fs::fstat(&file)?;
    if !is_same(&found, held) {
        return Err(failed(io::Error::other(
            "it was replaced after the check; start the agent again",
        )));
    }
    Ok(OpenFile {
        file,
        descriptor: held.descriptor,
    })
}

// The types of the fields differ between systems.
#[allow(clippy::cast_sign_loss, clippy::unnecessary_cast)]
fn is_same(found: &rustix::fs::Stat, held: &HeldFile) -> bool {
    found.st_dev as u64 == held.device && found.st_ino as u64 == held.inode
}

#[cfg(target_os = "linux")]
fn open_without_links(path: &Path) -> io::Result<OwnedFd> {
    use rustix::fs::{CWD, Mode, OFlags, ResolveFlags, openat2};
    let flags = OFlags::PATH | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    let opened = openat2(CWD, path, flags, Mode::empty(), ResolveFlags::NO_SYMLINKS)?;
    Ok(rustix::io::fcntl_dupfd_cloexec(opened, FIRST)?)
}

#[cfg(not(target_os = "linux"))]
fn open_without_links(_path: &Path) -> io::Result<OwnedFd> {
    Err(io::ErrorKind::Unsupported.into())
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;
    use std::os::unix::fs::MetadataExt;

    #[test]
    fn exchanged_file_or_link_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().canonicalize().unwrap().join("a");
        std::fs::create_dir(&path).unwrap();
        let data = path.metadata().unwrap();
        let held = HeldFile {
            descriptor: 10,
            path: path.display().to_string(),
            device: data.dev(),
            inode: data.ino(),
        };
        let opened = open(std::slice::from_ref(&held)).unwrap();
        assert_eq!(opened[0].descriptor, 10);
        std::fs::rename(&path, dir.path().join("b")).unwrap();
        let error = |held: &HeldFile| open(std::slice::from_ref(held)).err().unwrap().to_string();
        assert!(error(&held).contains("No such file"));
        std::fs::create_dir(&path).unwrap();
        assert!(error(&held).contains("replaced after the check"));
        std::fs::remove_dir(&path).unwrap();
        std::os::unix::fs::symlink("b", &path).unwrap();
        assert!(error(&held).contains("replaced after the check"));
        let inside = HeldFile {
            path: path.join("x").display().to_string(),
            ..held
        };
        assert!(
            error(&inside).contains("symbolic link"),
            "{}",
            error(&inside)
        );
    }
}
