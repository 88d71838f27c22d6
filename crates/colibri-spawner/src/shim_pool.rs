//! A pre-started shim for the next spawn (pool of one): the spawn saves the start of a process, one or two milliseconds.
//!
//! In the state directory, a pooled shim looks like an interrupted spawn. When this process dies, the shim reads end of
//! file and exits, and the next daemon removes its directory.

use std::path::Path;
use std::sync::Arc;

use tokio::sync::Mutex;

use crate::Spawner;
use crate::shim_client::StartedShim;
use crate::spawn::new_id;
use crate::state::discard;

/// A pool of at most one shim, shared by the clones of a spawner. A spawn waits while the pool is being filled.
#[derive(Clone, Default)]
pub struct ShimPool(Arc<Mutex<Option<StartedShim>>>);

/// Ends a shim and removes the directory of its agent.
async fn end(shim: StartedShim) {
    let directory = shim.directory.clone();
    shim.end().await;
    discard(&directory);
}

impl ShimPool {
    /// Takes the shim out of the pool; returns `None` if the pool is empty or its shim is not usable.
    pub(crate) async fn take(&self, program: &Path) -> Option<StartedShim> {
        let mut pooled = self.0.lock().await.take()?;
        if pooled.is_usable(program) {
            return Some(pooled);
        }
        tokio::spawn(end(pooled));
        None
    }

    /// Puts a shim back for the next spawn; ends one that is already there.
    pub(crate) async fn put_back(&self, pooled: StartedShim) {
        let other = self.0.lock().await.replace(pooled);
        if let Some(other) = other {
            tokio::spawn(end(other));
        }
    }
}

impl Spawner {
    /// Fills an empty pool with a shim, a process of about 240 kB (Pss). An error is only logged: the next spawn then starts
    /// its shim itself, and reports the error.
    pub async fn fill_shim_pool(&self) {
        let mut slot = self.shim_pool.0.lock().await;
        if slot.is_some() {
            return;
        }
        match StartedShim::start(self, &new_id()) {
            Ok(pooled) => *slot = pooled,
            Err(error) => tracing::debug!(%error, "cannot fill the shim pool"),
        }
    }

    /// Ends the pooled shim and removes its directory.
    pub async fn drain_shim_pool(&self) {
        let pooled = self.shim_pool.0.lock().await.take();
        if let Some(pooled) = pooled {
            end(pooled).await;
        }
    }
}
