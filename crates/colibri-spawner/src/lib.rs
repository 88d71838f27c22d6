#![doc = include_str!("../README.md")]
#![forbid(unsafe_code)]

mod adopt;
mod ahead;
mod error;
mod kill;
mod leftovers;
mod link;
mod spawn;
mod state;

pub use adopt::Found;
pub use ahead::Ahead;
pub use colibri_prepare::{Cgroups, HostEnv, Prepared, Preparer};
pub use colibri_types::KillOutcome;
pub use colibri_types::{AgentId, AgentName, AgentSpawnConfig, AgentSpec};
pub use error::SpawnError;
pub use kill::KillReport;
pub use leftovers::Seen;
pub use link::{LinkError, ShimLink, ShimState};
pub use spawn::Agent;
pub use state::StateDir;

use std::path::PathBuf;

use colibri_journal::JournalOptions;

/// Spawns, adopts and ends agents. Creating one touches nothing.
#[derive(Clone)]
pub struct Spawner {
    /// Prepares the commands of agents.
    pub preparer: Preparer,
    /// Directories of agents.
    pub state: StateDir,
    /// The `colibri-shim` program.
    pub shim: PathBuf,
    /// How the output of agents is stored.
    pub journal: JournalOptions,
    /// The pre-started shim.
    pub ahead: Ahead,
}

impl Spawner {
    /// Returns a spawner that keeps its agents in `state_dir`, with default journal options.
    #[must_use]
    pub fn new(preparer: Preparer, state_dir: PathBuf, shim: PathBuf) -> Self {
        Self {
            preparer,
            state: StateDir::new(state_dir),
            shim,
            journal: JournalOptions::default(),
            ahead: Ahead::default(),
        }
    }
}
