//! A pre-started shim for the next spawn (pool of one): the spawn saves the start of a process, one or two milliseconds.
//!
//! In the state directory, a pooled shim looks like an interrupted spawn. When this process dies, the shim reads end of
//! file and exits, and the next daemon removes its directory.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use tokio::sync::Mutex;

use crate::shim_client::StartedShim;
use crate::spawn::new_id;
use crate::state::discard;
use crate::{AgentId, SpawnError, Spawner};

/// A pool of at most one shim, shared by the clones of a spawner. A spawn waits while the pool is being filled.
#[derive(Clone, Default)]
pub struct ShimPool(Arc<Mutex<Option<PooledShim>>>);

/// A shim that waits for its launch, and the directory of its agent.
pub(crate) struct PooledShim {
    pub(crate) id: AgentId,
    pub(crate) directory: PathBuf,
    pub(crate) shim: StartedShim,
    program: PathBuf,
}

impl PooledShim {
    /// Creates the agent's directory and starts its shim; returns `None` if the id is in use.
    ///
    /// # Errors
    /// The directory cannot be created, or the shim cannot be started. The directory is then removed.
    pub(crate) fn start(spawner: &Spawner, id: &AgentId) -> Result<Option<Self>, SpawnError> {
        let Some((directory, log)) = spawner.state.create_agent(id)? else {
            return Ok(None);
        };
        match StartedShim::start(&spawner.shim, &directory, log) {
            Ok(shim) => Ok(Some(Self {
                id: id.clone(),
                directory,
                shim,
                program: spawner.shim.clone(),
            })),
            Err(source) => {
                discard(&directory);
                Err(shim_failed(&spawner.shim, source))
            }
        }
    }

    /// Reports whether the shim still runs, and runs the configured program.
    fn is_usable(&mut self, program: &Path) -> bool {
        self.program == program && self.shim.is_running() && self.directory.is_dir()
    }

    /// Ends the shim, and removes the directory.
    async fn end(self) {
        self.shim.end().await;
        discard(&self.directory);
    }
}

impl ShimPool {
    /// Takes the shim out of the pool; returns `None` if the pool is empty or its shim is not usable.
    pub(crate) async fn take(&self, program: &Path) -> Option<PooledShim> {
        let mut waiting = self.0.lock().await.take()?;
        if waiting.is_usable(program) {
            return Some(waiting);
        }
        tokio::spawn(waiting.end());
        None
    }

    /// Puts a shim back for the next spawn; ends one that is already there.
    pub(crate) async fn put(&self, waiting: PooledShim) {
        let other = self.0.lock().await.replace(waiting);
        if let Some(other) = other {
            tokio::spawn(other.end());
        }
    }
}

impl Spawner {
    /// Fills an empty pool. A pooled shim costs a process of about one megabyte. An error is only logged: the next spawn
    /// then starts its shim itself, and reports the error.
    pub async fn fill_shim_pool(&self) {
        let mut slot = self.shim_pool.0.lock().await;
        if slot.is_some() {
            return;
        }
        match PooledShim::start(self, &new_id()) {
            Ok(waiting) => *slot = waiting,
            Err(error) => tracing::debug!(%error, "cannot fill the shim pool"),
        }
    }

    /// Ends the pooled shim and removes its directory.
    pub async fn drain_shim_pool(&self) {
        let waiting = self.shim_pool.0.lock().await.take();
        if let Some(waiting) = waiting {
            waiting.end().await;
        }
    }
}

/// Returns the error for a shim that cannot be started.
pub(crate) fn shim_failed(shim: &Path, source: std::io::Error) -> SpawnError {
    match SpawnError::from_io("starting", shim, source) {
        SpawnError::File { path, source } => SpawnError::Shim { path, source },
        other => other,
    }
}
