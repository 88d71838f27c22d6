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

impl JailView<'_> {
    /// Returns the host path of a path in the jail; `None` if nothing exists there.
    pub(crate) fn host_path(&self, path: &Path) -> Option<PathBuf> {
        match host_path(&self.jail.mounts, path) {
            Some(source) => source.exists().then_some(source),
            None if self.masked(path).is_some() => None,
            None => resolve_in(Path::new(self.jail.path.as_str()), path),
        }
    }

    /// Returns why the jail masks a path of the root; `None` if it does not.
    pub(crate) fn masked(&self, path: &Path) -> Option<Masked> {
        if host_path(&self.jail.mounts, path).is_some() {
            return None;
        }
        let covers = |directory: &&str| path.starts_with(directory);
        let (cause, hint) = match self.private.iter().copied().find(covers) {
            Some(private) => (
                format!("the sandbox has a private {private}, which hides the host's"),
                format!(
                    "mount it with `mounts` {}, or move it out of {private}",
                    path.display()
                ),
            ),
            None => {
                let mut masked = self.jail.masked.iter().map(|masked| masked.as_str());
                let directory = masked.find(covers)?;
                (
                    format!("{directory} belongs to the daemon and is hidden from agents"),
                    "move it elsewhere".to_owned(),
                )
            }
        };
        Some(Masked {
            cause,
            hint,
            exists: resolve_in(Path::new(self.jail.path.as_str()), path).is_some(),
        })
    }
}
