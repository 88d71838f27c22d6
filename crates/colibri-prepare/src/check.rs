//! Checks of a prepared command on this host.

use std::path::Path;

use colibri_jail_core::{
    Confinement, HostUser, JailEngine, JailError, JailPath, PathError, host_path,
};
use colibri_sys::regular_file::is_executable;
use colibri_types::AgentSpec;

use crate::doctor::check_strict;
use crate::host::resolve_in;
use crate::jail_view::JailView;
use crate::kernel_support::support_obstacle;
use crate::program::{self, ProgramView};
use crate::{PrepareError, Prepared, Preparer, arguments, mounts};

impl Preparer {
    /// Checks paths, mounts and the program on this host, so that an error is reported before the spawn with its cause.
    ///
    /// # Errors
    /// The first check that fails.
    pub fn check(&self, prepared: &Prepared, running: &[AgentSpec]) -> Result<(), PrepareError> {
        let wrapper = match &prepared.confinement {
            Confinement::None => None,
            _ => self.engine.argument_limit(),
        };
        arguments::check(
            &prepared.command,
            &prepared.env,
            wrapper,
            &arguments::ArgumentLimits::of_host(),
        )?;
        let workdir = Path::new(prepared.workdir.as_ref().map_or("/", |path| path.as_str()));
        match &prepared.confinement {
            Confinement::None => {
                check_directory("working directory", workdir, workdir)?;
                program::check(
                    prepared.agent.program(),
                    prepared.search_path(),
                    &ProgramView {
                        find: &|path| Some(workdir.join(path)),
                        masked: &|_| None,
                        location: "on this host",
                        as_self: true,
                    },
                )
            }
            Confinement::Persistent { .. } => self.check_wrapper(prepared),
            Confinement::Ephemeral(jail) => {
                check_strict(&jail.sandbox)?;
                let root = Path::new(jail.path.as_str());
                let what = if jail.is_template {
                    "jail template"
                } else {
                    "jail path"
                };
                check_directory(what, root, root)?;
                self.check_wrapper(prepared)?;
                let preload = root.join("etc/ld.so.preload");
                if jail.sandbox.completed
                    && root != Path::new("/")
                    && preload.symlink_metadata().is_ok()
                {
                    let problem = "has a file /etc/ld.so.preload, whose libraries would run before the restrictions; remove it";
                    return Err(PathError::new(what, &jail.path, problem).into());
                }
                let engine = &*self.engine;
                if !jail.allow.is_empty()
                    && let Some(support) = engine.filter_support()
                    && let Some(obstacle) = support_obstacle(&support)
                {
                    return Err(JailError::Unsupported(format!(
                        "`allow` needs {}, and {}; {}",
                        support.name, obstacle.cause, obstacle.hint
                    ))
                    .into());
                }
                for needed in engine.private_directories() {
                    let inside = root.join(needed.trim_start_matches('/'));
                    if !inside.is_dir() {
                        let problem = format!(
                            "has no directory {needed} to mount on; create an empty one in it"
                        );
                        return Err(PathError::new("jail path", &jail.path, problem).into());
                    }
                }
                mounts::check(jail, engine, |path| resolve_in(root, path))?;
                mounts::reject_overlaps(&prepared.confinement, engine, running)?;
                let view = JailView { jail, engine };
                let is_private = engine
                    .private_directories()
                    .iter()
                    .any(|private| workdir == Path::new(private));
                if !is_private || host_path(&jail.mounts, workdir).is_some() {
                    if let Some(masked) = view.masked(workdir) {
                        let (cause, hint) = (masked.cause, masked.hint);
                        let problem = format!("does not exist in the jail: {cause}; {hint}");
                        let shown = workdir.display();
                        return Err(PathError::new("working directory", shown, problem).into());
                    }
                    let host_path = view.host_path(workdir).unwrap_or_default();
                    check_directory("working directory", workdir, &host_path)?;
                }
                program::check(
                    prepared.agent.program(),
                    prepared.search_path(),
                    &ProgramView {
                        find: &|path| view.host_path(&workdir.join(path)),
                        masked: &|path| view.masked(&workdir.join(path)),
                        location: &format!("under {}", root.display()),
                        as_self: !engine.needs_root()
                            && self.backend.runs_as_caller()
                            && jail.sandbox.host_user == HostUser::Caller,
                    },
                )
            }
        }
    }

    /// Checks that the confining program is executable, and with a monitor every program of the engine.
    fn check_wrapper(&self, prepared: &Prepared) -> Result<(), PrepareError> {
        let engine_programs = self.engine.programs();
        let monitored = engine_programs
            .paths
            .iter()
            .filter(|_| prepared.has_monitor);
        let mut programs = monitored
            .map(String::as_str)
            .chain([prepared.command.program()]);
        let Some(program) = programs.find(|program| !is_executable(Path::new(program))) else {
            return Ok(());
        };
        Err(PrepareError::WrapperMissing {
            program: program.to_owned(),
            hint: missing_hint(&*self.engine, program),
        })
    }
}

/// Returns how to fix that this program of a wrapper is missing.
fn missing_hint(engine: &dyn JailEngine, program: &str) -> String {
    let programs = engine.programs();
    let is_proxy = |proxy: &JailPath| proxy.as_str() == program;
    if programs.paths.iter().any(|path| path == program) {
        let hint = programs.hint;
        format!("{hint}, or set COLIBRI_JAIL_ENGINE to another engine")
    } else if engine.outer_proxy().is_some_and(is_proxy) {
        "install colibri-proxy there, or remove `allow`".to_owned()
    } else {
        "run: colibri doctor, or set COLIBRI_JAIL_PRIV_MODE to another privilege backend".to_owned()
    }
}

/// Checks that `host_path` is a directory. `shown` is its name in the message.
fn check_directory(what: &'static str, shown: &Path, host_path: &Path) -> Result<(), PathError> {
    let problem = match host_path.metadata() {
        Ok(data) if data.is_dir() => return Ok(()),
        Ok(_) => "is not a directory; choose a directory".to_owned(),
        Err(_) if host_path.as_os_str().is_empty() => {
            "does not exist in the jail; choose an existing directory".to_owned()
        }
        Err(error) => mounts::unusable(&error),
    };
    Err(PathError::new(what, shown.display(), problem))
}

#[cfg(test)]
mod tests {
    use super::*;
    use colibri_jail_core::FreebsdJail;

    #[test]
    fn hint_for_a_missing_program_names_its_source() {
        let proxy = "/usr/local/libexec/colibri-proxy";
        let engine = FreebsdJail::default().with_proxy(proxy.parse().unwrap());
        for (program, hint) in [
            ("/usr/sbin/jail", "FreeBSD's base system"),
            (
                "/usr/local/libexec/colibri-jail-helper",
                "COLIBRI_JAIL_HELPER",
            ),
            (proxy, "install colibri-proxy there, or remove `allow`"),
            ("/usr/bin/mdo", "COLIBRI_JAIL_PRIV_MODE"),
        ] {
            let found = missing_hint(&engine, program);
            assert!(found.contains(hint), "{program}: {found}");
        }
    }
}
