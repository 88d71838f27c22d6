//! Which variables of the caller's an agent gets: those that the policy names, and never one that changes how
//! the programs on the way run.

use std::fmt;

use serde::Deserialize;

use crate::policy::from_text;
use crate::users::Entry;

/// The dynamic linker's and the C library's (ld.so(8), rtld(1), malloc(3)), and bash's functions.
const NEVER_PREFIXES: &[&str] = &["LD_", "_RLD", "MALLOC_", "GLIBC_", "GCONV_", "BASH_FUNC_"];
/// Others that make a shell or the C library read a file or act otherwise.
const NEVER: &[&str] = &[
    "IFS",
    "CDPATH",
    "ENV",
    "BASH_ENV",
    "BASHOPTS",
    "SHELLOPTS",
    "PS4",
    "GLOBIGNORE",
    "LOCPATH",
    "NLSPATH",
    "PATH_LOCALE",
    "GETCONF_DIR",
    "HOSTALIASES",
    "LOCALDOMAIN",
    "RES_OPTIONS",
    "RESOLV_HOST_CONF",
    "TZDIR",
];
/// These follow the user inside.
const OF_USER: &[&str] = &["USER", "LOGNAME", "HOME", "SHELL"];

/// A name, or a prefix of names and `*`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub(crate) struct Variable {
    text: String,
    prefix: bool,
}
from_text! { Variable }

impl Variable {
    fn new(text: &str) -> Result<Self, String> {
        let (start, prefix) = match text.strip_suffix('*') {
            Some(start) => (start, true),
            None => (text, false),
        };
        let empty = start.is_empty() && prefix;
        if !empty && !is_name(start.as_bytes()) {
            return Err(format!(
                "environment {text:?} is not a name, or the beginning of one and *"
            ));
        }
        if !empty && never(start) {
            return Err(format!("environment {text:?} never passes; leave it out"));
        }
        Ok(Self {
            text: start.to_owned(),
            prefix,
        })
    }

    fn matches(&self, name: &str) -> bool {
        if self.prefix {
            name.starts_with(&self.text)
        } else {
            name == self.text
        }
    }
}

impl fmt::Display for Variable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}", self.text, if self.prefix { "*" } else { "" })
    }
}

fn is_name(name: &[u8]) -> bool {
    let letter = |byte: &u8| byte.is_ascii_alphabetic() || *byte == b'_';
    name.first().is_some_and(letter)
        && name
            .iter()
            .all(|byte| letter(byte) || byte.is_ascii_digit())
}

fn never(name: &str) -> bool {
    NEVER.contains(&name) || NEVER_PREFIXES.iter().any(|prefix| name.starts_with(prefix))
}

/// The agent's environment, as `NAME=value`. Of a name given twice the first counts, as for getenv(3).
pub(crate) fn filter(
    given: impl IntoIterator<Item = (Vec<u8>, Vec<u8>)>,
    allowed: &[Variable],
    user: Option<&Entry>,
) -> Vec<Vec<u8>> {
    let mut kept: Vec<(String, Vec<u8>)> = Vec::new();
    for (name, value) in given {
        let Ok(name) = String::from_utf8(name) else {
            continue;
        };
        let passes = is_name(name.as_bytes())
            && !never(&name)
            && !OF_USER.contains(&name.as_str())
            // A shell function, as CVE-2014-6271 had them.
            && !value.starts_with(b"()")
            && !value.contains(&0)
            && allowed.iter().any(|variable| variable.matches(&name))
            && kept.iter().all(|(known, _)| *known != name);
        if passes {
            kept.push((name, value));
        }
    }
    if let Some(user) = user {
        for (name, value) in [
            ("USER", &user.name),
            ("LOGNAME", &user.name),
            ("HOME", &user.home),
            ("SHELL", &user.shell),
        ] {
            kept.push((name.to_owned(), value.as_bytes().to_vec()));
        }
    }
    kept.into_iter()
        .map(|(name, value)| [name.as_bytes(), b"=", &value].concat())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn filtered(given: &[(&str, &str)], allowed: &[&str]) -> Vec<String> {
        let allowed: Vec<_> = allowed
            .iter()
            .map(|text| Variable::new(text).unwrap())
            .collect();
        let given = given
            .iter()
            .map(|(n, v)| (n.as_bytes().to_vec(), v.as_bytes().to_vec()));
        filter(given, &allowed, None)
            .into_iter()
            .map(|bytes| String::from_utf8(bytes).unwrap())
            .collect()
    }

    #[test]
    fn only_what_is_named_passes_and_some_never() {
        let given = [
            ("PATH", "/bin"),
            ("LC_ALL", "C"),
            ("SECRET", "x"),
            ("LD_PRELOAD", "/x"),
            ("LD_", "y"),
            ("IFS", "/"),
            ("BASH_ENV", "/x"),
            ("ENV", "/x"),
            ("GLIBC_TUNABLES", "x"),
            ("GCONV_PATH", "/x"),
            ("MALLOC_CONF", "x"),
            ("BASH_FUNC_a", "() { :;}"),
            ("F", "() { :;}"),
            ("HOME", "/root"),
            ("a-b", "1"),
            ("1a", "1"),
            ("", "1"),
            ("PATH", "/evil"),
        ];
        assert_eq!(
            filtered(&given, &["PATH", "LC_*"]),
            ["PATH=/bin", "LC_ALL=C"]
        );
        assert_eq!(
            filtered(&given, &["*"]),
            ["PATH=/bin", "LC_ALL=C", "SECRET=x"]
        );
        assert_eq!(filtered(&given, &[]), Vec::<String>::new());
        for bad in [
            "LD_*",
            "LD_PRELOAD",
            "MALLOC_*",
            "ENV",
            "A=B",
            "a b",
            "",
            "*A",
            "A*B*",
        ] {
            assert!(Variable::new(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn the_users_own_variables_are_the_users() {
        let user = Entry {
            name: "agent".into(),
            uid: 1,
            gid: 1,
            home: "/home/agent".into(),
            shell: "/bin/sh".into(),
        };
        let given = [(b"HOME".to_vec(), b"/root".to_vec())];
        let kept = filter(given, &[Variable::new("*").unwrap()], Some(&user));
        let expected: [&[u8]; 4] = [
            b"USER=agent",
            b"LOGNAME=agent",
            b"HOME=/home/agent",
            b"SHELL=/bin/sh",
        ];
        assert_eq!(kept, expected);
    }

    proptest! {
        #[test]
        fn nothing_that_must_not_pass_ever_does(
            given in prop::collection::vec(("(LD_|GLIBC_|MALLOC_|IFS|ENV|[A-Z_]|=|\\PC){0,6}", "\\PC{0,8}"), 0..8)
        ) {
            let given: Vec<_> = given.iter().map(|(n, v)| (n.as_str(), v.as_str())).collect();
            let kept = filtered(&given, &["*"]);
            for line in &kept {
                let (name, _) = line.split_once('=').unwrap();
                prop_assert!(is_name(name.as_bytes()) && !never(name));
                let prefix = format!("{name}=");
                prop_assert_eq!(kept.iter().filter(|other| other.starts_with(&prefix)).count(), 1);
            }
        }
    }
}
