//! Homes of agents: directories that are removed with their agents, and the files that a home contains at the first start.
//!
//! A home may be one that an agent has written, so nothing in it is reached through a link.

use std::fs::{self, DirBuilder, File};
use std::io::{self, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, symlink};
use std::path::{Path, PathBuf};

use colibri_jail_core::HomeFile;
use colibri_shim::layout;
use colibri_types::{AgentId, AgentSpawnConfig};
use rustix::fs::{
    AtFlags, Dir, FileType, Mode, OFlags, linkat, mkdirat, open, openat, statat, unlinkat,
};
use rustix::io::Errno;

use crate::remove_tree::remove_tree;
use crate::{SpawnError, StateDir};

/// Maximum size of all files that are copied for one agent, in bytes.
const MAX_BYTES: u64 = 64 << 20;
/// Maximum number of files and directories that are copied for one agent.
const MAX_ENTRIES: u32 = 4096;
/// Maximum depth of a directory that is copied.
const MAX_DEPTH: u32 = 16;

const DIRECTORY: OFlags = OFlags::RDONLY
    .union(OFlags::DIRECTORY)
    .union(OFlags::NOFOLLOW)
    .union(OFlags::CLOEXEC);

/// Name of a file until its whole content is there.
const UNFINISHED: &str = ".colibri-unfinished-copy";

/// Directory of the homes, beside that of the agents.
const HOMES: &str = "homes";

/// Suffix of a link beside a home that was taken over: it names the ended agent until the new one is started. A link, because a
/// crash leaves all of it or nothing.
const OWNER: &str = ".owner";

/// Returns the path of the home that is removed with the agent.
fn home_of(state: &StateDir, id: &AgentId) -> PathBuf {
    state.path().join(HOMES).join(id.as_str())
}

/// Returns the path of the link that names the owner of a home.
fn owner_link(home: &Path) -> PathBuf {
    let mut link = home.as_os_str().to_owned();
    link.push(OWNER);
    link.into()
}

fn remove_owner_link(home: &Path) -> io::Result<()> {
    match fs::remove_file(owner_link(home)) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        removed => removed,
    }
}

/// Gives the home of an agent that was not started back to the ended agent that it continues, or removes it.
fn undo(home: &Path) -> io::Result<()> {
    if let Ok(owner) = fs::read_link(owner_link(home)) {
        let source = home.with_file_name(owner.file_name().unwrap_or_default());
        // A home that was not moved yet stays where it is.
        if home.symlink_metadata().is_ok() {
            fs::rename(home, &source)?;
        }
    }
    remove_tree(home)?;
    remove_owner_link(home)
}

/// The home that is removed with an agent. It is removed, or given back, unless the agent was started.
pub(crate) struct ProvidedHome {
    path: PathBuf,
    is_kept: bool,
}

impl ProvidedHome {
    /// Keeps the home: the agent was started.
    pub(crate) fn keep(mut self) {
        self.is_kept = true;
        if let Err(error) = remove_owner_link(&self.path) {
            tracing::warn!(home = %self.path.display(), %error, "cannot remove the name of the former owner of a home");
        }
    }
}

impl Drop for ProvidedHome {
    fn drop(&mut self) {
        if self.is_kept {
            return;
        }
        if let Err(error) = undo(&self.path) {
            tracing::warn!(home = %self.path.display(), %error, "cannot undo the home of an agent that was not started");
        }
    }
}

/// Creates a home for an agent whose configuration needs files in it and names none, or takes over that of an ended agent,
/// and sets it in the configuration.
///
/// # Errors
/// The directory cannot be created, or belongs to a running agent.
pub(crate) fn provide(
    state: &StateDir,
    id: &AgentId,
    config: &mut AgentSpawnConfig,
) -> Result<Option<ProvidedHome>, SpawnError> {
    let Some(jail) = &mut config.jail else {
        return Ok(None);
    };
    let path = home_of(state, id);
    let homes = state.path().join(HOMES);
    let source = match &jail.home {
        None if jail.home_files.is_empty() => return Ok(None),
        None => None,
        Some(home) if Path::new(home).parent() == Some(&homes) => Some(PathBuf::from(home)),
        Some(_) => return Ok(None),
    };
    let failed = |error| SpawnError::from_io("creating", &path, error);
    let mut builder = DirBuilder::new();
    builder.recursive(true).mode(0o700);
    match &source {
        None => builder.create(&path).map_err(failed)?,
        Some(source) => {
            let name = source.file_name().and_then(|name| name.to_str());
            let owner: AgentId = name.unwrap_or_default().parse()?;
            // The shim of an ended agent may still run for a moment.
            let has_ended = state.agent(&owner).join(layout::EXIT).exists();
            if !has_ended && state.is_alive(&owner)? {
                return Err(SpawnError::HomeInUse { id: owner });
            }
            let link = owner_link(&path);
            symlink(owner.as_str(), &link)
                .map_err(|error| SpawnError::from_io("creating", &link, error))?;
            if let Err(error) = fs::rename(source, &path) {
                // If this fails, the daemon removes the link at its next start.
                let _ = remove_owner_link(&path);
                return Err(match error.kind() {
                    io::ErrorKind::NotFound => SpawnError::HomeMoved { id: owner },
                    _ => SpawnError::from_io("moving the home to", &path, error),
                });
            }
        }
    }
    let Some(home) = path.to_str() else {
        let problem = "is not UTF-8, so no home can be mounted; use another state directory";
        return Err(SpawnError::state(&path, problem));
    };
    jail.home = Some(home.to_owned());
    Ok(Some(ProvidedHome {
        path,
        is_kept: false,
    }))
}

/// Removes the home that belongs to the agent with this directory, if it has one.
///
/// # Errors
/// It cannot be removed.
pub fn remove_home(agent_directory: &Path) -> io::Result<()> {
    match home_beside(agent_directory) {
        Some(home) => remove_tree(&home).and_then(|()| remove_owner_link(&home)),
        None => Ok(()),
    }
}

/// Gives back or removes the home that belongs to the agent with this directory, which was not started.
///
/// # Errors
/// It cannot be moved or removed.
pub(crate) fn undo_home(agent_directory: &Path) -> io::Result<()> {
    home_beside(agent_directory).map_or(Ok(()), |home| undo(&home))
}

fn home_beside(agent_directory: &Path) -> Option<PathBuf> {
    let state = agent_directory.parent().and_then(Path::parent)?;
    Some(state.join(HOMES).join(agent_directory.file_name()?))
}

/// Gives back or removes the homes of agents that were never started. A failure is logged.
///
/// # Errors
/// The homes cannot be listed.
pub(crate) fn undo_orphaned_homes(state: &StateDir) -> io::Result<()> {
    let entries = match fs::read_dir(state.path().join(HOMES)) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        entries => entries?,
    };
    for entry in entries {
        let name = entry?.file_name();
        let name = name.to_str().unwrap_or_default();
        let id = name.strip_suffix(OWNER).unwrap_or(name);
        let Ok(id) = id.parse::<AgentId>() else {
            continue;
        };
        if !state.agent(&id).exists()
            && let Err(error) = undo(&home_of(state, &id))
        {
            tracing::warn!(%id, %error, "cannot undo the home of an agent that was not started");
        }
    }
    Ok(())
}

/// Copies the files that do not exist in the home. A source that does not exist is skipped.
///
/// # Errors
/// A file cannot be copied, or there are too many.
pub(crate) fn fill(home: &Path, files: &[HomeFile]) -> Result<(), SpawnError> {
    let mut budget = Budget {
        bytes: MAX_BYTES,
        entries: MAX_ENTRIES,
    };
    let root = open(home, DIRECTORY, Mode::empty())
        .map_err(|error| SpawnError::from_io("opening", home, error.into()))?;
    for file in files {
        fill_one(&root, file, &mut budget).map_err(|error| {
            let path = home.join(&file.target);
            SpawnError::from_io("copying a file to", &path, error)
        })?;
    }
    Ok(())
}

/// What may still be copied.
struct Budget {
    bytes: u64,
    entries: u32,
}

impl Budget {
    fn take(&mut self, bytes: u64) -> io::Result<()> {
        let entries = self.entries.checked_sub(1);
        match (entries, self.bytes.checked_sub(bytes)) {
            (Some(entries), Some(bytes)) => {
                *self = Self { bytes, entries };
                Ok(())
            }
            _ => Err(io::Error::new(
                io::ErrorKind::FileTooLarge,
                format!(
                    "more than {MAX_ENTRIES} files or {} MiB; name fewer",
                    MAX_BYTES >> 20
                ),
            )),
        }
    }
}

fn fill_one(root: &OwnedFd, file: &HomeFile, budget: &mut Budget) -> io::Result<()> {
    let target = Path::new(&file.target);
    let Some(name) = target.file_name() else {
        return Ok(());
    };
    let source = match &file.source {
        Some(source) => match open_source(Path::new(source))? {
            Some(source) => Some(source),
            None => return Ok(()),
        },
        None => None,
    };
    let mut directory = root.try_clone()?;
    for part in target.parent().into_iter().flat_map(Path::components) {
        directory = enter(&directory, part.as_ref())?;
    }
    match (source, &file.content) {
        (Some(source), _) => copy(source, &directory, name.as_ref(), budget, 0),
        (None, content) => {
            let content = content.as_deref().unwrap_or_default();
            budget.take(content.len() as u64)?;
            create(&directory, name.as_ref(), Mode::empty(), |target| {
                target.write_all(content.as_bytes())
            })
        }
    }
}

/// Opens a source, whose path may contain links of the user; `None` if it does not exist.
fn open_source(path: &Path) -> io::Result<Option<OwnedFd>> {
    let real = match path.canonicalize() {
        Ok(real) => real,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    Ok(Some(open(real, flags, Mode::empty())?))
}

/// Opens a directory, and creates it if it is missing.
fn enter(parent: &OwnedFd, name: &Path) -> io::Result<OwnedFd> {
    match mkdirat(parent, name, Mode::RWXU) {
        Ok(()) | Err(Errno::EXIST) => {}
        Err(error) => return Err(error.into()),
    }
    Ok(openat(parent, name, DIRECTORY, Mode::empty())?)
}

/// Creates a file with its whole content, unless the name exists. Its owner can read and write it; `more` are other permissions.
fn create(
    parent: &OwnedFd,
    name: &Path,
    more: Mode,
    write: impl FnOnce(&mut File) -> io::Result<()>,
) -> io::Result<()> {
    match statat(parent, name, AtFlags::SYMLINK_NOFOLLOW) {
        Err(Errno::NOENT) => {}
        found => return found.map(drop).map_err(io::Error::from),
    }
    // Left by a copy that was interrupted.
    let remove = || unlinkat(parent, UNFINISHED, AtFlags::empty());
    match remove() {
        Ok(()) | Err(Errno::NOENT) => {}
        Err(error) => return Err(error.into()),
    }
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let mode = Mode::RUSR | Mode::WUSR | more;
    let mut file = File::from(openat(parent, UNFINISHED, flags, mode)?);
    let written = write(&mut file).and_then(|()| {
        match linkat(parent, UNFINISHED, parent, name, AtFlags::empty()) {
            Ok(()) | Err(Errno::EXIST) => Ok(()),
            Err(error) => Err(error.into()),
        }
    });
    let removed = remove().map_err(io::Error::from);
    written.and(removed)
}

/// Copies a regular file, or the files of a directory. Skips everything else.
fn copy(
    source: OwnedFd,
    parent: &OwnedFd,
    name: &Path,
    budget: &mut Budget,
    depth: u32,
) -> io::Result<()> {
    let mut source = File::from(source);
    let data = source.metadata()?;
    if data.is_file() {
        budget.take(data.len())?;
        let is_executable = data.mode() & 0o100 != 0;
        let more = if is_executable {
            Mode::XUSR
        } else {
            Mode::empty()
        };
        create(parent, name, more, |target| {
            // The file may grow meanwhile.
            io::copy(&mut io::Read::take(&mut source, data.len()), target).map(drop)
        })?;
    } else if data.is_dir() && depth < MAX_DEPTH {
        budget.take(0)?;
        let target = enter(parent, name)?;
        copy_entries(source.as_fd(), &target, budget, depth)?;
    }
    Ok(())
}

fn copy_entries(
    source: BorrowedFd<'_>,
    target: &OwnedFd,
    budget: &mut Budget,
    depth: u32,
) -> io::Result<()> {
    for entry in Dir::read_from(source)? {
        let entry = entry?;
        let name = entry.file_name();
        if matches!(name.to_bytes(), b"." | b"..") {
            continue;
        }
        let data = statat(source, name, AtFlags::SYMLINK_NOFOLLOW)?;
        let kind = FileType::from_raw_mode(data.st_mode);
        if !matches!(kind, FileType::RegularFile | FileType::Directory) {
            continue;
        }
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let opened = openat(source, name, flags, Mode::empty())?;
        let name = Path::new(
            <std::ffi::OsStr as std::os::unix::ffi::OsStrExt>::from_bytes(name.to_bytes()),
        );
        copy(opened, target, name, budget, depth + 1)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt, symlink};

    use super::*;

    fn file(target: &str, source: Option<&Path>, content: Option<&str>) -> HomeFile {
        HomeFile {
            target: target.to_owned(),
            source: source.map(|path| path.to_str().unwrap().to_owned()),
            content: content.map(str::to_owned),
        }
    }

    #[test]
    fn files_are_copied_once_and_private() {
        let dir = tempfile::tempdir().unwrap();
        let (source, home) = (dir.path().join("source"), dir.path().join("home"));
        fs::create_dir_all(source.join("inner")).unwrap();
        fs::create_dir(&home).unwrap();
        fs::write(source.join("inner/a"), "one").unwrap();
        fs::set_permissions(source.join("inner/a"), fs::Permissions::from_mode(0o644)).unwrap();
        symlink("/etc/passwd", source.join("link")).unwrap();
        let files = [
            file("x/y", Some(&source), None),
            file("x/z", None, Some("two")),
            file("missing", Some(&dir.path().join("none")), None),
        ];
        fill(&home, &files).unwrap();
        assert_eq!(fs::read_to_string(home.join("x/y/inner/a")).unwrap(), "one");
        assert_eq!(fs::read_to_string(home.join("x/z")).unwrap(), "two");
        assert!(!home.join("x/y/link").is_symlink() && !home.join("missing").exists());
        let mode = home
            .join("x/y/inner/a")
            .metadata()
            .unwrap()
            .permissions()
            .mode();
        assert_eq!(mode & 0o777, 0o600);
        fs::write(home.join("x/z"), "mine").unwrap();
        fill(&home, &files).unwrap();
        assert_eq!(fs::read_to_string(home.join("x/z")).unwrap(), "mine");
    }

    #[test]
    fn home_of_an_ended_agent_survives_a_crash_during_its_resume() {
        let dir = tempfile::tempdir().unwrap();
        let state = StateDir::new(dir.path().to_owned());
        let [old, new, other]: [AgentId; 3] = ["old", "new", "other"].map(|id| id.parse().unwrap());
        let old_home = home_of(&state, &old);
        fs::create_dir_all(&old_home).unwrap();
        fs::create_dir_all(home_of(&state, &other)).unwrap();
        fs::create_dir_all(state.agent(&old)).unwrap();
        fs::write(state.agent(&old).join(layout::EXIT), "").unwrap();
        fs::write(old_home.join("session"), "s").unwrap();
        let take_over = || {
            let mut config = AgentSpawnConfig {
                jail: Some(colibri_jail_core::JailConfig {
                    home: Some(old_home.to_str().unwrap().to_owned()),
                    ..Default::default()
                }),
                ..Default::default()
            };
            provide(&state, &new, &mut config).unwrap().unwrap()
        };
        let homes = || {
            let entries = fs::read_dir(dir.path().join(HOMES)).unwrap();
            let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
            names.collect::<std::collections::BTreeSet<_>>()
        };
        // The daemon is killed before the agent has a directory, and after.
        for has_directory in [false, true] {
            std::mem::forget(take_over());
            assert!(!old_home.exists() && home_of(&state, &new).join("session").exists());
            if has_directory {
                fs::create_dir_all(state.agent(&new)).unwrap();
                undo_orphaned_homes(&state).unwrap();
                assert!(!old_home.exists());
                undo_home(&state.agent(&new)).unwrap();
                fs::remove_dir(state.agent(&new)).unwrap();
            } else {
                undo_orphaned_homes(&state).unwrap();
            }
            assert!(old_home.join("session").exists());
            assert_eq!(homes(), ["old".to_owned()].into());
        }
        drop(take_over());
        assert_eq!(homes(), ["old".to_owned()].into());
        fs::create_dir_all(state.agent(&new)).unwrap();
        take_over().keep();
        undo_orphaned_homes(&state).unwrap();
        assert_eq!(homes(), ["new".to_owned()].into());
    }

    #[test]
    fn link_in_a_home_is_not_followed() {
        let dir = tempfile::tempdir().unwrap();
        let (home, outside) = (dir.path().join("home"), dir.path().join("outside"));
        fs::create_dir(&home).unwrap();
        fs::create_dir(&outside).unwrap();
        symlink(&outside, home.join("x")).unwrap();
        symlink(outside.join("new"), home.join("file")).unwrap();
        assert!(fill(&home, &[file("x/a", None, Some("1"))]).is_err());
        fill(&home, &[file("file", None, Some("1"))]).unwrap();
        assert_eq!(fs::read_dir(&outside).unwrap().count(), 0);
    }

    #[test]
    fn size_and_number_of_files_are_bounded() {
        let dir = tempfile::tempdir().unwrap();
        let (source, home) = (dir.path().join("source"), dir.path().join("home"));
        fs::create_dir(&source).unwrap();
        fs::create_dir(&home).unwrap();
        File::create(source.join("large"))
            .unwrap()
            .set_len(MAX_BYTES + 1)
            .unwrap();
        let error = fill(&home, &[file("x", Some(&source), None)]).unwrap_err();
        assert!(error.to_string().contains("64 MiB"), "{error}");
    }
}
