//! ZFS datasets for templates.

use std::fmt;
use std::path::Path;
use std::str::FromStr;

use crate::command::ExternalCommand;

/// Name of the snapshot of a complete template.
const SNAPSHOT: &str = "colibri";
/// The program zfs(8); the second path is that of Debian.
const PROGRAMS: [&str; 2] = ["/sbin/zfs", "/usr/sbin/zfs"];
/// Maximum length of the name of a dataset with a snapshot, in bytes (zfs(8), ZFS_MAX_DATASET_NAME_LEN).
const MAX_LENGTH: usize = 255;

/// The name of a ZFS dataset below a pool, like `zroot/jails/agents`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DatasetName(String);

impl DatasetName {
    /// Returns the name of the snapshot of the complete template.
    #[must_use]
    pub fn snapshot(&self) -> String {
        format!("{}@{SNAPSHOT}", self.0)
    }

    /// Returns the command that creates the dataset and mounts it at `directory`.
    pub(crate) fn create_command(&self, directory: &Path) -> Result<ExternalCommand, String> {
        let directory = directory.to_str();
        let directory = directory.ok_or("its path is not UTF-8; give another directory")?;
        let mountpoint = format!("mountpoint={directory}");
        Ok(command(&["create", "-o", &mountpoint, &self.0]))
    }

    /// Returns the command that takes the snapshot.
    pub(crate) fn snapshot_command(&self) -> ExternalCommand {
        command(&["snapshot", &self.snapshot()])
    }

    /// Returns the command that removes the dataset. It fails if the dataset has a snapshot or a child, which this program
    /// did not create.
    pub(crate) fn destroy_command(&self) -> ExternalCommand {
        command(&["destroy", &self.0])
    }
}

fn command(args: &[&str]) -> ExternalCommand {
    let found = PROGRAMS.iter().find(|path| Path::new(path).exists());
    ExternalCommand::new(found.unwrap_or(&PROGRAMS[0]), args)
}

impl FromStr for DatasetName {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let is_component = |part: &str| {
            part.starts_with(|c: char| c.is_ascii_alphanumeric())
                && part
                    .chars()
                    .all(|c| c.is_ascii_alphanumeric() || "_.:-".contains(c))
        };
        let is_valid = text.contains('/')
            && text.split('/').all(is_component)
            && text.len() + SNAPSHOT.len() < MAX_LENGTH;
        match is_valid {
            true => Ok(Self(text.to_owned())),
            false => Err(format!(
                "cannot use dataset {text:?}: give a dataset below a pool, like zroot/jails/agents"
            )),
        }
    }
}

impl fmt::Display for DatasetName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_of_a_dataset_match_snapshot() {
        let dataset: DatasetName = "zroot/jails/agents".parse().unwrap();
        let directory = Path::new("/usr/local/jails/my agents");
        let commands = [
            dataset.create_command(directory).unwrap(),
            dataset.snapshot_command(),
            dataset.destroy_command(),
        ];
        let args = commands.map(|command| command.args.join("|"));
        insta::assert_snapshot!(args.join("\n"), @"
        create|-o|mountpoint=/usr/local/jails/my agents|zroot/jails/agents
        snapshot|zroot/jails/agents@colibri
        destroy|zroot/jails/agents
        ");
    }

    #[test]
    fn dataset_that_zfs_could_misread_is_refused() {
        for bad in [
            "",
            "zroot",
            "/zroot/a",
            "zroot/",
            "zroot//a",
            "zroot/a@b",
            "zroot/-r",
            "-r/a",
            "zroot/a b",
            "zroot/..",
            "zroot/a,b",
            &format!("zroot/{}", "a".repeat(250)),
        ] {
            assert!(bad.parse::<DatasetName>().is_err(), "{bad}");
        }
    }
}
