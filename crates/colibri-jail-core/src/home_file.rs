//! Files that an agent's home contains at its first start.

use std::path::{Component, Path};

use serde::{Deserialize, Serialize};

use crate::{JailError, JailPath};

/// A file or directory that is copied into an agent's home, or a file with a fixed content. Existing files stay as they are.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct HomeFile {
    /// Path in the home.
    pub target: String,
    /// Absolute path of a file or directory of the host. Links in the directory are not copied.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source: Option<String>,
    /// Content of the file, without a source.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub content: Option<String>,
}

impl HomeFile {
    /// Validates the paths.
    ///
    /// # Errors
    /// The target is not a path inside the home, or there is not exactly one of source and content.
    pub fn check(&self) -> Result<(), JailError> {
        let invalid = |problem| JailError::invalid("home file", &self.target, problem);
        let components = || Path::new(&self.target).components();
        let is_inside = components().all(|part| matches!(part, Component::Normal(_)));
        if !is_inside || components().next().is_none() || self.target.contains('\0') {
            return Err(invalid(
                "is not a path inside the home; give one without a leading / and without ..",
            ));
        }
        match (&self.source, &self.content) {
            (Some(source), None) => source.parse::<JailPath>().map(drop),
            (None, Some(_)) => Ok(()),
            _ => Err(invalid("needs either a source or a content")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn target_stays_inside_the_home() {
        for (target, source, content, valid) in [
            (".claude/settings.json", Some("/home/u/x"), None, true),
            ("a", None, Some("{}"), true),
            ("a", None, None, false),
            ("a", Some("/x"), Some("{}"), false),
            ("a", Some("x"), None, false),
            ("/a", None, Some(""), false),
            ("../a", None, Some(""), false),
            ("a/../../b", None, Some(""), false),
            ("", None, Some(""), false),
            ("a\0b", None, Some(""), false),
        ] {
            let file = HomeFile {
                target: target.to_owned(),
                source: source.map(str::to_owned),
                content: content.map(str::to_owned),
            };
            assert_eq!(file.check().is_ok(), valid, "{file:?}");
        }
    }
}
