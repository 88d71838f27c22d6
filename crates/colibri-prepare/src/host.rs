//! What is taken from the host: the environment that agents start from, and a look into a root directory.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Component, Path, PathBuf};

/// Used where the host has no `PATH`, as under rc(8) or systemd.
const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// What agents may know of the daemon's environment. Anything else could be a secret.
const INHERITED: &[&str] = &["PATH", "HOME", "USER", "LOGNAME", "SHELL", "LANG", "TZ"];
/// As many links as Linux follows in one path (path_resolution(7)).
const MAX_LINKS: usize = 40;

/// The part of the host's environment that agents start from.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct HostEnv(BTreeMap<String, String>);

impl HostEnv {
    /// Picks what agents may see out of all variables: `PATH`, `HOME`, `USER`, `LOGNAME`, `SHELL`, `TZ`,
    /// `LANG` and `LC_*`.
    pub fn from_variables(variables: impl IntoIterator<Item = (String, String)>) -> Self {
        let mut kept: BTreeMap<String, String> = variables
            .into_iter()
            .filter(|(name, _)| INHERITED.contains(&name.as_str()) || name.starts_with("LC_"))
            .collect();
        kept.entry("PATH".to_owned())
            .or_insert_with(|| DEFAULT_PATH.to_owned());
        Self(kept)
    }

    /// These variables, with `own` on top.
    #[must_use]
    pub fn with(&self, own: &BTreeMap<String, String>) -> BTreeMap<String, String> {
        let mut all = self.0.clone();
        all.extend(
            own.iter()
                .map(|(name, value)| (name.clone(), value.clone())),
        );
        all
    }
}

/// Follows `path` as a process would whose root directory is `root`: absolute links start at `root`, and
/// `..` stops there. Gives the place on the host, or `None` where there is nothing.
///
/// This answers early and clearly what the confined exec would answer late; it protects nothing.
pub(crate) fn resolve_in(root: &Path, path: &Path) -> Option<PathBuf> {
    let mut todo: Vec<PathBuf> = vec![path.to_owned()];
    let mut inside = PathBuf::new();
    let mut links = 0;
    while let Some(next) = todo.pop() {
        let mut components = next.components();
        let Some(first) = components.next() else {
            continue;
        };
        let rest = components.as_path();
        if !rest.as_os_str().is_empty() {
            todo.push(rest.to_owned());
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
                        if links > MAX_LINKS {
                            return None;
                        }
                        todo.push(target);
                    }
                    Err(_) => inside.push(name),
                }
            }
        }
    }
    let place = root.join(inside);
    place.symlink_metadata().ok().map(|_| place)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    #[test]
    fn agents_see_little_of_the_daemons_environment() {
        let picked = HostEnv::from_variables(
            [
                ("HOME", "/h"),
                ("AWS_SECRET", "x"),
                ("LC_ALL", "C"),
                ("LD_PRELOAD", "y"),
            ]
            .map(|(name, value)| (name.to_owned(), value.to_owned())),
        );
        let names: Vec<_> = picked.0.keys().map(String::as_str).collect();
        assert_eq!(names, ["HOME", "LC_ALL", "PATH"]);
        assert_eq!(picked.0["PATH"], DEFAULT_PATH);
    }

    #[test]
    fn paths_are_followed_as_inside_the_root() {
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
