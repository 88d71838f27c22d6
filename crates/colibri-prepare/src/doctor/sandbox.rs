//! What the kernel of this host lacks for sandboxes of Linux.

use colibri_jail_core::{JailError, Restriction, SandboxOptions};
use colibri_priv::Finding;

/// First version of the Landlock ABI that denies moves between directories.
const FULL_ABI: u32 = 3;
/// How to get Landlock.
const LANDLOCK_HINT: &str = "boot Linux 6.2 or later with Landlock: add landlock to lsm= on the kernel's command line (see /sys/kernel/security/lsm)";

#[cfg(target_os = "linux")]
pub(crate) use colibri_sys::kernel::is_host_root;
#[cfg(target_os = "linux")]
use colibri_sys::kernel::landlock_abi;

#[cfg(not(target_os = "linux"))]
fn landlock_abi() -> u32 {
    0
}

#[cfg(not(target_os = "linux"))]
pub(crate) fn is_host_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// Returns findings about the kernel and the user of agents.
pub(super) fn findings() -> Vec<Finding> {
    let landlock = match landlock_abi() {
        0 => Finding::warn(
            "the kernel has no Landlock: mounts alone confine the writes of agents, and agents with --strict are refused",
            LANDLOCK_HINT,
        ),
        abi @ 1..FULL_ABI => Finding::warn(
            format!(
                "the kernel has Landlock ABI {abi} only: it does not control all writes of agents"
            ),
            LANDLOCK_HINT,
        ),
        abi => Finding::ok(format!(
            "the kernel has Landlock ABI {abi}: a second wall under the mounts"
        )),
    };
    let user = is_host_root().then(|| {
        Finding::ok("agents of this root daemon never run as root: each has a separate uid, or that of --jail-user")
    });
    user.into_iter().chain([landlock]).collect()
}

/// Refuses a strict sandbox on a kernel that cannot enforce one of its restrictions.
///
/// # Errors
/// What the kernel lacks.
pub(crate) fn check_strict(options: &SandboxOptions) -> Result<(), JailError> {
    let needs_landlock = options.strict
        && options.applies(Restriction::Landlock)
        && options.applies(Restriction::UserNamespaces);
    if needs_landlock && landlock_abi() < FULL_ABI {
        return Err(JailError::Unsupported(format!(
            "the kernel cannot enforce the restriction landlock, and the sandbox is `strict`; {LANDLOCK_HINT}, or `lift` landlock"
        )));
    }
    Ok(())
}
