//! Atomic replacement of a file's content.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

/// What a replaced file survives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Durability {
    /// The end of any process. Does not wait for the disk.
    Process,
    /// A crash of the machine too: fsync(2) of the file and of its directory.
    Machine,
}

/// Replaces the content of `path`; its mode is then 0600. Readers see the old or the new content, never a part: the
/// content is written to the same name with the extension `tmp`, which is then renamed (rename(2)).
///
/// Concurrent calls for one path need a lock of the caller.
///
/// # Errors
/// A file cannot be written, synced or renamed. The old content is unchanged, unless only the last sync failed.
pub fn replace(path: &Path, content: &[u8], durability: Durability) -> io::Result<()> {
    let temporary = path.with_extension("tmp");
    let mut file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(&temporary)?;
    file.write_all(content)?;
    if durability == Durability::Machine {
        file.sync_all()?;
    }
    fs::rename(&temporary, path)?;
    if durability == Durability::Machine {
        let parent = path
            .parent()
            .filter(|parent| !parent.as_os_str().is_empty());
        File::open(parent.unwrap_or(Path::new(".")))?.sync_all()?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn replace_leaves_one_private_file_with_new_content() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("record.json");
        for (content, durability) in [
            ("longer content", Durability::Process),
            ("short", Durability::Machine),
        ] {
            replace(&path, content.as_bytes(), durability).unwrap();
            assert_eq!(fs::read_to_string(&path).unwrap(), content);
        }
        let mode = fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn failed_replace_keeps_old_content() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("record.json");
        replace(&path, b"old", Durability::Process).unwrap();
        fs::create_dir(dir.path().join("record.tmp")).unwrap();
        assert!(replace(&path, b"new", Durability::Process).is_err());
        assert_eq!(fs::read(&path).unwrap(), b"old");
    }
}
