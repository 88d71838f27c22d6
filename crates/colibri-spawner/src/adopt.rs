//! Finds what an earlier process left: running agents, ended ones, and spawns that were cut off.

use std::time::Duration;

use colibri_journal::JournalReader;
use colibri_shim::layout;
use colibri_shim::record::{self, Durability, ExitRecord, ShimRecord};

use crate::state::now_ns;
use crate::{Agent, AgentId, AgentSpec, ShimLink, SpawnError, Spawner};

/// Between two looks at a shim that is just starting.
const LOOK_AGAIN: Duration = Duration::from_millis(10);

/// An agent in the state directory.
#[derive(Debug)]
pub enum Found {
    /// Its shim lives, and is connected.
    Running(Agent),
    /// It has ended.
    Ended {
        /// Its specification.
        spec: AgentSpec,
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
    pub async fn adopt(&self) -> Result<Vec<Result<Found, (AgentId, SpawnError)>>, SpawnError> {
        let mut found = Vec::new();
        for id in self.state.ids()? {
            match self.adopt_one(&id).await {
                Ok(Some(agent)) => found.push(Ok(agent)),
                Ok(None) => {}
                Err(error) => found.push(Err((id, error))),
            }
        }
        Ok(found)
    }

    /// Looks at one agent; `None` where there was only the remains of a spawn.
    pub(crate) async fn adopt_one(&self, id: &AgentId) -> Result<Option<Found>, SpawnError> {
        let directory = self.state.agent(id);
        loop {
            // In this order: a shim that ends between the looks has written its record before.
            let alive = self.state.is_alive(id)?;
            let exit: Option<ExitRecord> = read(&directory.join(layout::EXIT))?;
            let shim: Option<ShimRecord> = read(&directory.join(layout::SHIM))?;
            if let Some(exit) = exit {
                let spec = self.spec(id)?;
                return Ok(Some(Found::Ended { spec, exit }));
            }
            match (alive, shim) {
                (true, Some(shim)) => match ShimLink::connect(&directory).await {
                    Ok(link) => {
                        let spec = self.spec(id)?;
                        return Ok(Some(Found::Running(Agent {
                            spec,
                            directory,
                            pid: shim.agent_pid,
                            link,
                        })));
                    }
                    // It is ending at this moment, or has no descriptor for us: look again.
                    Err(error) => tracing::debug!(%id, %error, "shim does not answer yet"),
                },
                (true, None) => {}
                (false, None) => {
                    tracing::info!(%id, "removing the remains of a spawn that was cut off");
                    std::fs::remove_dir_all(&directory)
                        .map_err(|error| SpawnError::from_io("removing", &directory, error))?;
                    return Ok(None);
                }
                (false, Some(_)) => {
                    let exit = self.record_lost(id).await?;
                    return Ok(Some(Found::Ended {
                        spec: self.spec(id)?,
                        exit,
                    }));
                }
            }
            tokio::time::sleep(LOOK_AGAIN).await;
        }
    }

    /// Finds or writes the end of an agent whose shim does not answer any more, once the shim is gone.
    ///
    /// # Errors
    /// The record cannot be read or written.
    pub async fn record_lost(&self, id: &AgentId) -> Result<ExitRecord, SpawnError> {
        while self.state.is_alive(id)? {
            tokio::time::sleep(LOOK_AGAIN).await;
        }
        let directory = self.state.agent(id);
        let path = directory.join(layout::EXIT);
        if let Some(exit) = read(&path)? {
            return Ok(exit);
        }
        let length = |stream| {
            JournalReader::new(&directory.join(stream))
                .end_offset()
                .unwrap_or(0)
        };
        let exit = ExitRecord {
            exit: None,
            error: Some("the agent's shim was killed or crashed; the agent was ended with it and its exit code is not known; its output up to then is kept".to_owned()),
            exited_at_ns: now_ns(),
            stdout_bytes: length(layout::STDOUT),
            stderr_bytes: length(layout::STDERR),
        };
        record::replace(&path, &exit, Durability::Machine)
            .map_err(|error| SpawnError::from_io("writing", &path, error))?;
        Ok(exit)
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

fn read<T: serde::de::DeserializeOwned>(path: &std::path::Path) -> Result<Option<T>, SpawnError> {
    record::read(path).map_err(|error| SpawnError::from_io("reading", path, error))
}
