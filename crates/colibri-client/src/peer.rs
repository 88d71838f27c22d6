//! Checks which user owns the process at the daemon's socket. In a directory that other users may write, any user can
//! listen at that path.

use std::fs;

/// Users whose daemon is trusted: root, the user of this process, and optionally one configured user.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct TrustedUsers {
    configured: Option<u32>,
}

/// A name that no user of this host has.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "cannot trust daemon user {0:?}: no such user in /etc/passwd; give the name of a user, or a uid"
)]
pub struct UnknownUser(pub String);

impl TrustedUsers {
    /// Trusts root, the user of this process and `uid`.
    #[must_use]
    pub fn with_uid(uid: u32) -> Self {
        Self {
            configured: Some(uid),
        }
    }

    /// Trusts root, the user of this process and `user`, given by name or number.
    ///
    /// # Errors
    /// [`UnknownUser`] if no user has this name.
    pub fn with_user(user: &str) -> Result<Self, UnknownUser> {
        if let Ok(uid) = user.parse() {
            return Ok(Self::with_uid(uid));
        }
        let table = fs::read_to_string("/etc/passwd").unwrap_or_default();
        uid_in(&table, user)
            .map(Self::with_uid)
            .ok_or_else(|| UnknownUser(user.to_owned()))
    }

    pub(crate) fn trusts(self, uid: u32) -> bool {
        uid == 0 || uid == own_uid() || self.configured == Some(uid)
    }
}

pub(crate) fn own_uid() -> u32 {
    rustix::process::geteuid().as_raw()
}

/// Returns the uid of a user in a passwd(5) table.
fn uid_in(table: &str, user: &str) -> Option<u32> {
    let line = table
        .lines()
        .find(|line| line.split(':').next() == Some(user))?;
    line.split(':').nth(2)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_root_own_and_configured_user_are_trusted() {
        let own = own_uid();
        let stranger = own.wrapping_add(4711).max(1);
        let default = TrustedUsers::default();
        assert!(default.trusts(0) && default.trusts(own) && !default.trusts(stranger));
        let configured = TrustedUsers::with_uid(stranger);
        assert!(configured.trusts(0) && configured.trusts(own) && configured.trusts(stranger));
        assert!(!configured.trusts(stranger + 1));
    }

    #[test]
    fn user_is_found_by_name_or_number() {
        let table = "root:x:0:0:root:/root:/bin/sh\ncolibri:x:998:997::/:/bin/false\nbroken\n";
        for (user, uid) in [
            ("colibri", Some(998)),
            ("root", Some(0)),
            ("broken", None),
            ("x", None),
            ("", None),
        ] {
            assert_eq!(uid_in(table, user), uid, "{user}");
        }
        assert_eq!(
            TrustedUsers::with_user("1234"),
            Ok(TrustedUsers::with_uid(1234))
        );
        let unknown = TrustedUsers::with_user("no-such-user-here");
        assert_eq!(unknown, Err(UnknownUser("no-such-user-here".to_owned())));
    }
}
