//! Worktrees of git (git-worktree(1)): the directories outside of a worktree that its commands need.

use std::fs;
use std::path::{Path, PathBuf};

use colibri_jail_core::{EphemeralJail, GIT_DIRECTORY, JailPath, Mount, Protection};
use colibri_sys::regular_file;

/// Maximum size of a file that names a directory, in bytes.
const MAX_LENGTH: u64 = 4096;
/// Maximum number of directories of a workspace in which repositories are searched.
const MAX_DIRECTORIES: usize = 512;
/// Maximum number of repositories in a workspace that are protected.
const MAX_REPOSITORIES: usize = 64;
/// Directories of a repository that a commit in a worktree changes.
const WRITTEN: &[&str] = &["objects", "refs", "logs"];

/// Repositories in workspaces, besides those whose working tree a workspace is.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct RepositoriesInside {
    /// Their directories.
    pub(crate) directories: Vec<JailPath>,
    /// Files `.git` that name a directory elsewhere.
    pub(crate) links: Vec<JailPath>,
}

/// Returns the repositories in workspaces: the one to which a file `.git` of the workspace refers, and those of the working trees in
/// its directories and theirs. Unprotected ones are left out.
pub(crate) fn repositories_inside(jail: &EphemeralJail) -> RepositoriesInside {
    let mut found = RepositoriesInside::default();
    for mount in jail
        .mounts
        .iter()
        .filter(|mount| !mount.read_only && mount.protection == Protection::Project)
    {
        let source = Path::new(mount.source.as_str());
        let in_jail = |path: &Path| -> Option<JailPath> {
            let inner = path.strip_prefix(source).ok()?;
            Path::new(mount.target.as_str())
                .join(inner)
                .to_str()?
                .parse()
                .ok()
        };
        let is_protected = |path: &JailPath| {
            let mut open = jail.sandbox.unprotected.iter();
            !open.any(|open| path.is_in(open.as_str()))
        };
        let own = linked_git_directory(source).and_then(|path| in_jail(&path));
        found.directories.extend(own);
        for git in nested_repositories(source) {
            let list = match git.is_dir() {
                true => &mut found.directories,
                false => &mut found.links,
            };
            list.extend(in_jail(&git).filter(is_protected));
        }
    }
    found
}

/// Returns the paths `.git` in the directories of a directory, and in those of these. Links are not followed.
fn nested_repositories(source: &Path) -> Vec<PathBuf> {
    let mut left = MAX_DIRECTORIES;
    let mut directories_in = |directory: &Path| -> Vec<PathBuf> {
        let entries = fs::read_dir(directory).into_iter().flatten().flatten();
        let is_directory = |entry: &fs::DirEntry| entry.file_type().is_ok_and(|kind| kind.is_dir());
        let paths = entries.filter(is_directory).map(|entry| entry.path());
        let mut paths: Vec<PathBuf> = paths
            .filter(|path| !path.ends_with(GIT_DIRECTORY))
            .take(left)
            .collect();
        paths.sort();
        left -= paths.len();
        paths
    };
    let first = directories_in(source);
    let second: Vec<PathBuf> = first.iter().flat_map(|path| directories_in(path)).collect();
    let git = first
        .into_iter()
        .chain(second)
        .map(|path| path.join(GIT_DIRECTORY));
    let is_repository = |path: &PathBuf| {
        let data = path.symlink_metadata();
        data.is_ok_and(|data| data.is_dir() || data.is_file())
    };
    git.filter(is_repository).take(MAX_REPOSITORIES).collect()
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

    #[test]
    fn repositories_in_workspaces_are_found_unless_unprotected() {
        let dir = tempfile::tempdir_in("/var/tmp").unwrap();
        let root = dir.path().canonicalize().unwrap();
        for directory in [
            "a/.git",
            "a/b/.git",
            "a/b/c/.git",
            "open/.git",
            "sub",
            ".git/x/.git",
        ] {
            fs::create_dir_all(root.join(directory)).unwrap();
        }
        fs::write(root.join("sub/.git"), "gitdir: ../.git/modules/sub\n").unwrap();
        std::os::unix::fs::symlink("a", root.join("link")).unwrap();
        let config = colibri_jail_core::JailConfig {
            path: Some("/".into()),
            mounts: vec![format!("{}:/w", root.display()).parse().unwrap()],
            ..Default::default()
        };
        let confinement = config.confinement(&"colibri-x".parse().unwrap()).unwrap();
        let colibri_jail_core::Confinement::Ephemeral(mut jail) = confinement else {
            panic!("no sandbox");
        };
        jail.sandbox.unprotected = vec!["/w/open".parse().unwrap()];
        let found = repositories_inside(&jail);
        let text =
            |paths: &[JailPath]| -> Vec<String> { paths.iter().map(ToString::to_string).collect() };
        assert_eq!(text(&found.directories), ["/w/a/.git", "/w/a/b/.git"]);
        assert_eq!(text(&found.links), ["/w/sub/.git"]);
    }
}
