//! From a request to the exact command: validated, wrapped and elevated. Nothing is started here.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use colibri_jail_core::{
    CommandLine, Confinement, ExitFidelity, JailEngine, JailOp, JailPath, JailSetup, JailUser,
    host_path, masked_paths,
};

use colibri_priv::PrivBackend;
use colibri_sys::passwd::find_user;
use colibri_sys::regular_file::{self, is_executable};
use colibri_types::{AGENT_VARIABLE, AgentSpawnConfig, AgentSpec, ValidatedSpawn};
use rustix::process::{Resource, getrlimit};

use crate::arguments;
use crate::host::resolve_in;
use crate::limits::LimitPlan;
use crate::program::{self, Hidden, View};
use crate::{Cgroups, HostEnv, PrepareError, limits, mounts};

/// Stands for the agent's id where there is none yet, as in `explain`.
const NO_ID: &str = "ID";

/// By what programs find a proxy, and where colibri-proxy listens in a sandbox.
const PROXY_VARIABLES: &[&str] = &["HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy"];
const PROXY: &str = "http://127.0.0.1:3128";

/// What would run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Prepared {
    /// The exact program and arguments.
    pub command: CommandLine,
    /// Name of the engine.
    pub engine: String,
    /// Name of the privilege backend; `none` where there is no jail.
    pub privilege: String,
    /// The agent's own command, not yet confined.
    pub agent: CommandLine,
    /// The confinement.
    pub confinement: Confinement,
    /// The working directory, inside the jail if there is one.
    pub workdir: Option<JailPath>,
    /// The whole environment.
    pub env: BTreeMap<String, String>,
    /// Why the exit status of the first process is not the agent's own.
    pub exit_note: Option<String>,
    /// Whether the first process is a wrapper whose end kills the agent; signals must not reach it.
    pub has_wrapper: bool,
    /// Commands to run before each start.
    pub pre_run: Vec<CommandLine>,
    /// Commands to run after each run.
    pub post_run: Vec<CommandLine>,
}

impl Prepared {
    /// Returns the `PATH` in which the agent's program is searched.
    fn search_path(&self) -> &str {
        self.env.get("PATH").map_or("", String::as_str)
    }
}

/// The parts of the host that an ephemeral jail shows.
struct Own<'a> {
    root: &'a Path,
    /// Directories that the engine replaces by private ones.
    private: &'static [&'static str],
    setup: &'a JailSetup,
}

impl Own<'_> {
    /// Returns the host path of a path in the jail; `None` if nothing exists there.
    fn find(&self, path: &Path) -> Option<PathBuf> {
        match host_path(&self.setup.mounts, path) {
            Some(place) => place.exists().then_some(place),
            None if self.covered(path).is_some() => None,
            None => resolve_in(self.root, path),
        }
    }

    /// Returns why the jail hides a path of the root; `None` if it does not.
    fn hidden(&self, path: &Path) -> Option<Hidden> {
        if host_path(&self.setup.mounts, path).is_some() {
            return None;
        }
        let exists = resolve_in(self.root, path).is_some();
        self.covered(path)
            .map(|(directory, daemons)| match daemons {
                true => Hidden {
                    why: format!("{directory} belongs to the daemon and is hidden from agents"),
                    hint: "move it elsewhere".to_owned(),
                    exists,
                },
                false => Hidden {
                    why: format!("the sandbox has its own {directory}, which hides the host's"),
                    hint: format!(
                        "mount it with `mounts` {}, or move it out of {directory}",
                        path.display()
                    ),
                    exists,
                },
            })
    }

    /// Returns the directory that hides a path in the sandbox, and whether it is hidden because it is the daemon's.
    fn covered(&self, path: &Path) -> Option<(&str, bool)> {
        let private = self.private.iter().map(|own| (*own, false));
        let daemons = self.setup.masked.iter().map(|own| (own.as_str(), true));
        private
            .chain(daemons)
            .find(|(directory, _)| path.starts_with(directory))
    }
}

/// Prepares commands. Creating one touches nothing.
#[derive(Clone)]
pub struct Preparer {
    /// The engine.
    pub engine: Arc<dyn JailEngine>,
    /// The privilege backend.
    pub backend: Arc<dyn PrivBackend>,
    /// Directories that no sandbox may show: the daemon's state, sockets and settings.
    pub private_directories: Vec<PathBuf>,
    /// The environment that agents start from.
    pub host: HostEnv,
    /// The cgroups in which agents get theirs.
    pub cgroups: Cgroups,
    /// Soft limit of open files for agents without `open_files`; absent: that of this process.
    pub soft_open_files: Option<u64>,
}

impl Preparer {
    /// Prepares a command, plans its limits, and checks both on this host. `running` are the agents that run already.
    ///
    /// # Errors
    /// The configuration cannot be used on this host.
    pub fn plan(
        &self,
        config: &AgentSpawnConfig,
        id: &str,
        running: &[AgentSpec],
    ) -> Result<(Prepared, LimitPlan), PrepareError> {
        let prepared = self.prepare_as(config, id)?;
        self.check(&prepared, running)?;
        let limits = self.limit_plan(config, &prepared)?;
        Ok((prepared, limits))
    }

    /// Says what a request would run, and starts nothing. Of the host it looks at the root's user table
    /// and at which directories to hide, both only for bubblewrap.
    ///
    /// # Errors
    /// The request is not usable as it is.
    pub fn prepare(&self, config: &AgentSpawnConfig) -> Result<Prepared, PrepareError> {
        self.prepare_as(config, NO_ID)
    }

    /// Prepares the command for the agent with this id; see [`Preparer::prepare`].
    ///
    /// # Errors
    /// As [`Preparer::prepare`].
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
        let has_wrapper = confinement != Confinement::None && engine.has_wrapper_process();
        if let Confinement::Ephemeral {
            path, user, setup, ..
        } = &mut confinement
        {
            let root = Path::new(path.as_str());
            if engine.masks_paths() {
                let real = |path: &Path| path.canonicalize().ok();
                let protected = self.private_directories.iter();
                let protected: Vec<_> = protected.filter_map(|path| real(path)).collect();
                setup.masked = masked_paths(
                    &real(root).unwrap_or(root.to_owned()),
                    &setup.mounts,
                    engine.private_directories(),
                    &protected,
                )?;
            }
            if engine.users_by_number()
                && let Some(JailUser::Name(name)) = user
            {
                *user = Some(number_of(name.as_ref(), root)?);
            }
        }
        let mut exit_note = None;
        let (mut pre_run, mut post_run) = (Vec::new(), Vec::new());
        let (command, privilege) = match confinement.clone().into_op(workdir.clone(), agent.clone())
        {
            None => (agent.clone(), "none".to_owned()),
            Some(op) => {
                if !self.backend.exact_exit_code()
                    && engine.exit_fidelity(&op) == ExitFidelity::Collapsed
                {
                    exit_note = Some("jail(8) reports every failure as exit code 1: the agent's own code or signal is not known".to_owned());
                }
                let limits = config.limits();
                let elevate = |ops: Vec<JailOp>| -> Result<Vec<CommandLine>, PrepareError> {
                    let elevated = ops.iter().map(|op| self.backend.elevate(op, engine));
                    Ok(elevated.collect::<Result<_, _>>()?)
                };
                pre_run = elevate(engine.pre_run(&op, &limits)?)?;
                post_run = elevate(engine.post_run(&op, &limits)?)?;
                (
                    self.backend.elevate(&op, engine)?,
                    self.backend.name().to_owned(),
                )
            }
        };
        let mut env = self.host.with(&config.env);
        if let Confinement::Ephemeral { setup, .. } = &confinement
            && !setup.allow.is_empty()
        {
            for name in PROXY_VARIABLES {
                env.entry((*name).to_owned())
                    .or_insert_with(|| PROXY.to_owned());
            }
            // Node looks at the others only with this (node(1)).
            env.entry("NODE_USE_ENV_PROXY".to_owned())
                .or_insert_with(|| "1".to_owned());
        }
        // Whoever looks for what a lost agent left behind finds it by this.
        env.insert(AGENT_VARIABLE.to_owned(), id.to_owned());
        Ok(Prepared {
            command,
            engine: engine.name().to_owned(),
            privilege,
            agent,
            confinement,
            workdir,
            env,
            exit_note,
            has_wrapper,
            pre_run,
            post_run,
        })
    }

    /// How the agent is held to its limits.
    ///
    /// # Errors
    /// One of them cannot be enforced, and the request does not say `best_effort`.
    pub fn limit_plan(
        &self,
        config: &AgentSpawnConfig,
        prepared: &Prepared,
    ) -> Result<LimitPlan, PrepareError> {
        let most_files = getrlimit(Resource::Nofile).maximum.unwrap_or(u64::MAX);
        let best_effort = config.jail.as_ref().is_some_and(|jail| jail.best_effort);
        let host = limits::Host {
            engine: &*self.engine,
            backend: &*self.backend,
            cgroups: &self.cgroups,
            most_files,
        };
        let confinement = &prepared.confinement;
        let mut means = limits::choose(&config.limits(), best_effort, confinement, &host)?;
        means.process.soft_files = self.soft_open_files;
        Ok(means)
    }

    /// Checks on the host what can be checked before a start, so that the answer is clear and early.
    pub fn check(&self, prepared: &Prepared, running: &[AgentSpec]) -> Result<(), PrepareError> {
        let wrapper = match &prepared.confinement {
            Confinement::None => None,
            _ => self.engine.argument_limit(),
        };
        arguments::check(
            &prepared.command,
            &prepared.env,
            wrapper,
            &arguments::Most::of_host(),
        )?;
        match &prepared.confinement {
            Confinement::None => {
                let cwd = Path::new(prepared.workdir.as_ref().map_or("/", |path| path.as_str()));
                check_directory("working directory", cwd, cwd)?;
                program::check(
                    prepared.agent.program(),
                    prepared.search_path(),
                    &View {
                        find: &|path| Some(cwd.join(path)),
                        hidden: &|_| None,
                        place: "on this host",
                        as_self: true,
                    },
                )
            }
            Confinement::Persistent { .. } => check_wrapper(&prepared.command),
            Confinement::Ephemeral { path, setup, .. } => {
                let root = Path::new(path.as_str());
                check_directory("jail path", root, root)?;
                check_wrapper(&prepared.command)?;
                let engine = &*self.engine;
                for needed in engine.private_directories() {
                    let inside = root.join(needed.trim_start_matches('/'));
                    if !inside.is_dir() {
                        return Err(PrepareError::Path {
                            what: "jail path",
                            path: path.to_string(),
                            problem: format!(
                                "has no directory {needed} to mount on; create an empty one in it"
                            ),
                        });
                    }
                }
                mounts::check(&setup.mounts, engine, |path| resolve_in(root, path))?;
                mounts::reject_overlaps(&prepared.confinement, engine, running)?;
                let own = Own {
                    root,
                    private: engine.private_directories(),
                    setup,
                };
                let workdir =
                    Path::new(prepared.workdir.as_ref().map_or("/", |path| path.as_str()));
                let private = own.private.iter().any(|own| workdir == Path::new(own));
                if !private || host_path(&setup.mounts, workdir).is_some() {
                    if let Some(hidden) = own.hidden(workdir) {
                        return Err(PrepareError::Path {
                            what: "working directory",
                            path: workdir.display().to_string(),
                            problem: format!(
                                "does not exist in the jail: {}; {}",
                                hidden.why, hidden.hint
                            ),
                        });
                    }
                    let place = own.find(workdir).unwrap_or_default();
                    check_directory("working directory", workdir, &place)?;
                }
                program::check(
                    prepared.agent.program(),
                    prepared.search_path(),
                    &View {
                        find: &|path| own.find(&workdir.join(path)),
                        hidden: &|path| own.hidden(&workdir.join(path)),
                        place: &format!("under {}", root.display()),
                        as_self: !engine.needs_root() && self.backend.runs_as_caller(),
                    },
                )
            }
        }
    }
}

/// Maximum size of a passwd(5) file, in bytes.
const MAX_TABLE: u64 = 16 << 20;

/// The user's numbers by the root's own table: bubblewrap knows no names.
fn number_of(name: &str, root: &Path) -> Result<JailUser, PrepareError> {
    let table = root.join("etc/passwd");
    resolve_in(root, Path::new("/etc/passwd"))
        .and_then(|place| regular_file::read(&place, MAX_TABLE).ok())
        .and_then(|bytes| String::from_utf8(bytes).ok())
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

fn check_directory(what: &'static str, shown: &Path, place: &Path) -> Result<(), PrepareError> {
    let problem = match place.metadata() {
        Ok(data) if data.is_dir() => return Ok(()),
        Ok(_) => "is not a directory; give one".to_owned(),
        Err(_) if place.as_os_str().is_empty() => {
            "does not exist in the jail; give one that does".to_owned()
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            "does not exist; create it or give another".to_owned()
        }
        Err(error) => format!("cannot be used: {error}"),
    };
    Err(PrepareError::Path {
        what,
        path: shown.display().to_string(),
        problem,
    })
}

fn check_wrapper(command: &CommandLine) -> Result<(), PrepareError> {
    if is_executable(Path::new(command.program())) {
        Ok(())
    } else {
        Err(PrepareError::WrapperMissing(command.program().to_owned()))
    }
}
