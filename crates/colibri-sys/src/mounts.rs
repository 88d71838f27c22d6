//! Attributes of mounts, for which rustix has no function (Linux).

#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsFd, AsRawFd};

/// `struct mount_attr` (mount_setattr(2)).
#[repr(C)]
#[derive(Default)]
struct MountAttributes {
    set: u64,
    clear: u64,
    propagation: u64,
    user_namespace: u64,
}

const READ_ONLY: u64 = 0x1;
const NOSUID: u64 = 0x2;
const NODEV: u64 = 0x4;
const ID_MAPPED: u64 = 0x10_0000;

/// Makes a mount nosuid and nodev, and read-only if requested (mount_setattr(2), since Linux 5.12).
///
/// # Errors
/// The kernel lacks the call, or the caller has no right to change the mount.
pub fn restrict(mount: &impl AsFd, read_only: bool) -> io::Result<()> {
    set(
        mount,
        &MountAttributes {
            set: NOSUID | NODEV | if read_only { READ_ONLY } else { 0 },
            ..MountAttributes::default()
        },
    )
}

/// Shows the owners of files by the mapping of a user namespace: an id in the namespace is shown as the id outside
/// (mount_setattr(2), "ID-mapped mounts"). The mount must not be visible yet.
///
/// # Errors
/// `EINVAL`: the file system does not support it. The caller is not root.
pub fn map_owners(mount: &impl AsFd, user_namespace: &impl AsFd) -> io::Result<()> {
    set(
        mount,
        &MountAttributes {
            set: ID_MAPPED,
            user_namespace: u64::try_from(user_namespace.as_fd().as_raw_fd()).unwrap_or(u64::MAX),
            ..MountAttributes::default()
        },
    )
}

fn set(mount: &impl AsFd, attributes: &MountAttributes) -> io::Result<()> {
    // SAFETY: the path is an empty C string, and `attributes` is a `struct mount_attr` of the given size. The kernel only
    // reads both.
    let result = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            mount.as_fd().as_raw_fd(),
            c"".as_ptr(),
            libc::AT_EMPTY_PATH,
            std::ptr::from_ref(attributes),
            size_of::<MountAttributes>(),
        )
    };
    match result {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}
