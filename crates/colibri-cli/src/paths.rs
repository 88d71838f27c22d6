//! Normalizes typed paths. The daemon and the libraries accept only absolute, normalized paths.

use std::os::unix::fs::MetadataExt;
use std::path::{Component, Path, PathBuf};

use crate::error::CliError;

/// The current directory of this process.
pub(crate) struct CurrentDir {
    /// The path that getcwd(3) returns: without symbolic links; or the error.
    directory: Result<PathBuf, String>,
    /// The path in the shell's `PWD`, which may contain symbolic links.
    shell: Option<PathBuf>,
}

impl CurrentDir {
    /// Reads the current directory and `PWD`.
    pub(crate) fn read() -> Self {
        let is_current = |path: &PathBuf| {
            let inode = |path: &Path| std::fs::metadata(path).map(|data| (data.dev(), data.ino()));
            matches!((inode(path), inode(Path::new("."))), (Ok(a), Ok(b)) if a == b)
        };
        let shell = std::env::var_os("PWD").map(PathBuf::from);
        Self {
            directory: std::env::current_dir().map_err(|error| error.to_string()),
            shell: shell.filter(|path| path.is_absolute() && is_current(path)),
        }
    }

    fn directory(&self) -> Result<&Path, CliError> {
        let directory = self.directory.as_deref();
        directory.map_err(|error| CliError::Message(format!(
            "cannot determine the current directory, which may have been deleted: {error}; change to another directory, or pass --cwd and absolute paths"
        )))
    }

    /// Returns the current directory as text.
    pub(crate) fn text(&self) -> Result<String, CliError> {
        let directory = self.directory()?;
        let text = directory.to_str().map(str::to_owned);
        text.ok_or_else(|| CliError::Message(format!(
            "cannot use the current directory {directory:?}: it is not UTF-8; change to another directory, or pass --cwd"
        )))
    }

    /// Returns the absolute path for a typed path, as text; see [`normalize`].
    pub(crate) fn normalize(&self, typed: &Path) -> Result<String, CliError> {
        let path = self.path(typed)?;
        let text = path.to_str().map(str::to_owned);
        text.ok_or_else(|| {
            CliError::Message(format!(
                "cannot use path {path:?}: it is not UTF-8; give a path in UTF-8"
            ))
        })
    }

    /// Returns the absolute path for a typed path; see [`normalize`].
    pub(crate) fn path(&self, typed: &Path) -> Result<PathBuf, CliError> {
        if typed.is_absolute() {
            let directory = self.directory.as_deref().unwrap_or(Path::new("/"));
            return normalize(typed, directory, self.shell.as_deref());
        }
        normalize(typed, self.directory()?, self.shell.as_deref())
    }
}

/// Returns the absolute path for a path typed in `directory`, without `.`, `..`, doubled or trailing `/`.
///
/// Keeps symbolic links, so that the daemon can refuse paths that contain one, with two exceptions: the part before a
/// `..` is resolved, as the kernel does, and a prefix that equals the shell's `PWD` is replaced by `directory`.
fn normalize(typed: &Path, directory: &Path, shell: Option<&Path>) -> Result<PathBuf, CliError> {
    if typed.as_os_str().is_empty() {
        return Err(CliError::Message(
            "cannot use an empty path; give a directory, like . for the current one".to_owned(),
        ));
    }
    let relative = shell.and_then(|shell| typed.strip_prefix(shell).ok());
    let whole = directory.join(relative.unwrap_or(typed));
    let parts: Vec<Component<'_>> = whole.components().collect();
    let last_parent = parts.iter().rposition(|part| *part == Component::ParentDir);
    let (head, rest) = parts.split_at(last_parent.map_or(0, |last| last + 1));
    let head: PathBuf = head.iter().collect();
    let mut path = match last_parent {
        None => head,
        Some(_) => head.canonicalize().map_err(|error| {
            CliError::Message(format!(
                "cannot resolve {head:?}: {error}; give an existing path, or one without \"..\""
            ))
        })?,
    };
    path.extend(rest);
    Ok(path)
}

/// Removes `.`, doubled and trailing `/` from an absolute path inside a jail. Keeps `..`, which the host cannot resolve,
/// and returns a relative path unchanged: the daemon refuses both.
pub(crate) fn normalize_in_jail(typed: &str) -> String {
    let path = Path::new(typed);
    if !path.is_absolute() {
        return typed.to_owned();
    }
    let normalized: PathBuf = path.components().collect();
    normalized.to_str().unwrap_or(typed).to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::ffi::OsStrExt;

    #[test]
    fn typed_path_becomes_absolute_and_normal() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().canonicalize().unwrap();
        std::fs::create_dir_all(root.join("real/project/sub")).unwrap();
        std::os::unix::fs::symlink(root.join("real"), root.join("link")).unwrap();
        std::os::unix::fs::symlink("project/sub", root.join("real/deep")).unwrap();
        let current = root.join("real/project");
        let shell = root.join("link/project");
        let at = |path: &str| format!("{}{path}", root.display());
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
            // A link is kept, so that the daemon refuses it, unless a `..` follows.
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
            let found = normalize(Path::new(&typed), &current, Some(&shell)).unwrap();
            assert_eq!(found, Path::new(&expected), "{typed}");
        }
        for (typed, problem) in [("", "an empty path"), ("absent/../x", "cannot resolve")] {
            let error = normalize(Path::new(typed), &current, None).unwrap_err();
            assert!(error.to_string().contains(problem), "{error}");
        }
    }

    #[test]
    fn path_that_is_not_utf8_is_refused() {
        let not_utf8 = Path::new(std::ffi::OsStr::from_bytes(b"/srv/\xff"));
        let current = |directory: Result<&Path, &str>| CurrentDir {
            directory: directory.map(Path::to_owned).map_err(str::to_owned),
            shell: None,
        };
        let deleted = || current(Err("deleted"));
        for (found, problem) in [
            (
                current(Ok(Path::new("/"))).normalize(not_utf8),
                "cannot use path",
            ),
            (
                current(Ok(not_utf8)).text(),
                "cannot use the current directory",
            ),
            (
                deleted().normalize(Path::new("x")),
                "cannot determine the current directory",
            ),
        ] {
            let error = found.unwrap_err();
            assert!(error.to_string().contains(problem), "{error}");
        }
        assert_eq!(deleted().normalize(Path::new("/usr/")).unwrap(), "/usr");
    }

    #[test]
    fn path_in_a_jail_is_normalized_without_the_host() {
        for (typed, expected) in [
            ("/work/", "/work"),
            ("//work/.//x/.", "/work/x"),
            ("/", "/"),
            ("/work/../x", "/work/../x"),
            ("work/", "work/"),
        ] {
            assert_eq!(normalize_in_jail(typed), expected);
        }
    }
}
