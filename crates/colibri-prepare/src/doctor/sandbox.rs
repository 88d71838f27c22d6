//! What the kernel of this host lacks for sandboxes of Linux.

use colibri_jail_core::{JailError, Restriction, SandboxOptions};
use colibri_priv::Finding;

/// First version of the Landlock ABI that controls all writes.
const FULL_ABI: u32 = 3;
/// Later versions, and what is missing without them.
const LATER_ABIS: &[(u32, &str)] = &[
    (
        6,
        "no second wall in front of signals and abstract sockets (Linux 6.12)",
    ),
    (9, "agents can create no Unix sockets (Linux 7.1)"),
];
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
    let user = is_host_root().then(|| {
        Finding::ok("agents of this root daemon never run as root: each has a separate uid, or that of --jail-user")
    });
    user.into_iter().chain([landlock(landlock_abi())]).collect()
}

/// Returns the finding about a version of the Landlock ABI; 0 is none.
fn landlock(abi: u32) -> Finding {
    match abi {
        0 => Finding::warn(
            "the kernel has no Landlock: mounts alone confine the writes of agents, agents can create no Unix sockets, and those with --strict are refused",
            LANDLOCK_HINT,
        ),
        1..FULL_ABI => Finding::warn(
            format!(
                "the kernel has Landlock ABI {abi} only: it does not control all writes of agents, agents can create no Unix sockets, and those with --strict are refused"
            ),
            LANDLOCK_HINT,
        ),
        _ => {
            let missing = LATER_ABIS.iter().filter(|(first, _)| abi < *first);
            let missing: String = missing.map(|(_, text)| format!("; {text}")).collect();
            Finding::ok(format!(
                "the kernel has Landlock ABI {abi}: a second wall under the mounts{missing}"
            ))
        }
    }
}

/// Refuses a strict sandbox on a kernel that cannot enforce one of its restrictions.
///
/// # Errors
/// What the kernel lacks.
pub(crate) fn check_strict(options: &SandboxOptions) -> Result<(), JailError> {
    check_strict_with(options, landlock_abi())
}

fn check_strict_with(options: &SandboxOptions, abi: u32) -> Result<(), JailError> {
    if options.strict && options.applies(Restriction::Landlock) && abi < FULL_ABI {
        return Err(JailError::Unsupported(format!(
            "the kernel cannot enforce the restriction landlock, and the sandbox is `strict`; {LANDLOCK_HINT}, or `lift` landlock"
        )));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn strict_sandbox_needs_landlock_unless_it_is_lifted() {
        let options = |strict, lifted: &[Restriction]| {
            let mut options = SandboxOptions::default();
            options.strict = strict;
            options.lifted = lifted.to_vec();
            options
        };
        for (strict, lifted, abi, accepted) in [
            (false, &[][..], 0, true),
            (true, &[], 0, false),
            (true, &[], 2, false),
            (true, &[], 3, true),
            (true, &[Restriction::Landlock], 0, true),
            (true, &[Restriction::IoUring], 0, false),
        ] {
            let checked = check_strict_with(&options(strict, lifted), abi);
            assert_eq!(checked.is_ok(), accepted, "{strict} {lifted:?} {abi}");
        }
    }

    #[test]
    fn finding_names_what_a_version_of_landlock_lacks() {
        for (abi, part) in [
            (0, "no Landlock"),
            (2, "ABI 2 only"),
            (3, "no second wall in front of signals"),
            (7, "mounts; agents can create no Unix sockets"),
        ] {
            let message = landlock(abi).what;
            assert!(message.contains(part), "{abi}: {message}");
        }
        assert!(landlock(9).what.ends_with("under the mounts"));
    }
}
