//! The private paths of all daemons of a user, so that no sandbox of one daemon shows those of another.
//!
//! Each daemon writes a file with its paths to a directory of the user in /var/tmp, which does not depend on the environment. The
//! files of daemons whose state directory is gone are removed.

use std::fs;
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};

use crate::atomic_file::{self, Durability};
use crate::regular_file;

/// Beginning of the path of the directory of the files; the uid follows.
const DIRECTORY: &str = "/var/tmp/colibri-daemons-";
/// Maximum number of files that are read.
const MAX_FILES: usize = 256;
/// Maximum size of a file, in bytes.
const MAX_LENGTH: u64 = 64 << 10;

/// The files of all daemons of one user.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KnownDaemons {
    directory: PathBuf,
}

impl KnownDaemons {
    /// Returns the files of the user of this process.
    #[must_use]
    pub fn of_user() -> Self {
        let uid = rustix::process::geteuid().as_raw();
        Self {
            directory: PathBuf::from(format!("{DIRECTORY}{uid}")),
        }
    }

    /// Reports whether the directory is the user's, and no other user can write to it.
    fn is_trusted(&self) -> bool {
        self.directory.symlink_metadata().is_ok_and(|data| {
            let is_own = data.uid() == rustix::process::geteuid().as_raw();
            data.is_dir() && is_own && data.mode() & 0o022 == 0
        })
    }

    /// Creates the directory of the files if it does not exist, and returns it. Sandboxes hide it.
    ///
    /// # Errors
    /// The file system; or another user can write to it.
    pub fn create(&self) -> io::Result<&Path> {
        match fs::DirBuilder::new().mode(0o700).create(&self.directory) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                return Err(io::Error::new(
                    error.kind(),
                    format!("cannot create {}: {error}", self.directory.display()),
                ));
            }
            _ => {}
        }
        match self.is_trusted() {
            true => Ok(&self.directory),
            false => Err(io::Error::other(format!(
                "{} belongs to another user or is writable by others; remove it",
                self.directory.display()
            ))),
        }
    }

    /// Stores the private paths of the daemon with this state directory, which exists. `paths` are absolute; one with a line break
    /// is left out.
    ///
    /// # Errors
    /// The file cannot be written, or there are too many.
    pub fn register(&self, state_dir: &Path, paths: &[PathBuf]) -> io::Result<()> {
        self.create()?;
        for (file, known) in self.read() {
            if known.first().is_some_and(|state_dir| !state_dir.exists()) {
                let _ = fs::remove_file(file);
            }
        }
        let state = state_dir.metadata()?;
        let name = format!("{:x}-{:x}", state.dev(), state.ino());
        let file = self.directory.join(name);
        if self.read().len() >= MAX_FILES && !file.exists() {
            return Err(io::Error::other(format!(
                "{} names {MAX_FILES} daemons; remove the files of those that you do not use any more",
                self.directory.display()
            )));
        }
        let lines = std::iter::once(state_dir).chain(paths.iter().map(PathBuf::as_path));
        let lines = lines
            .filter_map(Path::to_str)
            .filter(|line| !line.contains('\n'));
        let text: String = lines.flat_map(|line| [line, "\n"]).collect();
        atomic_file::replace(&file, text.as_bytes(), Durability::Process)
    }

    /// Returns the private paths of all daemons, and the directory of their files.
    #[must_use]
    pub fn private_paths(&self) -> Vec<PathBuf> {
        let known = self.read().into_iter().flat_map(|(_, paths)| paths);
        // A directory that contains everything would hide everything.
        let mut paths: Vec<PathBuf> = known.filter(|path| path.parent().is_some()).collect();
        paths.push(self.directory.clone());
        paths.sort();
        paths.dedup();
        paths
    }

    /// Returns the files, and the paths in each, that of the state directory first.
    fn read(&self) -> Vec<(PathBuf, Vec<PathBuf>)> {
        if !self.is_trusted() {
            return Vec::new();
        }
        let files = fs::read_dir(&self.directory)
            .into_iter()
            .flatten()
            .flatten();
        let read = |file: PathBuf| {
            let text = String::from_utf8(regular_file::read(&file, MAX_LENGTH).ok()?).ok()?;
            let paths = text
                .lines()
                .map(PathBuf::from)
                .filter(|path| path.is_absolute());
            Some((file, paths.collect()))
        };
        // Lock files are there too.
        let is_record =
            |file: &fs::DirEntry| !file.file_name().to_string_lossy().starts_with("lock-");
        files
            .filter(is_record)
            .take(MAX_FILES)
            .filter_map(|file| read(file.path()))
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn paths_of_all_daemons_are_known_until_their_state_is_gone() {
        let home = tempfile::tempdir().unwrap();
        let own = home.path().join("known");
        let known = KnownDaemons {
            directory: own.clone(),
        };
        assert_eq!(known.private_paths(), [own.as_path()]);
        let (one, two) = (home.path().join("one"), home.path().join("two"));
        for state_dir in [&one, &two] {
            fs::create_dir(state_dir).unwrap();
            known
                .register(state_dir, &[state_dir.join("x"), "/".into()])
                .unwrap();
        }
        known.register(&one, &[one.join("y")]).unwrap();
        let expected = [
            own.clone(),
            one.clone(),
            one.join("y"),
            two.clone(),
            two.join("x"),
        ];
        let mut expected = expected.to_vec();
        expected.sort();
        assert_eq!(known.private_paths(), expected);
        fs::remove_dir(&two).unwrap();
        known.register(&one, &[]).unwrap();
        assert_eq!(known.private_paths(), [own.clone(), one]);
        fs::set_permissions(&own, fs::Permissions::from_mode(0o777)).unwrap();
        assert!(known.register(&two, &[]).is_err());
        assert_eq!(known.private_paths(), [own]);
    }
}
