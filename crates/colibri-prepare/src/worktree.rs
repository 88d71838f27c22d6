//! Worktrees of git (git-worktree(1)): the directories outside of a worktree that its commands need.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fs;
use std::io;
use std::path::{Component, Path, PathBuf};

use colibri_jail_core::{
    EphemeralJail, GIT_DIRECTORY, JailPath, Mount, PathError, Protection, host_path,
};
use colibri_sys::regular_file;

use crate::git_config::{NamedPath, named_paths};
use crate::sandbox::projects;

/// Maximum size of a file that names a directory, in bytes.
const MAX_LENGTH: u64 = 4096;
/// Maximum number of links in one path, as of the kernel (path_resolution(7)).
const MAX_LINKS: usize = 40;
/// Maximum number of directories above a workspace in which its repository is searched.
const MAX_PARENTS: usize = 32;
/// Maximum number of paths to which a working tree refers, and of configurations that are read for them.
const MAX_REFERENCES: usize = 64;
/// Maximum size of a configuration of git that is read, in bytes.
const MAX_CONFIG: u64 = 1 << 20;
/// Maximum number of directories of a workspace in which repositories are searched.
const MAX_DIRECTORIES: usize = 32_768;
/// Maximum number of repositories in a workspace.
const MAX_REPOSITORIES: usize = 256;
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
///
/// # Errors
/// A workspace has too many: an agent could create them, so that those of the user are not found.
pub(crate) fn repositories_inside(jail: &EphemeralJail) -> Result<RepositoriesInside, PathError> {
    let mut found = RepositoriesInside::default();
    for mount in projects(jail) {
        let source = Path::new(mount.source.as_str());
        let is_protected = |path: &JailPath| {
            let mut open = jail.sandbox.unprotected.iter();
            !open.any(|open| path.is_in(open.as_str()))
        };
        let own = linked_git_directory(source).and_then(|path| mount.inside(&path));
        found.directories.extend(own);
        if !is_protected(&mount.target) {
            continue;
        }
        for git in nested_repositories(source)
            .map_err(|problem| PathError::new("mount source", &mount.source, problem))?
        {
            let inside = mount.inside(&git).ok_or_else(|| {
                let problem = format!(
                    "contains the git repository {:?}, whose name cannot be a path in a jail; rename it",
                    git.display()
                );
                PathError::new("mount source", &mount.source, problem)
            })?;
            if git.is_file() && is_protected(&inside) {
                let named = git.parent().and_then(linked_git_directory);
                found
                    .directories
                    .extend(named.and_then(|path| mount.inside(&path)));
            }
            let list = match git.is_dir() {
                true => &mut found.directories,
                false => &mut found.links,
            };
            list.extend(Some(inside).filter(is_protected));
        }
    }
    Ok(found)
}

/// Returns the paths `.git` in the directories of a directory, and in those of these. Links are not followed.
fn nested_repositories(source: &Path) -> Result<Vec<PathBuf>, String> {
    let too_many = |what: &str| {
        format!(
            "has more {what} in its directories and theirs; give a smaller directory, or give --unprotect {} if no git repository in it needs protection",
            source.display()
        )
    };
    let (mut found, mut searched) = (Vec::new(), 0);
    let mut level = vec![source.to_owned()];
    for _ in 0..2 {
        let mut next = Vec::new();
        for directory in level {
            let entries = match fs::read_dir(&directory) {
                // A mounted file, or a directory that ended meanwhile.
                Err(error)
                    if matches!(
                        error.kind(),
                        io::ErrorKind::NotFound | io::ErrorKind::NotADirectory
                    ) =>
                {
                    continue;
                }
                Err(error) => {
                    return Err(format!(
                        "contains {}, in which git repositories cannot be searched: {error}; give the right to read it, or --unprotect {}",
                        directory.display(),
                        source.display()
                    ));
                }
                Ok(entries) => entries,
            };
            for entry in entries.flatten() {
                let is_directory = entry.file_type().is_ok_and(|kind| kind.is_dir());
                if !is_directory || entry.file_name() == GIT_DIRECTORY {
                    continue;
                }
                searched += 1;
                if searched > MAX_DIRECTORIES {
                    return Err(too_many(&format!("than {MAX_DIRECTORIES} directories")));
                }
                let git = entry.path().join(GIT_DIRECTORY);
                match git.symlink_metadata() {
                    Ok(data) if data.is_symlink() => {
                        return Err(format!(
                            "contains {}, a symbolic link that an agent could replace; replace it by a file (git-init(1), --separate-git-dir), or give --unprotect {}",
                            git.display(),
                            source.display()
                        ));
                    }
                    Ok(data) if data.is_dir() || data.is_file() => found.push(git),
                    _ => {}
                }
                next.push(entry.path());
            }
        }
        level = next;
    }
    if found.len() > MAX_REPOSITORIES {
        return Err(too_many(&format!(
            "than {MAX_REPOSITORIES} git repositories"
        )));
    }
    found.sort();
    Ok(found)
}

/// Returns the paths in workspaces to which the protected files of their repositories refer: targets of links among the hooks, and
/// the values of `core.hooksPath` and `include.path`, those of the configuration of the user with this home included.
///
/// # Errors
/// Such a path leads over a symbolic link that the agent could replace, or contains the workspace.
pub(crate) fn referenced_paths(
    jail: &EphemeralJail,
    repositories: &RepositoriesInside,
    home: Option<&Path>,
) -> Result<Vec<JailPath>, PathError> {
    let mut found = BTreeSet::new();
    for mount in projects(jail) {
        let source = Path::new(mount.source.as_str());
        let nested = repositories.directories.iter().chain(&repositories.links);
        let nested = nested.filter_map(|path| host_path(&jail.mounts, Path::new(path.as_str())));
        let nested =
            nested.filter(|path| path.starts_with(source) && path.ends_with(GIT_DIRECTORY));
        let trees = nested.filter_map(|git| Some(git.parent()?.to_owned()));
        // The workspace may be a part of the working tree.
        let mut outer = source.ancestors().skip(1).take(MAX_PARENTS);
        let outer = outer.find(|parent| parent.join(GIT_DIRECTORY).symlink_metadata().is_ok());
        let own = std::iter::once(source).chain(outer).map(Path::to_owned);
        for tree in own.chain(trees) {
            for path in references(&tree, home) {
                let Some((real, links)) = existing_part(&path) else {
                    continue;
                };
                let is_open = |link: &PathBuf| {
                    // The directory of hooks and its links are read-only.
                    link.starts_with(source)
                        && !link
                            .components()
                            .any(|part| part.as_os_str() == GIT_DIRECTORY)
                };
                let unprotected = |link: &PathBuf| {
                    let inside = mount.inside(link);
                    let mut open = jail.sandbox.unprotected.iter();
                    inside.is_some_and(|path| open.any(|open| path.is_in(open.as_str())))
                };
                if let Some(link) = links
                    .iter()
                    .find(|link| is_open(link) && !unprotected(link))
                {
                    let problem = format!(
                        "contains the link {}, over which git finds hooks or settings, and which an agent could replace; name the target itself in the configuration of git, or give --unprotect {}",
                        link.display(),
                        link.display()
                    );
                    return Err(PathError::new("mount source", &mount.source, problem));
                }
                if source.starts_with(&real) && !unprotected(&source.to_owned()) {
                    let problem = format!(
                        "is in {}, where git finds hooks or settings of {}; give the directory of another part of the project, or give --unprotect {}",
                        real.display(),
                        tree.display(),
                        source.display()
                    );
                    return Err(PathError::new("mount source", &mount.source, problem));
                }
                let inside = Some(real).filter(|real| real.starts_with(source));
                found.extend(inside.and_then(|real| mount.inside(&real)));
            }
        }
    }
    Ok(found.into_iter().collect())
}

/// Returns the paths to which the hooks and configurations of a working tree refer.
fn references(tree: &Path, home: Option<&Path>) -> Vec<PathBuf> {
    let git = linked_git_directory(tree).unwrap_or_else(|| tree.join(GIT_DIRECTORY));
    let common = read_line(&git.join("commondir")).map(|path| git.join(path));
    let directories: Vec<&Path> = std::iter::once(&git)
        .chain(&common)
        .map(PathBuf::as_path)
        .collect();
    let hooks = directories.iter().map(|path| path.join("hooks"));
    let mut found: Vec<PathBuf> = hooks.flat_map(|path| links_in(&path)).collect();
    let own = directories
        .iter()
        .flat_map(|path| [path.join("config"), path.join("config.worktree")]);
    let of_user = home
        .into_iter()
        .flat_map(|home| [home.join(".gitconfig"), home.join(".config/git/config")]);
    let mut files: Vec<PathBuf> = own
        .chain(of_user)
        .chain(["/etc/gitconfig".into()])
        .collect();
    let mut read = 0;
    while let Some(file) = files.pop() {
        read += 1;
        if read > MAX_REFERENCES {
            break;
        }
        let Ok(config) = regular_file::read(&file, MAX_CONFIG) else {
            continue;
        };
        let expand = |base: &Path, path: &str| match (path.strip_prefix("~/"), home) {
            (Some(path), Some(home)) => home.join(path),
            _ => base.join(path),
        };
        let named = named_paths(&String::from_utf8_lossy(&config));
        for path in named.into_iter().take(MAX_REFERENCES) {
            match path {
                // An empty core.hooksPath names no directory of the project.
                NamedPath::Hooks(path) if path.is_empty() => {}
                NamedPath::Hooks(path) => {
                    let hooks = expand(tree, &path);
                    found.extend(links_in(&hooks));
                    found.push(hooks);
                }
                NamedPath::Include(path) => {
                    let path = expand(file.parent().unwrap_or(tree), &path);
                    found.push(path.clone());
                    files.push(path);
                }
            }
        }
    }
    found
}

/// Returns the links in a directory of hooks.
fn links_in(hooks: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(hooks).into_iter().flatten().flatten();
    let links = entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_symlink()));
    links
        .map(|entry| entry.path())
        .take(MAX_REFERENCES)
        .collect()
}

/// Returns the real path, or that of the first part of it that does not exist, and the links on the way; `None` for a cycle of links.
fn existing_part(path: &Path) -> Option<(PathBuf, Vec<PathBuf>)> {
    let names = |path: &Path| -> Vec<OsString> {
        let parts = path.components().filter_map(|part| match part {
            Component::ParentDir => Some("..".into()),
            Component::Normal(name) => Some(name.to_owned()),
            _ => None,
        });
        parts.rev().collect()
    };
    let (mut real, mut rest, mut links) = (PathBuf::from("/"), names(path), Vec::new());
    while let Some(name) = rest.pop() {
        if name == ".." {
            real.pop();
            continue;
        }
        let next = real.join(name);
        match next.read_link() {
            Ok(_) if links.len() == MAX_LINKS => return None,
            Ok(target) => {
                if target.is_absolute() {
                    real = PathBuf::from("/");
                }
                rest.extend(names(&target));
                links.push(next);
            }
            // Not a link.
            Err(error) if error.kind() == io::ErrorKind::InvalidInput => real = next,
            Err(_) => return Some((next, links)),
        }
    }
    Some((real, links))
}

/// Adds mounts for each writable mount that is a worktree: its repository read-only, and of it `objects`, `refs`, `logs` and the directory
/// of the worktree writable.
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

    fn jail(workspace: &Path) -> EphemeralJail {
        let config = colibri_jail_core::JailConfig {
            path: Some("/".into()),
            mounts: vec![format!("{}:/w", workspace.display()).parse().unwrap()],
            ..Default::default()
        };
        let confinement = config.confinement(&"colibri-x".parse().unwrap()).unwrap();
        let colibri_jail_core::Confinement::Ephemeral(jail) = confinement else {
            panic!("no sandbox");
        };
        jail
    }

    #[test]
    fn workspace_in_a_directory_of_hooks_is_refused() {
        let dir = tempfile::tempdir_in("/var/tmp").unwrap();
        let root = dir.path().canonicalize().unwrap();
        for directory in [".git", "hooks/inner", "src"] {
            fs::create_dir_all(root.join(directory)).unwrap();
        }
        let protected =
            |jail: &EphemeralJail| referenced_paths(jail, &RepositoriesInside::default(), None);
        for (hooks, workspace, is_refused) in [
            ("hooks", "hooks", true),
            ("hooks", "hooks/inner", true),
            ("hooks", "src", false),
            (".", "", true),
            (".", "src", true),
            ("\"\"", "src", false),
            ("/dev/null", "src", false),
        ] {
            let config = format!("[core]\nhooksPath = {hooks}\n");
            fs::write(root.join(".git/config"), config).unwrap();
            let mut jail = jail(&root.join(workspace).components().collect::<PathBuf>());
            let result = protected(&jail);
            assert_eq!(
                result.is_err(),
                is_refused,
                "{hooks} {workspace}: {result:?}"
            );
            if let Err(error) = result {
                assert!(error.to_string().contains("--unprotect"), "{error}");
            }
            jail.sandbox.unprotected = vec!["/w".parse().unwrap()];
            assert!(protected(&jail).is_ok(), "{hooks} {workspace}");
        }
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
        let mut jail = jail(&root);
        jail.sandbox.unprotected = vec!["/w/open".parse().unwrap()];
        let found = repositories_inside(&jail).unwrap();
        let text =
            |paths: &[JailPath]| -> Vec<String> { paths.iter().map(ToString::to_string).collect() };
        assert_eq!(text(&found.directories), ["/w/a/.git", "/w/a/b/.git"]);
        assert_eq!(text(&found.links), ["/w/sub/.git"]);
        for number in 0..MAX_REPOSITORIES {
            fs::create_dir_all(root.join(format!("decoy{number}/.git"))).unwrap();
        }
        let error = repositories_inside(&jail).unwrap_err().to_string();
        assert!(error.contains("more than 256 git repositories"), "{error}");
        jail.sandbox.unprotected = vec!["/w".parse().unwrap()];
        let none = repositories_inside(&jail).unwrap();
        assert_eq!(none, RepositoriesInside::default());
    }

    #[test]
    fn real_path_ends_at_the_first_part_that_does_not_exist() {
        let dir = tempfile::tempdir_in("/var/tmp").unwrap();
        let root = dir.path().canonicalize().unwrap();
        fs::create_dir(root.join("d")).unwrap();
        std::os::unix::fs::symlink("d", root.join("link")).unwrap();
        std::os::unix::fs::symlink("absent", root.join("dangling")).unwrap();
        std::os::unix::fs::symlink("loop", root.join("loop")).unwrap();
        let links = existing_part(&root.join("link/x")).unwrap().1;
        assert_eq!(links, [root.join("link")]);
        for (path, expected) in [
            ("d", Some("d")),
            ("link", Some("d")),
            ("link/x/y", Some("d/x")),
            ("d/../a/b/c", Some("a")),
            ("dangling", Some("absent")),
            ("dangling/x", Some("absent")),
            ("loop", None),
        ] {
            let expected = expected.map(|path| root.join(path));
            let found = existing_part(&root.join(path)).map(|(real, _)| real);
            assert_eq!(found, expected, "{path}");
        }
    }

    #[test]
    fn paths_that_configurations_name_are_found() {
        let dir = tempfile::tempdir_in("/var/tmp").unwrap();
        let root = dir.path().canonicalize().unwrap();
        let (work, home) = (root.join("work"), root.join("home"));
        for directory in ["work/.git/hooks", "work/nested/.git", "home"] {
            fs::create_dir_all(root.join(directory)).unwrap();
        }
        fs::write(
            work.join(".git/config"),
            "[include] path = ../first\n[include] path = own.cfg\n",
        )
        .unwrap();
        fs::write(work.join("first"), "[include] path = second\n").unwrap();
        fs::write(work.join("nested/.git/config"), "[core] hooksPath = h\n").unwrap();
        fs::write(home.join(".gitconfig"), "[core] hooksPath = .shared\n").unwrap();
        std::os::unix::fs::symlink("../../check.sh", work.join(".git/hooks/pre-push")).unwrap();
        let relative = |tree: &Path| -> BTreeSet<String> {
            let found = references(tree, Some(&home)).into_iter();
            let found = found.filter_map(|path| Some(existing_part(&path)?.0));
            found
                .filter_map(|path| Some(path.strip_prefix(&work).ok()?.display().to_string()))
                .collect()
        };
        assert_eq!(
            relative(&work).into_iter().collect::<Vec<_>>(),
            [".git/own.cfg", ".shared", "check.sh", "first", "second"]
        );
        assert_eq!(
            relative(&work.join("nested"))
                .into_iter()
                .collect::<Vec<_>>(),
            ["nested/.shared", "nested/h"]
        );
    }
}
