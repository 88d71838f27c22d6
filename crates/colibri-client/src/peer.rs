//! Checks which user owns the process at the daemon's socket. In a directory that other users may write, any user can
//! listen at that path.

use colibri_sys::passwd;

/// Users whose daemon is trusted: root, the user of this process, and optionally one configured user.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct TrustedUsers(Option<u32>);

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
        Self(Some(uid))
    }

    /// Trusts root, the user of this process and `user`, given by name or number.
    ///
    /// # Errors
    /// [`UnknownUser`] if no user has this name.
    pub fn with_user(user: &str) -> Result<Self, UnknownUser> {
        if let Ok(uid) = user.parse() {
            return Ok(Self::with_uid(uid));
        }
        passwd::host_user(user)
            .map(|ids| Self::with_uid(ids.uid))
            .ok_or_else(|| UnknownUser(user.to_owned()))
    }

    /// Returns the configured user, if that is not the user of this process.
    #[must_use]
    pub fn other_user(self) -> Option<u32> {
        self.0.filter(|uid| *uid != own_uid())
    }

    pub(crate) fn trusts(self, uid: u32) -> bool {
        uid == 0 || uid == own_uid() || self.0 == Some(uid)
    }
}

pub(crate) fn own_uid() -> u32 {
    rustix::process::geteuid().as_raw()
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
        assert_eq!(configured.other_user(), Some(stranger));
        assert_eq!(TrustedUsers::with_uid(own).other_user(), None);
    }

    #[test]
    fn user_is_found_by_name_or_number() {
        assert_eq!(
            TrustedUsers::with_user("root"),
            Ok(TrustedUsers::with_uid(0))
        );
        assert_eq!(
            TrustedUsers::with_user("1234"),
            Ok(TrustedUsers::with_uid(1234))
        );
        let unknown = TrustedUsers::with_user("no-such-user-here");
        assert_eq!(unknown, Err(UnknownUser("no-such-user-here".to_owned())));
    }
}
