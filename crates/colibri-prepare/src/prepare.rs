//! Preparation of an agent's command: validated, wrapped and elevated. Starts nothing.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use colibri_jail_core::{
    CommandLine, Confinement, Ip4Policy, JailEngine, JailOp, JailPath, JailUser, ProxyOptions,
    masked_paths,
};

use colibri_glasspane::{AgentRuntime, adapted_runtime};
use colibri_priv::PrivBackend;
use colibri_sys::known_daemons::KnownDaemons;
use colibri_sys::passwd::{find_home, find_user};
use colibri_sys::regular_file;
use colibri_types::{AGENT_VARIABLE, AgentSpawnConfig, AgentSpec, HeldFile, ValidatedSpawn};
use rustix::process::{Resource, getrlimit};

use crate::doctor::sharing_warnings;
use crate::filter::{check_keys, set_variables};
use crate::host::resolve_in;
use crate::limits::LimitPlan;
use crate::sandbox::{PrivateHostPaths, SANDBOX_PROCESSES, clean_command};
use crate::{Cgroups, HostEnv, PrepareError};

/// Stands for the id of an agent that is only explained.
const ID_PLACEHOLDER: &str = "ID";

/// Hard limit of open files of each process in a sandbox of Linux without `open_files`.
const SANDBOX_OPEN_FILES: u64 = 65536;

/// Variables of an agent with a terminal, unless the request has them. Those of the user's own terminal are not inherited.
const TERMINAL_VARIABLES: [(&str, &str); 2] =
    [("TERM", "xterm-256color"), ("COLORTERM", "truecolor")];

/// Warning for a terminal of an agent under a monitor, which must not have the terminal itself.
const TERMINAL_WARNING: &str = "the terminal is not the controlling terminal of the agent, because it runs under a monitor: keys send no signals, and no signal tells the agent a new size";

/// Warning for an agent without `user` under a root monitor.
const ROOT_WARNING: &str = "the agent is root in its jail: a setuid program that it writes to a shared directory has root's rights on the host; name another user with `user`";

/// A prepared command, and how it was derived.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Prepared {
    /// The exact program and arguments.
    pub command: CommandLine,
    /// The command to execute: `command`, under a monitor if the engine has one.
    pub supervised: CommandLine,
    /// Name of the engine.
    pub engine: String,
    /// Name of the privilege backend; `none` without a jail.
    pub privilege: String,
    /// The agent's own command, not yet confined.
    pub agent: CommandLine,
    /// The confinement.
    pub confinement: Confinement,
    /// The working directory, inside the jail if there is one.
    pub workdir: Option<JailPath>,
    /// The complete environment. Those of colibri-proxy in it, with the keys of credentials, do not reach the agent.
    pub env: BTreeMap<String, String>,
    /// Whether the command has a proxy that writes events to [`colibri_jail_core::PROXY_EVENTS`].
    pub network_events: bool,
    /// Whether `supervised` runs under a monitor.
    pub has_monitor: bool,
    /// Whether the first process is a wrapper whose end kills the agent; signals must not reach it.
    pub has_wrapper: bool,
    /// Whether the command itself makes the agent's terminal its controlling terminal.
    pub takes_terminal: bool,
    /// Commands to run before each start.
    pub pre_run: Vec<CommandLine>,
    /// Commands to run after each run.
    pub post_run: Vec<CommandLine>,
    /// Files that the shim opens once and passes to each run, as [`Preparer::plan`] finds them.
    pub held: Vec<HeldFile>,
    /// Dangers of the configuration; with those that running agents add, as [`Preparer::plan`] finds them.
    pub warnings: Vec<String>,
}

impl Prepared {
    /// Returns the `PATH` in which the agent's program is searched.
    pub(crate) fn search_path(&self) -> &str {
        self.env.get("PATH").map_or("", String::as_str)
    }
}

/// Prepares commands. Creating a value does no I/O.
#[derive(Clone)]
pub struct Preparer {
    /// The engine.
    pub engine: Arc<dyn JailEngine>,
    /// The privilege backend.
    pub backend: Arc<dyn PrivBackend>,
    /// Directories that every sandbox masks: the daemon's state, sockets and settings.
    pub private_directories: Vec<PathBuf>,
    /// Files that every sandbox of colibri-sandbox masks: settings and environment files.
    pub private_files: Vec<PathBuf>,
    /// The other daemons of this user, whose private paths are masked too.
    pub known_daemons: Option<KnownDaemons>,
    /// The base environment of agents.
    pub host: HostEnv,
    /// The place of the agents' cgroups.
    pub cgroups: Cgroups,
    /// Soft limit of open files for agents without `open_files`; absent: that of this process.
    pub soft_open_files: Option<u64>,
    /// The program that drives agents whose protocol has sessions; absent if it is not installed.
    pub adapter: Option<PathBuf>,
}

impl Preparer {
    /// Prepares a command, plans its limits, and checks both on this host. `running` are the running agents.
    ///
    /// # Errors
    /// The configuration cannot be used on this host.
    pub fn plan(
        &self,
        config: &AgentSpawnConfig,
        id: &str,
        running: &[AgentSpec],
    ) -> Result<(Prepared, LimitPlan), PrepareError> {
        let mut prepared = self.prepare_as(config, id)?;
        check_keys(&prepared)?;
        self.check(&prepared, running)?;
        if let Confinement::Ephemeral(jail) = &prepared.confinement {
            prepared.held = self.held_files(jail)?;
        }
        let max_open_files = getrlimit(Resource::Nofile).maximum.unwrap_or(u64::MAX);
        let best_effort = config.jail.as_ref().is_some_and(|jail| jail.best_effort);
        let confinement = &prepared.confinement;
        let mut limits =
            self.plan_limits(&config.limits(), best_effort, confinement, max_open_files)?;
        limits.process.soft_files = self.soft_open_files;
        if matches!(&prepared.confinement, Confinement::Ephemeral(jail) if jail.sandbox.completed) {
            limits.process.hard_files = Some(SANDBOX_OPEN_FILES);
            // colibri-sandbox sets it when bwrap has set up the sandbox.
            limits.process.open_files = None;
            if config.limits().processes.is_none() && self.cgroups.obstacle("pids").is_none() {
                limits.cgroup = true;
                limits.default_processes = Some(SANDBOX_PROCESSES);
            }
        }
        if limits.omits_jail_limits {
            // An operation that sets a limit would fail on this host, and the agent would not start.
            let held = std::mem::take(&mut prepared.held);
            prepared = self.prepare_as(&without_jail_limits(config), id)?;
            prepared.held = held;
        }
        let sharing = sharing_warnings(&prepared.confinement, running);
        prepared.warnings.extend(sharing);
        Ok((prepared, limits))
    }

    /// Returns the command that a request would run. For an engine that needs it, reads the user table of the root
    /// directory and the real paths of the directories to mask; otherwise independent of the host.
    ///
    /// # Errors
    /// The configuration is invalid, or the engine or the backend refuses it.
    pub fn prepare(&self, config: &AgentSpawnConfig) -> Result<Prepared, PrepareError> {
        self.prepare_as(config, ID_PLACEHOLDER)
    }

    /// Prepares the command for the agent with this id; see [`Preparer::prepare`].
    ///
    /// # Errors
    /// See [`Preparer::prepare`].
    pub fn prepare_as(
        &self,
        config: &AgentSpawnConfig,
        id: &str,
    ) -> Result<Prepared, PrepareError> {
        let ValidatedSpawn {
            command: agent,
            mut confinement,
            workdir,
        } = config.validate(&format!("colibri-{id}"))?;
        let engine = &*self.engine;
        let mut env = self.host.with(&config.env);
        let has_wrapper = confinement != Confinement::None && engine.has_wrapper_process();
        if let Confinement::Ephemeral(jail) = &mut confinement {
            jail.sandbox.terminal = config.terminal.is_some();
            let root = Path::new(jail.path.as_str());
            let host = match engine.masks_paths() || self.completes_sandbox() {
                true => self.private_host_paths()?,
                false => PrivateHostPaths::default(),
            };
            if jail.is_template {
                let user = jail
                    .user
                    .as_ref()
                    .map_or("root".to_owned(), ToString::to_string);
                jail.writable.extend(home_directory(&user, root));
            }
            if engine.masks_paths() {
                let real = |path: &Path| path.canonicalize().ok();
                jail.masked = masked_paths(
                    &real(root).unwrap_or(root.to_owned()),
                    &jail.mounts,
                    engine.private_directories(),
                    &host.aliases(),
                )?;
            }
            if engine.users_by_number()
                && let Some(JailUser::Name(name)) = &jail.user
            {
                jail.user = Some(lookup_user(name.as_ref(), root)?);
            }
            if self.completes_sandbox() {
                let names_network = config
                    .jail
                    .as_ref()
                    .is_some_and(|jail| jail.network.is_some() || jail.ip4.is_some());
                if !names_network {
                    jail.ip4 = Ip4Policy::Disable;
                }
                let home = env.get("HOME").map(String::as_str);
                self.complete_sandbox(jail, home, &config.limits(), &host)?;
            }
        }
        let mut warnings = Vec::new();
        let started = match self.adapter_command(config, &mut confinement) {
            None => agent.clone(),
            Some(Ok((adapter, protocol))) => {
                let options = config.adapter.arguments();
                let words = [protocol.to_string()].into_iter().chain(options);
                agent.clone().after(adapter, words.chain(["--".to_owned()]))
            }
            Some(Err(warning)) => {
                warnings.push(warning);
                agent.clone()
            }
        };
        let (mut pre_run, mut post_run) = (Vec::new(), Vec::new());
        let mut monitored = None;
        let mut has_monitor = false;
        let (command, privilege) = match confinement
            .clone()
            .into_op(workdir.clone(), started.clone())
        {
            None => (started, "none".to_owned()),
            Some(op) => {
                let limits = config.limits();
                let elevate = |ops: Vec<JailOp>| -> Result<Vec<CommandLine>, PrepareError> {
                    let elevated = ops.iter().map(|op| self.backend.elevate(op, engine));
                    Ok(elevated.collect::<Result<_, _>>()?)
                };
                let command = self.backend.elevate(&op, engine)?;
                let filtered = |command: CommandLine| match (&confinement, engine.outer_proxy()) {
                    (Confinement::Ephemeral(jail), Some(proxy)) if !jail.allow.is_empty() => {
                        command.filtered_with(proxy, &jail.allow, &ProxyOptions::of(jail))
                    }
                    _ => command,
                };
                pre_run = elevate(engine.pre_run(&op, &limits)?)?;
                // The monitor is root already, so it runs the engine's own command.
                let monitor = engine.monitor(&op, &engine.command_line(&op)?);
                has_monitor = monitor.is_some();
                if !self.backend.monitors() {
                    post_run = elevate(engine.post_run(&op, &limits)?)?;
                    let monitor = monitor.map(|op| self.backend.elevate(&op, engine));
                    monitored = monitor.transpose()?.map(filtered);
                }
                (filtered(command), self.backend.name().to_owned())
            }
        };
        let names_user = config.jail.as_ref().is_some_and(|jail| jail.user.is_some());
        let is_root = has_monitor && !self.backend.monitors() && !names_user;
        let mut network_events = false;
        warnings.extend(is_root.then(|| ROOT_WARNING.to_owned()));
        if let Confinement::Ephemeral(jail) = &confinement {
            if !jail.allow.is_empty() {
                network_events = jail.sandbox.completed || engine.outer_proxy().is_some();
                set_variables(&mut env, jail, self.host.roots_file());
            }
            if let Some(program) = engine.cleaning_program(jail) {
                post_run.extend(clean_command(program.as_str(), jail));
            }
            let lifted = jail.sandbox.lifted.iter();
            warnings.extend(lifted.map(|one| format!("the restriction {one} is lifted")));
        }
        let mut takes_terminal = false;
        if config.terminal.is_some() {
            let is_completed =
                matches!(&confinement, Confinement::Ephemeral(jail) if jail.sandbox.completed);
            let is_monitored =
                confinement != Confinement::None && (has_monitor || self.backend.monitors());
            takes_terminal = is_completed || is_monitored;
            if is_monitored {
                warnings.push(TERMINAL_WARNING.to_owned());
            }
            for (name, value) in TERMINAL_VARIABLES {
                env.entry(name.to_owned()).or_insert(value.to_owned());
            }
        }
        // The orphans of a lost agent are found by this variable.
        env.insert(AGENT_VARIABLE.to_owned(), id.to_owned());
        Ok(Prepared {
            supervised: monitored.unwrap_or_else(|| command.clone()),
            command,
            engine: engine.name().to_owned(),
            privilege,
            agent,
            confinement,
            workdir,
            env,
            network_events,
            has_monitor,
            has_wrapper,
            takes_terminal,
            pre_run,
            post_run,
            held: Vec::new(),
            warnings,
        })
    }
}

impl Preparer {
    /// Returns the command of the adapter for an agent whose protocol has sessions, and the protocol. `None` if the agent
    /// needs none; a warning if the adapter cannot be executed where the agent runs.
    fn adapter_command(
        &self,
        config: &AgentSpawnConfig,
        confinement: &mut Confinement,
    ) -> Option<Result<(CommandLine, AgentRuntime), String>> {
        if config.terminal.is_some() {
            return None;
        }
        let runtime = config.runtime.unwrap_or_default();
        let protocol = adapted_runtime(runtime, &config.program, &config.args)?;
        let path: Option<JailPath> = self
            .adapter
            .as_ref()
            .and_then(|path| path.to_str()?.parse().ok());
        let command = path.and_then(|path| match confinement {
            Confinement::Ephemeral(jail) => match self.engine.add_program(jail, &path) {
                // A root of the host shows the program at its path.
                None if jail.path == JailPath::root() => {
                    CommandLine::new(path.as_str(), [""; 0]).ok()
                }
                command => command,
            },
            Confinement::None => CommandLine::new(path.as_str(), [""; 0]).ok(),
            Confinement::Persistent { .. } => None,
        });
        Some(command.map(|command| (command, protocol)).ok_or_else(|| {
            "colibri-adapter is not installed or cannot be executed in this jail, so the agent reads no prompts of colibri; send messages of its protocol with colibri send".to_owned()
        }))
    }
}

/// Returns the configuration without the limits on all processes together.
fn without_jail_limits(config: &AgentSpawnConfig) -> AgentSpawnConfig {
    let mut config = config.clone();
    if let Some(jail) = &mut config.jail {
        jail.limits.memory = None;
        jail.limits.processes = None;
        jail.limits.cpu = None;
    }
    config
}

/// Maximum size of a passwd(5) file, in bytes.
const MAX_PASSWD_BYTES: u64 = 16 << 20;

/// Returns the user table of a root directory, if it can be read.
fn user_table(root: &Path) -> Option<String> {
    let path = resolve_in(root, Path::new("/etc/passwd"))?;
    let bytes = regular_file::read(&path, MAX_PASSWD_BYTES).ok()?;
    String::from_utf8(bytes).ok()
}

/// Returns the home directory of a user in a root directory, unless it is `/` or in a directory that is hidden or writable
/// already.
fn home_directory(user: &str, root: &Path) -> Option<JailPath> {
    let home: JailPath = find_home(&user_table(root)?, user)?.parse().ok()?;
    let is_taken = ["/dev", "/tmp", "/var/tmp", "/var/run"]
        .iter()
        .any(|directory| home.is_in(directory));
    (home != JailPath::root() && !is_taken).then_some(home)
}

/// Looks up a user in the table of the root directory, for an engine that takes only numbers.
fn lookup_user(name: &str, root: &Path) -> Result<JailUser, PrepareError> {
    let table = root.join("etc/passwd");
    user_table(root)
        .and_then(|text| find_user(&text, name))
        .map(|ids| JailUser::Id {
            uid: ids.uid,
            gid: Some(ids.gid),
        })
        .ok_or_else(|| PrepareError::UnknownUser {
            user: name.to_owned(),
            table,
        })
}
