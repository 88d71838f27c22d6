#![doc = include_str!("../README.md")]
#![forbid(unsafe_code)]

mod adopt;
mod ahead;
mod arguments;
mod cgroup;
mod config;
mod doctor;
pub mod env_file;
mod error;
pub mod file;
mod host;
mod kill;
mod leftovers;
mod limits;
mod link;
mod mounts;
mod name;
mod prepare;
pub mod profile;
mod program;
mod regular_file;
pub mod settings;
mod spawn;
mod state;

pub use adopt::Found;
pub use ahead::Ahead;
pub use cgroup::Cgroups;
pub use config::{AgentId, AgentSpawnConfig, AgentSpec};
pub use error::SpawnError;
pub use host::HostEnv;
pub use kill::{KillOutcome, KillReport};
pub use leftovers::Seen;
pub use link::{LinkError, ShimLink, ShimState};
pub use name::{AgentName, MAX_NAME, NameError};
pub use prepare::Prepared;
pub use spawn::Agent;
pub use state::StateDir;

use std::path::PathBuf;
use std::sync::Arc;

use colibri_jail_core::JailEngine;
use colibri_priv::PrivBackend;
use colibri_shim::launch::JournalSettings;

/// How agents are confined and where they are kept. Making one touches nothing.
#[derive(Clone)]
pub struct Spawner {
    /// What confines.
    pub engine: JailEngine,
    /// What reaches root, where the engine needs it.
    pub backend: Arc<dyn PrivBackend>,
    /// Where agents live.
    pub state: StateDir,
    /// The daemon's socket.
    pub socket: PathBuf,
    /// Directories that no sandbox may see: the daemon's own socket would be a way out.
    pub hidden: Vec<PathBuf>,
    /// The `colibri-shim` program.
    pub shim: PathBuf,
    /// What the environment of agents starts from.
    pub host: HostEnv,
    /// How their output is kept.
    pub journal: JournalSettings,
    /// Where their cgroups are made.
    pub cgroups: Cgroups,
    /// The shim of the agent to come, where it was started ahead.
    pub ahead: Ahead,
    /// The soft limit of open files that agents get, where a request says none; absent: that of this process.
    pub soft_files: Option<u64>,
}
