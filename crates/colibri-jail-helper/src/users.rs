//! Looks up users and groups in plain passwd(5) and group(5) tables. The C library's lookup would load the modules
//! of nsswitch.conf(5) into a root process, so a user of a directory service must be given by number. A dedicated
//! parser, stricter than the one of colibri-sys, keeps that crate out of the setuid program.

use colibri_jail_core::JailUser;

use crate::safe_open::{self, OpenError};

/// Maximum size of a table, in bytes.
pub(crate) const MAX_TABLE: u64 = 4 << 20;

/// Numeric user and group of a process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct UserIds {
    pub(crate) uid: u32,
    pub(crate) gid: u32,
}

impl UserIds {
    /// Reports whether the uid is root's or the gid is wheel's. They are refused for every agent, even if the policy lists
    /// them.
    pub(crate) fn is_root(self) -> bool {
        self.uid == 0 || self.gid == 0
    }

    /// Reports whether the gid is that of kmem or operator, whose members can read the memory and the disks of a FreeBSD host
    /// (group(5); sys/dev/mem/memdev.c, sys/geom/geom_dev.c).
    #[cfg(any(target_os = "freebsd", test))]
    pub(crate) fn reads_devices(self) -> bool {
        matches!(self.gid, 2 | 5)
    }

    /// Returns what [`keys`] returns for a known user.
    pub(crate) fn keys(self) -> Vec<String> {
        vec![format!("user {}", self.uid), format!("group {}", self.gid)]
    }

    /// Returns the ids of a user that is given by number; the gid defaults to the uid.
    pub(crate) fn numeric(user: &JailUser) -> Option<Self> {
        match user {
            JailUser::Name(_) => None,
            JailUser::Id { uid, gid } => Some(Self {
                uid: *uid,
                gid: gid.unwrap_or(*uid),
            }),
        }
    }
}

/// An entry of a passwd(5) table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct PasswdEntry {
    pub(crate) name: String,
    pub(crate) ids: UserIds,
    pub(crate) home: String,
    pub(crate) shell: String,
}

/// Returns the first complete entry of a passwd(5) table that `matches` accepts by name and uid.
pub(crate) fn find_user(table: &str, matches: impl Fn(&str, u32) -> bool) -> Option<PasswdEntry> {
    table.lines().find_map(|line| {
        let fields: Vec<&str> = line.split(':').collect();
        let [name, _, uid, gid, _, home, shell] = fields[..] else {
            return None;
        };
        let (uid, gid) = (uid.parse().ok()?, gid.parse().ok()?);
        (matches(name, uid) && uid != u32::MAX && gid != u32::MAX).then(|| PasswdEntry {
            name: name.to_owned(),
            ids: UserIds { uid, gid },
            home: home.to_owned(),
            shell: shell.to_owned(),
        })
    })
}

/// Returns the gid of a group in a group(5) table.
pub(crate) fn find_group(table: &str, name: &str) -> Option<u32> {
    table.lines().find_map(|line| {
        let mut fields = line.split(':');
        (fields.next()? == name)
            .then(|| fields.nth(1)?.parse().ok())
            .flatten()
    })
}

/// Reads a table of the host, which only root may be able to write. Every user can put bytes that are not UTF-8 into the own
/// entry (chfn(1)); they affect no other one.
pub(crate) fn host_table(path: &str) -> Result<String, OpenError> {
    let file = safe_open::root_owned_file(&safe_open::fixed_path(path)?)?;
    let table = safe_open::read(path, file, MAX_TABLE)?;
    Ok(String::from_utf8_lossy(&table).into_owned())
}

/// Returns the ids of a user by a passwd(5) table.
pub(crate) fn ids(table: &str, user: &JailUser) -> Option<UserIds> {
    UserIds::numeric(user).or_else(|| {
        let wanted = user.to_string();
        find_user(table, |name, _| name == wanted).map(|entry| entry.ids)
    })
}

/// Returns texts that are equal for equal users, and for equal groups of users, by a passwd(5) table: the ids, or the name.
pub(crate) fn keys(table: &str, user: &JailUser) -> Vec<String> {
    match ids(table, user) {
        Some(ids) => ids.keys(),
        None => vec![format!("user {user}")],
    }
}

/// Returns the ids of a user of the host.
pub(crate) fn host_ids(user: &JailUser) -> Option<UserIds> {
    UserIds::numeric(user).or_else(|| ids(&host_table("/etc/passwd").ok()?, user))
}

#[cfg(test)]
mod tests {
    use super::*;

    const PASSWD: &str = "root:x:0:0:root:/root:/bin/sh\n+::::::\nbroken:x:7\nagent:x:1001:1002::/home/agent:/bin/bash\nodd:x:4294967295:1::/:/bin/sh\n";

    #[test]
    fn privileged_ids_are_recognized() {
        for (uid, gid, is_root, reads_devices) in [
            (0, 1001, true, false),
            (1001, 0, true, false),
            (1001, 2, false, true),
            (1001, 5, false, true),
            (2, 1001, false, false),
            (5, 1001, false, false),
        ] {
            let ids = UserIds { uid, gid };
            assert_eq!(
                (ids.is_root(), ids.reads_devices()),
                (is_root, reads_devices)
            );
        }
    }

    #[test]
    fn only_complete_table_lines_are_entries() {
        let found = find_user(PASSWD, |name, _| name == "agent").unwrap();
        let ids = UserIds {
            uid: 1001,
            gid: 1002,
        };
        assert_eq!((found.ids, found.home.as_str()), (ids, "/home/agent"));
        assert_eq!(find_user(PASSWD, |_, uid| uid == 0).unwrap().name, "root");
        for missing in ["broken", "+", "odd", ""] {
            assert_eq!(
                find_user(PASSWD, |name, _| name == missing),
                None,
                "{missing}"
            );
        }
        assert_eq!(
            find_group("wheel:*:0:root\nagents:x:5:\nbad\n", "agents"),
            Some(5)
        );
        assert_eq!(find_group("wheel:*:0:root\nbad\n", "bad"), None);
    }
}
