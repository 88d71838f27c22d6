//! Watches the mounts that protect paths. The kernel removes a mount on a file when another process of the host replaces the file,
//! for example an editor by rename(2); the agent could then write the new one.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{self, Read, Seek};
use std::path::{Path, PathBuf};
use std::thread;

use rustix::event::{PollFd, PollFlags, poll};

use crate::{EXIT_FAILURE, SandboxError, cannot, report};

/// List of the mounts of this process. poll(2) reports a change as an exceptional condition (proc_pid_mounts(5)).
const MOUNTS: &str = "/proc/self/mountinfo";

/// The mounts of this process at one moment.
pub(crate) struct Watch {
    list: File,
    directories: Vec<PathBuf>,
    present: BTreeSet<String>,
}

impl Watch {
    /// Reads which mounts are in these directories, or on these paths.
    ///
    /// # Errors
    /// The list cannot be read.
    pub(crate) fn of(directories: Vec<PathBuf>) -> Result<Self, SandboxError> {
        let mut list = File::open(MOUNTS).map_err(cannot(format!("open {MOUNTS}")))?;
        let present = mount_points(&mut list, &directories).map_err(cannot("list the mounts"))?;
        Ok(Self {
            list,
            directories,
            present,
        })
    }

    /// Ends this process, and with it the sandbox, when one of the mounts is gone.
    ///
    /// # Errors
    /// A thread cannot be started.
    pub(crate) fn start(mut self) -> Result<(), SandboxError> {
        if self.directories.is_empty() {
            return Ok(());
        }
        let watch = move || {
            let gone = match wait_for_loss(&mut self.list, &self.directories, &self.present) {
                Ok(path) => format!(
                    "{path} was replaced outside of the sandbox, which protects the old file only"
                ),
                Err(error) => format!("cannot watch the mounts: {error}"),
            };
            report(&format!("{gone}; the agent was ended, start it again"));
            std::process::exit(i32::from(EXIT_FAILURE));
        };
        let started = thread::Builder::new().stack_size(64 << 10).spawn(watch);
        started
            .map(drop)
            .map_err(cannot("start a thread that watches the mounts"))
    }
}

/// Waits until one of the mounts is gone, and returns its path.
fn wait_for_loss(
    list: &mut File,
    directories: &[PathBuf],
    present: &BTreeSet<String>,
) -> io::Result<String> {
    loop {
        let now = mount_points(list, directories)?;
        if let Some(gone) = present.difference(&now).next() {
            return Ok(gone.clone());
        }
        match poll(&mut [PollFd::new(list, PollFlags::PRI)], None) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

/// Returns the mount points in these directories or on these paths, as the kernel writes them.
fn mount_points(list: &mut File, directories: &[PathBuf]) -> io::Result<BTreeSet<String>> {
    let mut text = String::new();
    list.rewind()?;
    list.read_to_string(&mut text)?;
    let points = text.lines().filter_map(|line| line.split(' ').nth(4));
    let escaped: Vec<PathBuf> = directories.iter().map(|path| escape(path)).collect();
    let is_watched = |point: &&str| {
        escaped
            .iter()
            .any(|path| Path::new(point).starts_with(path))
    };
    Ok(points.filter(is_watched).map(str::to_owned).collect())
}

/// Returns a path as the kernel writes it in the list: white space and backslashes as octal numbers.
fn escape(path: &Path) -> PathBuf {
    let text = path.to_string_lossy();
    let escaped = text.chars().map(|character| match character {
        ' ' | '\t' | '\n' | '\\' => format!("\\{:03o}", u32::from(character)),
        other => other.to_string(),
    });
    PathBuf::from(escaped.collect::<String>())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn white_space_is_escaped_as_in_the_list() {
        assert_eq!(escape(Path::new("/a b\\c")), Path::new("/a\\040b\\134c"));
    }
}
