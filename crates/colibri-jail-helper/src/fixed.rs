//! The places that are fixed when this program is built. None can be given to it when it runs.

/// Set when a variant for tests is built: a directory of root's that holds everything below.
const PREFIX: Option<&str> = option_env!("COLIBRI_HELPER_PREFIX");

/// Where bubblewrap is, the first that exists.
#[cfg(target_os = "linux")]
pub(crate) const BWRAP: [&str; 2] = ["/usr/bin/bwrap", "/usr/local/bin/bwrap"];

/// Where programs that are given by name are looked for inside a jail.
pub(crate) const SEARCH: [&str; 6] = [
    "/usr/local/sbin",
    "/usr/local/bin",
    "/usr/sbin",
    "/usr/bin",
    "/sbin",
    "/bin",
];

fn place(name: &str, usual: &str) -> String {
    match PREFIX {
        Some(prefix) => format!("{prefix}/{name}"),
        None => usual.to_owned(),
    }
}

/// The policy.
pub(crate) fn policy() -> String {
    let usual = if cfg!(target_os = "freebsd") {
        "/usr/local/etc/colibri/helper.toml"
    } else {
        "/etc/colibri/helper.toml"
    };
    place("helper.toml", usual)
}

/// What this program remembers of the agents it started. Emptied by every boot (hier(7), file-hierarchy(7)).
pub(crate) fn records() -> String {
    let usual = if cfg!(target_os = "freebsd") {
        "/var/run/colibri-helper"
    } else {
        "/run/colibri-helper"
    };
    place("records", usual)
}

/// The socket of syslogd(8).
pub(crate) fn log() -> String {
    let usual = if cfg!(target_os = "freebsd") {
        "/var/run/log"
    } else {
        "/dev/log"
    };
    place("log", usual)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_ordinary_build_reads_the_places_of_the_host() {
        assert_eq!(PREFIX, None, "tests are of the ordinary build");
        let expected = if cfg!(target_os = "freebsd") {
            [
                "/usr/local/etc/colibri/helper.toml",
                "/var/run/colibri-helper",
                "/var/run/log",
            ]
        } else {
            [
                "/etc/colibri/helper.toml",
                "/run/colibri-helper",
                "/dev/log",
            ]
        };
        assert_eq!([policy(), records(), log()], expected);
    }
}
