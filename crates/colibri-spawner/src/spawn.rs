//! Spawn of an agent: checks the request, starts a shim or takes the pooled one, sends the launch and reads the report.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use colibri_jail_core::CommandLine;
use colibri_prepare::{LimitPlan, Prepared};
use colibri_shim::control::ShimStatus;
use colibri_shim::launch::{Launch, LaunchReport, RunCommand};
use colibri_shim::layout;
use colibri_shim::record::{self, Durability, now_ns};

use colibri_sys::boot;

use crate::blocking::{blocking, on_user_paths};
use crate::home;
use crate::shim_client::StartedShim;
use crate::{AgentId, AgentSpawnConfig, AgentSpec, ShimClient, SpawnError, Spawner};

/// Generates the id of a new agent.
pub(crate) fn new_id() -> AgentId {
    AgentId::generate(|bound| fastrand::usize(..bound))
}

/// A running agent.
#[derive(Debug, Clone)]
pub struct AgentHandle {
    /// The specification of the agent.
    pub spec: Arc<AgentSpec>,
    /// The directory of the agent.
    pub directory: PathBuf,
    /// The client of its shim.
    pub shim: ShimClient,
}

fn run_command(command: &CommandLine) -> RunCommand {
    RunCommand {
        program: command.program().to_owned(),
        args: command.args().to_vec(),
    }
}

fn run_commands(commands: &[CommandLine]) -> Vec<RunCommand> {
    commands.iter().map(run_command).collect()
}

impl Spawner {
    /// Spawns an agent under a dedicated shim. On success, its program has been executed (in a jail: the program that
    /// confines it), and the agent outlives this process. `running` are the running agents; their mounts must not overlap
    /// with those of the new agent.
    ///
    /// # Errors
    /// See [`SpawnError`]. Nothing runs then, and the agent's directory is removed.
    pub async fn spawn(
        &self,
        config: &AgentSpawnConfig,
        running: &[AgentSpec],
    ) -> Result<AgentHandle, SpawnError> {
        loop {
            let pooled = self.shim_pool.take(&self.shim).await;
            let id = match &pooled {
                Some(pooled) => pooled.id.clone(),
                None => new_id(),
            };
            // The checks come before the creation of a directory, so that a refused request leaves nothing behind. The home is
            // an exception, because it is checked.
            let (spawner, mut config, agent_id) = (self.clone(), config.clone(), id.clone());
            let others = running.to_vec();
            let plan = on_user_paths(move || {
                let home = home::provide(&spawner.state, &agent_id, &mut config)?;
                let (prepared, limits) =
                    spawner.preparer.plan(&config, agent_id.as_str(), &others)?;
                if let Some(jail) = &config.jail
                    && let Some(home) = &jail.home
                {
                    home::fill(Path::new(home), &jail.home_files)?;
                }
                Ok((config, prepared, limits, home))
            })
            .await;
            let (config, prepared, limits, home) = match plan.flatten() {
                Ok(plan) => plan,
                Err(error) => {
                    if let Some(pooled) = pooled {
                        self.shim_pool.put_back(pooled).await;
                    }
                    return Err(error);
                }
            };
            let started = match pooled {
                Some(pooled) => Some(pooled),
                None => StartedShim::start(self, &id)?,
            };
            if let Some(started) = started {
                let agent = self.start(&config, &prepared, &limits, started).await;
                match (home, &agent) {
                    (Some(home), Ok(_)) => home.keep(),
                    (home, _) => blocking(move || drop(home)).await?,
                }
                return agent;
            }
            blocking(move || drop(home)).await?;
        }
    }

    /// Prepares a command on a blocking thread, with a timeout. Starts nothing.
    ///
    /// # Errors
    /// See [`Preparer::prepare`](colibri_prepare::Preparer::prepare); also, a file system does not respond.
    pub async fn explain(&self, config: &AgentSpawnConfig) -> Result<Prepared, SpawnError> {
        let (preparer, config) = (self.preparer.clone(), config.clone());
        on_user_paths(move || Ok(preparer.prepare(&config)?))
            .await
            .flatten()
    }

    async fn start(
        &self,
        config: &AgentSpawnConfig,
        prepared: &Prepared,
        limits: &LimitPlan,
        mut shim: StartedShim,
    ) -> Result<AgentHandle, SpawnError> {
        let spec = AgentSpec {
            id: shim.id.clone(),
            config: config.redacted(),
            engine: prepared.engine.clone(),
            privilege: prepared.privilege.clone(),
            warnings: [&limits.unenforced[..], &prepared.warnings].concat(),
            created_at_ns: now_ns(),
            boot: boot::identity(),
        };
        let failure = match self
            .launch(config, prepared, limits, &spec, &mut shim)
            .await
        {
            Ok(Some(LaunchReport::Started { pid, protocol })) => {
                // The spawn succeeded even if the agent has already ended; the client reads its exit record.
                let status = ShimStatus {
                    pid: Some(pid),
                    run: 1,
                    ..ShimStatus::default()
                };
                return Ok(self.agent(spec, status, protocol, Some(shim)));
            }
            Ok(Some(LaunchReport::Failed { message, errno })) => {
                Some(SpawnError::from_launch(message, errno))
            }
            Ok(None) => None,
            Err(error) => Some(error),
        };
        let directory = shim.directory.clone();
        let status = shim.end().await.unwrap_or_default();
        let error = match failure {
            Some(error) => error,
            None => {
                let log = tokio::fs::read_to_string(directory.join(layout::LOG)).await;
                let log = log.unwrap_or_default();
                SpawnError::Launch {
                    message: format!("the shim ended early ({status}): {}", log.trim_end()),
                    errno: None,
                }
            }
        };
        if limits.cgroup {
            self.preparer.cgroups.end(spec.id.as_str()).await;
        }
        crate::state::discard(&directory);
        Err(error)
    }

    /// Writes the agent's specification, hands the waiting shim its launch and returns the report; `None` if the shim
    /// ended without one.
    async fn launch(
        &self,
        config: &AgentSpawnConfig,
        prepared: &Prepared,
        limits: &LimitPlan,
        spec: &AgentSpec,
        shim: &mut StartedShim,
    ) -> Result<Option<LaunchReport>, SpawnError> {
        let (spawner, plan, record) = (self.clone(), limits.clone(), spec.clone());
        let path = shim.directory.clone();
        let cgroup = blocking(move || spawner.write_spec(&plan, &record, &path)).await??;
        let elevated = self.preparer.elevated_commands(&prepared.confinement);
        let launch = Launch {
            program: prepared.supervised.program().to_owned(),
            args: prepared.supervised.args().to_vec(),
            env: prepared.env.clone().into_iter().collect(),
            cwd: match (&prepared.confinement, &prepared.workdir) {
                (colibri_jail_core::Confinement::None, Some(workdir)) => workdir.to_string(),
                _ => "/".to_owned(),
            },
            options: config.run_options(),
            wrapper: prepared.has_wrapper,
            takes_terminal: prepared.takes_terminal,
            monitored: prepared.has_monitor,
            cgroup,
            limits: limits.process,
            pre_run: run_commands(&prepared.pre_run),
            post_run: run_commands(&prepared.post_run),
            elevated_signal: elevated.signal,
            remove_jail: elevated.remove_jail.as_ref().map(run_command),
            held: prepared.held.clone(),
            network_events: prepared
                .network_events
                .then_some(i32::from(colibri_jail_core::PROXY_EVENTS)),
            journal: self.journal,
        };
        let report = shim.launch(&launch).await;
        report.map_err(|source| SpawnError::shim(&self.shim, source))
    }

    /// Writes the specification of an agent and creates its cgroup, if it needs one.
    fn write_spec(
        &self,
        limits: &LimitPlan,
        spec: &AgentSpec,
        directory: &Path,
    ) -> Result<Option<PathBuf>, SpawnError> {
        let path = directory.join(layout::SPEC);
        record::replace(&path, spec, Durability::Process)
            .map_err(|error| SpawnError::from_io("writing", &path, error))?;
        if !limits.cgroup {
            return Ok(None);
        }
        let mut shared = spec.config.limits();
        shared.processes = shared.processes.or(limits.default_processes);
        self.preparer
            .cgroups
            .create(spec.id.as_str(), &shared)
            .map(Some)
            .map_err(|error| SpawnError::from_io("creating a cgroup for", directory, error))
    }
}
