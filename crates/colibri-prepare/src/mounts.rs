//! Checks of mounts on this host.

use std::io;
use std::path::{Path, PathBuf};

use colibri_jail_core::{
    Confinement, EphemeralJail, JailEngine, JailName, JailPath, OtherJail, PathError, host_path,
};

use colibri_types::AgentSpec;

use crate::PrepareError;

/// Checks that each source exists under its real path, and that each target exists in the jail.
///
/// A source with a symbolic link is refused: another agent may be able to change the link.
///
/// # Errors
/// The first invalid mount.
pub(crate) fn check(
    jail: &EphemeralJail,
    engine: &dyn JailEngine,
    in_root: impl Fn(&Path) -> Option<PathBuf>,
) -> Result<(), PrepareError> {
    let mounts = &jail.mounts;
    let is_directory =
        |path: &JailPath| in_root(Path::new(path.as_str())).is_some_and(|path| path.is_dir());
    for (number, mount) in mounts.iter().enumerate() {
        let source = Path::new(mount.source.as_str());
        let real = source
            .canonicalize()
            .map_err(|error| PathError::new("mount source", &mount.source, unusable(&error)))?;
        if real != source {
            let problem = format!(
                "contains a symbolic link; use the real path {}",
                real.display()
            );
            return Err(PathError::new("mount source", &mount.source, problem).into());
        }
        let target = Path::new(mount.target.as_str());
        let before = mounts.get(..number).unwrap_or_default();
        let mount_point = match host_path(before, target) {
            Some(source) => Some(source),
            None if engine.creates_mount_point(jail, &mount.target) => continue,
            // The monitor creates directories below these.
            None if source.is_dir()
                && jail
                    .writable_parent(&mount.target)
                    .is_some_and(is_directory) =>
            {
                continue;
            }
            None => in_root(target),
        };
        let kind = if source.is_dir() { "directory" } else { "file" };
        let fits =
            mount_point.is_some_and(|path| path.exists() && path.is_dir() == source.is_dir());
        if !fits {
            let problem = format!(
                "is not a {kind} in the jail; create an empty {kind} there, or choose a target in /tmp"
            );
            return Err(PathError::new("mount target", &mount.target, problem).into());
        }
    }
    Ok(())
}

/// Returns why a path cannot be used.
pub(crate) fn unusable(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::NotFound => "does not exist; create it or choose another".to_owned(),
        _ => format!("cannot be used: {error}"),
    }
}

/// Refuses mounts through which one agent could replace a mount source of another.
///
/// # Errors
/// The first conflict.
pub(crate) fn reject_overlaps<'a>(
    confinement: &Confinement,
    engine: &dyn JailEngine,
    running: &'a [AgentSpec],
) -> Result<(), PrepareError> {
    let name: JailName = "colibri".parse()?;
    let other_jail = |spec: &'a AgentSpec| {
        let agent = spec.id.as_str();
        let confinement = spec.config.jail.as_ref()?.confinement(&name).ok()?;
        Some(OtherJail { agent, confinement })
    };
    let others: Vec<_> = running.iter().filter_map(other_jail).collect();
    Ok(colibri_jail_core::reject_overlaps(
        confinement,
        engine,
        &others,
    )?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use colibri_jail_core::{Bubblewrap, FreebsdJail};
    use std::fs;
    use std::os::unix::fs::symlink;

    fn confinement(mounts: &[&str]) -> Confinement {
        config(mounts)
            .confinement(&"colibri-x".parse().unwrap())
            .unwrap()
    }

    fn config(mounts: &[&str]) -> colibri_jail_core::JailConfig {
        colibri_jail_core::JailConfig {
            path: Some("/".into()),
            mounts: mounts.iter().map(|mount| mount.parse().unwrap()).collect(),
            ..Default::default()
        }
    }

    fn jail(texts: &[&str]) -> EphemeralJail {
        match confinement(texts) {
            Confinement::Ephemeral(jail) => jail,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn invalid_source_or_target_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let real = dir.path().canonicalize().unwrap();
        let at = |name: &str| real.join(name).display().to_string();
        fs::create_dir(real.join("work")).unwrap();
        fs::write(real.join("file"), "").unwrap();
        symlink("work", real.join("link")).unwrap();
        let try_out = |mount: &str, engine: &dyn JailEngine| {
            check(&jail(&[mount]), engine, |path| Some(path.to_owned()))
                .map_err(|error| error.to_string())
        };
        for good in [
            at("work"),
            format!("{}:/tmp/anywhere", at("work")),
            format!("{}:/etc/hosts", at("file")),
        ] {
            try_out(&good, &Bubblewrap::default()).unwrap();
        }
        for (mount, word) in [
            (at("missing"), "does not exist"),
            (at("link"), "symbolic link"),
            (at("file/x"), "cannot be used"),
            (
                format!("{}:/no/such", at("work")),
                "not a directory in the jail",
            ),
            (
                format!("{}:/etc/hosts", at("work")),
                "not a directory in the jail",
            ),
            (format!("{}:/etc", at("file")), "not a file in the jail"),
        ] {
            let message = try_out(&mount, &Bubblewrap::default()).unwrap_err();
            assert!(message.contains(word), "{mount}: {message}");
        }
        assert!(try_out(&format!("{}:/tmp/any", at("work")), &FreebsdJail::default()).is_err());
        // Of two, the second may lie on what the first brings.
        fs::create_dir(real.join("work/sub")).unwrap();
        let two = [
            format!("{}:/tmp/w", at("work")),
            format!("{}:/tmp/w/sub:ro", at("work")),
        ];
        let two = jail(&two.each_ref().map(String::as_str));
        check(&two, &Bubblewrap::default(), |_| None).unwrap();
        // The monitor creates directories below the writable ones of a root from a template.
        let below = |target: &str, root: Option<PathBuf>| {
            let mut jail = jail(&[&format!("{}:{target}", at("work"))]);
            jail.writable = vec!["/tmp".parse().unwrap()];
            check(&jail, &FreebsdJail::default(), |_| root.clone())
        };
        below("/tmp/new", Some(real.clone())).unwrap();
        for (target, root) in [("/tmp/new", None), ("/tmp", None), ("/new", None)] {
            assert!(below(target, root).is_err(), "{target}");
        }
    }

    #[test]
    fn overlapping_mount_of_running_agent_is_refused() {
        let running: AgentSpec = serde_json::from_value(serde_json::json!({
            "id": "abc", "program": "x", "engine": "", "privilege": "", "created_at_ns": 0,
            "jail": config(&["/w"]),
        }))
        .unwrap();
        let running = [running];
        let check = |mount| {
            reject_overlaps(&confinement(&[mount]), &Bubblewrap::default(), &running)
                .map_err(|error| error.to_string())
        };
        assert_eq!(check("/w"), Ok(()));
        let message = check("/w/a").unwrap_err();
        assert!(
            message.starts_with("mount source /w/a overlaps mount source /w of agent abc: "),
            "{message}"
        );
    }
}
