//! Restrictions of persistent jails that are weaker than the defaults of FreeBSD (jail(8), "Jail Parameters").

use std::collections::BTreeSet;

use colibri_priv::Finding;
use serde_json::{Map, Value};

/// Prefix of the names of jail parameters in sysctl(8).
const PARAMETER: &str = "security.jail.param.";
/// Parameters without `allow.` that are checked.
const OTHERS: &[&str] = &[
    "children.max",
    "enforce_statfs",
    "path",
    "sysvmsg",
    "sysvsem",
    "sysvshm",
];
/// Parameters that are on by default (`JAIL_DEFAULT_ALLOW` in sys/kern/kern_jail.c of FreeBSD 14 and 15).
const ON_BY_DEFAULT: &[&str] = &[
    "allow.reserved_ports",
    "allow.set_hostname",
    "allow.suser",
    "allow.unprivileged_proc_debug",
];
/// What each parameter permits.
const PERMISSIONS: &[(&str, &str)] = &[
    ("allow.adjtime", "root in it may adjust the host's clock"),
    (
        "allow.chflags",
        "root in it may clear file flags such as schg",
    ),
    (
        "allow.extattr",
        "root in it may change system extended attributes",
    ),
    ("allow.mlock", "its users may lock the host's memory"),
    ("allow.mount", "root in it may mount file systems"),
    ("allow.mount.devfs", "root in it may mount devices"),
    (
        "allow.mount.nullfs",
        "root in it may mount nullfs, see FreeBSD-SA-26:02.jail",
    ),
    ("allow.mount.tmpfs", "root in it may fill the host's memory"),
    (
        "allow.nfsd",
        "root in it may run an NFS server in the kernel",
    ),
    (
        "allow.quotas",
        "root in it may change quotas of shared file systems",
    ),
    (
        "allow.raw_sockets",
        "root in it may send and observe raw packets",
    ),
    (
        "allow.read_msgbuf",
        "its users may read the kernel's messages",
    ),
    ("allow.routing", "root in it may change the host's routes"),
    (
        "allow.setaudit",
        "root in it may disable audit of its sessions",
    ),
    ("allow.settime", "root in it may set the host's clock"),
    (
        "allow.socket_af",
        "its users may use protocols that jails do not restrict",
    ),
    ("allow.sysvipc", "it shares System V IPC with the host"),
    (
        "allow.unprivileged_parent_tampering",
        "processes outside with the same uid may signal and debug its processes",
    ),
    ("allow.vmm", "root in it may run virtual machines"),
    ("allow.vmm_ppt", "root in it may control PCI devices"),
];

/// Selects the parameters to request from jls(8), from the output of `sysctl -N security.jail.param`: jls(8) refuses a
/// parameter that the kernel does not have. Values that a jailed process can choose, such as the host name, are not among
/// them.
pub(super) fn parameters(sysctl: &str) -> Vec<String> {
    let is_checked = |name: &&str| name.starts_with("allow.") || OTHERS.contains(name);
    let names: BTreeSet<&str> = sysctl
        .lines()
        .filter_map(|line| line.strip_prefix(PARAMETER))
        .map(|name| name.trim_end_matches('.'))
        .filter(is_checked)
        .collect();
    names.into_iter().map(str::to_owned).collect()
}

/// Returns the restrictions that are weaker than the default, each with what it permits. `values` are the parameters
/// as jls(8) prints them.
pub(super) fn weaknesses(values: &Map<String, Value>) -> Vec<String> {
    // jls(8) prints numbers as JSON strings.
    let number = |name| match values.get(name)? {
        Value::String(text) => text.parse::<i64>().ok(),
        value => value.as_i64(),
    };
    let statfs = number("enforce_statfs");
    // Without effect while enforce_statfs is 2 (jail(8), allow.mount).
    let mounts = statfs.is_none_or(|level| level < 2)
        && values.get("allow.mount") == Some(&Value::Bool(true));
    let mut found: Vec<String> = values
        .iter()
        .filter(|(name, value)| name.starts_with("allow.") && **value == Value::Bool(true))
        .map(|(name, _)| name.as_str())
        .filter(|name| !ON_BY_DEFAULT.contains(name))
        .filter(|name| mounts || !name.starts_with("allow.mount"))
        .map(|name| match permission(name) {
            Some(permission) => format!("{name} ({permission})"),
            None => format!("{name} (off by default)"),
        })
        .collect();
    found.sort();
    for name in ["sysvmsg", "sysvsem", "sysvshm"] {
        if values.get(name).and_then(Value::as_str) == Some("inherit") {
            found.push(format!(
                "{name}=inherit (it shares System V IPC with the host)"
            ));
        }
    }
    match number("children.max") {
        Some(0) | None => {}
        Some(max) => found.push(format!("children.max={max} (root in it may create jails)")),
    }
    match statfs {
        Some(0) => found.push("enforce_statfs=0 (it sees all mounts of the host)".to_owned()),
        Some(1) => found.push("enforce_statfs=1 (it sees the mounts below its root)".to_owned()),
        _ => {}
    }
    if values.get("path").and_then(Value::as_str) == Some("/") {
        found.push("path=/ (its root is the host's)".to_owned());
    }
    found
}

fn permission(name: &str) -> Option<&'static str> {
    let find = |(parameter, permission): &(&str, &'static str)| {
        (*parameter == name).then_some(*permission)
    };
    PERMISSIONS.iter().find_map(find)
}

/// Returns the finding for a jail. `users` are the agents and profiles that name it.
pub(super) fn finding(jail: &str, users: &str, values: &Map<String, Value>) -> Finding {
    let weaknesses = weaknesses(values);
    if weaknesses.is_empty() {
        return Finding::ok(format!(
            "jail {jail} of {users} has the default restrictions"
        ));
    }
    Finding::warn(
        format!(
            "jail {jail} of {users} is less restricted than by default: {}",
            weaknesses.join(", ")
        ),
        format!(
            "remove what agents do not need from jail.conf(5), then run as root: service jail restart {jail}"
        ),
    )
}

/// Returns the finding for a jail that does not exist.
pub(super) fn missing(jail: &str, users: &str) -> Finding {
    Finding::warn(
        format!("jail {jail} of {users} does not exist"),
        format!("run as root: service jail start {jail}; or correct the name"),
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn values(value: Value) -> Map<String, Value> {
        match value {
            Value::Object(values) => values,
            other => panic!("{other}"),
        }
    }

    #[test]
    fn only_parameters_of_the_kernel_are_requested() {
        let sysctl = "security.jail.param.mac\nsecurity.jail.param.mac.do.rules\n\
            security.jail.param.allow\nsecurity.jail.param.allow.mount\nsecurity.jail.param.allow.mount.nullfs\n\
            security.jail.param.allow.mount.\nsecurity.jail.param.sysvshm\nsecurity.jail.param.sysvshm.\n\
            security.jail.param.host.hostname\nsecurity.jail.param.children.max\nsecurity.jail.param.children.cur\n\
            security.jail.param.path\n";
        let expected = [
            "allow.mount",
            "allow.mount.nullfs",
            "children.max",
            "path",
            "sysvshm",
        ];
        assert_eq!(parameters(sysctl), expected);
        assert_eq!(parameters(""), [""; 0]);
    }

    /// The values are those that jls(8) of FreeBSD 15.1 prints.
    #[test]
    fn jail_with_defaults_has_no_weakness() {
        let defaults = values(json!({
            "allow.mount": false, "allow.mount.nullfs": false, "allow.raw_sockets": false,
            "allow.reserved_ports": true, "allow.set_hostname": true, "allow.suser": true,
            "allow.unprivileged_proc_debug": true, "children.max": "0", "enforce_statfs": "2",
            "path": "/j/b", "sysvshm": "disable",
        }));
        assert_eq!(weaknesses(&defaults), [""; 0]);
        let found = finding("b", "profile p", &defaults);
        assert_eq!(
            found.what,
            "jail b of profile p has the default restrictions"
        );
        assert_eq!(found.fix, None);
    }

    #[test]
    fn each_weaker_restriction_is_named_with_its_effect() {
        let weak = values(json!({
            "allow.mount": true, "allow.mount.nullfs": true, "allow.mount.procfs": true, "allow.raw_sockets": true,
            "allow.set_hostname": true, "allow.new_in_16": true, "children.max": "3", "enforce_statfs": "1",
            "path": "/", "sysvshm": "inherit", "sysvsem": "new",
        }));
        insta::assert_snapshot!(weaknesses(&weak).join("\n"));
        let statfs =
            values(json!({"allow.mount": true, "allow.mount.nullfs": true, "enforce_statfs": "2"}));
        assert_eq!(weaknesses(&statfs), [""; 0], "mounts are refused");
        let all = values(json!({"allow.mount": true, "enforce_statfs": 0}));
        assert_eq!(weaknesses(&all).len(), 2);
    }

    #[test]
    fn unexpected_values_of_jls_are_ignored() {
        let odd = values(json!({
            "allow.chflags": "yes", "allow.mlock": null, "children.max": "x", "enforce_statfs": [0], "path": ["/"], "sysvmsg": 1,
        }));
        assert_eq!(weaknesses(&odd), [""; 0]);
    }
}
