//! Absolute, normalized paths: one spelling per path, and never an option.

use std::fmt;
use std::str::FromStr;

use crate::JailError;

/// Maximum length of a path, in bytes. FreeBSD stores a jail's path in MAXPATHLEN (1024) bytes including the NUL
/// (jail(2)); Linux allows more.
const MAX_LEN: usize = 1023;

/// An absolute path without `.`, `..`, doubled or trailing `/`, NUL or control characters.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct JailPath(String);

impl JailPath {
    /// Returns `/`.
    #[must_use]
    pub fn root() -> Self {
        Self("/".to_owned())
    }

    /// Wraps a valid path that is a constant of this crate.
    pub(crate) fn literal(path: &'static str) -> Self {
        Self(path.to_owned())
    }

    /// Returns whether this is `directory` or a path in it.
    #[must_use]
    pub fn is_in(&self, directory: &str) -> bool {
        self.0
            .strip_prefix(directory.trim_end_matches('/'))
            .is_some_and(|suffix| suffix.is_empty() || suffix.starts_with('/'))
    }

    /// Returns the path of `inner` below this root.
    #[must_use]
    pub fn join(&self, inner: &Self) -> Self {
        match (self.0.as_str(), inner.0.as_str()) {
            ("/", _) => inner.clone(),
            (_, "/") => self.clone(),
            (root, inner) => Self(format!("{root}{inner}")),
        }
    }

    /// Returns the path as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for JailPath {
    type Err = JailError;

    fn from_str(text: &str) -> Result<Self, JailError> {
        let path = || text.to_owned();
        if text.len() > MAX_LEN {
            return Err(JailError::PathTooLong {
                length: text.len(),
                max: MAX_LEN,
            });
        }
        if text.is_empty() {
            return Err(JailError::PathEmpty);
        }
        if text.contains('\0') {
            return Err(JailError::PathNul(path()));
        }
        if text.chars().any(char::is_control) {
            return Err(JailError::PathControl(path()));
        }
        let Some(inside) = text.strip_prefix('/') else {
            return Err(JailError::PathRelative(path()));
        };
        let abnormal = |part: &str| part.is_empty() || part == "." || part == "..";
        if !inside.is_empty() && inside.split('/').any(abnormal) {
            return Err(JailError::PathNotNormal(path()));
        }
        Ok(Self(path()))
    }
}

impl fmt::Display for JailPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn path_containment_and_join_follow_components() {
        let path = |text: &str| text.parse::<JailPath>().unwrap();
        for (inner, outer, expected) in [
            ("/a", "/a", true),
            ("/a/b", "/a", true),
            ("/ab", "/a", false),
            ("/a", "/a/b", false),
            ("/a", "/", true),
            ("/", "/", true),
        ] {
            assert_eq!(path(inner).is_in(outer), expected, "{inner} in {outer}");
        }
        for (root, inner, joined) in [
            ("/", "/a", "/a"),
            ("/r", "/", "/r"),
            ("/r", "/a/b", "/r/a/b"),
        ] {
            assert_eq!(path(root).join(&path(inner)), path(joined));
        }
    }

    #[test]
    fn invalid_path_reports_its_error() {
        let p = str::to_owned;
        let table = [
            ("", JailError::PathEmpty),
            ("srv", JailError::PathRelative(p("srv"))),
            ("./srv", JailError::PathRelative(p("./srv"))),
            ("-r", JailError::PathRelative(p("-r"))),
            ("//", JailError::PathNotNormal(p("//"))),
            ("/srv/", JailError::PathNotNormal(p("/srv/"))),
            ("/srv//a", JailError::PathNotNormal(p("/srv//a"))),
            ("/srv/./a", JailError::PathNotNormal(p("/srv/./a"))),
            ("/srv/../etc", JailError::PathNotNormal(p("/srv/../etc"))),
            ("/a\0", JailError::PathNul(p("/a\0"))),
            ("/a\nb", JailError::PathControl(p("/a\nb"))),
        ];
        for (path, expected) in table {
            assert_eq!(path.parse::<JailPath>(), Err(expected), "{path:?}");
        }
        let long = format!("/{}", "a".repeat(1023));
        assert_eq!(
            long.parse::<JailPath>(),
            Err(JailError::PathTooLong {
                length: 1024,
                max: 1023
            })
        );
        for good in ["/", "/srv", "/srv/..a/.b", "/a b", "/-x", "/a,b='c'"] {
            assert_eq!(good.parse::<JailPath>().unwrap().as_str(), good);
        }
    }
}
