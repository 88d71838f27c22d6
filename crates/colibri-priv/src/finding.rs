//! What a look at the host found, and how to mend it.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;

use serde::{Deserialize, Serialize};

/// How bad a finding is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    /// As it should be.
    Ok,
    /// Works, but look at it.
    Warn,
    /// Does not work.
    Fail,
}

/// One thing that was looked at.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Finding {
    /// How bad it is.
    pub status: Status,
    /// What was found.
    pub what: String,
    /// What to do about it; absent where nothing needs doing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mend: Option<String>,
}

impl Finding {
    /// All is well.
    #[must_use]
    pub fn ok(what: impl Into<String>) -> Self {
        Self {
            status: Status::Ok,
            what: what.into(),
            mend: None,
        }
    }

    /// Works, but somebody should look at it; `mend` says what to do.
    #[must_use]
    pub fn warn(what: impl Into<String>, mend: impl Into<String>) -> Self {
        Self {
            status: Status::Warn,
            what: what.into(),
            mend: Some(mend.into()),
        }
    }

    /// Something does not work; `mend` says what to do.
    #[must_use]
    pub fn fail(what: impl Into<String>, mend: impl Into<String>) -> Self {
        Self {
            status: Status::Fail,
            what: what.into(),
            mend: Some(mend.into()),
        }
    }

    /// Looks whether `program` is there and executable.
    #[must_use]
    pub fn executable(program: &str, mend: &str) -> Self {
        match fs::metadata(program) {
            Ok(data) if data.is_file() && data.permissions().mode() & 0o111 != 0 => {
                Self::ok(format!("{program} is installed"))
            }
            Ok(_) => Self::fail(format!("{program} is not an executable file"), mend),
            Err(error) => Self::fail(format!("{program} cannot be found: {error}"), mend),
        }
    }

    /// Looks whether `path`, and every directory above it, is root's and nobody else can write it.
    #[must_use]
    pub fn roots_alone(path: &Path) -> Self {
        for place in path.ancestors() {
            let shown = place.display();
            let data = match fs::symlink_metadata(place) {
                Err(error) => {
                    let mend = "install it as root; start from the sample beside the helper, see docs/helper-protocol.md";
                    return Self::fail(format!("{shown} cannot be found: {error}"), mend);
                }
                Ok(data) => data,
            };
            if data.uid() != 0 {
                let what = format!("{shown} belongs to uid {} and not to root", data.uid());
                return Self::fail(what, format!("as root: chown root {shown}"));
            }
            // In a shared directory like /tmp the sticky bit keeps others from replacing what is root's.
            if data.mode() & 0o022 != 0 && !(data.is_dir() && data.mode() & 0o1000 != 0) {
                let what = format!(
                    "{shown} can be written by others (mode {:04o})",
                    data.mode() & 0o7777
                );
                return Self::fail(what, format!("as root: chmod go-w {shown}"));
            }
        }
        Self::ok(format!("{} is root's alone", path.display()))
    }

    /// Looks whether `program` is a setuid program of root's that nobody else can write.
    #[must_use]
    pub fn setuid_root(program: &Path) -> Self {
        let shown = program.display();
        let mend = format!("as root: chown root {shown} && chmod 4755 {shown}");
        match fs::metadata(program) {
            Err(error) => Self::fail(
                format!("{shown} cannot be found: {error}"),
                "install colibri-jail-helper",
            ),
            Ok(data) if data.uid() != 0 || data.mode() & 0o4000 == 0 => {
                Self::fail(format!("{shown} is not setuid root"), mend)
            }
            Ok(data) if data.mode() & 0o022 != 0 => {
                Self::fail(format!("{shown} can be written by others"), mend)
            }
            Ok(_) => Self::ok(format!("{shown} is setuid root")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tools_are_found_missing_or_unusable() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("tool");
        fs::write(&file, "").unwrap();
        for (mode, status) in [(0o644, Status::Fail), (0o755, Status::Ok)] {
            fs::set_permissions(&file, fs::Permissions::from_mode(mode)).unwrap();
            assert_eq!(
                Finding::executable(file.to_str().unwrap(), "mend").status,
                status
            );
        }
        let absent = Finding::executable("/absent/tool", "install it");
        assert_eq!(
            (absent.status, absent.mend.as_deref()),
            (Status::Fail, Some("install it"))
        );
        // Not root's, or not setuid, or writable: whichever it is, it is no helper.
        for mode in [0o755, 0o4777] {
            fs::set_permissions(&file, fs::Permissions::from_mode(mode)).unwrap();
            assert_eq!(Finding::setuid_root(&file).status, Status::Fail, "{mode:o}");
        }
    }
}
