//! sudo as a privilege backend for Colibri. The file `sudoers` of this directory has the rules that it needs.

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
