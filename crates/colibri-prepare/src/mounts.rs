//! What of the host an agent gets to see: sources that nobody can exchange, and none that leads to the daemon.

use std::path::{Path, PathBuf};

use colibri_jail_core::{Confinement, JailEngine, JailName, JailPath, Mount};

use colibri_types::AgentSpec;

use crate::PrepareError;

fn refuse(what: &'static str, path: &JailPath, problem: impl Into<String>) -> PrepareError {
    PrepareError::Path {
        what,
        path: path.to_string(),
        problem: problem.into(),
    }
}

/// Where `path` of the jail is on the host, if a mount brings it there.
pub(crate) fn place(mounts: &[Mount], path: &Path) -> Option<PathBuf> {
    // Parents come first, so that the last one that fits is the innermost.
    let mount = mounts
        .iter()
        .rfind(|mount| path.starts_with(mount.target.as_str()))?;
    let rest = path.strip_prefix(mount.target.as_str()).ok()?;
    let source = Path::new(mount.source.as_str());
    // Joining nothing would end the path with a slash, and a file has none.
    Some(if rest.as_os_str().is_empty() {
        source.to_owned()
    } else {
        source.join(rest)
    })
}

/// Of `directories`, as the host knows them, those that mounts would show, as the jail knows them.
///
/// # Errors
/// A source is one of them, or lies in one: then there is nothing left to show.
pub(crate) fn hidden_in(
    mounts: &[Mount],
    directories: &[PathBuf],
) -> Result<Vec<JailPath>, PrepareError> {
    let mut hidden = Vec::new();
    for directory in directories
        .iter()
        .filter_map(|path| path.canonicalize().ok())
    {
        for mount in mounts {
            let source = Path::new(mount.source.as_str());
            if source.starts_with(&directory) {
                return Err(refuse(
                    "mount source",
                    &mount.source,
                    "contains the daemon's own state or socket, which would lead out of the jail; give another",
                ));
            }
            if let Ok(rest) = directory.strip_prefix(source) {
                let inside = Path::new(mount.target.as_str()).join(rest);
                hidden.push(inside.to_string_lossy().parse()?);
            }
        }
    }
    Ok(hidden)
}

/// Looks at the host: each source is there under its real name, and each target has something to mount on.
///
/// A name with a symbolic link in it is refused: whoever may write where the link is decides what it means, and
/// that may be another agent.
///
/// # Errors
/// The first that is not so.
pub(crate) fn check(
    mounts: &[Mount],
    engine: &JailEngine,
    in_root: impl Fn(&Path) -> Option<PathBuf>,
) -> Result<(), PrepareError> {
    for (number, mount) in mounts.iter().enumerate() {
        let source = Path::new(mount.source.as_str());
        let real = source.canonicalize().map_err(|error| {
            let problem = match error.kind() {
                std::io::ErrorKind::NotFound => {
                    "does not exist; create it or give another".to_owned()
                }
                _ => format!("cannot be used: {error}"),
            };
            refuse("mount source", &mount.source, problem)
        })?;
        if real != source {
            let problem = format!(
                "contains a symbolic link; give the real path {} if that is meant",
                real.display()
            );
            return Err(refuse("mount source", &mount.source, problem));
        }
        let target = Path::new(mount.target.as_str());
        let before = mounts.get(..number).unwrap_or_default();
        let on = match place(before, target) {
            Some(place) => Some(place),
            // bwrap(1) makes what it mounts on in a directory of its own.
            None if matches!(engine, JailEngine::Bubblewrap(_)) && target.starts_with("/tmp") => {
                continue;
            }
            None => in_root(target),
        };
        let kind = if source.is_dir() { "directory" } else { "file" };
        let fits = on.is_some_and(|on| on.exists() && on.is_dir() == source.is_dir());
        if !fits {
            let problem = format!(
                "is no {kind} in the jail to mount on; create an empty {kind} there, or give a target in /tmp"
            );
            return Err(refuse("mount target", &mount.target, problem));
        }
    }
    Ok(())
}

/// Refuses what another agent could exchange while it is mounted, or what would exchange another's: a source
/// inside what somebody else may write is a name that they can make anything of, until it is mounted and at
/// each restart. In jails of FreeBSD, which share their root, also a target that is in use.
///
/// # Errors
/// The first such pair.
pub(crate) fn apart(
    own: &Confinement,
    engine: &JailEngine,
    others: &[AgentSpec],
) -> Result<(), PrepareError> {
    let Confinement::Ephemeral { path, setup, .. } = own else {
        return Ok(());
    };
    let within = |inner: &JailPath, outer: &Mount| {
        !outer.read_only && *inner != outer.source && inner.is_in(outer.source.as_str())
    };
    let pair =
        |mount: &Mount, other: &Mount| within(&mount.source, other) || within(&other.source, mount);
    for (number, mount) in setup.mounts.iter().enumerate() {
        for other in setup.mounts.iter().skip(number + 1) {
            if pair(mount, other) {
                let problem = format!(
                    "and {} contain one another, so that the agent could replace one; give only the outer one",
                    other.source
                );
                return Err(refuse("mount source", &mount.source, problem));
            }
        }
    }
    for spec in others {
        let Some((root, theirs)) = mounts_of(spec) else {
            continue;
        };
        for (mount, other) in setup
            .mounts
            .iter()
            .flat_map(|mount| theirs.iter().map(move |other| (mount, other)))
        {
            if pair(mount, other) {
                let problem = format!(
                    "and {} of agent {} contain one another, so that one agent could replace the other's; give both the same directory, or wait until that agent has ended",
                    other.source, spec.id
                );
                return Err(refuse("mount source", &mount.source, problem));
            }
            if *engine == JailEngine::FreebsdJail
                && path
                    .join(&mount.target)
                    .is_in(root.join(&other.target).as_str())
            {
                let problem = format!(
                    "is in use by agent {}, whose jail has the same root; give another",
                    spec.id
                );
                return Err(refuse("mount target", &mount.target, problem));
            }
        }
    }
    Ok(())
}

/// The root and mounts of a running agent's own jail.
fn mounts_of(spec: &AgentSpec) -> Option<(JailPath, Vec<Mount>)> {
    let name: JailName = "colibri".parse().ok()?;
    match spec.config.jail.as_ref()?.confinement(&name).ok()? {
        Confinement::Ephemeral { path, setup, .. } => Some((path, setup.mounts)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
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

    fn mounts(texts: &[&str]) -> Vec<Mount> {
        match confinement(texts) {
            Confinement::Ephemeral { setup, .. } => setup.mounts,
            other => panic!("{other:?}"),
        }
    }

    fn bubblewrap() -> JailEngine {
        "bubblewrap".parse().unwrap()
    }

    #[test]
    fn the_innermost_mount_decides() {
        let mounts = mounts(&["/a:/w", "/b:/w/sub", "/etc/hosts:/w/hosts"]);
        for (path, found) in [
            ("/w", Some("/a")),
            ("/w/x", Some("/a/x")),
            ("/w/sub/x", Some("/b/x")),
            ("/w/subs", Some("/a/subs")),
            ("/w/hosts", Some("/etc/hosts")),
            ("/x", None),
        ] {
            assert_eq!(
                place(&mounts, Path::new(path)),
                found.map(PathBuf::from),
                "{path}"
            );
        }
    }

    #[test]
    fn the_daemons_own_directories_are_hidden_in_what_is_mounted() {
        let dir = tempfile::tempdir().unwrap();
        let home = dir.path().canonicalize().unwrap();
        let state = home.join("state/colibri");
        fs::create_dir_all(&state).unwrap();
        let hide = |source: &Path| {
            let mount = format!("{}:/tmp/w", source.display());
            hidden_in(&mounts(&[&mount]), std::slice::from_ref(&state))
        };
        assert_eq!(
            hide(&home).unwrap(),
            ["/tmp/w/state/colibri".parse().unwrap()]
        );
        fs::create_dir(home.join("work")).unwrap();
        assert_eq!(hide(&home.join("work")).unwrap(), []);
        for way_out in [state.clone(), state.join("agents")] {
            assert!(
                matches!(hide(&way_out), Err(PrepareError::Path { .. })),
                "{way_out:?}"
            );
        }
    }

    #[test]
    fn sources_and_targets_are_there_under_their_own_names() {
        let dir = tempfile::tempdir().unwrap();
        let real = dir.path().canonicalize().unwrap();
        let at = |name: &str| real.join(name).display().to_string();
        fs::create_dir(real.join("work")).unwrap();
        fs::write(real.join("file"), "").unwrap();
        symlink("work", real.join("link")).unwrap();
        let try_out = |mount: &str, engine: JailEngine| {
            check(&mounts(&[mount]), &engine, |path| Some(path.to_owned()))
                .map_err(|error| error.to_string())
        };
        for good in [
            at("work"),
            format!("{}:/tmp/anywhere", at("work")),
            format!("{}:/etc/hosts", at("file")),
        ] {
            try_out(&good, bubblewrap()).unwrap();
        }
        for (mount, word) in [
            (at("missing"), "does not exist"),
            (at("link"), "symbolic link"),
            (at("file/x"), "cannot be used"),
            (
                format!("{}:/no/such", at("work")),
                "no directory in the jail",
            ),
            (
                format!("{}:/etc/hosts", at("work")),
                "no directory in the jail",
            ),
            (format!("{}:/etc", at("file")), "no file in the jail"),
        ] {
            let said = try_out(&mount, bubblewrap()).unwrap_err();
            assert!(said.contains(word), "{mount}: {said}");
        }
        assert!(try_out(&format!("{}:/tmp/any", at("work")), JailEngine::FreebsdJail).is_err());
        // Of two, the second may lie on what the first brings.
        fs::create_dir(real.join("work/sub")).unwrap();
        let two = [
            format!("{}:/tmp/w", at("work")),
            format!("{}:/tmp/w/sub:ro", at("work")),
        ];
        let two = mounts(&two.each_ref().map(String::as_str));
        check(&two, &bubblewrap(), |_| None).unwrap();
    }

    #[test]
    fn nobody_can_exchange_what_another_mounts() {
        let spec = |mounts: &[&str]| -> AgentSpec {
            serde_json::from_value(serde_json::json!({
                "id": "abc", "program": "x", "engine": "", "privilege": "", "created_at_ns": 0,
                "jail": config(mounts),
            }))
            .unwrap()
        };
        let table: &[(&[&str], &[&str], bool)] = &[
            (&["/w"], &["/w"], true),
            (&["/w/a"], &["/w/b"], true),
            (&["/w/a"], &["/w"], false),
            (&["/w"], &["/w/a"], false),
            (&["/w"], &["/w/a:ro"], false),
            (&["/w/a:ro"], &["/w"], false),
            (&["/w/a"], &["/w:ro"], true),
            (&["/w:ro"], &["/w/a"], true),
            (&["/w", "/w/a:/b"], &[], false),
            (&["/w:ro", "/w/a:/b:ro"], &[], true),
            (&["/wa"], &["/w"], true),
        ];
        for (own, other, fine) in table {
            let result = apart(&confinement(own), &bubblewrap(), &[spec(other)]);
            assert_eq!(
                result.is_ok(),
                *fine,
                "{own:?} beside {other:?}: {result:?}"
            );
        }
        let freebsd = |own: &str, other: &str| {
            apart(
                &confinement(&[own]),
                &JailEngine::FreebsdJail,
                &[spec(&[other])],
            )
            .is_ok()
        };
        assert!(!freebsd("/a:/w", "/b:/w"));
        assert!(!freebsd("/a:/w/x", "/b:/w"));
        assert!(freebsd("/a:/w", "/b:/v"));
    }
}
