//! Directories and files of the host that an agent sees in its jail.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::{JailError, JailPath};

/// Most mounts of one jail.
const MAX: usize = 64;
/// Places that a sandbox has of its own; nothing of the host may lie over them.
const TAKEN: &[&str] = &["/proc", "/dev"];

/// A mount as it is written in a request or a file.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct MountConfig {
    /// The directory or file of the host.
    pub source: String,
    /// Where it is in the jail; absent: at the same path.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target: Option<String>,
    /// The agent cannot change it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub read_only: bool,
}

/// `SOURCE` or `SOURCE:TARGET`, each optionally followed by `:ro` or `:rw`. The text after the last colon is an option
/// or an absolute target. This form cannot express paths that contain `:`.
impl FromStr for MountConfig {
    type Err = JailError;

    fn from_str(text: &str) -> Result<Self, JailError> {
        let malformed = || JailError::MountMalformed(text.to_owned());
        let mut words: Vec<&str> = text.split(':').collect();
        if let [_, .., last] = words[..]
            && !last.is_empty()
            && !matches!(last, "ro" | "rw")
            && (words.len() > 2 || !last.starts_with('/'))
        {
            return Err(JailError::MountOption {
                mount: text.to_owned(),
                option: last.to_owned(),
            });
        }
        let mode = words
            .pop_if(|word| matches!(*word, "ro" | "rw"))
            .unwrap_or("rw");
        match words[..] {
            [source] if !source.is_empty() => Ok((source, None)),
            [source, target] if !source.is_empty() && target.starts_with('/') => {
                Ok((source, Some(target.to_owned())))
            }
            _ => Err(malformed()),
        }
        .map(|(source, target)| Self {
            source: source.to_owned(),
            target,
            read_only: mode == "ro",
        })
    }
}

/// A mount that has been checked.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Mount {
    /// The directory or file of the host.
    pub source: JailPath,
    /// Where it is in the jail.
    pub target: JailPath,
    /// The agent cannot change it.
    pub read_only: bool,
}

impl MountConfig {
    /// Returns the path in the jail: the target, or the source if there is none.
    #[must_use]
    pub fn target_or_source(&self) -> &str {
        self.target.as_deref().unwrap_or(&self.source)
    }
}

impl fmt::Display for Mount {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mode = if self.read_only { ":ro" } else { "" };
        write!(f, "{}:{}{mode}", self.source, self.target)
    }
}

/// Checks all mounts of a jail, and puts them into the order in which they are made: what lies inside
/// another comes after it.
pub(crate) fn check(mounts: &[MountConfig]) -> Result<Vec<Mount>, JailError> {
    if mounts.len() > MAX {
        return Err(JailError::MountTooMany {
            count: mounts.len(),
            max: MAX,
        });
    }
    let mut checked = Vec::new();
    for mount in mounts {
        let source: JailPath = mount.source.parse()?;
        let target = match &mount.target {
            Some(target) => target.parse()?,
            None => source.clone(),
        };
        if target.as_str() == "/" {
            return Err(JailError::MountOnRoot);
        }
        if let Some(taken) = TAKEN.iter().find(|taken| target.is_in(taken)) {
            return Err(JailError::MountTaken { target, taken });
        }
        checked.push(Mount {
            source,
            target,
            read_only: mount.read_only,
        });
    }
    checked.sort_by(|one, other| one.target.cmp(&other.target));
    for pair in checked.windows(2) {
        if let [one, other] = pair
            && one.target == other.target
        {
            return Err(JailError::MountTwice(one.target.clone()));
        }
    }
    Ok(checked)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn written_forms() {
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
    fn parents_come_first_and_nothing_lies_over_another() {
        let checked = |texts: &[&str]| {
            let mounts: Vec<MountConfig> = texts.iter().map(|text| text.parse().unwrap()).collect();
            check(&mounts).map(|mounts| mounts.iter().map(ToString::to_string).collect::<Vec<_>>())
        };
        assert_eq!(
            checked(&["/b/c:/w/sub:ro", "/a:/w"]),
            Ok(vec!["/a:/w".into(), "/b/c:/w/sub:ro".into()])
        );
        let path = |text: &str| text.parse::<JailPath>().unwrap();
        for (mounts, error) in [
            (&["/a:/w", "/b:/w"][..], JailError::MountTwice(path("/w"))),
            (&["/"], JailError::MountOnRoot),
            (&["/a:/"], JailError::MountOnRoot),
            (
                &["/a:/proc/x"],
                JailError::MountTaken {
                    target: path("/proc/x"),
                    taken: "/proc",
                },
            ),
            (
                &["/dev"],
                JailError::MountTaken {
                    target: path("/dev"),
                    taken: "/dev",
                },
            ),
            (&["a"], JailError::PathRelative("a".into())),
            (&["/a:/b/"], JailError::PathNotNormal("/b/".into())),
        ] {
            assert_eq!(checked(mounts), Err(error), "{mounts:?}");
        }
        assert!(checked(&["/a:/procs", "/a:/devel"]).is_ok());
        let many: Vec<String> = (0..65).map(|number| format!("/a:/m{number}")).collect();
        let many: Vec<&str> = many.iter().map(String::as_str).collect();
        assert!(matches!(
            checked(&many),
            Err(JailError::MountTooMany { count: 65, .. })
        ));
    }
}
