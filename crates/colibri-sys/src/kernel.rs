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
