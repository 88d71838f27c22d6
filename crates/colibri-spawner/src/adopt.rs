//! Adoption of the agents that an earlier daemon started, and removal of interrupted spawns.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use colibri_journal::JournalReader;
use colibri_shim::control::ShimStatus;
use colibri_shim::layout;
use colibri_shim::record::{self, Durability, ExitRecord, ShimRecord, now_ns};
use colibri_types::{ExitReason, NetworkRecord, NetworkSummary};

use crate::blocking::blocking;
use crate::home;
use crate::orphans::LossDetection;
use crate::shim_client::StartedShim;
use crate::{AgentHandle, AgentId, AgentSpec, ShimClient, SpawnError, Spawner};

/// Interval between two checks of a shim that is starting.
const START_POLL_INTERVAL: Duration = Duration::from_millis(10);
/// Number of concurrent tasks that adopt agents.
const ADOPT_TASKS: usize = 16;
/// Maximum number of bytes of `network.jsonl` that are read: more than a shim writes.
const MAX_NETWORK_BYTES: u64 = 2 << 20;
/// Time after which a shim without a record is reported as stuck.
const START_TIMEOUT: Duration = Duration::from_secs(5);

/// An agent in the state directory.
#[derive(Debug)]
pub enum AdoptedAgent {
    /// Its shim runs.
    Running(AgentHandle),
    /// It has ended.
    Ended {
        /// Its specification.
        spec: Arc<AgentSpec>,
        /// How it ended.
        exit: ExitRecord,
    },
}

impl Spawner {
    /// Adopts all agents of the state directory. The directory of an interrupted spawn is removed. An agent whose shim was
    /// killed gets an `exit.json` with the reason `lost`. A damaged directory is unchanged and returned as an
    /// error with the agent's id, so that the others are adopted.
    ///
    /// # Errors
    /// The state directory cannot be read.
    pub async fn adopt(
        &self,
    ) -> Result<Vec<Result<AdoptedAgent, (AgentId, SpawnError)>>, SpawnError> {
        let state = self.state.clone();
        let ids = blocking(move || {
            if let Err(error) = home::undo_orphaned_homes(&state) {
                tracing::warn!(%error, "cannot undo the homes of agents that were not started");
            }
            state.ids()
        });
        let ids = ids.await??;
        // A shim that is starting delays only the agents of the same task.
        let share = ids.len().div_ceil(ADOPT_TASKS).max(1);
        let mut shares = Vec::new();
        for ids in ids.chunks(share) {
            let (spawner, ids) = (self.clone(), ids.to_vec());
            shares.push(tokio::spawn(async move {
                let mut found = Vec::new();
                for id in ids {
                    match spawner.adopt_one(&id).await {
                        Ok(agent) => found.extend(agent.map(Ok)),
                        Err(error) => found.push(Err((id, error))),
                    }
                    // Lets other tasks run between two agents.
                    tokio::task::yield_now().await;
                }
                found
            }));
        }
        let mut found = Vec::new();
        for share in shares {
            found.extend(share.await.map_err(|error| {
                let problem = format!("was not read to its end: {error}; start the daemon again");
                SpawnError::state(&self.state.agents(), problem)
            })?);
        }
        Ok(found)
    }

    /// Adopts one agent; returns `None` after the removal of an interrupted spawn.
    pub(crate) async fn adopt_one(&self, id: &AgentId) -> Result<Option<AdoptedAgent>, SpawnError> {
        let directory = self.state.agent(id);
        let start = Instant::now();
        loop {
            let (spawner, agent_id) = (self.clone(), id.clone());
            match blocking(move || spawner.read_state(&agent_id)).await?? {
                DirectoryState::Adopted(agent) => return Ok(Some(agent)),
                DirectoryState::Starting if start.elapsed() > START_TIMEOUT => {
                    let problem = "its shim runs and has not started the agent; find the process that has shim.log open, end it, and restart the daemon";
                    return Err(SpawnError::state(&directory, problem));
                }
                DirectoryState::Starting => tokio::time::sleep(START_POLL_INTERVAL).await,
                DirectoryState::Interrupted => {
                    tracing::info!(%id, "removing an interrupted spawn");
                    let path = directory.clone();
                    let removed = blocking(move || {
                        home::undo_home(&path)?;
                        std::fs::remove_dir_all(&path)
                    });
                    removed
                        .await?
                        .map_err(|error| SpawnError::from_io("removing", &directory, error))?;
                    return Ok(None);
                }
                DirectoryState::Lost(spec) => {
                    let exit = self.record_lost(&spec, LossDetection::AfterRestart).await?;
                    return Ok(Some(AdoptedAgent::Ended { spec, exit }));
                }
            }
        }
    }

    /// Reads the state of an agent from its directory, and connects to a running one.
    fn read_state(&self, id: &AgentId) -> Result<DirectoryState, SpawnError> {
        let directory = self.state.agent(id);
        // The lock is checked first: a shim that ends after this check has already written its record.
        let alive = self.state.is_alive(id)?;
        Ok(match read_records(&directory)? {
            (Some(exit), _) => DirectoryState::Adopted(AdoptedAgent::Ended {
                spec: Arc::new(self.spec(id)?),
                exit,
            }),
            (None, Some(shim)) if alive => {
                let status = ShimStatus {
                    stdout: length(&directory.join(layout::STDOUT)),
                    stderr: length(&directory.join(layout::STDERR)),
                    pid: Some(shim.agent_pid),
                    run: shim.run,
                    ..ShimStatus::default()
                };
                let agent = self.agent(self.spec(id)?, status, shim.protocol, None);
                DirectoryState::Adopted(AdoptedAgent::Running(agent))
            }
            (None, Some(_)) => DirectoryState::Lost(Arc::new(self.spec(id)?)),
            (None, None) if alive => DirectoryState::Starting,
            (None, None) => DirectoryState::Interrupted,
        })
    }

    /// Returns an agent whose shim runs. `status` is its state until the shim reports its own; `started` is its shim if this
    /// process started it.
    pub(crate) fn agent(
        &self,
        spec: AgentSpec,
        status: ShimStatus,
        protocol: u32,
        started: Option<StartedShim>,
    ) -> AgentHandle {
        let directory = self.state.agent(&spec.id);
        let (state, id) = (self.state.clone(), spec.id.clone());
        let shim = ShimClient::open(state, id, status, protocol, started);
        AgentHandle {
            spec: Arc::new(spec),
            directory,
            shim,
        }
    }

    /// Reads or writes the exit record of an agent whose shim has ended, and ends its remaining processes. If the
    /// agent's directory was removed, the returned record says so.
    ///
    /// # Errors
    /// The record cannot be read or written.
    pub async fn record_lost(
        &self,
        spec: &AgentSpec,
        detection: LossDetection,
    ) -> Result<ExitRecord, SpawnError> {
        let directory = self.state.agent(&spec.id);
        let path = directory.join(layout::EXIT);
        let agent_directory = directory.clone();
        let (exit, shim) = blocking(move || read_records(&agent_directory)).await??;
        if let Some(exit) = exit {
            return Ok(exit);
        }
        let sessions = match (detection, &shim) {
            // An agent with a terminal leads a separate session.
            (LossDetection::Live, Some(shim)) if spec.config.terminal.is_some() => {
                vec![shim.shim_pid, shim.agent_pid]
            }
            (LossDetection::Live, Some(shim)) => vec![shim.shim_pid],
            (LossDetection::Live, None) | (LossDetection::AfterRestart, _) => Vec::new(),
        };
        let left = self.end_orphans(spec, &sessions).await;
        blocking(move || {
            let removed = !directory.exists();
            let what = match removed {
                true => "the agent's directory was removed while it ran, with its output and exit record; its exit code is not known",
                false => "the agent's shim was killed or crashed, and the agent was killed with it; its exit code is not known, its output is kept",
            };
            let exit = ExitRecord {
                exit: None,
                reason: Some(ExitReason::Lost),
                error: Some(format!("{what}; {left}")),
                exited_at_ns: now_ns(),
                stdout_bytes: length(&directory.join(layout::STDOUT)),
                stderr_bytes: length(&directory.join(layout::STDERR)),
                run: shim.map_or(1, |shim| shim.run),
                network: refused(&directory.join(layout::NETWORK)),
                terminated: false,
            };
            if removed {
                return Ok(exit);
            }
            record::replace(&path, &exit, Durability::Machine)
                .map_err(|error| SpawnError::from_io("writing", &path, error))?;
            Ok(exit)
        })
        .await?
    }

    fn spec(&self, id: &AgentId) -> Result<AgentSpec, SpawnError> {
        let path = self.state.agent(id).join(layout::SPEC);
        let missing =
            "is missing, so the agent cannot be shown; remove its directory after its end";
        read(&path)?.ok_or_else(|| SpawnError::state(&path, missing))
    }
}

/// State of an agent, as read from its directory.
enum DirectoryState {
    /// The agent runs or has ended.
    Adopted(AdoptedAgent),
    /// Its shim runs and has not started the agent yet.
    Starting,
    /// Its spawn was interrupted before the agent was started.
    Interrupted,
    /// Its shim has ended without an exit record.
    Lost(Arc<AgentSpec>),
}

/// Returns the length of a journal, in bytes; 0 if it cannot be read.
fn length(journal: &Path) -> u64 {
    JournalReader::new(journal).end_offset().unwrap_or(0)
}

/// Summarizes the stored reports of an agent's proxy.
fn refused(path: &Path) -> Option<NetworkSummary> {
    let records: Vec<NetworkRecord> = record::read_lines(path, MAX_NETWORK_BYTES).ok()?;
    let mut summary = NetworkSummary::default();
    for record in &records {
        summary.add(record);
    }
    (summary.refused > 0).then_some(summary)
}

/// Reads the records of an agent's end and of its shim.
fn read_records(directory: &Path) -> Result<(Option<ExitRecord>, Option<ShimRecord>), SpawnError> {
    let exit = read(&directory.join(layout::EXIT))?;
    Ok((exit, read(&directory.join(layout::SHIM))?))
}

fn read<T: serde::de::DeserializeOwned>(path: &Path) -> Result<Option<T>, SpawnError> {
    record::read(path).map_err(|error| SpawnError::from_io("reading", path, error))
}
