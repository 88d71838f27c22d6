//! Jail engines. An engine is a value and not a `cfg`, so that every engine is tested on every host.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use crate::{
    Bubblewrap, CommandLine, Confinement, EphemeralJail, FreebsdJail, HeldPath, JailError,
    JailName, JailOp, JailPath, Limits,
};

/// A program that confines commands, for example jail(8) or bwrap(1).
///
/// Every method is pure: it depends on its arguments and on the engine's own fields only. The methods with a default
/// tell callers what they must do around the command; each default is the case that needs nothing from the caller.
pub trait JailEngine: fmt::Debug + Send + Sync {
    /// Returns the name in settings and answers: lower-case letters, digits and `-`.
    fn name(&self) -> &str;

    /// Returns the exact command for an operation, without privilege.
    ///
    /// # Errors
    /// The engine does not support the operation; the message contains a hint.
    fn command_line(&self, op: &JailOp) -> Result<CommandLine, JailError>;

    /// Returns the programs that the engine needs on the host.
    fn programs(&self) -> EnginePrograms;

    /// Refuses what [`JailEngine::command_line`] refuses; for callers that do not run its command.
    ///
    /// # Errors
    /// As [`JailEngine::command_line`].
    fn check(&self, op: &JailOp) -> Result<(), JailError> {
        self.command_line(op).map(drop)
    }

    /// Returns whether an unprivileged user needs a privilege backend for this engine.
    fn needs_root(&self) -> bool {
        true
    }

    /// Returns the operations to run before each start of `op`'s command, in order.
    ///
    /// # Errors
    /// A value cannot be expressed for the engine's programs.
    fn pre_run(&self, _op: &JailOp, _limits: &Limits) -> Result<Vec<JailOp>, JailError> {
        Ok(Vec::new())
    }

    /// Returns the operations to run after each run of `op`'s command, in order. The caller waits until all processes of
    /// the run have ended.
    ///
    /// # Errors
    /// A value cannot be expressed for the engine's programs.
    fn post_run(&self, _op: &JailOp, _limits: &Limits) -> Result<Vec<JailOp>, JailError> {
        Ok(Vec::new())
    }

    /// Returns the operation that runs `command`, which is `op`'s [`JailEngine::command_line`], under a monitor. `None` if the
    /// engine needs none: the caller may then signal every process, and the kernel removes what `op` creates.
    fn monitor(&self, _op: &JailOp, _command: &CommandLine) -> Option<JailOp> {
        None
    }

    /// Returns the proxy program that the caller runs around the command of a jail with `allow`, after elevation and
    /// monitor: see [`CommandLine::filtered`]. `None` if [`JailEngine::command_line`] contains it, or refuses `allow`.
    fn outer_proxy(&self) -> Option<&JailPath> {
        None
    }

    /// Returns what a jail with `allow` needs of the kernel.
    fn filter_support(&self) -> Option<KernelSupport> {
        None
    }

    /// Returns how limits on all processes of an agent together are enforced.
    fn limit_mechanism(&self, _confinement: &Confinement) -> LimitMechanism {
        LimitMechanism::Unavailable {
            cause: "this engine enforces no limits",
            hint: "remove the limit",
        }
    }

    /// Returns why the engine replaces the open files limit that the caller sets, as `CAUSE; HINT`; `None` if the
    /// agent keeps the caller's.
    fn open_files_override(&self, _confinement: &Confinement) -> Option<&'static str> {
        None
    }

    /// Returns whether the engine can mask paths of the root (the `masked` field of [`crate::EphemeralJail`]).
    fn masks_paths(&self) -> bool {
        false
    }

    /// Returns the directories that a new jail replaces by private ones. They must exist in the root.
    fn private_directories(&self) -> &'static [&'static str] {
        &[]
    }

    /// Returns whether the engine itself creates the mount point `target` of `jail`.
    fn creates_mount_point(&self, _jail: &EphemeralJail, _target: &JailPath) -> bool {
        false
    }

    /// Returns whether [`crate::SandboxOptions`] apply: views, restrictions, protected paths, users of the host, and no network
    /// unless it is requested.
    fn completes_sandbox(&self) -> bool {
        false
    }

    /// Returns whether the view of `jail` hides this path of the root; mounts may show it.
    fn hidden_by_view(&self, _jail: &EphemeralJail, _path: &JailPath) -> bool {
        false
    }

    /// Returns the program that removes what the engine's command created in writable mounts, with the verb `clean` and the
    /// directories as arguments; `None` if it creates nothing there.
    fn cleaning_program(&self, _jail: &EphemeralJail) -> Option<&JailPath> {
        None
    }

    /// Makes a program of the host executable in `jail`, and returns how to execute it there; `None` if the engine cannot.
    /// The program uses the same libraries as those of the engine.
    fn add_program(&self, _jail: &mut EphemeralJail, _program: &JailPath) -> Option<CommandLine> {
        None
    }

    /// Returns the paths of the host that the caller opens once, before the first run, and passes to each run of
    /// [`JailEngine::command_line`] as descriptors of these numbers.
    fn held_paths(&self, _jail: &EphemeralJail) -> Vec<HeldPath> {
        Vec::new()
    }

    /// Returns whether mounts appear in the host's file system, so that jails with the same root share them.
    fn mounts_on_host(&self) -> bool {
        false
    }

    /// Returns whether the engine takes users by number only; the caller then resolves names in the root's passwd(5).
    fn users_by_number(&self) -> bool {
        false
    }

    /// Returns whether the first process is a wrapper whose end kills the agent; signals must then not reach it.
    fn has_wrapper_process(&self) -> bool {
        false
    }

    /// Returns the maximum number of arguments that the engine's program accepts; `None` if only execve(2) limits it.
    fn argument_limit(&self) -> Option<ArgumentLimit> {
        None
    }

    /// Returns a check of whether the engine works on this host, which creates and removes the jail `name`.
    fn probe(&self, _name: JailName) -> Option<EngineProbe> {
        None
    }
}

/// The mechanism that enforces limits on all processes of an agent together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LimitMechanism {
    /// A cgroup(7), which the caller creates.
    Cgroup,
    /// The operations of [`JailEngine::pre_run`], if the kernel supports it.
    PreRun(KernelSupport),
    /// No mechanism.
    Unavailable {
        /// Why there is none.
        cause: &'static str,
        /// A hint that starts with a verb.
        hint: &'static str,
    },
}

/// A check whether the kernel supports a feature, such as rctl(8).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KernelSupport {
    /// The mechanism, for messages.
    pub name: &'static str,
    /// Absolute path of a program that prints a setting.
    pub program: &'static str,
    /// Arguments of the program.
    pub args: &'static [&'static str],
    /// The output without white space at its ends if the kernel has the support.
    pub expected: &'static str,
    /// A hint that starts with a verb, for every other output.
    pub hint: &'static str,
}

/// An operation without side effects that shows whether an engine works on this host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EngineProbe {
    /// The operation. [`JailOp::Create`] runs through the privilege backend, any other operation directly.
    pub op: JailOp,
    /// The result of a success, for messages.
    pub success: &'static str,
    /// The result of a failure, for messages.
    pub failure: &'static str,
    /// A hint that starts with a verb, for a failure whose cause is not in `settings`.
    pub hint: &'static str,
    /// Settings of the host that make the operation fail.
    pub settings: &'static [HostSetting],
}

/// A setting of the host that may deny something.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HostSetting {
    /// The name, for messages.
    pub name: &'static str,
    /// Absolute path of the file with the value.
    pub path: &'static str,
    /// The value that denies.
    pub denying_value: &'static str,
    /// A hint that starts with a verb or `as root:`, how to change the value.
    pub hint: &'static str,
}

/// A limit on the number of arguments, and the program that has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ArgumentLimit {
    /// The program, for messages.
    pub program: &'static str,
    /// Maximum number of arguments, including those of the agent.
    pub max: usize,
}

/// The programs of an engine, and how to install them.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct EnginePrograms {
    /// Absolute paths.
    pub paths: Vec<String>,
    /// A hint that starts with a verb.
    pub hint: &'static str,
}

impl EnginePrograms {
    /// Creates a list of absolute paths with a hint.
    #[must_use]
    pub fn new<P: Into<String>>(paths: impl IntoIterator<Item = P>, hint: &'static str) -> Self {
        Self {
            paths: paths.into_iter().map(Into::into).collect(),
            hint,
        }
    }
}

/// The engines that can be selected by name.
#[derive(Debug, Clone)]
pub struct EngineRegistry(BTreeMap<String, Arc<dyn JailEngine>>);

impl EngineRegistry {
    /// Returns a registry with [`FreebsdJail`] and [`Bubblewrap`], with their default program paths.
    #[must_use]
    pub fn builtin() -> Self {
        let mut engines = Self(BTreeMap::new());
        engines.replace(Arc::new(FreebsdJail::default()));
        engines.replace(Arc::new(Bubblewrap::default()));
        engines
    }

    /// Adds an engine under its name.
    ///
    /// # Errors
    /// The name is taken.
    pub fn register(&mut self, engine: Arc<dyn JailEngine>) -> Result<(), JailError> {
        let name = engine.name();
        if self.0.contains_key(name) {
            let problem = "is registered already; give yours another name";
            return Err(JailError::invalid("engine", name, problem));
        }
        self.replace(engine);
        Ok(())
    }

    /// Adds an engine under its name, and replaces an engine with the same name.
    pub fn replace(&mut self, engine: Arc<dyn JailEngine>) {
        self.0.insert(engine.name().to_owned(), engine);
    }

    /// Returns the engine with this name.
    ///
    /// # Errors
    /// The name is unknown; the message lists the known names.
    pub fn get(&self, name: &str) -> Result<Arc<dyn JailEngine>, JailError> {
        self.0.get(name).cloned().ok_or_else(|| {
            let known = self.0.keys().cloned().collect::<Vec<_>>().join(", ");
            JailError::invalid("engine", name, format!("is unknown; give one of {known}"))
        })
    }
}

/// Wraps `command` so that it runs confined, in `workdir` inside the jail. Without a jail it returns `command`
/// unchanged; the caller then sets the working directory.
///
/// # Errors
/// The engine does not support this confinement; the message contains a hint.
pub fn jail_wrap(
    engine: &dyn JailEngine,
    confinement: &Confinement,
    workdir: Option<&JailPath>,
    command: CommandLine,
) -> Result<CommandLine, JailError> {
    match confinement
        .clone()
        .into_op(workdir.cloned(), command.clone())
    {
        None => Ok(command),
        Some(op) => engine.command_line(&op),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An engine that implements only what the trait requires.
    #[derive(Debug)]
    struct Zone;

    impl JailEngine for Zone {
        fn name(&self) -> &str {
            "zone"
        }

        fn command_line(&self, op: &JailOp) -> Result<CommandLine, JailError> {
            match op {
                JailOp::Attach { name, command, .. } => Ok(command
                    .clone()
                    .prefixed("/usr/sbin/zlogin", [name.as_str()])
                    .unwrap()),
                other => Err(JailError::Unsupported(format!(
                    "engine zone does not support the operation {}; give the `name` of a zone",
                    other.kind()
                ))),
            }
        }

        fn programs(&self) -> EnginePrograms {
            EnginePrograms::new(["/usr/sbin/zlogin"], "install Solaris")
        }
    }

    #[test]
    fn third_party_engine_is_registered_and_wraps() {
        let mut engines = EngineRegistry::builtin();
        engines.register(Arc::new(Zone)).unwrap();
        assert_eq!(
            engines.register(Arc::new(Zone)).unwrap_err().to_string(),
            "engine \"zone\" is registered already; give yours another name"
        );
        let zone = engines.get("zone").unwrap();
        let confinement = Confinement::Persistent {
            name: "web".parse().unwrap(),
            user: None,
        };
        let agent = CommandLine::new("pi", ["x"]).unwrap();
        let wrapped = jail_wrap(&*zone, &confinement, None, agent).unwrap();
        assert_eq!(wrapped.to_string(), "/usr/sbin/zlogin web pi x");
        assert_eq!(
            zone.check(&JailOp::List).unwrap_err().to_string(),
            "engine zone does not support the operation list; give the `name` of a zone"
        );
        assert_eq!(
            engines.get("docker").unwrap_err().to_string(),
            "engine \"docker\" is unknown; give one of bubblewrap, freebsd, zone"
        );
    }
}
