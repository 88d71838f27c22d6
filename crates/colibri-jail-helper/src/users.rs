//! User and group names by the plain tables of the host. The C library's look-up would load modules that
//! nsswitch.conf(5) names into a process of root's; users of a directory service are written by number.

use colibri_jail_core::{JailPath, JailUser};

use crate::place::{self, PlaceError};

/// Larger tables than any host of plain files has.
const TABLE: u64 = 4 << 20;

/// A user as a passwd(5) table has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Entry {
    pub(crate) name: String,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) home: String,
    pub(crate) shell: String,
}

/// Looks for a line of a passwd(5) table; lines that are not whole are passed over.
pub(crate) fn entry(table: &str, wanted: impl Fn(&str, u32) -> bool) -> Option<Entry> {
    table.lines().find_map(|line| {
        let fields: Vec<&str> = line.split(':').collect();
        let [name, _, uid, gid, _, home, shell] = fields[..] else {
            return None;
        };
        let (uid, gid) = (uid.parse().ok()?, gid.parse().ok()?);
        (wanted(name, uid) && uid != u32::MAX && gid != u32::MAX).then(|| Entry {
            name: name.to_owned(),
            uid,
            gid,
            home: home.to_owned(),
            shell: shell.to_owned(),
        })
    })
}

/// The number of a group(5).
pub(crate) fn group(table: &str, wanted: &str) -> Option<u32> {
    table.lines().find_map(|line| {
        let mut fields = line.split(':');
        (fields.next()? == wanted)
            .then(|| fields.nth(1)?.parse().ok())
            .flatten()
    })
}

/// A table of the host's, which only root writes.
pub(crate) fn host_table(path: &str) -> Result<String, PlaceError> {
    let path: JailPath = path
        .parse()
        .map_err(|_| PlaceError::NotAFile(path.to_owned()))?;
    place::read_of_root(&path, TABLE)
}

/// User and group number of a user of the host.
pub(crate) fn resolve(user: &JailUser) -> Option<(u32, u32)> {
    match user {
        JailUser::Id { uid, gid } => Some((*uid, gid.unwrap_or(*uid))),
        JailUser::Name(name) => {
            let table = host_table("/etc/passwd").ok()?;
            let found = entry(&table, |known, _| known == name.as_ref())?;
            Some((found.uid, found.gid))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PASSWD: &str = "root:x:0:0:root:/root:/bin/sh\n+::::::\nbroken:x:7\nagent:x:1001:1002::/home/agent:/bin/bash\nodd:x:4294967295:1::/:/bin/sh\n";

    #[test]
    fn a_user_is_a_whole_line() {
        let found = entry(PASSWD, |name, _| name == "agent").unwrap();
        assert_eq!(
            (found.uid, found.gid, found.home.as_str()),
            (1001, 1002, "/home/agent")
        );
        assert_eq!(entry(PASSWD, |_, uid| uid == 0).unwrap().name, "root");
        for missing in ["broken", "+", "odd", ""] {
            assert_eq!(entry(PASSWD, |name, _| name == missing), None, "{missing}");
        }
        assert_eq!(
            group("wheel:*:0:root\nagents:x:5:\nbad\n", "agents"),
            Some(5)
        );
        assert_eq!(group("wheel:*:0:root\nbad\n", "bad"), None);
    }
}
