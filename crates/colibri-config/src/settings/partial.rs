//! Unresolved settings: what one source (flags, environment or file) sets.

use std::path::PathBuf;

use serde::Deserialize;

use super::{Defaults, FsyncPolicy, HookSettings};

/// Declares [`PartialSettings`], and the functions that go over all settings, from one list. `Live` marks a setting
/// that a reload applies to a running daemon, `Restart` one that needs a restart.
macro_rules! settings {
    ($($(#[$attribute:meta])* $apply:ident $name:ident: $type:ty,)*) => {
        /// Settings of one source: flags, environment or file. A setting that the source does not set is `None`.
        #[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
        #[serde(default, deny_unknown_fields)]
        pub struct PartialSettings {
            $($(#[$attribute])* pub $name: $type,)*
        }

        impl PartialSettings {
            /// Returns these settings with gaps filled from `weaker`.
            #[must_use]
            pub fn or(self, weaker: Self) -> Self {
                Self { $($name: self.$name.or(weaker.$name),)* }
            }

            /// Returns the names of the settings that differ in `newer`, sorted.
            #[must_use]
            pub fn changes(&self, newer: &Self) -> SettingsChanges {
                let mut changes = SettingsChanges::default();
                $(if self.$name != newer.$name {
                    let names = match Apply::$apply {
                        Apply::Live => &mut changes.live,
                        Apply::Restart => &mut changes.needs_restart,
                    };
                    names.push(stringify!($name).to_owned());
                })*
                changes.live.sort();
                changes.needs_restart.sort();
                changes
            }

            /// Takes over the settings of `newer` that apply without a restart.
            pub fn apply_live(&mut self, newer: &Self) {
                $(if matches!(Apply::$apply, Apply::Live) {
                    self.$name.clone_from(&newer.$name);
                })*
            }
        }
    };
}

settings! {
    /// The daemon's socket.
    Restart socket: Option<PathBuf>,
    /// Group that may use the socket, by name or number.
    Restart socket_group: Option<String>,
    /// User, by name or number, whose daemon clients trust besides root's and their own. Read only by clients.
    Live daemon_user: Option<String>,
    /// Confinement of agents that `run`, `spawn` and `explain` start without an option for a jail. Read only by clients.
    Live defaults: Option<Defaults>,
    /// The state directory.
    Restart state_dir: Option<PathBuf>,
    /// Name of the privilege backend.
    Restart privilege: Option<String>,
    /// The setuid helper.
    Restart helper: Option<String>,
    /// Name of the engine.
    Restart engine: Option<String>,
    /// The shim program.
    Live shim: Option<PathBuf>,
    /// The program that restricts the network access of agents to allowed destinations.
    Restart proxy: Option<PathBuf>,
    /// The parent of the agents' cgroups.
    Restart cgroup: Option<PathBuf>,
    /// Size at which a journal segment is closed, in bytes.
    Live segment_bytes: Option<u64>,
    /// Minimum size of each kept output, in bytes; older whole segments are deleted.
    Live retain_bytes: Option<u64>,
    /// When output is synced to disk.
    Live fsync: Option<FsyncPolicy>,
    /// Maximum delay of a sync with `fsync = "interval"`, in milliseconds.
    Live fsync_interval_ms: Option<u64>,
    /// Address of the metrics endpoint; see [`MetricsAddress`](super::MetricsAddress).
    Restart metrics: Option<String>,
    /// Size at which `audit.jsonl` and `daemon.log` are rotated, in bytes.
    Restart log_max_bytes: Option<u64>,
    /// Number of rotated files of each that are kept.
    Restart log_keep: Option<u32>,
    /// Time for which ended agents are kept, like `30d`.
    Live retain_ended_for: Option<String>,
    /// Maximum number of ended agents that are kept.
    Live retain_ended_count: Option<u64>,
    /// Commands that run when the state of an agent changes.
    Restart hook: Option<Vec<HookSettings>>,
}

/// Names of changed settings.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SettingsChanges {
    /// Settings that a reload applies to a running daemon.
    pub live: Vec<String>,
    /// Settings that need a restart of the daemon.
    pub needs_restart: Vec<String>,
}

/// When a changed setting applies.
enum Apply {
    Live,
    Restart,
}

#[cfg(test)]
mod tests {
    use crate::ConfigFile;
    use std::path::Path;

    #[test]
    fn reload_applies_live_settings_and_lists_the_others() {
        let read = |text: &str| ConfigFile::parse_settings(Path::new("c"), text).unwrap();
        let old = read("retain_bytes = 8192\nfsync = \"always\"\nengine = \"bubblewrap\"\n");
        for (newer, live, needs_restart) in [
            (
                "retain_bytes = 8192\nfsync = \"always\"\nengine = \"bubblewrap\"\n",
                &[][..],
                &[][..],
            ),
            (
                "retain_bytes = 9000\nfsync = \"always\"\nengine = \"freebsd\"\n",
                &["retain_bytes"],
                &["engine"],
            ),
            (
                "socket = \"/s\"\nshim = \"/x\"\n",
                &["fsync", "retain_bytes", "shim"],
                &["engine", "socket"],
            ),
        ] {
            let newer = read(newer);
            let changes = old.changes(&newer);
            assert_eq!(changes.live, live);
            assert_eq!(changes.needs_restart, needs_restart);
            let mut updated = old.clone();
            updated.apply_live(&newer);
            assert_eq!(
                (updated.retain_bytes, updated.fsync),
                (newer.retain_bytes, newer.fsync)
            );
            assert_eq!(updated.engine, old.engine);
            // A setting that needs a restart is listed at every reload until the restart.
            let again = updated.changes(&newer);
            assert_eq!(
                (again.live, again.needs_restart),
                (vec![], changes.needs_restart)
            );
        }
    }
}
