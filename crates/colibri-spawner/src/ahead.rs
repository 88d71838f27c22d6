//! The directory and the shim of the next agent, made before anybody asks for it: a process takes a millisecond or two
//! to come up, and a spawn then finds it waiting for its launch.
//!
//! To everybody else it is a spawn that was cut off. When this process dies, the shim sees the end of its connection
//! and goes; the next daemon removes the directory as it does that of any other such spawn.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use tokio::sync::Mutex;

use crate::link::StartedShim;
use crate::spawn::new_id;
use crate::state::discard;
use crate::{AgentId, SpawnError, Spawner};

/// At most one, shared by the clones of a spawner. A spawn that comes while it is being started waits for it: the two
/// would only hold up each other.
#[derive(Clone, Default)]
pub struct Ahead(Arc<Mutex<Option<Waiting>>>);

/// A shim that waits for its launch.
pub(crate) struct Waiting {
    pub(crate) id: AgentId,
    pub(crate) directory: PathBuf,
    pub(crate) shim: StartedShim,
    program: PathBuf,
}

impl Waiting {
    /// Makes the agent's directory and starts its shim; `None` where another agent has that id.
    ///
    /// # Errors
    /// Nothing is left behind.
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

    /// Whether it is still what a spawn would start now.
    fn is_good(&mut self, program: &Path) -> bool {
        self.program == program && self.shim.is_running() && self.directory.is_dir()
    }

    /// Ends the shim, and removes the directory.
    async fn end(self) {
        self.shim.end().await;
        discard(&self.directory);
    }
}

impl Ahead {
    pub(crate) async fn take(&self, program: &Path) -> Option<Waiting> {
        let mut waiting = self.0.lock().await.take()?;
        if waiting.is_good(program) {
            return Some(waiting);
        }
        tokio::spawn(waiting.end());
        None
    }

    /// Keeps one for the next spawn; one of two is enough.
    pub(crate) async fn put(&self, waiting: Waiting) {
        let other = self.0.lock().await.replace(waiting);
        if let Some(other) = other {
            tokio::spawn(other.end());
        }
    }
}

impl Spawner {
    /// Starts the shim of the agent to come, so that the next spawn is quicker; it costs a process of about a
    /// megabyte. Nothing where one waits already. What fails here will fail in the next spawn, and be told then.
    pub async fn start_ahead(&self) {
        let mut slot = self.ahead.0.lock().await;
        if slot.is_some() {
            return;
        }
        match Waiting::start(self, &new_id()) {
            Ok(waiting) => *slot = waiting,
            Err(error) => tracing::debug!(%error, "no shim was started ahead"),
        }
    }

    /// Ends the shim that waits, and leaves nothing of it behind.
    pub async fn end_ahead(&self) {
        let waiting = self.ahead.0.lock().await.take();
        if let Some(waiting) = waiting {
            waiting.end().await;
        }
    }
}

/// Why no shim could be started.
pub(crate) fn shim_failed(shim: &Path, source: std::io::Error) -> SpawnError {
    match SpawnError::from_io("starting", shim, source) {
        SpawnError::File { path, source } => SpawnError::Shim { path, source },
        other => other,
    }
}
