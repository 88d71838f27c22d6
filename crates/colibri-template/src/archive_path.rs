//! Paths of archive entries.

use std::ffi::{OsStr, OsString};
use std::fmt;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::str::FromStr;

/// Maximum length of a path, in bytes.
const MAX_BYTES: usize = 4096;
/// Maximum number of components. A walk or a removal has one open directory for each.
const MAX_COMPONENTS: usize = 128;
/// Maximum length of a component, in bytes (NAME_MAX).
const MAX_COMPONENT_BYTES: usize = 255;

/// A path below the root of a template: relative, without `.`, `..` and empty components. The root has no component.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ArchivePath(Vec<OsString>);

impl ArchivePath {
    /// Validates the name of an archive entry.
    ///
    /// # Errors
    /// The name is absolute, contains `..` or a NUL byte, or is too long; the message is the problem.
    pub fn from_entry(name: &[u8]) -> Result<Self, String> {
        if name.starts_with(b"/") {
            return Err("its path is absolute".to_owned());
        }
        if name.len() > MAX_BYTES {
            return Err(format!("its path is longer than {MAX_BYTES} bytes"));
        }
        let mut components = Vec::new();
        for part in name.split(|byte| *byte == b'/') {
            match part {
                b"" | b"." => {}
                b".." => return Err("its path contains \"..\"".to_owned()),
                part if part.contains(&0) => return Err("its path contains a NUL byte".to_owned()),
                part if part.len() > MAX_COMPONENT_BYTES => {
                    return Err(format!(
                        "a component of its path is longer than {MAX_COMPONENT_BYTES} bytes"
                    ));
                }
                part => components.push(OsString::from_vec(part.to_vec())),
            }
        }
        if components.len() > MAX_COMPONENTS {
            return Err(format!(
                "its path has more than {MAX_COMPONENTS} components"
            ));
        }
        Ok(Self(components))
    }

    /// Returns the path of fixed names, none of which is empty, `.` or `..` or contains `/`.
    pub(crate) fn of_names(names: &[&str]) -> Self {
        Self(names.iter().map(OsString::from).collect())
    }

    /// Returns the components.
    pub(crate) fn components(&self) -> &[OsString] {
        &self.0
    }

    /// Returns the directory and the last component; `None` for the root.
    pub(crate) fn split(&self) -> Option<(&[OsString], &OsStr)> {
        let (last, parents) = self.0.split_last()?;
        Some((parents, last))
    }

    /// Returns the path with its last component replaced.
    pub(crate) fn with_name(&self, name: &[u8]) -> Self {
        let mut components = self.0.clone();
        components.pop();
        components.push(OsString::from_vec(name.to_vec()));
        Self(components)
    }

    /// Returns the path of the directory that contains it.
    pub(crate) fn parent(&self) -> Self {
        let mut components = self.0.clone();
        components.pop();
        Self(components)
    }
}

/// Parses an absolute path inside a jail, like `/work`.
impl FromStr for ArchivePath {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let failed = |problem: &str| {
            format!(
                "cannot use path {text:?}: {problem}; give an absolute path inside the jail, like /work"
            )
        };
        let relative = text
            .strip_prefix('/')
            .ok_or_else(|| failed("it is not absolute"))?;
        let path = Self::from_entry(relative.trim_start_matches('/').as_bytes())
            .map_err(|problem| failed(&problem))?;
        match path.0.is_empty() {
            true => Err(failed("it is the root")),
            false => Ok(path),
        }
    }
}

impl fmt::Display for ArchivePath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for component in &self.0 {
            write!(f, "/{}", String::from_utf8_lossy(component.as_bytes()))?;
        }
        match self.0.is_empty() {
            true => f.write_str("/"),
            false => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entry_names_are_normalized_or_refused() {
        for (name, expected) in [
            ("./", "/"),
            ("", "/"),
            ("./etc/./passwd", "/etc/passwd"),
            ("usr//lib/", "/usr/lib"),
            ("...", "/..."),
            ("a\\..\\b", "/a\\..\\b"),
        ] {
            let path = ArchivePath::from_entry(name.as_bytes()).unwrap();
            assert_eq!(path.to_string(), expected);
        }
        let deep = "a/".repeat(129);
        let long = "a".repeat(256);
        for name in [
            "/etc", "//etc", "..", "a/../b", "./..", "a/..", "a\0b", &deep, &long,
        ] {
            assert!(
                ArchivePath::from_entry(name.as_bytes()).is_err(),
                "{name:?}"
            );
        }
    }

    #[test]
    fn mount_points_are_absolute_and_inside() {
        assert_eq!(
            "/work//x/".parse::<ArchivePath>().unwrap().to_string(),
            "/work/x"
        );
        for bad in ["", "/", "work", "/../x", "//.."] {
            let error = bad.parse::<ArchivePath>().unwrap_err();
            assert!(error.contains("give an absolute path"), "{error}");
        }
    }
}
