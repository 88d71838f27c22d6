//! Mounts of host directories and files in a jail.

use std::path::{Path, PathBuf};
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::{JailError, JailPath};

/// Maximum number of mounts of one jail.
const MAX_MOUNTS: usize = 64;
/// Directories that are private to every jail; a mount must not cover them.
const RESERVED: &[&str] = &["/proc", "/dev"];

/// A mount as written in a request or a file.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct MountConfig {
    /// The directory or file of the host.
    pub source: String,
    /// Mount point inside the jail. Default: the same path as the source.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target: Option<String>,
    /// Whether the mount is read-only.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub read_only: bool,
}

impl MountConfig {
    /// Returns the mount point inside the jail: the target, or the source if there is none.
    #[must_use]
    pub fn target_or_source(&self) -> &str {
        self.target.as_deref().unwrap_or(&self.source)
    }
}

/// `SOURCE` or `SOURCE:TARGET`, each optionally followed by `:ro` or `:rw`. The text after the last colon is an option
/// or an absolute target. This form cannot express paths that contain `:`.
impl FromStr for MountConfig {
    type Err = JailError;

    fn from_str(text: &str) -> Result<Self, JailError> {
        let invalid = |problem: &str| Err(JailError::invalid("mount", text, problem));
        let mut words: Vec<&str> = text.split(':').collect();
        if let [_, .., last] = words[..]
            && !last.is_empty()
            && !matches!(last, "ro" | "rw")
            && (words.len() > 2 || !last.starts_with('/'))
        {
            return invalid(&format!(
                "has the unknown option {last:?} after its last colon; give ro or rw, or an absolute target"
            ));
        }
        let mode = words
            .pop_if(|word| matches!(*word, "ro" | "rw"))
            .unwrap_or("rw");
        let (source, target) = match words[..] {
            [source] if !source.is_empty() => (source, None),
            [source, target] if !source.is_empty() && target.starts_with('/') => {
                (source, Some(target.to_owned()))
            }
            _ => {
                return invalid(
                    "has the wrong form; give SOURCE or SOURCE:TARGET, and :ro or :rw after it if needed",
                );
            }
        };
        Ok(Self {
            source: source.to_owned(),
            target,
            read_only: mode == "ro",
        })
    }
}

/// A validated mount.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub struct Mount {
    /// The directory or file of the host.
    pub source: JailPath,
    /// Mount point inside the jail.
    pub target: JailPath,
    /// Whether the mount is read-only.
    pub read_only: bool,
    /// Which paths in a writable mount are protected.
    pub protection: Protection,
}

impl Mount {
    /// Returns the path in the jail at which this mount shows a path of the host; `None` if it does not, or the path is not UTF-8.
    #[must_use]
    pub fn inside(&self, path: &Path) -> Option<JailPath> {
        let inner = path.strip_prefix(self.source.as_str()).ok()?.to_str()?;
        match inner {
            "" => Some(self.target.clone()),
            inner => format!("{}/{inner}", self.target.as_str().trim_end_matches('/'))
                .parse()
                .ok(),
        }
    }

    /// Creates a mount at the same path in the jail.
    #[must_use]
    pub fn at_same_path(path: JailPath, read_only: bool, protection: Protection) -> Self {
        Self {
            target: path.clone(),
            source: path,
            read_only,
            protection,
        }
    }
}

/// Which paths in a writable mount a sandbox protects.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub enum Protection {
    /// [`crate::PROTECTED_PATHS`].
    #[default]
    Project,
    /// [`crate::PROTECTED_IN_GIT`]: the directory of a worktree in its repository.
    GitDirectory,
    /// Nothing.
    Nothing,
}

/// Returns the host path of `path` in a jail with these mounts; `None` if no mount contains it. Parents precede children
/// in `mounts`.
#[must_use]
pub fn host_path(mounts: &[Mount], path: &Path) -> Option<PathBuf> {
    let mount = mounts
        .iter()
        .rfind(|mount| path.starts_with(mount.target.as_str()))?;
    let inner = path.strip_prefix(mount.target.as_str()).ok()?;
    let source = Path::new(mount.source.as_str());
    // Path::join with an empty path would append a slash, which fails on a file.
    Some(if inner.as_os_str().is_empty() {
        source.to_owned()
    } else {
        source.join(inner)
    })
}

/// Validates all mounts of a jail, and sorts them so that a mount follows every mount that contains its target.
pub(crate) fn validate(mounts: &[MountConfig]) -> Result<Vec<Mount>, JailError> {
    if mounts.len() > MAX_MOUNTS {
        return Err(JailError::Conflict(format!(
            "there are {} `mounts`, at most {MAX_MOUNTS} are allowed; mount a common parent directory",
            mounts.len()
        )));
    }
    let mut valid = Vec::new();
    for mount in mounts {
        let source: JailPath = mount.source.parse()?;
        let target = match &mount.target {
            Some(target) => target.parse()?,
            None => source.clone(),
        };
        if target.as_str() == "/" {
            let problem = "covers the jail's root; give another target, or the root as `path`";
            return Err(JailError::invalid("mount target", target, problem));
        }
        if let Some(taken) = RESERVED.iter().find(|taken| target.is_in(taken)) {
            let problem = format!("is in {taken}, which is private to every jail; give another");
            return Err(JailError::invalid("mount target", target, problem));
        }
        valid.push(Mount {
            source,
            target,
            read_only: mount.read_only,
            protection: Protection::default(),
        });
    }
    valid.sort_by(|one, other| one.target.cmp(&other.target));
    match valid
        .windows(2)
        .find(|pair| pair[0].target == pair[1].target)
    {
        Some(pair) => {
            let problem = "is given twice; give each mount its own target";
            Err(JailError::invalid("mount target", &pair[0].target, problem))
        }
        None => Ok(valid),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mount_text_is_source_target_and_mode() {
        let table = [
            ("/src", Some(("/src", None, false))),
            ("/src:ro", Some(("/src", None, true))),
            ("/src:/work", Some(("/src", Some("/work"), false))),
            ("/src:/work:rw", Some(("/src", Some("/work"), false))),
            ("/src:/work:ro", Some(("/src", Some("/work"), true))),
            ("src:ro", Some(("src", None, true))),
            ("/src:rw", Some(("/src", None, false))),
            ("/src:/tmp/x:rw", Some(("/src", Some("/tmp/x"), false))),
            ("/src:RO", None),
            ("/src:/work:", None),
            ("/src:/work:ro,nosuid", None),
            ("/src:/work:ro:rw", None),
            ("/src:work:ro", None),
            ("", None),
            (":", None),
            ("ro", None),
            (":/work", None),
            ("/src:", None),
            ("/src:/work:rx", None),
            ("/a:/b:/c:ro", None),
        ];
        for (text, expected) in table {
            let expected = expected.map(|(source, target, read_only)| MountConfig {
                source: source.into(),
                target: target.map(Into::into),
                read_only,
            });
            assert_eq!(text.parse().ok(), expected, "{text:?}");
        }
    }

    #[test]
    fn host_path_uses_innermost_mount() {
        let mounts =
            ["/a:/w", "/b:/w/sub", "/etc/hosts:/w/hosts"].map(|text| text.parse().unwrap());
        let mounts = validate(&mounts).unwrap();
        for (path, expected) in [
            ("/w", Some("/a")),
            ("/w/x", Some("/a/x")),
            ("/w/sub/x", Some("/b/x")),
            ("/w/subs", Some("/a/subs")),
            ("/w/hosts", Some("/etc/hosts")),
            ("/x", None),
        ] {
            let found = host_path(&mounts, Path::new(path));
            assert_eq!(found, expected.map(PathBuf::from), "{path}");
        }
    }

    #[test]
    fn mounts_are_sorted_and_conflicts_refused() {
        let validated = |texts: &[&str]| {
            let mounts: Vec<MountConfig> = texts.iter().map(|text| text.parse().unwrap()).collect();
            let shown = |mount: &Mount| {
                let mode = if mount.read_only { ":ro" } else { "" };
                format!("{}:{}{mode}", mount.source, mount.target)
            };
            validate(&mounts).map(|mounts| mounts.iter().map(shown).collect::<Vec<_>>())
        };
        assert_eq!(
            validated(&["/b/c:/w/sub:ro", "/a:/w"]),
            Ok(vec!["/a:/w".into(), "/b/c:/w/sub:ro".into()])
        );
        for (mounts, expected) in [
            (&["/a:/w", "/b:/w"][..], "\"/w\" is given twice"),
            (&["/"], "covers the jail's root"),
            (&["/a:/"], "covers the jail's root"),
            (&["/a:/proc/x"], "\"/proc/x\" is in /proc"),
            (&["/dev"], "\"/dev\" is in /dev"),
            (&["a"], "is relative"),
            (&["/a:/b/"], "is not normalized"),
        ] {
            let error = validated(mounts).unwrap_err().to_string();
            assert!(error.contains(expected), "{error}");
        }
        assert!(validated(&["/a:/procs", "/a:/devel"]).is_ok());
        let many: Vec<String> = (0..65).map(|number| format!("/a:/m{number}")).collect();
        let many: Vec<&str> = many.iter().map(String::as_str).collect();
        let error = validated(&many).unwrap_err().to_string();
        assert!(error.starts_with("there are 65 `mounts`"), "{error}");
    }
}
