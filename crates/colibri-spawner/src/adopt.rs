//! Finds what an earlier process left: running agents, ended ones, and spawns that were cut off.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use colibri_journal::JournalReader;
use colibri_shim::control::ShimStatus;
use colibri_shim::layout;
use colibri_shim::record::{self, Durability, ExitRecord, ShimRecord};
use colibri_types::ExitReason;
use tokio::sync::Semaphore;

use crate::orphans::LossDetection;
use crate::shim_client::StartedShim;
use crate::state::now_ns;
use crate::{Agent, AgentId, AgentSpec, ShimClient, SpawnError, Spawner};

/// Between two looks at a shim that is just starting.
const START_POLL_INTERVAL: Duration = Duration::from_millis(10);
/// Shares in which agents are looked at side by side.
const ADOPT_TASKS: usize = 16;
/// A shim that was started and has no record after so long is stuck.
const START_TIMEOUT: Duration = Duration::from_secs(5);

/// An agent in the state directory.
#[derive(Debug)]
pub enum AdoptedAgent {
    /// Its shim lives.
    Running(Agent),
    /// It has ended.
    Ended {
        /// Its specification.
        spec: Arc<AgentSpec>,
        /// How it ended.
        exit: ExitRecord,
    },
}

impl Spawner {
    /// Goes through the state directory. A directory whose spawn was cut off before the agent ran is
    /// removed; one whose shim was killed gets an `exit.json` that says so. Damaged ones are left alone
    /// and returned as errors, so that one bad file does not hide the others.
    ///
    /// # Errors
    /// The state directory cannot be read at all.
    pub async fn adopt(
        &self,
    ) -> Result<Vec<Result<AdoptedAgent, (AgentId, SpawnError)>>, SpawnError> {
        let state = self.state.clone();
        let ids = blocking(move || state.ids()).await??;
        // One that must be waited for holds up its share of the others only.
        let share = ids.len().div_ceil(ADOPT_TASKS).max(1);
        let mut shares = Vec::new();
        for ids in ids.chunks(share) {
            let (spawner, ids) = (self.clone(), ids.to_vec());
            shares.push(tokio::spawn(async move { spawner.adopt_some(ids).await }));
        }
        let mut found = Vec::new();
        for share in shares {
            found.extend(share.await.map_err(|error| SpawnError::State {
                path: self.state.agents(),
                problem: format!("was not read to its end: {error}; start the daemon again"),
            })?);
        }
        Ok(found)
    }

    async fn adopt_some(
        &self,
        ids: Vec<AgentId>,
    ) -> Vec<Result<AdoptedAgent, (AgentId, SpawnError)>> {
        let mut found = Vec::new();
        for id in ids {
            match self.adopt_one(&id).await {
                Ok(Some(agent)) => found.push(Ok(agent)),
                Ok(None) => {}
                Err(error) => found.push(Err((id, error))),
            }
            // Each reads a few small files: others are to get their turn in between.
            tokio::task::yield_now().await;
        }
        found
    }

    /// Looks at one agent; `None` where there was only the remains of a spawn.
    pub(crate) async fn adopt_one(&self, id: &AgentId) -> Result<Option<AdoptedAgent>, SpawnError> {
        let directory = self.state.agent(id);
        let since = Instant::now();
        loop {
            let (spawner, looked_for) = (self.clone(), id.clone());
            let (alive, shim) = match blocking(move || spawner.look_for(&looked_for)).await?? {
                DirectoryState::Ended(spec, exit) => {
                    let spec = Arc::new(*spec);
                    return Ok(Some(AdoptedAgent::Ended { spec, exit }));
                }
                DirectoryState::Running(spec, status, protocol) => {
                    let agent = self.agent(*spec, status, protocol, None);
                    return Ok(Some(AdoptedAgent::Running(agent)));
                }
                DirectoryState::Neither { alive, shim } => (alive, shim),
            };
            match (alive, shim) {
                (true, _) if since.elapsed() > START_TIMEOUT => {
                    return Err(SpawnError::State {
                        path: directory,
                        problem: "its shim lives and has not started the agent; look for the process that holds shim.log open, end it, and restart the daemon".to_owned(),
                    });
                }
                (true, _) => tokio::time::sleep(START_POLL_INTERVAL).await,
                (false, false) => {
                    tracing::info!(%id, "removing the remains of a spawn that was cut off");
                    let place = directory.clone();
                    blocking(move || std::fs::remove_dir_all(&place))
                        .await?
                        .map_err(|error| SpawnError::from_io("removing", &directory, error))?;
                    return Ok(None);
                }
                (false, true) => {
                    let spec = self.spec(id)?;
                    let exit = self.record_lost(&spec, LossDetection::AfterRestart).await?;
                    return Ok(Some(AdoptedAgent::Ended {
                        spec: Arc::new(spec),
                        exit,
                    }));
                }
            }
        }
    }

    /// Reads the state of an agent from its directory.
    fn look_for(&self, id: &AgentId) -> Result<DirectoryState, SpawnError> {
        let directory = self.state.agent(id);
        // In this order: a shim that ends between the two reads has written its record before.
        let alive = self.state.is_alive(id)?;
        let exit: Option<ExitRecord> = read(&directory.join(layout::EXIT))?;
        let shim: Option<ShimRecord> = read(&directory.join(layout::SHIM))?;
        if let Some(exit) = exit {
            return Ok(DirectoryState::Ended(Box::new(self.spec(id)?), exit));
        }
        match (alive, shim) {
            (true, Some(shim)) => {
                let status = ShimStatus {
                    stdout: length(&directory.join(layout::STDOUT)),
                    stderr: length(&directory.join(layout::STDERR)),
                    pid: Some(shim.agent_pid),
                    run: shim.run,
                    ..ShimStatus::default()
                };
                Ok(DirectoryState::Running(
                    Box::new(self.spec(id)?),
                    status,
                    shim.protocol,
                ))
            }
            (alive, shim) => Ok(DirectoryState::Neither {
                alive,
                shim: shim.is_some(),
            }),
        }
    }

    /// An agent whose shim lives; `status` is what is known until the shim says more. `started` is the shim of one
    /// that was started just now.
    pub(crate) fn agent(
        &self,
        spec: AgentSpec,
        status: ShimStatus,
        protocol: u32,
        started: Option<StartedShim>,
    ) -> Agent {
        let directory = self.state.agent(&spec.id);
        let link = ShimClient::open(
            self.state.clone(),
            spec.id.clone(),
            status,
            protocol,
            started,
        );
        Agent {
            spec: Arc::new(spec),
            directory,
            link,
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
        seen: LossDetection,
    ) -> Result<ExitRecord, SpawnError> {
        let directory = self.state.agent(&spec.id);
        let path = directory.join(layout::EXIT);
        let place = directory.clone();
        let (exit, shim) = blocking(move || {
            let exit: Option<ExitRecord> = read(&place.join(layout::EXIT))?;
            let shim: Option<ShimRecord> = read(&place.join(layout::SHIM))?;
            Ok::<_, SpawnError>((exit, shim))
        })
        .await??;
        if let Some(exit) = exit {
            return Ok(exit);
        }
        let session = shim
            .as_ref()
            .filter(|_| seen == LossDetection::Live)
            .map(|shim| shim.shim_pid);
        let left = self.end_orphans(spec, session).await;
        blocking(move || {
            let removed = !directory.exists();
            let what = match removed {
                true => "the agent's directory was removed while it ran, with its output and the record of its end: its exit code is not known",
                false => "the agent's shim was killed or crashed, and the agent was ended with it: its exit code is not known, its output up to then is kept",
            };
            let exit = ExitRecord {
                exit: None,
                reason: Some(ExitReason::Lost),
                error: Some(format!("{what}; {left}")),
                exited_at_ns: now_ns(),
                stdout_bytes: length(&directory.join(layout::STDOUT)),
                stderr_bytes: length(&directory.join(layout::STDERR)),
                run: shim.map_or(1, |shim| shim.run),
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
        read(&path)?.ok_or_else(|| SpawnError::State {
            path,
            problem:
                "is missing, so the agent cannot be shown; remove its directory once it has ended"
                    .to_owned(),
        })
    }
}

/// State of an agent, as read from its directory.
enum DirectoryState {
    Ended(Box<AgentSpec>, ExitRecord),
    /// Its shim runs and speaks this version of the control protocol.
    Running(Box<AgentSpec>, ShimStatus, u32),
    Neither {
        alive: bool,
        shim: bool,
    },
}

/// Maximum number of looks at paths that requests name, at a time. One of them may be on a file system that does not
/// answer; it then keeps its permit and its thread, and others keep theirs.
static USER_PATHS: Semaphore = Semaphore::const_new(2);
/// Longest wait for a look at such paths, and for the permit.
const USER_PATHS_TIMEOUT: Duration = Duration::from_secs(10);

/// Runs work on paths that a request names, within a time limit.
///
/// # Errors
/// The file system did not answer in time.
pub(crate) async fn on_user_paths<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, SpawnError> {
    let looked = async {
        // The semaphore is never closed: without a permit the work runs all the same.
        let permit = USER_PATHS.acquire().await;
        blocking(move || {
            let outcome = work();
            drop(permit);
            outcome
        })
        .await
    };
    match tokio::time::timeout(USER_PATHS_TIMEOUT, looked).await {
        Ok(outcome) => outcome,
        Err(_) => Err(SpawnError::Resources {
            doing: "looking at the paths of the request".to_owned(),
            source: std::io::Error::new(
                std::io::ErrorKind::TimedOut,
                format!("a file system did not answer within {USER_PATHS_TIMEOUT:?}"),
            ),
        }),
    }
}

/// Runs blocking file operations on the runtime's pool for blocking work.
pub(crate) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, SpawnError> {
    tokio::task::spawn_blocking(work)
        .await
        .map_err(|error| SpawnError::Resources {
            doing: "work on files".to_owned(),
            source: std::io::Error::other(error),
        })
}

/// Length of a journal; one that cannot be read counts as empty.
fn length(journal: &Path) -> u64 {
    JournalReader::new(journal).end_offset().unwrap_or(0)
}

fn read<T: serde::de::DeserializeOwned>(path: &Path) -> Result<Option<T>, SpawnError> {
    record::read(path).map_err(|error| SpawnError::from_io("reading", path, error))
}
