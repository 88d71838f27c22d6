//! sudo as a privilege backend for Colibri. The file `sudoers` in this directory has the necessary rules.

use async_trait::async_trait;
use colibri_jail_core::{CommandLine, JailEngine, JailOp};
use colibri_priv::checks;
use colibri_priv::{Finding, PrivBackend, PrivError};

/// Path of sudo(8).
const SUDO: &str = if cfg!(target_os = "freebsd") {
    "/usr/local/bin/sudo"
} else {
    "/usr/bin/sudo"
};

/// The backend `sudo`, which runs `sudo -n -E -- COMMAND`.
pub struct Sudo;

#[async_trait]
impl PrivBackend for Sudo {
    fn name(&self) -> &str {
        "sudo"
    }

    fn elevate(&self, op: &JailOp, engine: &dyn JailEngine) -> Result<CommandLine, PrivError> {
        // -n: never ask for a password; -E: keep the agent's environment; --: no options of sudo follow.
        Ok(engine
            .command_line(op)?
            .prefixed(SUDO, ["-n", "-E", "--"])?)
    }

    async fn preflight(&self) -> Vec<Finding> {
        vec![checks::setuid_root(SUDO.as_ref())]
    }
}
