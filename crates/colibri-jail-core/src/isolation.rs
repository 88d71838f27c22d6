//! Rules that isolate agents from each other and from the program that starts them. An argv alone cannot express them.

use std::path::{Path, PathBuf};

use crate::{Confinement, EphemeralJail, JailEngine, JailPath, Mount};

/// A path of a request that cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{what} {path} {problem}")]
#[non_exhaustive]
pub struct PathError {
    /// Purpose of the path.
    pub what: &'static str,
    /// The path.
    pub path: String,
    /// The cause and a hint.
    pub problem: String,
}

impl PathError {
    /// Returns the error for the path that serves as `what`. `problem` is the cause and a hint.
    pub fn new(what: &'static str, path: impl ToString, problem: impl Into<String>) -> Self {
        Self {
            what,
            path: path.to_string(),
            problem: problem.into(),
        }
    }
}

/// A jail that exists while another is created.
#[derive(Debug, Clone)]
pub struct OtherJail<'a> {
    /// Name of its agent, for messages.
    pub agent: &'a str,
    /// Its confinement.
    pub confinement: Confinement,
}

/// Refuses mounts through which one agent could replace a mount source of another, or of itself.
///
/// A source inside a directory that an agent may write is a name that this agent can replace by a symbolic link until
/// the source is mounted, and again before each restart. Engines whose mounts appear on the host
/// ([`JailEngine::mounts_on_host`]) also need distinct mount points.
///
/// # Errors
/// The first conflict.
pub fn reject_overlaps(
    confinement: &Confinement,
    engine: &dyn JailEngine,
    others: &[OtherJail<'_>],
) -> Result<(), PathError> {
    let Confinement::Ephemeral(jail) = confinement else {
        return Ok(());
    };
    let mounts = &jail.mounts;
    // colibri-sandbox mounts what was opened before the first run, so that a replaced source has no effect.
    let own = if jail.sandbox.completed {
        &[]
    } else {
        &mounts[..]
    };
    for (number, mount) in own.iter().enumerate() {
        for other in mounts.iter().skip(number + 1) {
            if is_replaceable(mount, other) {
                let problem = format!(
                    "overlaps mount source {}: the agent could replace the inner one; mount only the outer one",
                    other.source
                );
                return Err(PathError::new("mount source", &mount.source, problem));
            }
        }
    }
    for OtherJail { agent, confinement } in others {
        let Confinement::Ephemeral(other_jail) = confinement else {
            continue;
        };
        let mounts_devices = |jail: &EphemeralJail| jail.devfs || jail.fdescfs;
        if mounts_devices(jail) && mounts_devices(other_jail) && jail.root() == other_jail.root() {
            let problem = format!(
                "has device files of agent {agent} already; give another root, or make roots from a `template`"
            );
            return Err(PathError::new("jail path", &jail.path, problem));
        }
        for (root, mounts, whose) in [
            (&jail.path, &other_jail.mounts, "agent"),
            (&other_jail.path, mounts, "the root directory of agent"),
        ] {
            let is_inside = |mount: &&Mount| !mount.read_only && root.is_in(mount.source.as_str());
            if *root != JailPath::root()
                && let Some(mount) = mounts.iter().find(is_inside)
            {
                let problem = format!(
                    "is in {}, which {whose} {agent} shares writable: an agent could replace it; give a root that no agent may write",
                    mount.source
                );
                return Err(PathError::new("jail path", root, problem));
            }
        }
        for mount in mounts {
            for other in &other_jail.mounts {
                if is_replaceable(mount, other) {
                    let problem = format!(
                        "overlaps mount source {} of agent {agent}: one agent could replace the other's; mount the same directory in both, or wait until that agent ends",
                        other.source
                    );
                    return Err(PathError::new("mount source", &mount.source, problem));
                }
                let other_target = other_jail.root().join(&other.target);
                if engine.mounts_on_host()
                    && jail.root().join(&mount.target).is_in(other_target.as_str())
                {
                    let problem = format!(
                        "is in use by agent {agent}, whose jail has the same root; give another target"
                    );
                    return Err(PathError::new("mount target", &mount.target, problem));
                }
            }
        }
    }
    Ok(())
}

/// Returns whether one of the sources is inside the other and the outer one is writable.
fn is_replaceable(one: &Mount, other: &Mount) -> bool {
    let inside = |inner: &JailPath, outer: &Mount| {
        !outer.read_only && *inner != outer.source && inner.is_in(outer.source.as_str())
    };
    inside(&one.source, other) || inside(&other.source, one)
}

/// Returns the directories of `protected` that a jail with this root and these mounts would show, as paths inside the
/// jail. The caller adds them to the `masked` field of [`crate::EphemeralJail`].
///
/// `root` and `protected` are real paths of the host (realpath(3)). Paths in `private` directories of the engine
/// ([`JailEngine::private_directories`]) need no mask, nor do paths of the root that a mount covers.
///
/// # Errors
/// The root or a mount source is in a protected directory, so that nothing would remain to show.
pub fn masked_paths(
    root: &Path,
    mounts: &[Mount],
    private: &[&str],
    protected: &[PathBuf],
) -> Result<Vec<JailPath>, PathError> {
    let mut in_root: Vec<PathBuf> = protected
        .iter()
        .filter_map(|directory| Some(Path::new("/").join(directory.strip_prefix(root).ok()?)))
        .filter(|directory| !private.iter().any(|private| directory.starts_with(private)))
        .collect();
    // Parents sort before their children, which need no mask.
    in_root.sort();
    in_root.dedup_by(|later, earlier| later.starts_with(earlier));
    if in_root.iter().any(|directory| directory == Path::new("/")) {
        let problem = "is in a directory of the daemon's state or socket; give another root";
        return Err(PathError::new("jail path", root.display(), problem));
    }
    in_root.retain(|directory| {
        !mounts
            .iter()
            .any(|mount| directory.starts_with(mount.target.as_str()))
    });
    let mut masked = in_root;
    for directory in protected {
        for mount in mounts {
            let source = Path::new(mount.source.as_str());
            if source.starts_with(directory) {
                let problem = "is in a directory of the daemon's state or socket, through which an agent could leave the jail; give another";
                return Err(PathError::new("mount source", &mount.source, problem));
            }
            if let Ok(inner) = directory.strip_prefix(source) {
                masked.push(Path::new(mount.target.as_str()).join(inner));
            }
        }
    }
    masked
        .iter()
        .map(|path| {
            let text = path.to_string_lossy();
            text.parse().map_err(|error| {
                let problem = format!("cannot be masked: {error}");
                PathError::new("daemon directory", &text, problem)
            })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Bubblewrap, FreebsdJail, JailConfig};

    type Paths = &'static [&'static str];

    fn confinement(mounts: &[&str]) -> Confinement {
        let config = JailConfig {
            path: Some("/".into()),
            mounts: mounts.iter().map(|mount| mount.parse().unwrap()).collect(),
            ..JailConfig::default()
        };
        config.confinement(&"colibri-x".parse().unwrap()).unwrap()
    }

    fn mounts(texts: &[&str]) -> Vec<Mount> {
        match confinement(texts) {
            Confinement::Ephemeral(jail) => jail.mounts,
            other => panic!("{other:?}"),
        }
    }

    fn is_accepted(engine: &dyn JailEngine, mounts: &[&str], others: &[&str]) -> bool {
        let other = OtherJail {
            agent: "abc",
            confinement: confinement(others),
        };
        reject_overlaps(&confinement(mounts), engine, &[other]).is_ok()
    }

    #[test]
    fn writable_mount_that_contains_another_is_refused() {
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
        for (mounts, others, accepted) in table {
            assert_eq!(
                is_accepted(&Bubblewrap::default(), mounts, others),
                *accepted,
                "{mounts:?} and {others:?}"
            );
        }
    }

    #[test]
    fn freebsd_mount_target_in_use_is_refused() {
        for (mount, other, accepted) in [
            ("/a:/w", "/b:/w", false),
            ("/a:/w/x", "/b:/w", false),
            ("/a:/w", "/b:/v", true),
        ] {
            assert_eq!(
                is_accepted(&FreebsdJail::default(), &[mount], &[other]),
                accepted
            );
            assert!(is_accepted(&Bubblewrap::default(), &[mount], &[other]));
        }
    }

    #[test]
    fn roots_from_one_template_do_not_conflict() {
        let jail = |name: &str, template: Option<&str>| {
            let config = JailConfig {
                path: template.is_none().then(|| "/r".into()),
                template: template.map(str::to_owned),
                devfs: true,
                mounts: vec!["/a:/w".parse().unwrap()],
                ..JailConfig::default()
            };
            config.confinement(&name.parse().unwrap()).unwrap()
        };
        let conflict = |one: Confinement, confinement: Confinement| {
            let other = OtherJail {
                agent: "abc",
                confinement,
            };
            let checked = reject_overlaps(&one, &FreebsdJail::default(), &[other]);
            checked.err().map(|conflict| conflict.what)
        };
        let template = |name| jail(name, Some("/t"));
        assert_eq!(conflict(template("colibri-1"), template("colibri-2")), None);
        assert_eq!(
            conflict(template("colibri-1"), jail("colibri-2", None)),
            None
        );
        let both = conflict(jail("colibri-1", None), jail("colibri-2", None));
        assert_eq!(both, Some("jail path"));
    }

    #[test]
    fn protected_directories_of_root_are_masked() {
        let masked = |root: &str, mount: &[&str], protected: &[&str]| {
            let protected: Vec<PathBuf> = protected.iter().map(PathBuf::from).collect();
            masked_paths(Path::new(root), &mounts(mount), &["/tmp"], &protected)
                .map(|paths| paths.iter().map(ToString::to_string).collect::<Vec<_>>())
                .map_err(|conflict| conflict.what)
        };
        let shown: &[(&str, Paths, Paths, Paths)] = &[
            ("/", &[], &["/s"], &["/s"]),
            ("/r", &[], &["/s", "/r/s"], &["/s"]),
            ("/", &[], &["/s/a", "/s", "/t"], &["/s", "/t"]),
            ("/", &[], &["/tmp/s"], &[]),
            ("/", &["/w:/s"], &["/s/a"], &[]),
            ("/r", &["/h:/tmp/w"], &["/h/s"], &["/tmp/w/s"]),
            ("/r", &["/h/w"], &["/h/s"], &[]),
        ];
        for (root, mounts, protected, expected) in shown {
            let expected = expected.iter().map(ToString::to_string).collect();
            assert_eq!(
                masked(root, mounts, protected),
                Ok(expected),
                "{root} {mounts:?} {protected:?}"
            );
        }
        let refused: &[(&str, Paths, Paths, &str)] = &[
            ("/s", &[], &["/s"], "jail path"),
            ("/r", &["/h"], &["/h"], "mount source"),
            ("/r", &["/h/s"], &["/h"], "mount source"),
        ];
        for (root, mounts, protected, what) in refused {
            assert_eq!(masked(root, mounts, protected), Err(*what), "{root}");
        }
    }
}
