//! Selects the enforcement mechanism (cgroup, rlimit, rctl) for each limit, and reports limits without one.

use colibri_jail_core::{Confinement, JailError, LimitMechanism, Limits};
use colibri_types::ProcessLimits;

use crate::Preparer;
use crate::kernel_support::support_obstacle;

/// The enforcement mechanism of each limit of an agent.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct LimitPlan {
    /// Whether the agent needs a dedicated cgroup.
    pub cgroup: bool,
    /// Limit of processes in the cgroup if the request sets none.
    pub default_processes: Option<u32>,
    /// Whether the engine must not set its limits, because the kernel does not enforce them.
    pub omits_jail_limits: bool,
    /// Limits of each process.
    pub process: ProcessLimits,
    /// Limits that are not enforced, and why.
    pub unenforced: Vec<String>,
}

impl Preparer {
    /// Plans the enforcement of all limits. `max_open_files` is the hard limit of open files of this process
    /// (getrlimit(2)). Runs a program and waits for it, if the engine's mechanism depends on the kernel.
    ///
    /// # Errors
    /// A limit cannot be enforced, and `best_effort` is not set.
    pub(crate) fn plan_limits(
        &self,
        limits: &Limits,
        best_effort: bool,
        confinement: &Confinement,
        max_open_files: u64,
    ) -> Result<LimitPlan, JailError> {
        let mut plan = LimitPlan::default();
        let mut warnings = Vec::new();
        let mut unenforced = |name: &'static str, why: String| {
            if best_effort {
                warnings.push(format!("limit `{name}` is not enforced: {why}"));
                Ok(())
            } else {
                Err(JailError::LimitUnenforced { name, why })
            }
        };
        // Limits on all processes together: name, cgroup controller, and whether it is set.
        let shared = [
            ("memory", "memory", limits.memory.is_some()),
            ("processes", "pids", limits.processes.is_some()),
            ("cpu", "cpu", limits.cpu.is_some()),
        ];
        let mut kernel_obstacle = None;
        for (name, controller, _) in shared.into_iter().filter(|(_, _, is_set)| *is_set) {
            match self.engine.limit_mechanism(confinement) {
                LimitMechanism::PreRun(support) => {
                    if let Some(obstacle) =
                        kernel_obstacle.get_or_insert_with(|| support_obstacle(&support))
                    {
                        unenforced(name, obstacle.to_string())?;
                        plan.omits_jail_limits = true;
                    }
                }
                LimitMechanism::Unavailable { cause, hint } => {
                    unenforced(name, format!("{cause}; {hint}"))?;
                }
                LimitMechanism::Cgroup => match self.cgroups.obstacle(controller) {
                    None => plan.cgroup = true,
                    // RLIMIT_NPROC counts the processes of the sandbox's user namespace only.
                    Some(_) if name == "processes" && limits_processes(confinement) => {}
                    Some(obstacle) => {
                        unenforced(name, obstacle.to_string())?;
                        // A limit on each process is weaker, but better than none.
                        if name == "memory" {
                            plan.process.data = limits.memory.map(|memory| memory.0);
                        }
                    }
                },
            }
        }
        if let Some(files) = limits.open_files {
            let files = u64::from(files);
            let by_backend = match confinement {
                Confinement::None => None,
                _ => self.backend.open_files_override(),
            };
            if let Some(why) = by_backend.or(self.engine.open_files_override(confinement)) {
                unenforced("open_files", why.to_owned())?;
            } else if files > max_open_files {
                let why = format!(
                    "the daemon itself may open at most {max_open_files} files; set a lower limit, or raise the daemon's hard limit (LimitNOFILE=, ulimit -Hn)"
                );
                unenforced("open_files", why)?;
            } else {
                plan.process.open_files = Some(files);
            }
        }
        plan.unenforced = warnings;
        Ok(plan)
    }
}

/// Returns whether the sandbox itself limits its processes.
fn limits_processes(confinement: &Confinement) -> bool {
    matches!(confinement, Confinement::Ephemeral(jail) if jail.sandbox.processes.is_some())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Cgroups, HostEnv};
    use crate::{PrepareError, Prepared};
    use colibri_jail_core::{
        Bubblewrap, CommandLine, EnginePrograms, EphemeralJail, FreebsdJail, JailEngine, JailOp,
        KernelSupport,
    };
    use colibri_priv::{BackendRegistry, PrivBackend};
    use colibri_types::AgentSpawnConfig;
    use serde_json::json;
    use std::sync::Arc;

    /// The limits of FreeBSD jails on a host whose setting a shell script prints.
    #[derive(Debug, Clone, Copy)]
    struct FreebsdLimits(&'static [&'static str]);

    /// A host whose kernel enforces limits, one that does not, and one without the setting.
    const ENABLED: FreebsdLimits = FreebsdLimits(&["-c", "echo 1"]);
    const DISABLED: FreebsdLimits = FreebsdLimits(&["-c", "echo 0"]);
    const MISSING: FreebsdLimits = FreebsdLimits(&["-c", "echo unknown oid >&2; exit 1"]);

    impl FreebsdLimits {
        fn support(self) -> KernelSupport {
            KernelSupport {
                name: "rctl(8)",
                program: "/bin/sh",
                args: self.0,
                expected: "1",
                hint: "enable racct",
            }
        }
    }

    impl JailEngine for FreebsdLimits {
        fn name(&self) -> &str {
            "limits"
        }

        fn command_line(&self, op: &JailOp) -> Result<CommandLine, JailError> {
            match op {
                JailOp::HostCommand { command, .. } => Ok(command.clone()),
                _ => Ok(CommandLine::new("/bin/true", [""; 0]).unwrap()),
            }
        }

        fn programs(&self) -> EnginePrograms {
            EnginePrograms::new(["/bin/true"], "install it")
        }

        fn pre_run(&self, op: &JailOp, limits: &Limits) -> Result<Vec<JailOp>, JailError> {
            FreebsdJail::default().pre_run(op, limits)
        }

        fn post_run(&self, op: &JailOp, limits: &Limits) -> Result<Vec<JailOp>, JailError> {
            FreebsdJail::default().post_run(op, limits)
        }

        fn limit_mechanism(&self, confinement: &Confinement) -> LimitMechanism {
            match confinement {
                Confinement::Ephemeral(_) => LimitMechanism::PreRun(self.support()),
                _ => FreebsdJail::default().limit_mechanism(confinement),
            }
        }
    }

    fn limits(text: &str) -> Limits {
        serde_json::from_str(text).unwrap()
    }

    fn preparer(
        engine: Arc<dyn JailEngine>,
        backend: Arc<dyn PrivBackend>,
        cgroups: &Cgroups,
    ) -> Preparer {
        Preparer {
            engine,
            backend,
            private_directories: Vec::new(),
            private_files: Vec::new(),
            known_daemons: None,
            host: HostEnv::default(),
            cgroups: cgroups.clone(),
            soft_open_files: None,
            adapter: None,
        }
    }

    #[test]
    fn limit_is_enforced_or_refused() {
        let ephemeral = |user: Option<&str>| {
            let (name, path) = ("colibri-x".parse().unwrap(), "/".parse().unwrap());
            Confinement::Ephemeral(EphemeralJail {
                user: user.map(|user| user.parse().unwrap()),
                ..EphemeralJail::new(name, path)
            })
        };
        let all = Cgroups::In {
            parent: "/c".into(),
            controllers: ["memory", "pids", "cpu"].map(str::to_owned).to_vec(),
        };
        let some = Cgroups::In {
            parent: "/c".into(),
            controllers: vec!["pids".to_owned()],
        };
        let none = Cgroups::Unavailable("no cgroups".into());
        let freebsd: Arc<dyn JailEngine> = Arc::new(FreebsdJail::default());
        let enabled: Arc<dyn JailEngine> = Arc::new(ENABLED);
        let disabled: Arc<dyn JailEngine> = Arc::new(DISABLED);
        let bubblewrap: Arc<dyn JailEngine> = Arc::new(Bubblewrap::default());
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
            &'a Arc<dyn JailEngine>,
            Confinement,
            &'a str,
            &'a Cgroups,
            Result<LimitPlan, &'a str>,
            LimitPlan,
        );
        let table: [Row<'_>; 13] = [
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
                &enabled,
                ephemeral(None),
                "mdo",
                &none,
                Ok(LimitPlan::default()),
                LimitPlan::default(),
            ),
            (
                memory,
                &disabled,
                ephemeral(None),
                "mdo",
                &none,
                Err("/bin/sh -c echo 0 prints 0; enable racct"),
                LimitPlan {
                    omits_jail_limits: true,
                    ..LimitPlan::default()
                },
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
            let preparer = preparer(engine.clone(), backends.get(privilege).unwrap(), cgroups);
            let plan =
                |best_effort| preparer.plan_limits(&limits(text), best_effort, &confinement, 1000);
            let got = plan(false);
            match &strict {
                Ok(plan) => assert_eq!(got.as_ref(), Ok(plan), "{text}"),
                Err(word) => {
                    let message = got.unwrap_err().to_string();
                    assert!(
                        message.contains(*word) && message.contains("`best_effort`"),
                        "{text}: {message}"
                    );
                }
            }
            let mut lax = plan(true).unwrap();
            let warnings = std::mem::take(&mut lax.unenforced);
            assert_eq!(lax, best_effort, "{text}");
            match strict {
                Ok(_) => assert!(warnings.is_empty(), "{text}: {warnings:?}"),
                Err(word) => assert!(warnings.concat().contains(word), "{text}: {warnings:?}"),
            }
        }
        let preparer = preparer(bubblewrap, Arc::new(colibri_priv::None), &none);
        let message = preparer
            .plan_limits(&limits(files), false, &Confinement::None, 99)
            .unwrap_err();
        assert!(message.to_string().contains("at most 99"), "{message}");
    }

    /// Plans a spawn in a new jail with limits on all processes together.
    fn plan(
        engine: FreebsdLimits,
        best_effort: bool,
    ) -> Result<(Prepared, LimitPlan), PrepareError> {
        let config: AgentSpawnConfig = serde_json::from_value(json!({
            "program": "true", "env": {"PATH": "/bin"},
            "jail": {"path": "/", "limits": {"processes": 5, "memory": "1G"}, "best_effort": best_effort},
        }))
        .unwrap();
        let none = Cgroups::Unavailable("no cgroups".into());
        preparer(Arc::new(engine), Arc::new(colibri_priv::None), &none).plan(&config, "abc", &[])
    }

    #[test]
    fn limits_without_kernel_support_are_omitted_or_refused() {
        for best_effort in [false, true] {
            let (prepared, limits) = plan(ENABLED, best_effort).unwrap();
            assert_eq!(
                prepared.pre_run[0].to_string(),
                "/usr/bin/rctl -a jail:colibri-abc:memoryuse:deny=1073741824 jail:colibri-abc:maxproc:deny=5"
            );
            assert_eq!(prepared.post_run.len(), 1);
            assert_eq!(limits.unenforced, [""; 0]);
        }
        for (engine, cause) in [
            (DISABLED, "/bin/sh -c echo 0 prints 0; enable racct"),
            (
                MISSING,
                "/bin/sh -c echo unknown oid >&2; exit 1 failed: unknown oid; enable racct",
            ),
        ] {
            assert_eq!(
                plan(engine, false).unwrap_err().to_string(),
                format!(
                    "limit `memory` cannot be enforced: {cause}, or accept the missing limit with `best_effort`"
                )
            );
            let (prepared, limits) = plan(engine, true).unwrap();
            assert_eq!(prepared.pre_run, []);
            assert_eq!(
                limits.unenforced,
                ["memory", "processes"]
                    .map(|name| format!("limit `{name}` is not enforced: {cause}"))
            );
        }
    }
}
