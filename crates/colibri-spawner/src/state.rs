//! The state directory: ownership and format checks, directories of agents, and their locks.

use std::fs::{self, DirBuilder, File, OpenOptions, TryLockError};
use std::io;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use colibri_shim::layout;
use colibri_shim::record::{self, Durability};

use colibri_sys::ownership::{Ownership, UnsafeDirectory};
use colibri_sys::regular_file;

use crate::{AgentId, SpawnError};

/// Format of the state directory that this version writes. A version reads all formats up to its own.
const FORMAT: u32 = 1;
/// File that contains the number of the format.
const FORMAT_FILE: &str = "format";
/// Error message for a state directory that was removed.
const REMOVED: &str = "was removed while the daemon runs; run colibri shutdown, and the next command starts a daemon that creates it";

/// The state directory. Creating a value does no I/O; [`StateDir::open`] creates and checks the directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StateDir(PathBuf);

impl StateDir {
    /// Returns the state directory at a path.
    #[must_use]
    pub fn new(path: PathBuf) -> Self {
        Self(path)
    }

    /// Returns the path of the directory.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// Returns the directory of an agent.
    #[must_use]
    pub fn agent(&self, id: &AgentId) -> PathBuf {
        self.agents().join(id.as_str())
    }

    pub(crate) fn agents(&self) -> PathBuf {
        self.0.join("agents")
    }

    /// Creates the directory with mode 0700, or checks the existing one.
    ///
    /// # Errors
    /// The directory cannot be created, belongs to another user, is writable by others, or has an unknown format.
    pub fn open(&self) -> Result<(), SpawnError> {
        self.create_and_check()
            .map_err(|problem| SpawnError::state(&self.0, problem))
    }

    fn create_and_check(&self) -> Result<(), String> {
        if !self.0.is_absolute() {
            return Err("is not an absolute path; write its full path".to_owned());
        }
        create_private(&self.0).map_err(|error| {
            format!("cannot be created: {error}; pass another one with --state-dir")
        })?;
        let data = fs::metadata(&self.0).map_err(|error| format!("cannot be read: {error}"))?;
        let ownership = Ownership::from(&data);
        let checked = ownership.check_trusted_directory();
        checked.map_err(|UnsafeDirectory { problem, fix }| match fix {
            Some(fix) => format!("{problem}; {fix} {}", self.0.display()),
            None => format!("{problem}; pass a directory of this user with --state-dir"),
        })?;
        if ownership.is_accessible_by_others() {
            fs::set_permissions(&self.0, fs::Permissions::from_mode(0o700))
                .map_err(|error| format!("cannot be made private: {error}"))?;
        }
        self.check_format()?;
        create_private(&self.agents()).map_err(|error| format!("cannot contain agents: {error}"))
    }

    /// Checks that this version can read the format of the directory, and writes its own format there.
    fn check_format(&self) -> Result<(), String> {
        let path = self.0.join(FORMAT_FILE);
        let recorded = match regular_file::read(&path, 100) {
            Ok(text) => String::from_utf8_lossy(&text).trim().to_owned(),
            // Releases before format 1 did not write the file.
            Err(error) if error.kind() == io::ErrorKind::NotFound => "0".to_owned(),
            Err(error) => return Err(format!("cannot be used: {}: {error}", path.display())),
        };
        match recorded.parse::<u32>() {
            Ok(FORMAT) => return Ok(()),
            Ok(older) if older < FORMAT => {}
            Ok(newer) => {
                return Err(format!(
                    "has format {newer}, which a newer version of Colibri wrote; this version knows formats up to {FORMAT}: start that version, or pass another directory with --state-dir"
                ));
            }
            Err(_) => {
                return Err(format!(
                    "has no readable format: {} contains {recorded:?} instead of a number; restore it, or pass another directory with --state-dir",
                    path.display()
                ));
            }
        }
        record::replace(&path, &FORMAT, Durability::Machine).map_err(|error| {
            format!(
                "cannot be used: {} cannot be written: {error}",
                path.display()
            )
        })
    }

    /// Returns the ids of all agents, sorted.
    pub(crate) fn ids(&self) -> Result<Vec<AgentId>, SpawnError> {
        let path = self.agents();
        let names = || -> io::Result<Vec<_>> {
            fs::read_dir(&path)?
                .map(|entry| Ok(entry?.file_name()))
                .collect()
        };
        let names = names().map_err(|error| SpawnError::from_io("reading", &path, error))?;
        let mut ids: Vec<AgentId> = names
            .iter()
            .filter_map(|name| name.to_str()?.parse().ok())
            .collect();
        ids.sort();
        Ok(ids)
    }

    /// Returns whether the directory was removed since it was opened.
    #[must_use]
    pub fn is_removed(&self) -> bool {
        !self.agents().is_dir()
    }

    /// Creates the directory of a new agent, and its locked log (see [`layout::LOG`]). Returns `None` if the id is in use.
    pub(crate) fn create_agent(&self, id: &AgentId) -> Result<Option<(PathBuf, File)>, SpawnError> {
        let directory = self.agent(id);
        match DirBuilder::new().mode(0o700).create(&directory) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => return Ok(None),
            Err(error) if error.kind() == io::ErrorKind::NotFound && self.is_removed() => {
                return Err(SpawnError::state(&self.0, REMOVED));
            }
            Err(error) => return Err(SpawnError::from_io("creating", &directory, error)),
            Ok(()) => {}
        }
        let log = directory.join(layout::LOG);
        let created = OpenOptions::new()
            .append(true)
            .create_new(true)
            .mode(0o600)
            .open(&log)
            .and_then(|file| {
                file.try_lock()?;
                Ok(file)
            });
        match created {
            Ok(file) => Ok(Some((directory, file))),
            Err(error) => {
                discard(&directory);
                Err(SpawnError::from_io("creating", &log, error))
            }
        }
    }

    /// Reports whether the agent's shim runs or is being started: it then holds the lock on [`layout::LOG`].
    pub(crate) fn is_alive(&self, id: &AgentId) -> Result<bool, SpawnError> {
        let path = self.agent(id).join(layout::LOG);
        let file = match File::open(&path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
            Err(error) => return Err(SpawnError::from_io("opening", &path, error)),
        };
        match file.try_lock_shared() {
            Ok(()) => Ok(false),
            Err(TryLockError::WouldBlock) => Ok(true),
            Err(TryLockError::Error(error)) => Err(SpawnError::from_io("locking", &path, error)),
        }
    }
}

/// Creates a directory with mode 0700, and those above it, unless they exist.
fn create_private(directory: &Path) -> io::Result<()> {
    let mut builder = DirBuilder::new();
    builder.recursive(true).mode(0o700).create(directory)
}

/// Removes the directory of a failed spawn. Known files are removed by name first, which needs no descriptor: the spawn
/// may have failed because none was left.
pub(crate) fn discard(directory: &Path) {
    let spec = directory.join(layout::SPEC);
    for file in [
        &spec,
        &spec.with_extension("tmp"),
        &directory.join(layout::LOG),
        &directory.join(layout::CONTROL),
    ] {
        let _ = fs::remove_file(file);
    }
    if fs::remove_dir(directory).is_err()
        && let Err(error) = fs::remove_dir_all(directory)
    {
        tracing::warn!(directory = %directory.display(), %error, "cannot remove the directory of a failed spawn; the next daemon removes it");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spawn::new_id;

    #[test]
    fn writable_directory_is_refused_and_readable_one_made_private() {
        let dir = tempfile::tempdir().unwrap();
        for (mode, accepted) in [
            (0o700, true),
            (0o755, true),
            (0o770, false),
            (0o702, false),
            (0o1777, false),
        ] {
            let path = dir.path().join(format!("{mode:o}"));
            fs::create_dir(&path).unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
            let opened = StateDir::new(path.clone()).open();
            assert_eq!(opened.is_ok(), accepted, "{mode:o}: {opened:?}");
            if accepted {
                assert_eq!(
                    fs::metadata(&path).unwrap().permissions().mode() & 0o777,
                    0o700
                );
            }
        }
        assert!(StateDir::new("relative".into()).open().is_err());
    }

    #[test]
    fn newer_state_format_is_refused_and_older_one_opened() {
        let dir = tempfile::tempdir().unwrap();
        let state = StateDir::new(dir.path().join("state"));
        state.open().unwrap();
        let format = state.path().join(FORMAT_FILE);
        for (text, part) in [
            (Some("0\n"), None),
            (Some("1"), None),
            (None, None),
            (Some("2\n"), Some("start that version")),
            (Some("x"), Some("instead of a number")),
            (Some(""), Some("instead of a number")),
        ] {
            match text {
                Some(text) => fs::write(&format, text).unwrap(),
                None => fs::remove_file(&format).unwrap(),
            }
            let opened = state.open().map_err(|error| error.to_string());
            match part {
                None => assert_eq!(opened, Ok(()), "{text:?}"),
                Some(part) => assert!(opened.unwrap_err().contains(part), "{text:?}"),
            }
            if part.is_none() {
                assert_eq!(fs::read_to_string(&format).unwrap().trim(), "1");
            }
        }
    }

    #[test]
    fn spawn_without_state_directory_names_the_cause() {
        let dir = tempfile::tempdir().unwrap();
        let state = StateDir::new(dir.path().join("state"));
        state.open().unwrap();
        assert!(!state.is_removed());
        fs::remove_dir_all(state.path()).unwrap();
        assert!(state.is_removed());
        let error = state.create_agent(&new_id()).unwrap_err();
        let message = error.to_string();
        assert!(
            message.contains("was removed while the daemon runs"),
            "{message}"
        );
    }

    #[test]
    fn agent_is_alive_while_its_log_is_locked() {
        let dir = tempfile::tempdir().unwrap();
        let state = StateDir::new(dir.path().join("state"));
        state.open().unwrap();
        let id = new_id();
        let (_, log) = state.create_agent(&id).unwrap().unwrap();
        assert!(state.create_agent(&id).unwrap().is_none(), "taken");
        assert!(state.is_alive(&id).unwrap());
        let handed_over = log.try_clone().unwrap();
        drop(log);
        assert!(state.is_alive(&id).unwrap());
        drop(handed_over);
        assert!(!state.is_alive(&id).unwrap());
        assert_eq!(state.ids().unwrap(), [id]);
        assert!(!state.is_alive(&"absent".parse().unwrap()).unwrap());
    }
}
