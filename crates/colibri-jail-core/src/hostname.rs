//! Host names of jails.

use std::str::FromStr;

use crate::JailError;

/// Maximum length of a host name, in bytes: the limit of Linux (uname(2)). FreeBSD allows 255 (sysctl `kern.hostname`).
const MAX_LEN: usize = 64;

/// A host name: labels of letters, digits and `-`, separated by dots (hostname(7)).
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Hostname(String);

/// Returns whether this is a label of a host name.
pub(crate) fn is_label(label: &str) -> bool {
    !label.is_empty()
        && label.len() <= 63
        && !label.starts_with('-')
        && !label.ends_with('-')
        && label
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
}

impl FromStr for Hostname {
    type Err = JailError;

    fn from_str(text: &str) -> Result<Self, JailError> {
        if text.len() <= MAX_LEN && text.split('.').all(is_label) {
            Ok(Self(text.to_owned()))
        } else {
            let problem = "is not a host name; use letters, digits, '-' and '.', at most 64 in all";
            Err(JailError::invalid("`hostname`", text, problem))
        }
    }
}

text_access!(Hostname);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hostname_accepts_dns_labels_only() {
        for good in ["a", "agent-1", "a.b.example", "4u", &"a".repeat(63)] {
            assert_eq!(good.parse::<Hostname>().unwrap().as_str(), good);
        }
        for bad in [
            "",
            "-a",
            "a-",
            ".",
            "a.",
            "a..b",
            "a b",
            "a_b",
            "a,b",
            "a=b",
            "a\0",
            "ä",
            "a/b",
            &"a".repeat(64),
            &["a"; 40].join("."),
        ] {
            assert!(bad.parse::<Hostname>().is_err(), "{bad:?}");
        }
    }
}
