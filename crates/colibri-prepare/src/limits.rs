//! Selects the enforcement mechanism (cgroup, rlimit, rctl) for each limit, and reports limits without one.

use colibri_jail_core::{Confinement, JailEngine, JailError, LimitMechanism, Limits};
use colibri_priv::PrivBackend;
use colibri_types::ProcessLimits;

use crate::cgroup::Cgroups;

/// How an agent is held to its limits.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct LimitPlan {
    /// By a cgroup of its own.
    pub cgroup: bool,
    /// By limits that each of its processes has.
    pub process: ProcessLimits,
    /// Limits that nothing holds it to, and why.
    pub unenforced: Vec<String>,
}

/// What this host offers.
pub(crate) struct Host<'a> {
    pub(crate) engine: &'a dyn JailEngine,
    /// The privilege backend, which is used for jails only.
    pub(crate) backend: &'a dyn PrivBackend,
    pub(crate) cgroups: &'a Cgroups,
    /// The highest number of open files that this process may allow (getrlimit(2)).
    pub(crate) most_files: u64,
}

/// Chooses the means.
///
/// # Errors
/// A limit cannot be enforced, and `best_effort` is not said.
pub(crate) fn choose(
    limits: &Limits,
    best_effort: bool,
    confinement: &Confinement,
    host: &Host<'_>,
) -> Result<LimitPlan, JailError> {
    let mut means = LimitPlan::default();
    let mut warnings = Vec::new();
    let mut unenforced = |name: &'static str, why: String| {
        if best_effort {
            warnings.push(format!("limit `{name}` is not enforced: {why}"));
            Ok(())
        } else {
            Err(JailError::LimitUnenforced { name, why })
        }
    };
    let of_all = [
        ("memory", "memory", limits.memory.is_some()),
        ("processes", "pids", limits.processes.is_some()),
        ("cpu", "cpu", limits.cpu.is_some()),
    ];
    for (name, controller, _) in of_all.into_iter().filter(|(_, _, given)| *given) {
        match host.engine.limit_mechanism(confinement) {
            // The engine's pre_run sets these rules.
            LimitMechanism::Rctl => {}
            LimitMechanism::Unavailable(why) => unenforced(name, why.to_owned())?,
            LimitMechanism::Cgroup => match host.cgroups.lacks(controller) {
                None => means.cgroup = true,
                Some(why) => {
                    unenforced(name, why)?;
                    // Of each process, which is better than nothing.
                    if name == "memory" {
                        means.process.data = limits.memory.map(|memory| memory.0);
                    }
                }
            },
        }
    }
    if let Some(files) = limits.open_files {
        let files = u64::from(files);
        let by_backend = match confinement {
            Confinement::None => None,
            _ => host.backend.open_files_override(),
        };
        if let Some(why) = by_backend.or(host.engine.open_files_override(confinement)) {
            unenforced("open_files", why.to_owned())?;
        } else if files > host.most_files {
            let why = format!(
                "the daemon itself may have at most {} open; give a lower limit, raise the daemon's hard limit (LimitNOFILE=, ulimit -Hn)",
                host.most_files
            );
            unenforced("open_files", why)?;
        } else {
            means.process.open_files = Some(files);
        }
    }
    means.unenforced = warnings;
    Ok(means)
}

#[cfg(test)]
mod tests {
    use super::*;
    use colibri_jail_core::{Bubblewrap, FreebsdJail};
    use colibri_priv::BackendRegistry;

    fn limits(text: &str) -> Limits {
        serde_json::from_str(text).unwrap()
    }

    #[test]
    fn each_limit_has_its_means_or_is_refused() {
        let ephemeral = |user: Option<&str>| Confinement::Ephemeral {
            name: "colibri-x".parse().unwrap(),
            path: "/".parse().unwrap(),
            ip4: Default::default(),
            user: user.map(|user| user.parse().unwrap()),
            setup: Default::default(),
        };
        let all = Cgroups::In {
            parent: "/c".into(),
            controllers: ["memory", "pids", "cpu"].map(str::to_owned).to_vec(),
        };
        let some = Cgroups::In {
            parent: "/c".into(),
            controllers: vec!["pids".to_owned()],
        };
        let none = Cgroups::Unavailable("no cgroups".to_owned());
        let (freebsd, bubblewrap) = (FreebsdJail, Bubblewrap::default());
        let backends = BackendRegistry::builtin("/helper");
        let memory = r#"{"memory":"1G"}"#;
        let processes = r#"{"processes":9}"#;
        let files = r#"{"open_files":100}"#;
        let cgroup = LimitPlan {
            cgroup: true,
            ..LimitPlan::default()
        };
        let of_process = |open_files, data| LimitPlan {
            process: ProcessLimits {
                open_files,
                data,
                ..ProcessLimits::default()
            },
            ..LimitPlan::default()
        };
        type Row<'a> = (
            &'a str,
            &'a dyn JailEngine,
            Confinement,
            &'a str,
            &'a Cgroups,
            Result<LimitPlan, &'a str>,
            LimitPlan,
        );
        let table: [Row<'_>; 12] = [
            (
                "{}",
                &bubblewrap,
                Confinement::None,
                "none",
                &none,
                Ok(LimitPlan::default()),
                LimitPlan::default(),
            ),
            (
                r#"{"wall_time":9}"#,
                &bubblewrap,
                Confinement::None,
                "none",
                &none,
                Ok(LimitPlan::default()),
                LimitPlan::default(),
            ),
            (
                memory,
                &bubblewrap,
                Confinement::None,
                "none",
                &all,
                Ok(cgroup.clone()),
                cgroup.clone(),
            ),
            (
                memory,
                &bubblewrap,
                ephemeral(None),
                "helper",
                &all,
                Ok(cgroup.clone()),
                cgroup.clone(),
            ),
            (
                memory,
                &bubblewrap,
                Confinement::None,
                "none",
                &none,
                Err("no cgroups"),
                of_process(None, Some(1 << 30)),
            ),
            (
                memory,
                &bubblewrap,
                Confinement::None,
                "none",
                &some,
                Err("controller memory"),
                of_process(None, Some(1 << 30)),
            ),
            (
                processes,
                &bubblewrap,
                Confinement::None,
                "none",
                &some,
                Ok(cgroup.clone()),
                cgroup,
            ),
            (
                memory,
                &freebsd,
                ephemeral(None),
                "mdo",
                &none,
                Ok(LimitPlan::default()),
                LimitPlan::default(),
            ),
            (
                memory,
                &freebsd,
                Confinement::None,
                "none",
                &none,
                Err("no dedicated jail"),
                LimitPlan::default(),
            ),
            (
                files,
                &bubblewrap,
                ephemeral(Some("1:1")),
                "none",
                &none,
                Ok(of_process(Some(100), None)),
                of_process(Some(100), None),
            ),
            (
                files,
                &bubblewrap,
                ephemeral(None),
                "helper",
                &none,
                Err("helper.toml(5)"),
                LimitPlan::default(),
            ),
            (
                files,
                &freebsd,
                ephemeral(Some("agent")),
                "mdo",
                &none,
                Err("login.conf"),
                LimitPlan::default(),
            ),
        ];
        for (text, engine, confinement, privilege, cgroups, strict, best_effort) in table {
            let host = Host {
                engine,
                backend: &*backends.get(privilege).unwrap(),
                cgroups,
                most_files: 1000,
            };
            let got = choose(&limits(text), false, &confinement, &host);
            match &strict {
                Ok(means) => assert_eq!(got.as_ref(), Ok(means), "{text}"),
                Err(word) => {
                    let said = got.unwrap_err().to_string();
                    assert!(
                        said.contains(*word) && said.contains("`best_effort`"),
                        "{text}: {said}"
                    );
                }
            }
            let mut lax = choose(&limits(text), true, &confinement, &host).unwrap();
            let told = std::mem::take(&mut lax.unenforced);
            assert_eq!(lax, best_effort, "{text}");
            match strict {
                Ok(_) => assert!(told.is_empty(), "{text}: {told:?}"),
                Err(word) => assert!(told.concat().contains(word), "{text}: {told:?}"),
            }
        }
        let host = Host {
            engine: &bubblewrap,
            backend: &colibri_priv::None,
            cgroups: &none,
            most_files: 99,
        };
        let said = choose(&limits(files), false, &Confinement::None, &host).unwrap_err();
        assert!(said.to_string().contains("at most 99"), "{said}");
    }
}
