//! Names of jails. jexec(8) and jail(8) would parse an invalid name as an option, an id, another jail or a parameter.

use std::fmt;
use std::str::FromStr;

use crate::JailError;

/// Maximum length of a name, in bytes. The kernel stores it in MAXHOSTNAMELEN (256) bytes including the NUL (jail(2),
/// sys/jail.h).
const MAX_LEN: usize = 255;

/// The name of a jail, safe as an argument of jexec(8) and as a parameter value of jail(8).
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct JailName(String);

impl JailName {
    /// Parses a name that may denote a child jail, `parent.child` (jail(8), Hierarchical Jails). Every part must be a
    /// valid name.
    ///
    /// # Errors
    /// As [`JailName::from_str`], for the first invalid part.
    pub fn hierarchical(text: &str) -> Result<Self, JailError> {
        check_length(text)?;
        text.split('.').try_for_each(check)?;
        Ok(Self(text.to_owned()))
    }

    /// Wraps a valid name that is a constant of this crate.
    pub(crate) fn literal(name: &'static str) -> Self {
        Self(name.to_owned())
    }

    /// Returns the name as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

fn check_length(text: &str) -> Result<(), JailError> {
    if text.len() > MAX_LEN {
        return Err(JailError::NameTooLong {
            length: text.len(),
            max: MAX_LEN,
        });
    }
    Ok(())
}

fn check(text: &str) -> Result<(), JailError> {
    let name = || text.to_owned();
    check_length(text)?;
    if text.is_empty() {
        return Err(JailError::NameEmpty);
    }
    for found in text.chars() {
        match found {
            '\0' => return Err(JailError::NameNul(name())),
            c if c.is_whitespace() => return Err(JailError::NameWhitespace(name())),
            c if c.is_control() => return Err(JailError::NameControl(name())),
            '.' => return Err(JailError::NameDot(name())),
            ',' => return Err(JailError::NameComma(name())),
            '=' => return Err(JailError::NameEquals(name())),
            '"' | '\'' | '`' => return Err(JailError::NameQuote(name())),
            c if c.is_ascii_alphanumeric() || c == '-' || c == '_' => {}
            found => {
                return Err(JailError::NameCharacter {
                    name: name(),
                    found,
                });
            }
        }
    }
    if text.starts_with('-') {
        return Err(JailError::NameLeadingDash(name()));
    }
    if text.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(JailError::NameAllDigits(name()));
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

impl fmt::Display for JailName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn invalid_jail_name_reports_its_error() {
        let n = str::to_owned;
        let table = [
            ("", JailError::NameEmpty),
            ("-web", JailError::NameLeadingDash(n("-web"))),
            ("-", JailError::NameLeadingDash(n("-"))),
            ("0", JailError::NameAllDigits(n("0"))),
            ("123", JailError::NameAllDigits(n("123"))),
            ("a.b", JailError::NameDot(n("a.b"))),
            (".", JailError::NameDot(n("."))),
            ("a,b", JailError::NameComma(n("a,b"))),
            ("a=b", JailError::NameEquals(n("a=b"))),
            ("a\"b", JailError::NameQuote(n("a\"b"))),
            ("a'b", JailError::NameQuote(n("a'b"))),
            ("a b", JailError::NameWhitespace(n("a b"))),
            ("a\n", JailError::NameWhitespace(n("a\n"))),
            ("a\u{a0}", JailError::NameWhitespace(n("a\u{a0}"))),
            ("a\0b", JailError::NameNul(n("a\0b"))),
            ("a\u{1b}[2J", JailError::NameControl(n("a\u{1b}[2J"))),
            (
                "a/b",
                JailError::NameCharacter {
                    name: n("a/b"),
                    found: '/',
                },
            ),
            (
                "*",
                JailError::NameCharacter {
                    name: n("*"),
                    found: '*',
                },
            ),
            (
                "größe",
                JailError::NameCharacter {
                    name: n("größe"),
                    found: 'ö',
                },
            ),
        ];
        for (name, expected) in table {
            assert_eq!(name.parse::<JailName>(), Err(expected), "{name:?}");
        }
        assert_eq!(
            "a".repeat(256).parse::<JailName>(),
            Err(JailError::NameTooLong {
                length: 256,
                max: 255
            })
        );
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
