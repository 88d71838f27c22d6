//! Normalizes paths as users type them. The daemon and the libraries accept only absolute, normalized paths.

use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Component, Path, PathBuf};

/// Why a path cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PathError {
    #[error(
        "cannot determine the current directory: {0} (it may have been deleted); change to another directory, or give --cwd and absolute paths"
    )]
    NoCurrentDirectory(io::Error),
    #[error(
        "the current directory {0:?} is not UTF-8, and the daemon takes text only; change to another directory, or give --cwd"
    )]
    CurrentDirectoryNotText(PathBuf),
    #[error("path {0:?} is not UTF-8, and the daemon takes text only; give a path in UTF-8")]
    NotText(PathBuf),
    #[error("a path is empty; give a directory, like . for the current one")]
    Empty,
    #[error("cannot resolve {path:?}: {source}; give a path that exists, or one without \"..\"")]
    Unresolved { path: PathBuf, source: io::Error },
}

/// The current directory of the user.
pub(crate) struct Here {
    /// The path that getcwd(3) returns: without symbolic links.
    directory: io::Result<PathBuf>,
    /// The path in the shell's `PWD`, which may contain symbolic links.
    shell: Option<PathBuf>,
}

impl Here {
    /// Reads the current directory of this process.
    pub(crate) fn now() -> Self {
        let same = |path: &PathBuf| {
            let of = |path: &Path| std::fs::metadata(path).map(|data| (data.dev(), data.ino()));
            matches!((of(path), of(Path::new("."))), (Ok(a), Ok(b)) if a == b)
        };
        let shell = std::env::var_os("PWD").map(PathBuf::from);
        Self {
            directory: std::env::current_dir(),
            shell: shell.filter(|path| path.is_absolute() && same(path)),
        }
    }

    fn directory(&self) -> Result<&Path, PathError> {
        match &self.directory {
            Ok(directory) => Ok(directory),
            Err(error) => Err(PathError::NoCurrentDirectory(io::Error::new(
                error.kind(),
                error.to_string(),
            ))),
        }
    }

    /// Returns the current directory as text.
    pub(crate) fn text(&self) -> Result<String, PathError> {
        let directory = self.directory()?;
        let text = directory.to_str().map(str::to_owned);
        text.ok_or_else(|| PathError::CurrentDirectoryNotText(directory.to_owned()))
    }

    /// Returns the absolute path for a typed one, as text; see [`normalize`].
    pub(crate) fn normalize(&self, typed: &Path) -> Result<String, PathError> {
        let path = self.path(typed)?;
        let text = path.to_str().map(str::to_owned);
        text.ok_or(PathError::NotText(path))
    }

    /// Returns the absolute path for a typed one; see [`normalize`].
    pub(crate) fn path(&self, typed: &Path) -> Result<PathBuf, PathError> {
        if typed.is_absolute() {
            let directory = self.directory.as_deref().unwrap_or(Path::new("/"));
            return normalize(typed, directory, self.shell.as_deref());
        }
        normalize(typed, self.directory()?, self.shell.as_deref())
    }
}

/// Returns the absolute path for one typed in `directory`, without `.`, `..`, doubled or trailing `/`.
///
/// Symbolic links stay, so that the daemon can refuse paths that contain one. There are two exceptions: the part
/// before a `..` is resolved, as the kernel does, and a prefix that equals the shell's `PWD` is replaced by
/// `directory`.
fn normalize(typed: &Path, directory: &Path, shell: Option<&Path>) -> Result<PathBuf, PathError> {
    if typed.as_os_str().is_empty() {
        return Err(PathError::Empty);
    }
    let inside = shell.and_then(|shell| typed.strip_prefix(shell).ok());
    let whole = directory.join(inside.unwrap_or(typed));
    let parts: Vec<Component<'_>> = whole.components().collect();
    let last_up = parts.iter().rposition(|part| *part == Component::ParentDir);
    let (head, rest) = parts.split_at(last_up.map_or(0, |last| last + 1));
    let head: PathBuf = head.iter().collect();
    let mut path = match last_up {
        None => head,
        Some(_) => head
            .canonicalize()
            .map_err(|source| PathError::Unresolved { path: head, source })?,
    };
    path.extend(rest);
    Ok(path)
}

/// Removes `.`, doubled and trailing `/` from an absolute path inside a jail. `..` stays, because the host cannot
/// resolve it, and a relative path is returned unchanged: the daemon refuses both.
pub(crate) fn tidy(typed: &str) -> String {
    let path = Path::new(typed);
    if !path.is_absolute() {
        return typed.to_owned();
    }
    let tidy: PathBuf = path.components().collect();
    tidy.to_str().unwrap_or(typed).to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::ffi::OsStrExt;

    #[test]
    fn typed_paths_become_absolute_and_normal() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().canonicalize().unwrap();
        std::fs::create_dir_all(root.join("real/project/sub")).unwrap();
        std::os::unix::fs::symlink(root.join("real"), root.join("link")).unwrap();
        std::os::unix::fs::symlink("project/sub", root.join("real/deep")).unwrap();
        let here = root.join("real/project");
        let shell = root.join("link/project");
        let at = |place: &str| format!("{}{place}", root.display());
        for (typed, expected) in [
            (".".to_owned(), at("/real/project")),
            ("./".to_owned(), at("/real/project")),
            ("..".to_owned(), at("/real")),
            ("../".to_owned(), at("/real")),
            ("sub".to_owned(), at("/real/project/sub")),
            ("sub/".to_owned(), at("/real/project/sub")),
            ("./sub//.//".to_owned(), at("/real/project/sub")),
            ("absent/new".to_owned(), at("/real/project/absent/new")),
            ("sub/../sub".to_owned(), at("/real/project/sub")),
            ("../../real/".to_owned(), at("/real")),
            // A link stays, so that the daemon refuses it, unless a `..` after it needs its target.
            ("../deep".to_owned(), at("/real/deep")),
            ("../deep/..".to_owned(), at("/real/project")),
            (at("/link/project"), at("/real/project")),
            (at("/link/project/"), at("/real/project")),
            (at("/link//project/./sub/"), at("/real/project/sub")),
            (at("/link/other"), at("/link/other")),
            (at("/link/projects"), at("/link/projects")),
            ("/".to_owned(), "/".to_owned()),
            ("//".to_owned(), "/".to_owned()),
            ("/usr//lib/".to_owned(), "/usr/lib".to_owned()),
            ("/..".to_owned(), "/".to_owned()),
        ] {
            let found = normalize(Path::new(&typed), &here, Some(&shell)).unwrap();
            assert_eq!(found, Path::new(&expected), "{typed}");
        }
        let empty = normalize(Path::new(""), &here, None);
        assert!(matches!(empty, Err(PathError::Empty)), "{empty:?}");
        let absent = normalize(Path::new("absent/../x"), &here, None);
        assert!(
            matches!(absent, Err(PathError::Unresolved { .. })),
            "{absent:?}"
        );
    }

    #[test]
    fn paths_that_are_not_text_are_refused_and_not_changed() {
        let odd = Path::new(std::ffi::OsStr::from_bytes(b"/srv/\xff"));
        let here = |directory: io::Result<&Path>| Here {
            directory: directory.map(Path::to_owned),
            shell: None,
        };
        let found = here(Ok(Path::new("/"))).normalize(odd);
        assert!(matches!(found, Err(PathError::NotText(_))), "{found:?}");
        let found = here(Ok(odd)).text();
        assert!(
            matches!(found, Err(PathError::CurrentDirectoryNotText(_))),
            "{found:?}"
        );
        let gone = || here(Err(io::ErrorKind::NotFound.into()));
        let found = gone().normalize(Path::new("x"));
        assert!(
            matches!(found, Err(PathError::NoCurrentDirectory(_))),
            "{found:?}"
        );
        assert_eq!(gone().normalize(Path::new("/usr/")).unwrap(), "/usr");
    }

    #[test]
    fn paths_inside_a_jail_are_tidied_without_the_host() {
        for (typed, expected) in [
            ("/work/", "/work"),
            ("//work/.//x/.", "/work/x"),
            ("/", "/"),
            ("/work/../x", "/work/../x"),
            ("work/", "work/"),
        ] {
            assert_eq!(tidy(typed), expected);
        }
    }
}
