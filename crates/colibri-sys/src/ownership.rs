//! Rules on the owner and the permission bits of files.

use std::fmt;
use std::fs::Metadata;
use std::os::unix::fs::MetadataExt;

use rustix::process::geteuid;

/// Owner and permission bits of a file. Displays the bits, as in `0755`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ownership {
    /// Owner of the file.
    pub uid: u32,
    /// Permission bits with setuid, setgid and sticky bit, without the file type (inode(7)).
    pub mode: u32,
}

impl From<&Metadata> for Ownership {
    fn from(metadata: &Metadata) -> Self {
        Self {
            uid: metadata.uid(),
            mode: metadata.mode() & 0o7777,
        }
    }
}

impl fmt::Display for Ownership {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:04o}", self.mode)
    }
}

impl Ownership {
    /// Returns whether the file belongs to the user of this process.
    #[must_use]
    pub fn is_own(self) -> bool {
        self.uid == geteuid().as_raw()
    }

    /// Returns whether only root and the user of this process can change the file's mode.
    #[must_use]
    pub fn is_own_or_roots(self) -> bool {
        self.is_own() || self.uid == 0
    }

    /// Returns whether the group or other users can write the file.
    #[must_use]
    pub fn is_writable_by_others(self) -> bool {
        self.mode & 0o022 != 0
    }

    /// Returns whether the group or other users can read, write or execute the file.
    #[must_use]
    pub fn is_accessible_by_others(self) -> bool {
        self.mode & 0o077 != 0
    }

    /// Returns whether other users can replace entries of the directory. In a shared directory such as /tmp, the sticky
    /// bit prevents it.
    #[must_use]
    pub fn entries_are_replaceable(self) -> bool {
        self.is_writable_by_others() && self.mode & 0o1000 == 0
    }

    /// Checks a directory whose content this process trusts: it belongs to the user of this process, and only that user
    /// can write to it.
    ///
    /// # Errors
    /// See [`UnsafeDirectory`].
    pub fn check_trusted_directory(self) -> Result<(), UnsafeDirectory> {
        if !self.is_own() {
            let problem = format!("belongs to uid {}, not to this user", self.uid);
            return Err(UnsafeDirectory { problem, fix: None });
        }
        if self.is_writable_by_others() {
            let problem =
                format!("is writable by others (mode {self}), so its content cannot be trusted");
            let fix = Some("check its content, then run: chmod 700");
            return Err(UnsafeDirectory { problem, fix });
        }
        Ok(())
    }

    /// Checks a directory that contains a socket: other users must not be able to replace the socket.
    ///
    /// # Errors
    /// See [`UnsafeDirectory`].
    pub fn check_socket_directory(self) -> Result<(), UnsafeDirectory> {
        if self.entries_are_replaceable() {
            let problem = format!("is writable by others (mode {self})");
            let fix = Some("run: chmod 700");
            return Err(UnsafeDirectory { problem, fix });
        }
        Ok(())
    }
}

/// Why a directory is unsafe.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UnsafeDirectory {
    /// The predicate of a sentence about the directory.
    pub problem: String,
    /// The hint that makes it safe, without the path at its end; `None` if another directory is needed.
    pub fix: Option<&'static str>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_depend_on_mode_bits() {
        for (mode, writable, accessible, replaceable) in [
            (0o700, false, false, false),
            (0o750, false, true, false),
            (0o755, false, true, false),
            (0o770, true, true, true),
            (0o702, true, true, true),
            (0o1777, true, true, false),
            (0o4755, false, true, false),
        ] {
            let ownership = Ownership { uid: 0, mode };
            let actual = (
                ownership.is_writable_by_others(),
                ownership.is_accessible_by_others(),
                ownership.entries_are_replaceable(),
            );
            assert_eq!(actual, (writable, accessible, replaceable), "{ownership}");
        }
    }

    #[test]
    fn owner_is_compared_with_the_process() {
        let file = tempfile::tempfile().unwrap();
        let own = Ownership::from(&file.metadata().unwrap());
        assert!(own.is_own() && own.is_own_or_roots());
        let other = Ownership {
            uid: own.uid.wrapping_add(4711).max(1),
            ..own
        };
        assert!(!other.is_own() && !other.is_own_or_roots());
        let root = Ownership { uid: 0, ..own };
        assert!(root.is_own_or_roots());
        assert_eq!(Ownership { uid: 0, mode: 0o75 }.to_string(), "0075");
    }
}
