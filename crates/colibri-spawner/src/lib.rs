#![doc = include_str!("../README.md")]
#![forbid(unsafe_code)]

mod adopt;
mod blocking;
mod elevated;
mod error;
mod home;
mod kill;
mod network_log;
mod orphans;
mod remove_tree;
mod shim_client;
mod shim_pool;
mod spawn;
mod state;

pub use adopt::AdoptedAgent;
pub use colibri_prepare::{Cgroups, HostEnv, Prepared, Preparer};
pub use colibri_types::KillOutcome;
pub use colibri_types::{AgentId, AgentName, AgentSpawnConfig, AgentSpec};
pub use error::SpawnError;
pub use home::remove_home;
pub use network_log::{NetworkLog, NewRecords};
pub use orphans::LossDetection;
pub use shim_client::{ShimClient, ShimClientError, ShimState};
pub use shim_pool::ShimPool;
pub use spawn::AgentHandle;
pub use state::StateDir;

use std::path::PathBuf;

use colibri_journal::JournalOptions;

/// Spawns, adopts and ends agents. Creating a value does no I/O.
#[derive(Clone)]
pub struct Spawner {
    /// Prepares the commands of agents.
    pub preparer: Preparer,
    /// The state directory, which contains the directories of agents.
    pub state: StateDir,
    /// The `colibri-shim` program.
    pub shim: PathBuf,
    /// Options of the agents' journals.
    pub journal: JournalOptions,
    /// A pre-started shim for the next spawn.
    pub shim_pool: ShimPool,
}

impl Spawner {
    /// Creates a spawner with default journal options and an empty pool.
    #[must_use]
    pub fn new(preparer: Preparer, state_dir: PathBuf, shim: PathBuf) -> Self {
        Self {
            preparer,
            state: StateDir::new(state_dir),
            shim,
            journal: JournalOptions::default(),
            shim_pool: ShimPool::default(),
        }
    }
}
