//! Lookups in tables of users and groups (passwd(5), group(5)). Users of a network service such as LDAP are not in them.

use std::fs;

/// Numbers of a user.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct UserIds {
    /// User id.
    pub uid: u32,
    /// Id of the primary group.
    pub gid: u32,
}

/// Returns the numbers of a user in a passwd(5) table; `None` if there is no valid entry.
#[must_use]
pub fn find_user(table: &str, name: &str) -> Option<UserIds> {
    let mut fields = find_entry(table, name)?;
    // After the name: password, uid, gid.
    Some(UserIds {
        uid: fields.nth(1)?.parse().ok()?,
        gid: fields.next()?.parse().ok()?,
    })
}

/// Returns the home directory of a user in a passwd(5) table; `None` if there is no valid entry.
#[must_use]
pub fn find_home(table: &str, name: &str) -> Option<String> {
    // After the name: password, uid, gid, comment, home.
    Some(find_entry(table, name)?.nth(4)?.to_owned())
}

/// Returns the number of a group in a group(5) table; `None` if there is no valid entry.
#[must_use]
pub fn find_group(table: &str, name: &str) -> Option<u32> {
    // After the name: password, gid.
    find_entry(table, name)?.nth(1)?.parse().ok()
}

/// Returns the numbers of a user of this host; `None` if /etc/passwd cannot be read.
#[must_use]
pub fn host_user(name: &str) -> Option<UserIds> {
    find_user(&fs::read_to_string("/etc/passwd").ok()?, name)
}

/// Returns the number of a group of this host; `None` if /etc/group cannot be read.
#[must_use]
pub fn host_group(name: &str) -> Option<u32> {
    find_group(&fs::read_to_string("/etc/group").ok()?, name)
}

/// Returns the fields after the name.
fn find_entry<'a>(table: &'a str, name: &str) -> Option<std::str::Split<'a, char>> {
    table.lines().find_map(|line| {
        let (entry, fields) = line.split_once(':')?;
        (entry == name).then(|| fields.split(':'))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn users_are_found_by_name() {
        let table =
            "root:x:0:0:root:/root:/bin/sh\ncolibri:x:998:997::/:/bin/false\nbroken\nshort:x:7\n";
        for (name, ids) in [
            ("colibri", Some((998, 997))),
            ("root", Some((0, 0))),
            ("broken", None),
            ("short", None),
            ("x", None),
            ("", None),
        ] {
            let ids = ids.map(|(uid, gid)| UserIds { uid, gid });
            assert_eq!(find_user(table, name), ids, "{name}");
        }
        assert_eq!(host_user("root"), Some(UserIds { uid: 0, gid: 0 }));
    }

    #[test]
    fn groups_are_found_by_name() {
        let table = "wheel:*:0:root\nagents:x:5:\nbad\n";
        for (name, gid) in [
            ("wheel", Some(0)),
            ("agents", Some(5)),
            ("bad", None),
            ("", None),
        ] {
            assert_eq!(find_group(table, name), gid, "{name}");
        }
        assert_eq!(host_group("no-such-group-here"), None);
    }
}
