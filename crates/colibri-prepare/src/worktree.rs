//! Worktrees of git (git-worktree(1)): the directories outside of a worktree that its commands need.

use std::path::{Path, PathBuf};

use colibri_jail_core::{EphemeralJail, GIT_DIRECTORY, JailPath, Mount, Protection};
use colibri_sys::regular_file;

/// Maximum size of a file that names a directory, in bytes.
const MAX_LENGTH: u64 = 4096;
/// Directories of a repository that a commit in a worktree changes.
const WRITTEN: &[&str] = &["objects", "refs", "logs"];

/// Returns the directories of repositories to which a file `.git` in a workspace refers, if they are in the same workspace.
pub(crate) fn directories_inside(jail: &EphemeralJail) -> Vec<JailPath> {
    let projects = jail.mounts.iter().filter(|mount| !mount.read_only);
    let found = projects.filter_map(|mount| {
        let source = Path::new(mount.source.as_str());
        let own = linked_git_directory(source)?;
        let inner = own.strip_prefix(source).ok()?;
        Path::new(mount.target.as_str())
            .join(inner)
            .to_str()?
            .parse()
            .ok()
    });
    found.collect()
}

/// Adds the mounts for each writable mount that is a worktree: its repository read-only, without the hooks and the
/// configuration being writable, and what a commit changes.
pub(crate) fn add_mounts(jail: &mut EphemeralJail) {
    let writable = jail.mounts.iter().filter(|mount| !mount.read_only);
    let found: Vec<Worktree> = writable
        .filter_map(|mount| Worktree::find(Path::new(mount.source.as_str())))
        .collect();
    for worktree in found {
        for mount in worktree.mounts() {
            // A mount of the request, or of another worktree of the repository, takes precedence.
            if !jail.mounts.iter().any(|other| other.target == mount.target) {
                jail.mounts.push(mount);
            }
        }
    }
    jail.mounts
        .sort_by(|one, other| one.target.cmp(&other.target));
}

/// The directories of a worktree's repository, as real paths.
struct Worktree {
    /// The directory of the repository.
    repository: PathBuf,
    /// The directory of the worktree in it.
    own: PathBuf,
}

impl Worktree {
    /// Returns the directories if `workspace` is a worktree. An agent may have written its file `.git`, so the repository must
    /// name the worktree too.
    fn find(workspace: &Path) -> Option<Self> {
        let link = workspace.join(GIT_DIRECTORY);
        let own = linked_git_directory(workspace)?;
        let repository = own
            .join(read_line(&own.join("commondir"))?)
            .canonicalize()
            .ok()?;
        let is_worktree = own.parent() == Some(&repository.join("worktrees"))
            && repository.join("objects").is_dir()
            && Path::new(&read_line(&own.join("gitdir"))?)
                .canonicalize()
                .ok()?
                == link;
        (is_worktree && !repository.starts_with(workspace)).then_some(Self { repository, own })
    }

    fn mounts(&self) -> Vec<Mount> {
        let path = |path: &Path| path.to_str()?.parse::<JailPath>().ok();
        let writable = WRITTEN.iter().map(|name| self.repository.join(name));
        let writable = writable
            .filter(|path| path.symlink_metadata().is_ok_and(|data| data.is_dir()))
            .map(|path| (path, Protection::Nothing))
            .chain([(self.own.clone(), Protection::GitDirectory)]);
        let repository =
            path(&self.repository).map(|path| Mount::at_same_path(path, true, Protection::Nothing));
        let writable = writable.filter_map(|(written, protection)| {
            Some(Mount::at_same_path(path(&written)?, false, protection))
        });
        repository.into_iter().chain(writable).collect()
    }
}

/// Returns the real path of the directory that a file `.git` names (gitrepository-layout(5)).
fn linked_git_directory(workspace: &Path) -> Option<PathBuf> {
    let link = read_line(&workspace.join(GIT_DIRECTORY))?;
    let named = workspace.join(link.strip_prefix("gitdir: ")?);
    named.canonicalize().ok()
}

/// Returns the first line of a regular file.
fn read_line(path: &Path) -> Option<String> {
    let bytes = regular_file::read(path, MAX_LENGTH).ok()?;
    let text = String::from_utf8(bytes).ok()?;
    text.lines().next().map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn only_worktrees_that_their_repository_names_are_found() {
        let dir = tempfile::tempdir_in("/var/tmp").unwrap();
        let root = dir.path().canonicalize().unwrap();
        let own = root.join("main/.git/worktrees/w");
        let work = root.join("w");
        for directory in [&own, &work, &root.join("main/.git/objects")] {
            fs::create_dir_all(directory).unwrap();
        }
        let link = work.join(".git");
        fs::write(&link, format!("gitdir: {}\n", own.display())).unwrap();
        fs::write(own.join("commondir"), "../..\n").unwrap();
        let found = || Worktree::find(&work).map(|found| found.repository);
        assert_eq!(found(), None, "the repository does not name it");
        fs::write(
            own.join("gitdir"),
            format!("{}\n", root.join("other/.git").display()),
        )
        .unwrap();
        assert_eq!(found(), None, "the repository names another");
        fs::write(own.join("gitdir"), format!("{}\n", link.display())).unwrap();
        assert_eq!(found(), Some(root.join("main/.git")));
        let mounts = Worktree::find(&work).unwrap().mounts();
        let shown: Vec<_> = mounts
            .iter()
            .map(|mount| (Path::new(mount.source.as_str()), mount.read_only))
            .collect();
        assert_eq!(
            shown,
            [
                (&*root.join("main/.git"), true),
                (&*root.join("main/.git/objects"), false),
                (&*own, false)
            ]
        );
        fs::write(&link, "gitdir: /\n").unwrap();
        assert_eq!(found(), None);
        fs::remove_file(&link).unwrap();
        fs::create_dir(&link).unwrap();
        assert_eq!(found(), None, "a separate repository");
    }
}
