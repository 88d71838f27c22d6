//! The directories that the client of the server may choose as workspaces.

use std::path::{Component, Path, PathBuf};

use colibri_client::JailConfig;
use colibri_jail_core::PROTECTED_PATHS;

use crate::args::is_project;
use crate::error::CliError;
use crate::output;
use crate::paths::CurrentDir;

/// Where an agent works.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Workplace {
    /// A directory of the host, to be mounted.
    Workspace(PathBuf),
    /// A directory inside the sandbox, in a mount of the profile.
    Mounted(PathBuf),
}

/// A writable mount of the profile.
#[derive(Debug)]
struct WritableMount {
    /// Real path on the host.
    source: PathBuf,
    /// Path in the sandbox.
    target: PathBuf,
}

/// The directories that agents may write.
#[derive(Debug)]
pub(super) struct Workspaces {
    /// Real path of the directory of `--workspace`.
    root: Option<PathBuf>,
    mounts: Vec<WritableMount>,
}

impl Workspaces {
    /// Returns the directories of a server with this option and the jail of its profile.
    pub(super) fn new(option: Option<&Path>, jail: Option<&JailConfig>) -> Result<Self, CliError> {
        let current_dir = CurrentDir::read();
        let real = |path: &Path| {
            path.canonicalize().map_err(|error| {
                CliError::Message(format!(
                    "cannot use {path:?} as the workspace: {error}; give an existing directory"
                ))
            })
        };
        let root = match option {
            Some(option) => Some(real(&current_dir.path(option)?)?),
            None => Some(PathBuf::from(current_dir.text()?)).filter(|path| is_project(path)),
        };
        let writable = jail.into_iter().flat_map(|jail| &jail.mounts);
        let mounts = writable
            .filter(|mount| !mount.read_only)
            .filter_map(|mount| {
                Some(WritableMount {
                    source: Path::new(&mount.source).canonicalize().ok()?,
                    target: PathBuf::from(mount.target.as_ref().unwrap_or(&mount.source)),
                })
            })
            .collect();
        let workspaces = Self { root, mounts };
        match workspaces.default_path() {
            Some(_) => Ok(workspaces),
            None => Err(CliError::Message(
                "agents have no workspace: the current directory contains the home directory or is one of the system; give --workspace"
                    .to_owned(),
            )),
        }
    }

    fn default_path(&self) -> Option<&Path> {
        let mount = self.mounts.first().map(|mount| &mount.source);
        self.root.as_ref().or(mount).map(PathBuf::as_path)
    }

    /// Returns where an agent works for the path that a client has given. A relative path is one in the workspace of the server.
    pub(super) fn resolve(&self, typed: Option<&str>) -> Result<Workplace, CliError> {
        let shown = output::sanitize(typed.unwrap_or_default(), 200);
        let refused =
            |problem: &str| CliError::Message(format!("refused workspace {shown:?}: {problem}"));
        let default = self.default_path().unwrap_or(Path::new("/"));
        let typed = Path::new(typed.unwrap_or_default());
        if typed.components().any(|part| part == Component::ParentDir) {
            return Err(refused("it contains \"..\"; give the path without it"));
        }
        let path = default
            .join(typed)
            .canonicalize()
            .map_err(|error| refused(&format!("{error}; give an existing directory")))?;
        if !path.is_dir() {
            return Err(refused("it is not a directory"));
        }
        for mount in &self.mounts {
            if let Ok(below) = path.strip_prefix(&mount.source) {
                return Ok(Workplace::Mounted(
                    mount.target.join(below).components().collect(),
                ));
            }
        }
        let below = self
            .root
            .as_ref()
            .and_then(|root| path.strip_prefix(root).ok());
        let below = below.ok_or_else(|| {
            refused("it is outside of the directories that this server lets agents write")
        })?;
        // An agent may not write these, and those who work in one could.
        let is_protected = |name: &std::ffi::OsStr| {
            PROTECTED_PATHS
                .iter()
                .any(|(protected, _)| name.eq_ignore_ascii_case(protected))
        };
        if below.iter().any(is_protected) {
            return Err(refused(
                "it is in a directory that is protected from agents",
            ));
        }
        Ok(Workplace::Workspace(path))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use colibri_client::MountConfig;
    use std::os::unix::fs::symlink;

    #[test]
    fn workspace_outside_of_the_given_directories_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let base = dir.path().canonicalize().unwrap();
        for path in [
            "root/sub/.git",
            "root/.claude/x",
            "outside",
            "mount/in",
            "read-only",
        ] {
            std::fs::create_dir_all(base.join(path)).unwrap();
        }
        std::fs::write(base.join("root/file"), "").unwrap();
        symlink(base.join("outside"), base.join("root/link")).unwrap();
        symlink("sub", base.join("root/inner")).unwrap();
        let text = |path: &str| base.join(path).to_str().unwrap().to_owned();
        let mount = |source: &str, target: Option<&str>, read_only| MountConfig {
            source: text(source),
            target: target.map(str::to_owned),
            read_only,
        };
        let jail = JailConfig {
            mounts: vec![
                mount("mount", Some("/inside"), false),
                mount("read-only", None, true),
            ],
            ..JailConfig::default()
        };
        let workspaces = Workspaces::new(Some(&base.join("root")), Some(&jail)).unwrap();
        let root = |path: &str| Workplace::Workspace(base.join(path));
        for (typed, expected) in [
            (None, root("root")),
            (Some("".to_owned()), root("root")),
            (Some("sub".to_owned()), root("root/sub")),
            (Some("inner".to_owned()), root("root/sub")),
            (Some(text("root/sub/")), root("root/sub")),
            (
                Some(text("mount/in")),
                Workplace::Mounted("/inside/in".into()),
            ),
            (Some(text("mount")), Workplace::Mounted("/inside".into())),
        ] {
            assert_eq!(
                workspaces.resolve(typed.as_deref()).unwrap(),
                expected,
                "{typed:?}"
            );
        }
        for refused in [
            "..".to_owned(),
            "sub/../..".to_owned(),
            "sub/../sub".to_owned(),
            "link".to_owned(),
            "absent".to_owned(),
            "file".to_owned(),
            "sub/.git".to_owned(),
            ".claude/x".to_owned(),
            text("outside"),
            text("read-only"),
            text(""),
            "/".to_owned(),
            "/etc".to_owned(),
        ] {
            let error = workspaces.resolve(Some(&refused)).unwrap_err().to_string();
            assert!(error.starts_with("refused workspace"), "{refused}: {error}");
        }
    }
}
