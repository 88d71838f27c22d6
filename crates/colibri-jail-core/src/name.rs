//! Names of jails. jexec(8) and jail(8) would parse an invalid name as an option, an id, another jail or a parameter.

use std::str::FromStr;

use crate::JailError;
use crate::error::check_length;

/// Maximum length of a name, in bytes. The kernel stores it in MAXHOSTNAMELEN (256) bytes including the NUL (jail(2),
/// sys/jail.h).
const MAX_LEN: usize = 255;

/// The name of a jail, safe as an argument of jexec(8) and as a parameter value of jail(8).
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct JailName(pub(crate) String);

impl JailName {
    /// Parses a name that may denote a child jail, `parent.child` (jail(8), Hierarchical Jails). Every part must be a
    /// valid name.
    ///
    /// # Errors
    /// As [`JailName::from_str`], for the first invalid part.
    pub fn hierarchical(text: &str) -> Result<Self, JailError> {
        check_length("jail name", text, MAX_LEN)?;
        text.split('.').try_for_each(check)?;
        Ok(Self(text.to_owned()))
    }
}

fn check(text: &str) -> Result<(), JailError> {
    check_length("jail name", text, MAX_LEN)?;
    let invalid = |problem: &str| Err(JailError::invalid("jail name", text, problem));
    if text.is_empty() {
        return invalid("is empty; give a name of letters, digits, '-' and '_'");
    }
    if text.contains('.') {
        return invalid(
            "contains '.', which names a child of another jail; give a jail of this host itself",
        );
    }
    let is_valid = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
    if let Some(found) = text.chars().find(|c| !is_valid(*c)) {
        return invalid(&format!(
            "contains {found:?}; use letters, digits, '-' and '_' only"
        ));
    }
    if text.starts_with('-') {
        return invalid(
            "begins with '-': jexec(8) would parse it as an option; start it with a letter, a digit or '_'",
        );
    }
    if text.bytes().all(|byte| byte.is_ascii_digit()) {
        return invalid(
            "is all digits: jexec(8) would parse it as a jail id; give the jail's name",
        );
    }
    Ok(())
}

impl FromStr for JailName {
    type Err = JailError;

    /// Parses the name of a jail of the host itself. A dot, which denotes a child jail, is refused.
    fn from_str(text: &str) -> Result<Self, JailError> {
        check(text)?;
        Ok(Self(text.to_owned()))
    }
}

text_access!(JailName);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn invalid_jail_name_reports_its_error() {
        let long = "a".repeat(256);
        let table = [
            ("", "is empty"),
            ("-web", "begins with '-'"),
            ("-", "begins with '-'"),
            ("0", "is all digits"),
            ("123", "is all digits"),
            ("a.b", "contains '.'"),
            (".", "contains '.'"),
            ("a,b", "contains ','"),
            ("a=b", "contains '='"),
            ("a\"b", "contains '\"'"),
            ("a'b", "contains '\\''"),
            ("a b", "contains ' '"),
            ("a\n", "contains '\\n'"),
            ("a\u{a0}", "contains '\\u{a0}'"),
            ("a\0b", "contains '\\0'"),
            ("a\u{1b}[2J", "contains '\\u{1b}'"),
            ("a/b", "contains '/'"),
            ("*", "contains '*'"),
            ("größe", "contains 'ö'"),
            (&long, "has 256 bytes, at most 255"),
        ];
        for (name, expected) in table {
            let error = name.parse::<JailName>().unwrap_err().to_string();
            assert!(error.contains(expected), "{error}");
        }
        for good in ["web", "web-1", "_x", "1a", "A_b-9", &"a".repeat(255)] {
            assert_eq!(good.parse::<JailName>().unwrap().as_str(), good);
        }
    }

    #[test]
    fn hierarchical_name_requires_valid_parts() {
        assert_eq!(JailName::hierarchical("web.db").unwrap().as_str(), "web.db");
        for bad in ["web.", ".db", "web..db", "web.-x", "web.12", "web.a b"] {
            assert!(JailName::hierarchical(bad).is_err(), "{bad}");
        }
    }
}
