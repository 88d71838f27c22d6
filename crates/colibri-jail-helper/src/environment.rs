//! Filters the caller's environment for the agent: variables that a rule allows, and never one that changes how the
//! dynamic linker, the C library or a shell behaves.

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;

use colibri_jail_core::{CONTROL_VARIABLE, PROXY_VARIABLE};

use crate::users::PasswdEntry;

/// Prefixes of variables that never pass: dynamic linker and C library (ld.so(8), rtld(1), malloc(3)), bash functions.
const FORBIDDEN_PREFIXES: &[&str] = &["LD_", "_RLD", "MALLOC_", "GLIBC_", "GCONV_", "BASH_FUNC_"];
/// Further variables that never pass, because a shell or the C library reads files or changes its behavior for them.
const FORBIDDEN: [&[&str]; 5] = [
    &[CONTROL_VARIABLE, PROXY_VARIABLE],
    // Shells: sh(1), bash(1).
    &["IFS", "CDPATH", "ENV", "PS4", "GLOBIGNORE"],
    &["BASH_ENV", "BASHOPTS", "SHELLOPTS"],
    // The C library: files of locales, limits and time zones, and the resolver.
    &["LOCPATH", "NLSPATH", "PATH_LOCALE", "GETCONF_DIR", "TZDIR"],
    &[
        "HOSTALIASES",
        "LOCALDOMAIN",
        "RES_OPTIONS",
        "RESOLV_HOST_CONF",
    ],
];
/// Variables that are set from the agent's passwd(5) entry only.
const OF_USER: &[&str] = &["USER", "LOGNAME", "HOME", "SHELL"];

/// Reports whether `name` is a portable variable name: letters, digits and `_`, not starting with a digit.
pub(crate) fn is_name(name: &str) -> bool {
    let letter = |byte: u8| byte.is_ascii_alphabetic() || byte == b'_';
    let mut bytes = name.bytes();
    bytes.next().is_some_and(letter) && bytes.all(|byte| letter(byte) || byte.is_ascii_digit())
}

/// Reports whether a variable never passes, even if a rule names it.
pub(crate) fn is_forbidden(name: &str) -> bool {
    let mut prefixes = FORBIDDEN_PREFIXES.iter();
    FORBIDDEN.iter().any(|names| names.contains(&name))
        || prefixes.any(|prefix| name.starts_with(prefix))
}

/// Returns the agent's environment as `NAME=value`. Of duplicate names the first counts, as in getenv(3).
pub(crate) fn filter(
    caller_variables: impl IntoIterator<Item = (OsString, OsString)>,
    is_allowed: impl Fn(&str) -> bool,
    user: Option<&PasswdEntry>,
) -> Vec<Vec<u8>> {
    let mut variables: Vec<(String, Vec<u8>)> = Vec::new();
    for (name, value) in caller_variables {
        let (Ok(name), value) = (name.into_string(), value.into_vec()) else {
            continue;
        };
        let passes = is_name(&name)
            && !is_forbidden(&name)
            && !OF_USER.contains(&name.as_str())
            // A shell function, as in CVE-2014-6271.
            && !value.starts_with(b"()")
            && !value.contains(&0)
            && is_allowed(&name)
            && variables.iter().all(|(known, _)| *known != name);
        if passes {
            variables.push((name, value));
        }
    }
    if let Some(user) = user {
        let values = [&user.name, &user.name, &user.home, &user.shell];
        for (name, value) in OF_USER.iter().zip(values) {
            variables.push(((*name).to_owned(), value.as_bytes().to_vec()));
        }
    }
    variables
        .into_iter()
        .map(|(name, value)| [name.as_bytes(), b"=", &value].concat())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::users::UserIds;
    use proptest::prelude::*;

    fn filtered(variables: &[(&str, &str)], allowed: &[&str]) -> Vec<String> {
        let is_allowed = |name: &str| {
            allowed.iter().any(|text| match text.strip_suffix('*') {
                Some(prefix) => name.starts_with(prefix),
                None => name == *text,
            })
        };
        let variables = variables.iter().map(|(n, v)| (n.into(), v.into()));
        filter(variables, is_allowed, None)
            .into_iter()
            .map(|bytes| String::from_utf8(bytes).unwrap())
            .collect()
    }

    #[test]
    fn filter_passes_only_allowed_variables() {
        let variables = [
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
            ("COLIBRI_CONTROL_FD", "3"),
            ("COLIBRI_PROXY_FD", "4"),
            ("BASH_FUNC_a", "() { :;}"),
            ("F", "() { :;}"),
            ("HOME", "/root"),
            ("a-b", "1"),
            ("1a", "1"),
            ("", "1"),
            ("PATH", "/evil"),
        ];
        assert_eq!(
            filtered(&variables, &["PATH", "LC_*"]),
            ["PATH=/bin", "LC_ALL=C"]
        );
        assert_eq!(
            filtered(&variables, &["*"]),
            ["PATH=/bin", "LC_ALL=C", "SECRET=x"]
        );
        assert_eq!(filtered(&variables, &[]), Vec::<String>::new());
    }

    #[test]
    fn user_variables_follow_the_passwd_entry() {
        let user = PasswdEntry {
            name: "agent".into(),
            ids: UserIds { uid: 1, gid: 1 },
            home: "/home/agent".into(),
            shell: "/bin/sh".into(),
        };
        let variables = [("HOME".into(), "/root".into())];
        let variables = filter(variables, |_| true, Some(&user));
        let expected: [&[u8]; 4] = [
            b"USER=agent",
            b"LOGNAME=agent",
            b"HOME=/home/agent",
            b"SHELL=/bin/sh",
        ];
        assert_eq!(variables, expected);
    }

    proptest! {
        #[test]
        fn forbidden_variables_never_pass(
            variables in prop::collection::vec(("(LD_|GLIBC_|MALLOC_|IFS|ENV|[A-Z_]|=|\\PC){0,6}", "\\PC{0,8}"), 0..8)
        ) {
            let variables: Vec<_> = variables.iter().map(|(n, v)| (n.as_str(), v.as_str())).collect();
            let variables = filtered(&variables, &["*"]);
            for line in &variables {
                let (name, _) = line.split_once('=').unwrap();
                prop_assert!(is_name(name) && !is_forbidden(name));
                let prefix = format!("{name}=");
                prop_assert_eq!(variables.iter().filter(|other| other.starts_with(&prefix)).count(), 1);
            }
        }
    }
}
