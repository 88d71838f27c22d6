//! Checks which user owns the process at the daemon's socket. In a directory that other users may write, any user can
//! listen at that path.

use std::fs;

/// Users whose daemon is trusted: root, the user of this process, and optionally one configured user.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct TrustedUsers {
    more: Option<u32>,
}

/// A name or number that is not a user of this host.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("daemon user {0:?} is unknown; give a user of /etc/passwd, or the number of one")]
pub struct UnknownUser(pub String);

impl TrustedUsers {
    /// Trusts root, the user of this process and `uid`.
    #[must_use]
    pub fn and(uid: u32) -> Self {
        Self { more: Some(uid) }
    }

    /// Trusts root, the user of this process and `user`, given by name or number.
    ///
    /// # Errors
    /// There is no such user.
    pub fn and_user(user: &str) -> Result<Self, UnknownUser> {
        if let Ok(uid) = user.parse() {
            return Ok(Self::and(uid));
        }
        let table = fs::read_to_string("/etc/passwd").unwrap_or_default();
        uid_in(&table, user)
            .map(Self::and)
            .ok_or_else(|| UnknownUser(user.to_owned()))
    }

    pub(crate) fn trusts(self, uid: u32) -> bool {
        uid == 0 || uid == own_uid() || self.more == Some(uid)
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
    fn only_root_the_own_and_the_configured_user_are_trusted() {
        let own = own_uid();
        let stranger = own.wrapping_add(4711).max(1);
        let none = TrustedUsers::default();
        assert!(none.trusts(0) && none.trusts(own) && !none.trusts(stranger));
        let more = TrustedUsers::and(stranger);
        assert!(more.trusts(0) && more.trusts(own) && more.trusts(stranger));
        assert!(!more.trusts(stranger + 1));
    }

    #[test]
    fn users_are_found_by_name_and_number() {
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
        assert_eq!(TrustedUsers::and_user("1234"), Ok(TrustedUsers::and(1234)));
        let unknown = TrustedUsers::and_user("no-such-user-here");
        assert_eq!(unknown, Err(UnknownUser("no-such-user-here".to_owned())));
    }
}
