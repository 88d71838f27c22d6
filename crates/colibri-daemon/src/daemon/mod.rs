//! State that all connections share: the registry, the settings file, the audit log and the shutdown flag.

pub(crate) mod audit;
mod autostart;
pub(crate) mod config;
mod resume;

use std::path::PathBuf;
use std::sync::Arc;

use colibri_proto::ErrorKind;
use tokio::sync::{Semaphore, watch};

use crate::errors::CallError;
use crate::registry::Registry;
use crate::rotation::RotatedLog;
use config::Configuration;

/// State that all connections share.
pub(crate) struct DaemonState {
    pub(crate) registry: Arc<Registry>,
    pub(crate) audit_log: Arc<RotatedLog>,
    pub(crate) config: Configuration,
    pub(crate) socket: PathBuf,
    /// Slots for connections.
    pub(crate) connections: Arc<Semaphore>,
    /// True while the daemon shuts down.
    pub(crate) shutdown: watch::Sender<bool>,
}

impl DaemonState {
    /// Checks that agents may be started.
    ///
    /// # Errors
    /// The daemon shuts down.
    pub(crate) fn check_running(&self) -> Result<(), CallError> {
        match *self.shutdown.borrow() {
            true => Err(CallError::new(
                ErrorKind::ShuttingDown,
                "the daemon is shutting down; no agent was started",
            )),
            false => Ok(()),
        }
    }
}
