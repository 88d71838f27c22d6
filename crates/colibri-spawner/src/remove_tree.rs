//! Removal of a directory that an agent has written: of any depth, with any modes, and with no link followed.

use std::ffi::CStr;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use rustix::fs::{
    AtFlags, Dir, FileType, Mode, OFlags, chmodat, open, openat, renameat, rmdir, statat, unlinkat,
};
use rustix::io::Errno;

const DIRECTORY: OFlags = OFlags::RDONLY
    .union(OFlags::DIRECTORY)
    .union(OFlags::NOFOLLOW)
    .union(OFlags::CLOEXEC);
/// Prefix of the names of directories that were moved to the top.
const MOVED: &str = ".colibri-removed-";

/// Removes a directory in which no program runs any more. A missing one is ignored.
///
/// The depth is not limited, so neither the stack nor the number of open files may depend on it: directories are moved to the
/// top, and emptied there.
///
/// # Errors
/// Something cannot be removed.
pub(crate) fn remove_tree(path: &Path) -> io::Result<()> {
    match remove(path) {
        Ok(()) | Err(Errno::NOENT) => Ok(()),
        Err(error) => {
            let error = io::Error::from(error);
            let message = format!("cannot remove {}: {error}", path.display());
            Err(io::Error::new(error.kind(), message))
        }
    }
}

fn remove(path: &Path) -> Result<(), Errno> {
    // An agent's own directory may have lost its permissions.
    chmodat(rustix::fs::CWD, path, Mode::RWXU, AtFlags::empty())?;
    let top = open(path, DIRECTORY, Mode::empty())?;
    let mut moved = 0_u64;
    while remove_entries(&top, |name| empty(&top, name, &mut moved))? {}
    rmdir(path)
}

/// Moves the directories in a directory of `top` to `top`, and removes it with everything else in it.
fn empty(top: &OwnedFd, name: &CStr, moved: &mut u64) -> Result<(), Errno> {
    // No program runs that could replace it by a link meanwhile.
    chmodat(top, name, Mode::RWXU, AtFlags::empty())?;
    let directory = openat(top, name, DIRECTORY, Mode::empty())?;
    let mut move_up = |inner: &CStr| {
        chmodat(&directory, inner, Mode::RWXU, AtFlags::empty())?;
        loop {
            *moved += 1;
            let target = format!("{MOVED}{moved}");
            match statat(top, &target, AtFlags::SYMLINK_NOFOLLOW) {
                Err(Errno::NOENT) => return renameat(&directory, inner, top, &target),
                // A name that the agent has chosen.
                found => drop(found?),
            }
        }
    };
    while remove_entries(&directory, &mut move_up)? {}
    unlinkat(top, name, AtFlags::REMOVEDIR)
}

/// Removes the entries of a directory, those that are directories by `remove_directory`. Returns `false` if there was none.
fn remove_entries(
    directory: &OwnedFd,
    mut remove_directory: impl FnMut(&CStr) -> Result<(), Errno>,
) -> Result<bool, Errno> {
    let mut is_found = false;
    for entry in Dir::read_from(directory.as_fd())? {
        let entry = entry?;
        let name = entry.file_name();
        if matches!(name.to_bytes(), b"." | b"..") {
            continue;
        }
        is_found = true;
        let data = statat(directory, name, AtFlags::SYMLINK_NOFOLLOW);
        let removed = match data.map(|data| FileType::from_raw_mode(data.st_mode)) {
            Ok(FileType::Directory) => remove_directory(name),
            Ok(_) => unlinkat(directory, name, AtFlags::empty()),
            Err(error) => Err(error),
        };
        match removed {
            // A directory that changes may be listed as it was.
            Ok(()) | Err(Errno::NOENT) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(is_found)
}

#[cfg(test)]
mod tests {
    use std::fs::{self, Permissions};
    use std::os::unix::fs::{PermissionsExt, symlink};

    use rustix::fs::mkdirat;

    use super::*;

    #[test]
    fn deep_tree_is_removed() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("root");
        fs::create_dir(&root).unwrap();
        let mut current = open(&root, DIRECTORY, Mode::empty()).unwrap();
        // More than the stack of a thread holds for a recursive removal.
        for _ in 0..30_000 {
            mkdirat(&current, "d", Mode::RWXU).unwrap();
            current = openat(&current, "d", DIRECTORY, Mode::empty()).unwrap();
        }
        drop(current);
        remove_tree(&root).unwrap();
        assert!(!root.exists());
    }

    #[test]
    fn tree_without_permissions_is_removed_and_no_link_followed() {
        let dir = tempfile::tempdir().unwrap();
        let (root, kept) = (dir.path().join("root"), dir.path().join("kept"));
        fs::create_dir_all(root.join("a/b")).unwrap();
        fs::create_dir(&kept).unwrap();
        fs::write(kept.join("file"), "").unwrap();
        fs::set_permissions(&kept, Permissions::from_mode(0o755)).unwrap();
        symlink(&kept, root.join("link")).unwrap();
        symlink(kept.join("file"), root.join("a/b/link")).unwrap();
        for number in 1..4 {
            fs::create_dir(root.join(format!("{MOVED}{number}"))).unwrap();
            fs::write(root.join(format!("a/b/{number}")), "").unwrap();
        }
        for path in ["a/b", "a", "."] {
            fs::set_permissions(root.join(path), Permissions::from_mode(0o0)).unwrap();
        }
        remove_tree(&root).unwrap();
        assert!(!root.exists() && kept.join("file").exists());
        let mode = fs::metadata(&kept).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o755);
        remove_tree(&root).unwrap();
    }
}
