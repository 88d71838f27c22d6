//! Users inside a jail, by name (FreeBSD) or by number (bubblewrap).

use std::fmt;
use std::str::FromStr;

use crate::JailError;

/// Maximum length of a user name, in bytes. FreeBSD stores it in MAXLOGNAME (33) bytes including the NUL (getlogin(2));
/// Linux allows 32 too.
const MAX_LEN: usize = 32;

/// A user inside the jail.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum JailUser {
    /// By name, from the jail's user table.
    Name(UserName),
    /// By number.
    Id {
        /// User id.
        uid: u32,
        /// Group id; the user id if absent.
        gid: Option<u32>,
    },
}

/// A user's name that no program parses as an option, a number or syntax.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct UserName(String);

impl AsRef<str> for UserName {
    fn as_ref(&self) -> &str {
        &self.0
    }
}

impl FromStr for JailUser {
    type Err = JailError;

    fn from_str(text: &str) -> Result<Self, JailError> {
        if text.is_empty() {
            return Err(JailError::UserEmpty);
        }
        if text.starts_with('-') {
            return Err(JailError::UserLeadingDash(text.to_owned()));
        }
        if text.starts_with(|c: char| c.is_ascii_digit()) {
            let (uid, gid) = match text.split_once(':') {
                Some((uid, gid)) => (uid, Some(gid)),
                None => (text, None),
            };
            return Ok(Self::Id {
                uid: parse_id(uid)?,
                gid: gid.map(parse_id).transpose()?,
            });
        }
        if text.len() > MAX_LEN {
            return Err(JailError::UserTooLong {
                length: text.len(),
                max: MAX_LEN,
            });
        }
        let invalid = |c: &char| !(c.is_ascii_alphanumeric() || "-_.".contains(*c));
        match text.chars().find(invalid) {
            Some(found) => Err(JailError::UserCharacter {
                user: text.to_owned(),
                found,
            }),
            None => Ok(Self::Name(UserName(text.to_owned()))),
        }
    }
}

/// Parses a user or group id. 4294967295 is (uid_t)-1, which setuid(2) and chown(2) interpret as "do not change".
fn parse_id(text: &str) -> Result<u32, JailError> {
    text.parse()
        .ok()
        .filter(|id| *id != u32::MAX && text.bytes().all(|byte| byte.is_ascii_digit()))
        .ok_or_else(|| JailError::UserId(text.to_owned()))
}

impl fmt::Display for JailUser {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Name(name) => f.write_str(&name.0),
            Self::Id { uid, gid: None } => write!(f, "{uid}"),
            Self::Id {
                uid,
                gid: Some(gid),
            } => write!(f, "{uid}:{gid}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn invalid_jail_user_reports_its_error() {
        let u = str::to_owned;
        let table = [
            ("", JailError::UserEmpty),
            ("-l", JailError::UserLeadingDash(u("-l"))),
            ("-1", JailError::UserLeadingDash(u("-1"))),
            ("4294967295", JailError::UserId(u("4294967295"))),
            ("0:4294967295", JailError::UserId(u("4294967295"))),
            ("4294967296", JailError::UserId(u("4294967296"))),
            ("1000:", JailError::UserId(u(""))),
            ("1000:1:2", JailError::UserId(u("1:2"))),
            ("1x", JailError::UserId(u("1x"))),
            (
                "a b",
                JailError::UserCharacter {
                    user: u("a b"),
                    found: ' ',
                },
            ),
            (
                "a,b",
                JailError::UserCharacter {
                    user: u("a,b"),
                    found: ',',
                },
            ),
            (
                "a=b",
                JailError::UserCharacter {
                    user: u("a=b"),
                    found: '=',
                },
            ),
            (
                "a\0",
                JailError::UserCharacter {
                    user: u("a\0"),
                    found: '\0',
                },
            ),
            (
                "root:wheel",
                JailError::UserCharacter {
                    user: u("root:wheel"),
                    found: ':',
                },
            ),
        ];
        for (user, expected) in table {
            assert_eq!(user.parse::<JailUser>(), Err(expected), "{user:?}");
        }
        assert_eq!(
            "a".repeat(33).parse::<JailUser>(),
            Err(JailError::UserTooLong {
                length: 33,
                max: 32
            })
        );
        for good in ["root", "www-data", "_pkg.fetch", "0", "1000", "1000:100"] {
            assert_eq!(good.parse::<JailUser>().unwrap().to_string(), good);
        }
    }
}
