//! Features of the Linux kernel without a function in rustix.

#![allow(unsafe_code)]

use std::io;

/// Returns the version of the kernel's Landlock ABI; 0 if it has none, or it is not active (landlock_create_ruleset(2)).
#[must_use]
pub fn landlock_abi() -> u32 {
    const GET_VERSION: libc::c_uint = 1;
    // SAFETY: with this flag, the call takes no attributes and returns a number.
    let version = unsafe {
        libc::syscall(
            libc::SYS_landlock_create_ruleset,
            std::ptr::null::<u8>(),
            0_usize,
            GET_VERSION,
        )
    };
    u32::try_from(version).unwrap_or(0)
}

/// Gives this process a new session keyring, so that it and its descendants do not share one with others
/// (keyctl_join_session_keyring(3)). Success on a kernel without keyrings.
///
/// # Errors
/// The quota of keys is used up (`EDQUOT`), or memory.
pub fn new_session_keyring() -> io::Result<()> {
    const JOIN_SESSION_KEYRING: libc::c_int = 1;
    // SAFETY: without a name, the call takes no pointer.
    let result = unsafe {
        libc::syscall(
            libc::SYS_keyctl,
            JOIN_SESSION_KEYRING,
            std::ptr::null::<u8>(),
        )
    };
    match result {
        -1 => match io::Error::last_os_error() {
            error if error.raw_os_error() == Some(libc::ENOSYS) => Ok(()),
            error => Err(error),
        },
        _ => Ok(()),
    }
}

/// Returns whether this process is root of the host: its effective uid is 0, also outside of its user namespace. In a rootless
/// container, uid 0 is an ordinary user of the host (user_namespaces(7)).
#[must_use]
pub fn is_host_root() -> bool {
    rustix::process::geteuid().is_root()
        && maps_root_to_root(&std::fs::read_to_string("/proc/self/uid_map").unwrap_or_default())
}

/// Returns whether a uid_map maps 0 to 0; also if it is empty.
fn maps_root_to_root(map: &str) -> bool {
    let first = map
        .lines()
        .map(|line| line.split_whitespace().take(2).collect::<Vec<_>>());
    first
        .into_iter()
        .find(|ids| ids.first() == Some(&"0"))
        .is_none_or(|ids| ids.get(1) == Some(&"0"))
}

/// Gives this process separate mounts, which it must not share with another thread (unshare(2)).
///
/// # Errors
/// The caller is not root, or namespaces are limited.
pub fn unshare_mounts() -> io::Result<()> {
    unshare(libc::CLONE_NEWNS)
}

/// Puts this single-threaded process into a new user namespace without a mapping (unshare(2)).
///
/// # Errors
/// User namespaces are limited or denied.
pub fn unshare_users() -> io::Result<()> {
    unshare(libc::CLONE_NEWUSER)
}

fn unshare(namespace: libc::c_int) -> io::Result<()> {
    // SAFETY: both namespaces concern no memory and no descriptors of this process.
    match unsafe { libc::unshare(namespace) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn root_of_a_container_may_be_an_ordinary_user() {
        for (map, expected) in [
            ("         0          0 4294967295\n", true),
            ("0 1000 1\n1 100000 65536\n", false),
            ("0 100000 65536\n", false),
            ("", true),
        ] {
            assert_eq!(maps_root_to_root(map), expected, "{map:?}");
        }
    }
}
