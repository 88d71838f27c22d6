//! Mounts of this process (proc_pid_mountinfo(5)), to find all paths that show one file. Pure.

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

/// A mounted file system, or a part of one.
#[derive(Debug, PartialEq, Eq)]
struct MountPoint {
    /// Numbers of the device, as text.
    device: String,
    /// The directory of the file system that is mounted.
    root: PathBuf,
    path: PathBuf,
}

/// The mounts of this process, in the order in which they were mounted.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct MountTable(Vec<MountPoint>);

impl MountTable {
    /// Parses the text of /proc/self/mountinfo. Lines of an unknown form are left out.
    pub(crate) fn parse(text: &str) -> Self {
        let parse_line = |line: &str| {
            let mut fields = line.split(' ').skip(2);
            Some(MountPoint {
                device: fields.next()?.to_owned(),
                root: unescape(fields.next()?),
                path: unescape(fields.next()?),
            })
        };
        Self(text.lines().filter_map(parse_line).collect())
    }

    /// Returns every path at which a mount shows the file that `path` names, `path` first. `path` is a real path (realpath(3)).
    /// Paths that a later mount covers are included.
    pub(crate) fn aliases(&self, path: &Path) -> Vec<PathBuf> {
        self.find(path, false)
    }

    /// As [`Self::aliases`], with the mounts that show a part of the directory `path`.
    pub(crate) fn aliases_and_parts(&self, path: &Path) -> Vec<PathBuf> {
        self.find(path, true)
    }

    fn find(&self, path: &Path, with_parts: bool) -> Vec<PathBuf> {
        let mut aliases = vec![path.to_owned()];
        // The last mount on the longest path covers the others.
        let covering = self
            .0
            .iter()
            .filter(|mount| path.starts_with(&mount.path))
            .max_by_key(|mount| mount.path.components().count());
        let Some(covering) = covering else {
            return aliases;
        };
        let Some(in_file_system) = path
            .strip_prefix(&covering.path)
            .ok()
            .map(|inner| join(&covering.root, inner))
        else {
            return aliases;
        };
        for mount in self
            .0
            .iter()
            .filter(|mount| mount.device == covering.device)
        {
            let alias = match in_file_system.strip_prefix(&mount.root) {
                Ok(inner) => join(&mount.path, inner),
                Err(_) if with_parts && mount.root.starts_with(&in_file_system) => {
                    mount.path.clone()
                }
                Err(_) => continue,
            };
            if !aliases.contains(&alias) {
                aliases.push(alias);
            }
        }
        aliases
    }
}

/// Joins paths; [`Path::join`] with an empty path would append a slash.
fn join(directory: &Path, inner: &Path) -> PathBuf {
    match inner.as_os_str().is_empty() {
        true => directory.to_owned(),
        false => directory.join(inner),
    }
}

/// Replaces the octal escapes of white space and backslashes.
fn unescape(field: &str) -> PathBuf {
    let mut bytes = Vec::new();
    let mut rest = field.as_bytes();
    while let Some((first, after)) = rest.split_first() {
        let escaped = after
            .get(..3)
            .filter(|_| *first == b'\\')
            .and_then(|digits| std::str::from_utf8(digits).ok())
            .and_then(|digits| u8::from_str_radix(digits, 8).ok());
        match escaped {
            Some(byte) => {
                bytes.push(byte);
                rest = after.get(3..).unwrap_or_default();
            }
            None => {
                bytes.push(*first);
                rest = after;
            }
        }
    }
    OsString::from_vec(bytes).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "21 1 254:0 / / rw - ext4 /dev/vda rw\n\
        22 21 0:30 / /tmp rw - tmpfs tmpfs rw\n\
        23 21 254:0 /home/u /mnt/alias rw - ext4 /dev/vda rw\n\
        24 21 254:0 /home/u/.state /srv/with\\040space rw - ext4 /dev/vda rw\n\
        25 21 254:1 / /home/u/disk rw - ext4 /dev/vdb rw\n\
        broken\n";

    #[test]
    fn every_path_of_a_file_is_found() {
        let table = MountTable::parse(TEXT);
        for (path, expected) in [
            (
                "/home/u/.state/x",
                &[
                    "/home/u/.state/x",
                    "/mnt/alias/.state/x",
                    "/srv/with space/x",
                ][..],
            ),
            (
                "/home/u/.state",
                &["/home/u/.state", "/mnt/alias/.state", "/srv/with space"],
            ),
            (
                "/mnt/alias/.state/x",
                &[
                    "/mnt/alias/.state/x",
                    "/home/u/.state/x",
                    "/srv/with space/x",
                ],
            ),
            ("/home", &["/home"]),
            ("/tmp/x", &["/tmp/x"]),
            ("/home/u/disk/x", &["/home/u/disk/x"]),
        ] {
            let expected: Vec<PathBuf> = expected.iter().map(PathBuf::from).collect();
            assert_eq!(table.aliases(Path::new(path)), expected, "{path}");
        }
        let parts = table.aliases_and_parts(Path::new("/home"));
        let expected = ["/home", "/mnt/alias", "/srv/with space"];
        assert_eq!(parts, expected.map(PathBuf::from));
        let none = MountTable::default().aliases(Path::new("/x"));
        assert_eq!(none, [PathBuf::from("/x")]);
    }
}
