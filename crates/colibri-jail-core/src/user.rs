//! Users inside a jail, by name (FreeBSD) or by number (bubblewrap).

use std::fmt;
use std::str::FromStr;

use crate::JailError;
use crate::error::check_length;

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
        let invalid = |problem: &str| Err(JailError::invalid("`user`", text, problem));
        if text.is_empty() || text.starts_with('-') {
            return invalid("is not a user; give a name, UID or UID:GID");
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
        check_length("`user` name", text, MAX_LEN)?;
        let is_valid = |c: &char| c.is_ascii_alphanumeric() || "-_.".contains(*c);
        match text.chars().find(|c| !is_valid(c)) {
            Some(found) => invalid(&format!(
                "contains {found:?}; use letters, digits, '-', '_' and '.' only"
            )),
            None => Ok(Self::Name(UserName(text.to_owned()))),
        }
    }
}

/// Parses a user or group id. 4294967295 is (uid_t)-1, which setuid(2) and chown(2) interpret as "do not change".
fn parse_id(text: &str) -> Result<u32, JailError> {
    text.parse()
        .ok()
        .filter(|id| *id != u32::MAX && text.bytes().all(|byte| byte.is_ascii_digit()))
        .ok_or_else(|| {
            JailError::invalid("`user` id", text, "is out of range; give 0 to 4294967294")
        })
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
        let long = "a".repeat(33);
        let table = [
            ("", "is not a user"),
            ("-l", "is not a user"),
            ("-1", "is not a user"),
            ("4294967295", "id \"4294967295\" is out of range"),
            ("0:4294967295", "id \"4294967295\" is out of range"),
            ("4294967296", "id \"4294967296\" is out of range"),
            ("1000:", "id \"\" is out of range"),
            ("1000:1:2", "id \"1:2\" is out of range"),
            ("1x", "id \"1x\" is out of range"),
            ("a b", "contains ' '"),
            ("a,b", "contains ','"),
            ("a=b", "contains '='"),
            ("a\0", "contains '\\0'"),
            ("root:wheel", "contains ':'"),
            (&long, "has 33 bytes, at most 32"),
        ];
        for (user, expected) in table {
            let error = user.parse::<JailUser>().unwrap_err().to_string();
            assert!(error.contains(expected), "{error}");
        }
        for good in ["root", "www-data", "_pkg.fetch", "0", "1000", "1000:100"] {
            assert_eq!(good.parse::<JailUser>().unwrap().to_string(), good);
        }
    }
}
