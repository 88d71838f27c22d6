//! Starts a shim, hands it the launch, and hears from it that the agent runs.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use colibri_jail_core::CommandLine;
use colibri_prepare::{LimitPlan, Prepared};
use colibri_shim::control::ShimStatus;
use colibri_shim::launch::{Launch, LaunchReport, RunCommand};
use colibri_shim::layout;
use colibri_shim::record::{self, Durability};

use crate::adopt::{blocking, on_user_paths};
use crate::shim_client::StartedShim;
use crate::shim_pool::{PooledShim, shim_failed};
use crate::state::now_ns;
use crate::{AgentId, AgentSpawnConfig, AgentSpec, ShimClient, SpawnError, Spawner};

/// Generates the id of a new agent.
pub(crate) fn new_id() -> AgentId {
    AgentId::generate(|bound| fastrand::usize(..bound))
}

/// A running agent.
#[derive(Debug, Clone)]
pub struct Agent {
    /// Its specification.
    pub spec: Arc<AgentSpec>,
    /// Its directory.
    pub directory: PathBuf,
    /// The connection to its shim.
    pub link: ShimClient,
}

fn run_commands(commands: &[CommandLine]) -> Vec<RunCommand> {
    let run_command = |command: &CommandLine| RunCommand {
        program: command.program().to_owned(),
        args: command.args().to_vec(),
    };
    commands.iter().map(run_command).collect()
}

impl Spawner {
    /// Starts an agent under a shim of its own. When this returns, the program has been executed (with a
    /// jail: the program that confines it), and the agent outlives this process. `running` are the agents that
    /// run already: what they may write, they could exchange beneath this one.
    ///
    /// # Errors
    /// Nothing runs and nothing is left behind.
    pub async fn spawn(
        &self,
        config: &AgentSpawnConfig,
        running: &[AgentSpec],
    ) -> Result<Agent, SpawnError> {
        loop {
            let waiting = self.shim_pool.take(&self.shim).await;
            let id = match &waiting {
                Some(waiting) => waiting.id.clone(),
                None => new_id(),
            };
            // Refused requests leave no trace, so look before the directory is made.
            let (preparer, request, new) = (self.preparer.clone(), config.clone(), id.clone());
            let others = running.to_vec();
            let looked =
                on_user_paths(move || Ok(preparer.plan(&request, new.as_str(), &others)?)).await;
            let (prepared, limits) = match looked.flatten() {
                Ok(found) => found,
                Err(error) => {
                    if let Some(waiting) = waiting {
                        self.shim_pool.put(waiting).await;
                    }
                    return Err(error);
                }
            };
            // A process takes its time to come up; it does while the rest is got ready.
            let started = match waiting {
                Some(waiting) => Some(waiting),
                None => PooledShim::start(self, &id)?,
            };
            if let Some(started) = started {
                return self.start(config, &prepared, &limits, started).await;
            }
        }
    }

    /// Prepares a command without blocking the caller's thread, within a time limit. Starts nothing.
    ///
    /// # Errors
    /// As [`Preparer::prepare`](colibri_prepare::Preparer::prepare), or a file system does not answer.
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
        waiting: PooledShim,
    ) -> Result<Agent, SpawnError> {
        let PooledShim {
            id,
            directory,
            shim,
            ..
        } = waiting;
        let spec = AgentSpec {
            id,
            config: config.redacted(),
            engine: prepared.engine.clone(),
            privilege: prepared.privilege.clone(),
            exit_note: prepared.exit_note.clone(),
            warnings: limits.unenforced.clone(),
            created_at_ns: now_ns(),
        };
        let launched = self
            .launch(config, prepared, limits, &spec, &directory, shim)
            .await;
        match launched {
            Ok((agent_pid, protocol, shim)) => {
                // An agent that has ended by now is no failed spawn: the link finds its record.
                let status = ShimStatus {
                    pid: Some(agent_pid),
                    run: 1,
                    ..ShimStatus::default()
                };
                Ok(self.agent(spec, status, protocol, Some(shim)))
            }
            Err(error) => {
                if limits.cgroup {
                    self.preparer.cgroups.end(spec.id.as_str()).await;
                }
                crate::state::discard(&directory);
                Err(error)
            }
        }
    }

    /// Writes the agent's specification, and hands the waiting shim its launch. Returns the first process's id, and the
    /// version of the control protocol that the shim speaks.
    async fn launch(
        &self,
        config: &AgentSpawnConfig,
        prepared: &Prepared,
        limits: &LimitPlan,
        spec: &AgentSpec,
        directory: &Path,
        mut shim: StartedShim,
    ) -> Result<(i32, u32, StartedShim), SpawnError> {
        let (spawner, wanted, kept) = (self.clone(), limits.clone(), spec.clone());
        let place = directory.to_owned();
        let made = blocking(move || spawner.provide(&wanted, &kept, &place)).await;
        let cgroup = match made.flatten() {
            Ok(cgroup) => cgroup,
            Err(error) => {
                shim.end().await;
                return Err(error);
            }
        };
        let launch = Launch {
            program: prepared.command.program().to_owned(),
            args: prepared.command.args().to_vec(),
            env: prepared.env.clone().into_iter().collect(),
            cwd: match (&prepared.confinement, &prepared.workdir) {
                (colibri_jail_core::Confinement::None, Some(workdir)) => workdir.to_string(),
                _ => "/".to_owned(),
            },
            options: config.run_options(),
            wrapper: prepared.has_wrapper,
            cgroup,
            limits: limits.process,
            pre_run: run_commands(&prepared.pre_run),
            post_run: run_commands(&prepared.post_run),
            journal: self.journal,
        };
        match shim.launch(&launch).await {
            Ok(Some(LaunchReport::Started { pid, protocol })) => Ok((pid, protocol, shim)),
            Ok(Some(LaunchReport::Failed { message, errno })) => {
                shim.end().await;
                Err(SpawnError::from_launch(message, errno))
            }
            Ok(None) => {
                let status = shim.end().await.unwrap_or_default();
                let said = tokio::fs::read_to_string(directory.join(layout::LOG))
                    .await
                    .unwrap_or_default();
                Err(SpawnError::Launch {
                    message: format!("the shim ended early ({status}): {}", said.trim_end()),
                    errno: None,
                })
            }
            Err(source) => {
                shim.end().await;
                Err(shim_failed(&self.shim, source))
            }
        }
    }

    /// What must be there before the agent runs: its specification, and its cgroup.
    fn provide(
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
        self.preparer
            .cgroups
            .make(spec.id.as_str(), &spec.config.limits())
            .map(Some)
            .map_err(|error| SpawnError::from_io("making a cgroup for", directory, error))
    }
}
