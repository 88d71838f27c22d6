//! Starts a shim, hands it the launch, and hears from it that the agent runs.

use std::path::{Path, PathBuf};
use std::process::Stdio;

use colibri_jail_core::CommandLine;
use colibri_shim::control::Status;
use colibri_shim::launch::{Launch, LaunchReport, Step};
use colibri_shim::layout;
use colibri_shim::record::{self, Durability};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::process::Command;

use crate::limits::Means;
use crate::state::now_ns;
use crate::{AgentId, AgentSpawnConfig, AgentSpec, ShimLink, SpawnError, Spawner};

/// A running agent.
#[derive(Debug, Clone)]
pub struct Agent {
    /// Its specification.
    pub spec: AgentSpec,
    /// Its directory.
    pub directory: PathBuf,
    /// The connection to its shim.
    pub link: ShimLink,
}

fn steps(commands: &[CommandLine]) -> Vec<Step> {
    let step = |command: &CommandLine| Step {
        program: command.program().to_owned(),
        args: command.args().to_vec(),
    };
    commands.iter().map(step).collect()
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
        // Refused requests leave no trace, so look before the directory is made.
        let prepared = self.prepare(config)?;
        self.check(&prepared, running)?;
        let means = self.means(config, &prepared)?;
        let (id, directory, log) = self.state.create_agent()?;
        let started = self.start(config, &means, &id, &directory, log).await;
        if started.is_err() {
            crate::state::discard(&directory);
        }
        started
    }

    async fn start(
        &self,
        config: &AgentSpawnConfig,
        means: &Means,
        id: &AgentId,
        directory: &Path,
        log: std::fs::File,
    ) -> Result<Agent, SpawnError> {
        let prepared = self.prepare_as(config, id.as_str())?;
        let spec = AgentSpec {
            id: id.clone(),
            config: config.redacted(),
            engine: prepared.engine.clone(),
            privilege: prepared.privilege.clone(),
            exit_note: prepared.exit_note.clone(),
            warnings: means.unenforced.clone(),
            created_at_ns: now_ns(),
        };
        let path = directory.join(layout::SPEC);
        record::replace(&path, &spec, Durability::Process)
            .map_err(|error| SpawnError::from_io("writing", &path, error))?;
        let cgroup = if means.cgroup {
            let made = self.cgroups.make(id.as_str(), &config.limits());
            let made =
                made.map_err(|error| SpawnError::from_io("making a cgroup for", directory, error))?;
            Some(made)
        } else {
            None
        };
        let launch = Launch {
            program: prepared.command.program().to_owned(),
            args: prepared.command.args().to_vec(),
            env: prepared.env.clone().into_iter().collect(),
            cwd: match (&prepared.confinement, &prepared.workdir) {
                (colibri_jail_core::Confinement::None, Some(workdir)) => workdir.to_string(),
                _ => "/".to_owned(),
            },
            no_input: config.no_input,
            wrapper: prepared.has_wrapper(),
            restart: config.restart.clone().unwrap_or_default(),
            wall_time_ms: config.limits().wall_time.map(|limit| limit.0),
            cgroup,
            limits: means.process,
            before: steps(&prepared.around.0),
            after: steps(&prepared.around.1),
            journal: self.journal,
        };
        let launched = self.launch(&launch, directory, log).await;
        if launched.is_err() {
            self.cgroups.end(id.as_str()).await;
        }
        let agent_pid = launched?;
        // An agent that has ended by now is no failed spawn: the link finds its record.
        let status = Status {
            pid: Some(agent_pid),
            run: 1,
            ..Status::default()
        };
        Ok(self.agent(spec, status))
    }

    /// Runs the shim program; returns the first process's id.
    async fn launch(
        &self,
        launch: &Launch,
        directory: &Path,
        log: std::fs::File,
    ) -> Result<i32, SpawnError> {
        let shim_failed =
            |source: std::io::Error| match SpawnError::from_io("starting", &self.shim, source) {
                SpawnError::File { path, source } => SpawnError::Shim { path, source },
                other => other,
            };
        let mut child = Command::new(&self.shim)
            .arg(directory)
            .env_clear()
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::from(log))
            .spawn()
            .map_err(shim_failed)?;
        let request = serde_json::to_vec(launch).map_err(|error| shim_failed(error.into()))?;
        if let Some(mut stdin) = child.stdin.take() {
            // A shim that gave up early says why on its stdout; the broken pipe says less.
            let _ = stdin.write_all(&request).await;
        }
        let mut line = String::new();
        if let Some(stdout) = child.stdout.take() {
            BufReader::new(stdout)
                .read_line(&mut line)
                .await
                .map_err(shim_failed)?;
        }
        match serde_json::from_str(&line) {
            Ok(LaunchReport::Started { pid }) => Ok(pid),
            Ok(LaunchReport::Failed { message, errno }) => {
                let _ = child.wait().await;
                Err(SpawnError::from_launch(message, errno))
            }
            Err(_) => {
                let status = child.wait().await.map_err(shim_failed)?;
                let said = tokio::fs::read_to_string(directory.join(layout::LOG))
                    .await
                    .unwrap_or_default();
                Err(SpawnError::Launch {
                    message: format!("the shim ended early ({status}): {}", said.trim_end()),
                    errno: None,
                })
            }
        }
    }
}
