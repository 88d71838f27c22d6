//! Paths that are compiled into this program. Neither arguments nor the environment change them.

/// Directory that replaces the paths of the policy, the records and the log socket in a build for tests.
const PREFIX: Option<&str> = option_env!("COLIBRI_HELPER_PREFIX");

/// Paths of bubblewrap; the first usable one is executed.
#[cfg(target_os = "linux")]
pub(crate) const BWRAP: [&str; 2] = ["/usr/bin/bwrap", "/usr/local/bin/bwrap"];

/// Directories of a jail that are searched for a program given by name, in this order.
pub(crate) const SEARCH: [&str; 6] = [
    "/usr/local/sbin",
    "/usr/local/bin",
    "/usr/sbin",
    "/usr/bin",
    "/sbin",
    "/bin",
];

/// Returns the path of the policy.
pub(crate) fn policy() -> String {
    path(
        "helper.toml",
        "/usr/local/etc/colibri/helper.toml",
        "/etc/colibri/helper.toml",
    )
}

/// Returns the directory of the records of running agents, which is empty after a boot (hier(7), file-hierarchy(7)).
pub(crate) fn records() -> String {
    path("records", "/var/run/colibri-helper", "/run/colibri-helper")
}

/// Returns the socket of syslogd(8).
pub(crate) fn log() -> String {
    path("log", "/var/run/log", "/dev/log")
}

/// Returns the directory of the fallback files, for decisions while the socket of syslogd(8) is full.
pub(crate) fn log_files() -> String {
    path(
        "log-files",
        "/var/log/colibri-helper",
        "/var/log/colibri-helper",
    )
}

fn path(name: &str, freebsd: &str, linux: &str) -> String {
    match PREFIX {
        Some(prefix) => format!("{prefix}/{name}"),
        None if cfg!(target_os = "freebsd") => freebsd.to_owned(),
        None => linux.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn default_build_uses_system_paths() {
        assert_eq!(PREFIX, None, "unit tests run without COLIBRI_HELPER_PREFIX");
        let expected = if cfg!(target_os = "freebsd") {
            [
                "/usr/local/etc/colibri/helper.toml",
                "/var/run/colibri-helper",
                "/var/run/log",
                "/var/log/colibri-helper",
            ]
        } else {
            [
                "/etc/colibri/helper.toml",
                "/run/colibri-helper",
                "/dev/log",
                "/var/log/colibri-helper",
            ]
        };
        assert_eq!([policy(), records(), log(), log_files()], expected);
    }
}
