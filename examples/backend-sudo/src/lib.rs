//! sudo as a privilege backend for Colibri. What sudo allows, its own sudoers decides: see the file beside.

use async_trait::async_trait;
use colibri_jail_core::{CommandLine, JailEngine, JailOp};
use colibri_priv::checks;
use colibri_priv::{Finding, PrivBackend, PrivError};

const SUDO: &str = if cfg!(target_os = "freebsd") {
    "/usr/local/bin/sudo"
} else {
    "/usr/bin/sudo"
};

/// `sudo -n -E -- COMMAND`.
pub struct Sudo;

#[async_trait]
impl PrivBackend for Sudo {
    fn name(&self) -> &str {
        "sudo"
    }

    fn elevate(&self, op: &JailOp, engine: &JailEngine) -> Result<CommandLine, PrivError> {
        // -n: never ask for a password; -E: the agent's environment stays; --: what follows is no option of sudo's.
        Ok(engine
            .command_line(op)?
            .prefixed(SUDO, ["-n", "-E", "--"])?)
    }

    async fn preflight(&self) -> Vec<Finding> {
        vec![checks::setuid_root(SUDO.as_ref())]
    }
}
