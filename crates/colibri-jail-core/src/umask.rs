//! File mode creation masks.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::JailError;

/// A file mode creation mask (umask(2)), written octal like `022`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[cfg_attr(feature = "schema", schemars(with = "String"))]
#[serde(try_from = "String", into = "String")]
pub struct Umask(u32);

impl Umask {
    /// Returns the mask as a number.
    #[must_use]
    pub fn bits(self) -> u32 {
        self.0
    }
}

/// Returns `022`: other users may read the agent's files, but not write them.
impl Default for Umask {
    fn default() -> Self {
        Self(0o022)
    }
}

impl FromStr for Umask {
    type Err = JailError;

    fn from_str(text: &str) -> Result<Self, JailError> {
        let octal =
            (1..=4).contains(&text.len()) && text.bytes().all(|b| (b'0'..=b'7').contains(&b));
        u32::from_str_radix(text, 8)
            .ok()
            .filter(|bits| octal && *bits <= 0o777)
            .map(Self)
            .ok_or_else(|| {
                let problem = "is invalid: it is not an octal number up to 777; write it like 022";
                JailError::invalid("umask", text.chars().take(40).collect::<String>(), problem)
            })
    }
}

impl TryFrom<String> for Umask {
    type Error = JailError;

    fn try_from(text: String) -> Result<Self, JailError> {
        text.parse()
    }
}

impl From<Umask> for String {
    fn from(mask: Umask) -> Self {
        mask.to_string()
    }
}

impl fmt::Display for Umask {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:03o}", self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn umask_accepts_octal_permission_bits_only() {
        for (text, bits) in [
            ("022", Some(0o022)),
            ("0", Some(0)),
            ("0077", Some(0o077)),
            ("777", Some(0o777)),
            ("1000", None),
            ("8", None),
            ("", None),
            ("-1", None),
            ("+22", None),
            ("0o22", None),
            ("00022", None),
        ] {
            let parsed = text.parse::<Umask>().ok().map(Umask::bits);
            assert_eq!(parsed, bits, "{text:?}");
        }
        assert_eq!(Umask::default().to_string(), "022");
        assert_eq!(serde_json::to_value(Umask(0o7)).unwrap(), "007");
    }
}
