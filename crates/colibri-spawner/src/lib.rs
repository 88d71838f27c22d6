#![doc = include_str!("../README.md")]
#![forbid(unsafe_code)]

mod adopt;
mod config;
mod error;
mod host;
mod kill;
mod leftovers;
mod link;
mod prepare;
pub mod settings;
mod spawn;
mod state;

pub use adopt::Found;
pub use config::{AgentId, AgentSpawnConfig, AgentSpec};
pub use error::SpawnError;
pub use host::HostEnv;
pub use kill::{KillOutcome, KillReport};
pub use leftovers::Seen;
pub use link::{LinkError, ShimLink, ShimState};
pub use prepare::Prepared;
pub use spawn::Agent;
pub use state::StateDir;

use std::path::PathBuf;
use std::sync::Arc;

use colibri_jail_core::JailEngine;
use colibri_priv::{Finding, PrivBackend};
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
    /// Directories that no sandbox may see: the daemon's own socket would be a way out.
    pub hidden: Vec<PathBuf>,
    /// The `colibri-shim` program.
    pub shim: PathBuf,
    /// What the environment of agents starts from.
    pub host: HostEnv,
    /// How their output is kept.
    pub journal: JournalSettings,
}

impl Spawner {
    /// Looks whether what a spawn needs is there: the engine's programs, the shim, the state directory,
    /// and whatever the privilege backend needs.
    pub async fn preflight(&self) -> Vec<Finding> {
        let mut findings: Vec<Finding> = match &self.engine {
            JailEngine::FreebsdJail => ["/usr/sbin/jexec", "/usr/sbin/jail", "/usr/sbin/jls"]
                .map(|program| {
                    Finding::executable(
                        program,
                        "these come with FreeBSD; on Linux use the bubblewrap engine",
                    )
                })
                .into(),
            JailEngine::Bubblewrap(bubblewrap) => vec![Finding::executable(
                bubblewrap.program.as_str(),
                "install bubblewrap (Debian and Ubuntu: apt install bubblewrap)",
            )],
        };
        findings.extend(self.backend.preflight().await);
        findings.push(Finding::executable(
            &self.shim.to_string_lossy(),
            "install colibri-shim beside colibri-daemon, or set COLIBRI_SHIM",
        ));
        findings.push(match self.state.open() {
            Ok(()) => Finding::ok(format!(
                "{} is private and writable",
                self.state.path().display()
            )),
            Err(error) => Finding::fail(
                error.to_string(),
                "mend the directory, or name another in COLIBRI_STATE_DIR",
            ),
        });
        findings
    }
}
