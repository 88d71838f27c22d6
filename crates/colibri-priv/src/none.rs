//! The backend without elevation. It has a module because its name shadows `Option::None`.

use async_trait::async_trait;
use colibri_jail_core::{CommandLine, JailEngine, JailOp};

use crate::{Finding, PrivBackend, PrivError};

/// No elevation: the engine's own command, for bubblewrap and for a daemon that runs as root.
#[derive(Debug, Clone, Copy, Default)]
pub struct None;

#[async_trait]
impl PrivBackend for None {
    fn name(&self) -> &str {
        "none"
    }

    fn elevate(&self, op: &JailOp, engine: &dyn JailEngine) -> Result<CommandLine, PrivError> {
        Ok(engine.command_line(op)?)
    }

    async fn preflight(&self) -> Vec<Finding> {
        Vec::new()
    }

    fn runs_as_caller(&self) -> bool {
        true
    }
}
