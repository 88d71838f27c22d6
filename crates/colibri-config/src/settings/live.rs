//! Which settings a running daemon takes over when its file is read again. A new setting needs a restart, until it is
//! named here.

use serde_json::{Map, Value};

use super::PartialSettings;

/// Settings that apply without a restart of the daemon: those for new agents, those for ended agents, and those that
/// only clients read.
const LIVE: &[&str] = &[
    "daemon_user",
    "shim",
    "segment_bytes",
    "retain_bytes",
    "fsync",
    "fsync_interval_ms",
    "retain_ended_for",
    "retain_ended_count",
];

impl PartialSettings {
    /// Names of the settings that are others in `newer`: those that a running daemon takes over, and the rest.
    #[must_use]
    pub fn changed(&self, newer: &Self) -> (Vec<String>, Vec<String>) {
        let (old, new) = (self.fields(), newer.fields());
        let differs = |name: &&String| old.get(*name) != new.get(*name);
        new.keys()
            .filter(differs)
            .cloned()
            .partition(|name| LIVE.contains(&name.as_str()))
    }

    /// These settings, with those of `newer` that a running daemon takes over.
    #[must_use]
    pub fn updated(&self, newer: &Self) -> Self {
        let mut fields = self.fields();
        fields.extend(
            newer
                .fields()
                .into_iter()
                .filter(|(name, _)| LIVE.contains(&name.as_str())),
        );
        serde_json::from_value(fields.into()).unwrap_or_else(|_| self.clone())
    }

    fn fields(&self) -> Map<String, Value> {
        match serde_json::to_value(self) {
            Ok(Value::Object(fields)) => fields,
            _ => Map::new(),
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::ConfigFile;
    use std::path::Path;

    #[test]
    fn a_running_daemon_takes_over_some_settings_and_names_the_others() {
        let read = |text: &str| ConfigFile::parse_settings(Path::new("c"), text).unwrap();
        let old = read("retain_bytes = 8192\nfsync = \"always\"\nengine = \"bubblewrap\"\n");
        for (newer, live, later) in [
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
            let (mut found_live, mut found_later) = old.changed(&newer);
            found_live.sort();
            found_later.sort();
            assert_eq!(
                (found_live, found_later.clone()),
                (
                    live.iter().map(|s| s.to_string()).collect(),
                    later.iter().map(|s| s.to_string()).collect()
                )
            );
            let updated = old.updated(&newer);
            assert_eq!(
                (updated.retain_bytes, updated.fsync),
                (newer.retain_bytes, newer.fsync)
            );
            assert_eq!(updated.engine, old.engine);
            // What needs a restart is said again, until there is one.
            assert_eq!(updated.changed(&newer), (vec![], old.changed(&newer).1));
        }
    }
}
