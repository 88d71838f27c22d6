//! The files of the host that an ephemeral jail shows.

use std::path::{Path, PathBuf};

use colibri_jail_core::{EphemeralJail, JailEngine, JailPath, host_path};

use crate::host::resolve_in;
use crate::program::Masked;

/// Mapping from paths in an ephemeral jail to paths of the host.
pub(crate) struct JailView<'a> {
    pub(crate) jail: &'a EphemeralJail,
    pub(crate) engine: &'a dyn JailEngine,
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

    fn is_hidden_by_view(&self, path: &Path) -> bool {
        let parsed = path.to_str().and_then(|path| path.parse::<JailPath>().ok());
        parsed.is_some_and(|path| self.engine.hidden_by_view(self.jail, &path))
    }

    /// Returns why the jail masks a path of the root; `None` if it does not.
    pub(crate) fn masked(&self, path: &Path) -> Option<Masked> {
        if host_path(&self.jail.mounts, path).is_some() {
            return None;
        }
        let covers = |directory: &&str| path.starts_with(directory);
        let exists = resolve_in(Path::new(self.jail.path.as_str()), path).is_some();
        let (cause, hint) = match self
            .engine
            .private_directories()
            .iter()
            .copied()
            .find(covers)
        {
            Some(private) => (
                format!("the sandbox has a private {private}, which hides the host's"),
                format!("{}, or move it out of {private}", mount_hint(path)),
            ),
            None if self.is_hidden_by_view(path) && !exists => return None,
            None if self.is_hidden_by_view(path) => (
                "the view minimal of the sandbox hides it".to_owned(),
                format!("{}, or give the view host", mount_hint(path)),
            ),
            None => {
                let options = &self.jail.sandbox;
                let denied = options.denied.iter().chain(&options.hidden);
                if let Some(denied) = denied.map(|path| path.as_str()).find(covers) {
                    return Some(Masked {
                        cause: format!("{denied} is hidden from agents"),
                        hint: "choose another path".to_owned(),
                        exists: true,
                    });
                }
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
            exists,
        })
    }
}

/// Returns how to mount a path. A mount contains no links, and a package of npm needs the packages beside it.
fn mount_hint(path: &Path) -> String {
    let real = path.canonicalize().unwrap_or_else(|_| path.to_owned());
    let trees = real
        .ancestors()
        .filter(|parent| parent.ends_with("node_modules"));
    let source = trees.last().unwrap_or(&real).display();
    match real == path {
        true => format!("mount it with `mounts` {source}"),
        false => format!(
            "mount {source} with `mounts` and give the real path {}",
            real.display()
        ),
    }
}
