//! The private paths of all daemons of a user, so that no sandbox of one daemon shows those of another.
//!
//! Each daemon writes a file with its paths to a directory in the user's home. The files of daemons whose state directory is
//! gone are removed.

use std::fs;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use crate::atomic_file::{self, Durability};
use crate::regular_file;

/// Directory of the files, in the home directory.
const DIRECTORY: &str = ".local/state/colibri-daemons";
/// Maximum number of files that are read.
const MAX_FILES: usize = 256;
/// Maximum size of a file, in bytes.
const MAX_LENGTH: u64 = 64 << 10;

/// The files of all daemons with one home directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KnownDaemons {
    directory: PathBuf,
}

impl KnownDaemons {
    /// Returns the files in this home directory.
    #[must_use]
    pub fn in_home(home: &Path) -> Self {
        Self {
            directory: home.join(DIRECTORY),
        }
    }

    /// Stores the private paths of the daemon with this state directory. `paths` are absolute; one with a line break is left
    /// out.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn register(&self, state_dir: &Path, paths: &[PathBuf]) -> io::Result<()> {
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&self.directory)?;
        for (file, known) in self.read() {
            if known.first().is_some_and(|state_dir| !state_dir.exists()) {
                let _ = fs::remove_file(file);
            }
        }
        let mut hasher = DefaultHasher::new();
        state_dir.hash(&mut hasher);
        let file = self.directory.join(format!("{:016x}", hasher.finish()));
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
        files
            .take(MAX_FILES)
            .filter_map(|file| read(file.path()))
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_of_all_daemons_are_known_until_their_state_is_gone() {
        let home = tempfile::tempdir().unwrap();
        let known = KnownDaemons::in_home(home.path());
        let own = home.path().join(DIRECTORY);
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
        assert_eq!(known.private_paths(), expected);
        fs::remove_dir(&two).unwrap();
        known.register(&one, &[]).unwrap();
        assert_eq!(known.private_paths(), [own, one]);
    }
}
