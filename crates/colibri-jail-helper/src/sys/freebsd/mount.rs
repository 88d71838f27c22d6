//! Mounts: getfsstat(2), nmount(2), unmount(2), and the names of disks.

use std::ffi::c_int;
use std::io;

use super::parameters::{Parameter, with_parameters};
use super::{c_string, check};

/// Flag of unmount(2): the text is `FSID:` with the two numbers of a file system id (sys/mount.h).
const MNT_BYFSID: c_int = 0x0800_0000;

/// Types of file systems that Colibri mounts in a jail.
const MOUNTED_TYPES: [&[u8]; 4] = [b"nullfs", b"devfs", b"fdescfs", b"tmpfs"];

/// A mount of one of these types.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct MountPoint {
    pub(crate) kind: Vec<u8>,
    /// What is mounted: the path that nullfs got, or the name of the type.
    pub(crate) origin: Vec<u8>,
    pub(crate) path: Vec<u8>,
    id: String,
}

impl MountPoint {
    /// Reports whether it is mounted on a directory or in it.
    pub(crate) fn is_in(&self, directory: &str) -> bool {
        let rest = self.path.strip_prefix(directory.as_bytes());
        rest.is_some_and(|rest| rest.is_empty() || rest.starts_with(b"/"))
    }
}

/// Returns the ZFS dataset that is mounted on a directory, if one is (statfs(2)).
pub(crate) fn zfs_dataset(directory: &str) -> io::Result<Option<String>> {
    let path = c_string(directory)?;
    // SAFETY: all bytes zero is a valid statfs; the path and the buffer live through the call.
    let mount = unsafe {
        let mut mount: libc::statfs = std::mem::zeroed();
        check(libc::statfs(path.as_ptr(), &raw mut mount))?;
        mount
    };
    let is_its_mount = name_bytes(&mount.f_fstypename) == b"zfs"
        && name_bytes(&mount.f_mntonname) == directory.as_bytes();
    let name = String::from_utf8(name_bytes(&mount.f_mntfromname));
    Ok(name.ok().filter(|_| is_its_mount))
}

/// Returns the text before the first NUL.
fn name_bytes(text: &[libc::c_char]) -> Vec<u8> {
    let used = text.iter().take_while(|byte| **byte != 0);
    used.map(|byte| *byte as u8).collect()
}

/// Returns the mounts, the last one first (getfsstat(2)). The kernel recorded their paths when they were mounted, so a
/// directory that was replaced since leads to no other mount.
pub(crate) fn mounts() -> io::Result<Vec<MountPoint>> {
    /// `MNT_NOWAIT` of sys/mount.h: cached values.
    const NO_WAIT: c_int = 2;
    // SAFETY: no buffer; returns the number of mounts.
    let count = check(unsafe { libc::getfsstat(std::ptr::null_mut(), 0, NO_WAIT) })?;
    let room = count.unsigned_abs() as usize + 64;
    // SAFETY: all bytes zero is a valid statfs.
    let mut mounts: Vec<libc::statfs> = vec![unsafe { std::mem::zeroed() }; room];
    let size = (room * size_of::<libc::statfs>()) as libc::c_long;
    // SAFETY: a buffer of `size` bytes that lives through the call.
    let count = check(unsafe { libc::getfsstat(mounts.as_mut_ptr(), size, NO_WAIT) })?;
    let mut found: Vec<MountPoint> = Vec::new();
    for mount in mounts.iter().take(count.unsigned_abs() as usize) {
        let kind = name_bytes(&mount.f_fstypename);
        if !MOUNTED_TYPES.contains(&kind.as_slice()) {
            continue;
        }
        // SAFETY: fsid_t consists of two 32-bit numbers (sys/_types.h).
        let [low, high]: [i32; 2] = unsafe { std::mem::transmute_copy(&mount.f_fsid) };
        found.push(MountPoint {
            kind,
            origin: name_bytes(&mount.f_mntfromname),
            path: name_bytes(&mount.f_mntonname),
            id: format!("FSID:{low}:{high}"),
        });
    }
    found.reverse();
    Ok(found)
}

/// Unmounts a file system, also while files of it are open, which then return errors (unmount(2)).
pub(crate) fn unmount(mount: &MountPoint) -> io::Result<()> {
    let id = c_string(mount.id.as_str())?;
    let flags = MNT_BYFSID | libc::MNT_FORCE;
    // SAFETY: a C string that lives through the call.
    check(unsafe { libc::unmount(id.as_ptr(), flags) }).map(drop)
}

/// Mounts a file system of this type (nmount(2)), with flags such as `MNT_RDONLY`. `path` may be relative to the working
/// directory. An option without a value has an empty one.
pub(crate) fn mount(
    kind: &str,
    path: &str,
    options: &[(&str, &str)],
    flags: c_int,
) -> io::Result<()> {
    let mut parameters = vec![
        Parameter::text("fstype", kind),
        Parameter::text("fspath", path),
    ];
    parameters.extend(options.iter().map(|(name, value)| match *value {
        "" => Parameter::new(name, Vec::new()),
        value => Parameter::text(name, value),
    }));
    with_parameters(&mut parameters, |vector, count| {
        // SAFETY: `count` elements that are valid for the call; the kernel writes to the message only.
        unsafe { libc::nmount(vector, count, flags) }
    })
    .map(drop)
}

/// Returns the names of the host's disks (sysctl(3), `kern.disks`).
pub(crate) fn disks() -> io::Result<Vec<String>> {
    let mut bytes = vec![0_u8; 1 << 16];
    let size = super::process::read_sysctl(c"kern.disks", &mut bytes)?;
    bytes.truncate(size);
    let names = String::from_utf8_lossy(&bytes);
    let names = names.trim_end_matches('\0').split_whitespace();
    Ok(names.map(str::to_owned).collect())
}
