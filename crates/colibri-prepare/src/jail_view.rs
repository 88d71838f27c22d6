//! The files of the host that an ephemeral jail shows.

use std::path::{Path, PathBuf};

use colibri_jail_core::{EphemeralJail, host_path};

use crate::host::resolve_in;
use crate::program::Masked;

/// Mapping from paths in an ephemeral jail to paths of the host.
pub(crate) struct JailView<'a> {
    pub(crate) jail: &'a EphemeralJail,
    /// Directories that the engine replaces by private ones.
    pub(crate) private: &'static [&'static str],
}

/// A directory of the jail that does not show the root's.
enum Mask<'a> {
    /// The engine mounts a private directory there.
    Private(&'a str),
    /// The directory belongs to the daemon.
    Daemon(&'a str),
}

impl JailView<'_> {
    /// Returns the host path of a path in the jail; `None` if nothing exists there.
    pub(crate) fn host_path(&self, path: &Path) -> Option<PathBuf> {
        match host_path(&self.jail.mounts, path) {
            Some(source) => source.exists().then_some(source),
            None if self.mask(path).is_some() => None,
            None => resolve_in(Path::new(self.jail.path.as_str()), path),
        }
    }

    /// Returns why the jail masks a path of the root; `None` if it does not.
    pub(crate) fn masked(&self, path: &Path) -> Option<Masked> {
        if host_path(&self.jail.mounts, path).is_some() {
            return None;
        }
        let (cause, hint) = match self.mask(path)? {
            Mask::Daemon(directory) => (
                format!("{directory} belongs to the daemon and is hidden from agents"),
                "move it elsewhere".to_owned(),
            ),
            Mask::Private(directory) => (
                format!("the sandbox has a private {directory}, which hides the host's"),
                format!(
                    "mount it with `mounts` {}, or move it out of {directory}",
                    path.display()
                ),
            ),
        };
        Some(Masked {
            cause,
            hint,
            exists: resolve_in(Path::new(self.jail.path.as_str()), path).is_some(),
        })
    }

    /// Returns the mask that covers a path.
    fn mask(&self, path: &Path) -> Option<Mask<'_>> {
        let covers = |directory: &&str| path.starts_with(directory);
        let private = self.private.iter().copied().find(covers).map(Mask::Private);
        private.or_else(|| {
            let mut masked = self.jail.masked.iter().map(|masked| masked.as_str());
            masked.find(covers).map(Mask::Daemon)
        })
    }
}
