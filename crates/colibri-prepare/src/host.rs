//! Parts of the host that a jail uses: the base environment of agents, and paths and users of a root directory.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs;
use std::path::{Component, Path, PathBuf};

/// `PATH` for a daemon that has none, as under rc(8) or systemd.
const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// Variables of the daemon that agents inherit. Any other could be a secret.
const INHERITED: &[&str] = &["PATH", "HOME", "USER", "LOGNAME", "SHELL", "LANG", "TZ"];
/// Maximum number of symbolic links in one path, as on Linux (path_resolution(7)).
const MAX_SYMLINKS: usize = 40;

/// Variable with a file of root certificates, as OpenSSL uses it.
const ROOTS_FILE: &str = "SSL_CERT_FILE";

/// The base environment of agents.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct HostEnv {
    inherited: BTreeMap<String, String>,
    roots_file: Option<String>,
}

impl HostEnv {
    /// Selects the variables that agents inherit from the environment of this process; one that is not UTF-8 is left
    /// out.
    #[must_use]
    pub fn of_process() -> Self {
        let text = |(name, value): (OsString, OsString)| {
            Some((name.into_string().ok()?, value.into_string().ok()?))
        };
        Self::from_variables(std::env::vars_os().filter_map(text))
    }

    /// Selects the variables that agents inherit: `PATH`, `HOME`, `USER`, `LOGNAME`, `SHELL`, `TZ`,
    /// `LANG` and `LC_*`.
    pub fn from_variables(variables: impl IntoIterator<Item = (String, String)>) -> Self {
        let mut variables: BTreeMap<String, String> = variables.into_iter().collect();
        let roots_file = variables.remove(ROOTS_FILE);
        let mut inherited: BTreeMap<String, String> = variables
            .into_iter()
            .filter(|(name, _)| INHERITED.contains(&name.as_str()) || name.starts_with("LC_"))
            .collect();
        inherited
            .entry("PATH".to_owned())
            .or_insert_with(|| DEFAULT_PATH.to_owned());
        Self {
            inherited,
            roots_file,
        }
    }

    /// Returns these variables, overridden by `variables`.
    #[must_use]
    pub fn with(&self, own: &BTreeMap<String, String>) -> BTreeMap<String, String> {
        let mut all = self.inherited.clone();
        all.extend(own.clone());
        all
    }

    /// Returns the file in `SSL_CERT_FILE` of this process. It is for the proxy only, because a sandbox may not show it.
    pub(crate) fn roots_file(&self) -> Option<&str> {
        self.roots_file.as_deref()
    }
}

/// Resolves `path` as a process with the root directory `root` would (chroot(2)): absolute links start at `root`, and `..`
/// stops there. Returns the path on the host; `None` if nothing exists there.
///
/// For diagnostics only: the result is not a protection, because links can change later.
pub(crate) fn resolve_in(root: &Path, path: &Path) -> Option<PathBuf> {
    let mut pending: Vec<PathBuf> = vec![path.to_owned()];
    let mut inside = PathBuf::new();
    let mut links = 0;
    while let Some(next) = pending.pop() {
        let mut components = next.components();
        let Some(first) = components.next() else {
            continue;
        };
        let remaining = components.as_path();
        if !remaining.as_os_str().is_empty() {
            pending.push(remaining.to_owned());
        }
        match first {
            Component::RootDir | Component::Prefix(_) => inside.clear(),
            Component::CurDir => {}
            Component::ParentDir => drop(inside.pop()),
            Component::Normal(name) => {
                let candidate = root.join(&inside).join(name);
                match fs::read_link(&candidate) {
                    Ok(target) => {
                        links += 1;
                        if links > MAX_SYMLINKS {
                            return None;
                        }
                        pending.push(target);
                    }
                    Err(_) => inside.push(name),
                }
            }
        }
    }
    let host_path = root.join(inside);
    host_path.symlink_metadata().ok().map(|_| host_path)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    #[test]
    fn only_listed_variables_are_inherited() {
        let picked = HostEnv::from_variables(
            [
                ("HOME", "/h"),
                ("AWS_SECRET", "x"),
                ("LC_ALL", "C"),
                ("LD_PRELOAD", "y"),
            ]
            .map(|(name, value)| (name.to_owned(), value.to_owned())),
        );
        let names: Vec<_> = picked.inherited.keys().map(String::as_str).collect();
        assert_eq!(names, ["HOME", "LC_ALL", "PATH"]);
        assert_eq!(picked.inherited["PATH"], DEFAULT_PATH);
    }

    #[test]
    fn links_are_resolved_inside_the_root() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path();
        fs::create_dir_all(root.join("usr/bin")).unwrap();
        fs::write(root.join("usr/bin/tool"), "").unwrap();
        symlink("usr/bin", root.join("bin")).unwrap();
        symlink("/usr/bin/tool", root.join("usr/bin/absolute")).unwrap();
        symlink("../../../../../../usr/bin/tool", root.join("usr/bin/above")).unwrap();
        symlink("loop", root.join("loop")).unwrap();
        symlink("/etc/passwd", root.join("hosts-file")).unwrap();
        for (path, found) in [
            ("/usr/bin/tool", Some("usr/bin/tool")),
            ("/bin/tool", Some("usr/bin/tool")),
            ("/bin/absolute", Some("usr/bin/tool")),
            ("/bin/above", Some("usr/bin/tool")),
            ("/bin/../bin/./tool", Some("usr/bin/tool")),
            ("/nothing", None),
            ("/loop", None),
            ("/hosts-file", None),
            ("/", Some("")),
        ] {
            assert_eq!(
                resolve_in(root, Path::new(path)),
                found.map(|inside| root.join(inside)),
                "{path}"
            );
        }
    }
}
