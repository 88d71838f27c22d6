//! Absolute, normalized paths: one spelling per path, and never an option.

use std::str::FromStr;

use crate::JailError;
use crate::error::check_length;

/// Maximum length of a path, in bytes. FreeBSD stores a jail's path in MAXPATHLEN (1024) bytes including the NUL
/// (jail(2)); Linux allows more.
const MAX_LEN: usize = 1023;

/// An absolute path without `.`, `..`, doubled or trailing `/`, NUL or control characters.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct JailPath(pub(crate) String);

impl JailPath {
    /// Returns `/`.
    #[must_use]
    pub fn root() -> Self {
        Self("/".to_owned())
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
}

impl FromStr for JailPath {
    type Err = JailError;

    fn from_str(text: &str) -> Result<Self, JailError> {
        check_length("path", text, MAX_LEN)?;
        let invalid = |problem: &str| Err(JailError::invalid("path", text, problem));
        if text.is_empty() {
            return invalid("is empty; give an absolute path");
        }
        if text.chars().any(char::is_control) {
            return invalid("contains a control character; rename the directory");
        }
        let Some(inside) = text.strip_prefix('/') else {
            return invalid("is relative; give an absolute path, which begins with '/'");
        };
        let abnormal = |part: &str| part.is_empty() || part == "." || part == "..";
        if !inside.is_empty() && inside.split('/').any(abnormal) {
            return invalid("is not normalized; remove '.', '..', doubled and trailing '/'");
        }
        Ok(Self(text.to_owned()))
    }
}

text_access!(JailPath);

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
        let long = format!("/{}", "a".repeat(1023));
        let table = [
            ("", "is empty"),
            ("srv", "is relative"),
            ("./srv", "is relative"),
            ("-r", "is relative"),
            ("//", "is not normalized"),
            ("/srv/", "is not normalized"),
            ("/srv//a", "is not normalized"),
            ("/srv/./a", "is not normalized"),
            ("/srv/../etc", "is not normalized"),
            ("/a\0", "contains a control character"),
            ("/a\nb", "contains a control character"),
            (&long, "has 1024 bytes, at most 1023"),
        ];
        for (path, expected) in table {
            let error = path.parse::<JailPath>().unwrap_err().to_string();
            assert!(error.contains(expected), "{error}");
        }
        for good in ["/", "/srv", "/srv/..a/.b", "/a b", "/-x", "/a,b='c'"] {
            assert_eq!(good.parse::<JailPath>().unwrap().as_str(), good);
        }
    }
}
