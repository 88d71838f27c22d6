//! Linux: mount namespaces, mounts, pidfds and /proc.

use std::ffi::c_int;
use std::fs;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::time::Duration;

use colibri_jail_core::BpfInstruction;

use super::{SysError, c_string, cannot, check};

/// Closes every descriptor from `first` up (close_range(2)).
pub(crate) fn close_from(first: libc::c_uint) -> Result<(), SysError> {
    // SAFETY: numbers only; callers use no descriptor from `first` up afterwards.
    let closed = unsafe { libc::syscall(libc::SYS_close_range, first, libc::c_uint::MAX, 0) };
    check(closed).map(drop).map_err(cannot("close descriptors"))
}

/// Returns the id of this boot (random(4)).
pub(crate) fn boot_id() -> String {
    fs::read_to_string("/proc/sys/kernel/random/boot_id")
        .map(|id| id.trim().to_owned())
        .unwrap_or_default()
}

/// A running process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct ProcessInfo {
    pub(crate) parent: u32,
    /// Start time, in clock ticks since boot.
    pub(crate) start: u64,
}

/// Returns a process that has not ended (proc_pid_stat(5)).
pub(crate) fn process_info(pid: u32) -> Option<ProcessInfo> {
    read_process(pid).ok().flatten()
}

/// Returns a process, or nothing if it has ended (proc_pid_stat(5)). An error, for example `ENOMEM`, leaves both possible. The
/// name of the command may contain any bytes, which the process can choose (prctl(2)).
pub(crate) fn read_process(pid: u32) -> io::Result<Option<ProcessInfo>> {
    match fs::read(format!("/proc/{pid}/stat")) {
        Ok(stat) => Ok(parse_stat(&String::from_utf8_lossy(&stat))),
        // ESRCH: it was collected between open(2) and read(2).
        Err(error) if matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ESRCH)) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Parses the fields after the command name, which may itself contain `)`.
pub(crate) fn parse_stat(stat: &str) -> Option<ProcessInfo> {
    let mut fields = stat.get(stat.rfind(')')? + 1..)?.split_whitespace();
    let state = fields.next()?;
    let parent = fields.next()?.parse().ok()?;
    let start = fields.nth(17)?.parse().ok()?;
    (!matches!(state, "Z" | "X")).then_some(ProcessInfo { parent, start })
}

/// Reports whether one of the uids of a process is root's (proc_pid_status(5)); also if it has ended.
pub(crate) fn has_root_uid(pid: u32) -> bool {
    let status = fs::read(format!("/proc/{pid}/status")).unwrap_or_default();
    let status = String::from_utf8_lossy(&status);
    let uids = status.lines().find_map(|line| line.strip_prefix("Uid:"));
    uids.is_none_or(|uids| uids.split_whitespace().any(|uid| uid == "0"))
}

/// Opens a process. The descriptor does not change when the pid is reused (pidfd_open(2)).
pub(crate) fn pidfd(pid: u32) -> io::Result<OwnedFd> {
    // SAFETY: numbers only; the new descriptor has no other owner.
    unsafe { check(libc::syscall(libc::SYS_pidfd_open, pid, 0)).map(|fd| OwnedFd::from_raw_fd(fd)) }
}

/// Signals a process (pidfd_send_signal(2)); `ESRCH` if it has ended.
pub(crate) fn pidfd_signal(process: &OwnedFd, signal: c_int) -> io::Result<()> {
    let number = libc::SYS_pidfd_send_signal;
    let null = std::ptr::null::<libc::siginfo_t>();
    // SAFETY: a null siginfo is allowed.
    check(unsafe { libc::syscall(number, process.as_raw_fd(), signal, null, 0) }).map(drop)
}

/// Waits until a process has ended or the timeout expires; without a timeout, until one has ended (poll(2)). Returns which
/// of the processes have ended.
pub(crate) fn wait_exit<const N: usize>(
    processes: [&OwnedFd; N],
    timeout: Option<Duration>,
) -> [bool; N] {
    // A timeout of this program has some seconds.
    let timeout = timeout.map_or(-1, |timeout| timeout.as_millis() as c_int);
    loop {
        let mut poll = processes.map(|process| libc::pollfd {
            fd: process.as_raw_fd(),
            events: libc::POLLIN,
            revents: 0,
        });
        // SAFETY: N elements that live through the call.
        if unsafe { libc::poll(poll.as_mut_ptr(), N as libc::nfds_t, timeout) } >= 0 {
            return poll.map(|process| process.revents != 0);
        }
    }
}

/// Enters a new mount namespace whose mounts do not propagate to the host (unshare(2)), and are all nosuid (mount_setattr(2),
/// Linux 5.12; on an earlier kernel only the mounts of bubblewrap are).
pub(crate) fn unshare_mounts() -> io::Result<()> {
    // SAFETY: flags only.
    check(unsafe { libc::unshare(libc::CLONE_NEWNS) })?;
    mount("none", "/", "", libc::MS_REC | libc::MS_PRIVATE, "")?;
    let attributes = libc::mount_attr {
        attr_set: libc::MOUNT_ATTR_NOSUID,
        attr_clr: 0,
        propagation: 0,
        userns_fd: 0,
    };
    let path = c"/".as_ptr();
    let number = libc::SYS_mount_setattr;
    let (directory, recursive) = (libc::AT_FDCWD, libc::AT_RECURSIVE);
    let (pointer, size) = (&raw const attributes, size_of_val(&attributes));
    // SAFETY: the path is a C string; both live through the call, and the size is that of the attributes.
    let set = unsafe { libc::syscall(number, directory, path, recursive, pointer, size) };
    match check(set) {
        Err(error) if error.raw_os_error() != Some(libc::ENOSYS) => Err(error),
        _ => Ok(()),
    }
}

/// Bind-mounts an open directory with its submounts (mount(2)).
pub(crate) fn bind_mount(directory: &OwnedFd, mount_point: &str) -> io::Result<()> {
    let source = descriptor_path(directory);
    mount(&source, mount_point, "", libc::MS_BIND | libc::MS_REC, "")
}

/// Mounts an empty read-only file system onto an open directory.
pub(crate) fn mount_empty(directory: &OwnedFd) -> io::Result<()> {
    let flags = libc::MS_NOSUID | libc::MS_NODEV | libc::MS_NOEXEC | libc::MS_RDONLY;
    let target = descriptor_path(directory);
    mount("colibri", &target, "tmpfs", flags, "mode=0555,size=4k")
}

/// Returns the path of an open descriptor (proc_pid_fd(5)), which stays valid when the file is renamed.
fn descriptor_path(fd: &OwnedFd) -> String {
    format!("/proc/self/fd/{}", fd.as_raw_fd())
}

/// Mounts (mount(2)). The kernel ignores a kind and data that the flags do not need.
fn mount(
    source: &str,
    target: &str,
    kind: &str,
    flags: libc::c_ulong,
    data: &str,
) -> io::Result<()> {
    let (source, target) = (c_string(source)?, c_string(target)?);
    let (kind, data) = (c_string(kind)?, c_string(data)?);
    let data = data.as_ptr().cast();
    // SAFETY: every pointer is to a C string that lives through the call.
    check(unsafe { libc::mount(source.as_ptr(), target.as_ptr(), kind.as_ptr(), flags, data) })
        .map(drop)
}

/// Maximum number of attempts to open a path.
const OPEN_ATTEMPTS: u32 = 1000;

/// Opens a path for a process with the root directory `root`, for use as a location only (openat2(2)): any file, or a directory
/// whose path has no symbolic links.
pub(crate) fn open_in_root(root: &OwnedFd, path: &str, without_links: bool) -> io::Result<OwnedFd> {
    let path = c_string(path)?;
    // SAFETY: all bytes zero is a valid open_how, which consists of numbers.
    let mut how: libc::open_how = unsafe { std::mem::zeroed() };
    how.flags = (libc::O_PATH | libc::O_CLOEXEC) as u64;
    how.resolve = libc::RESOLVE_NO_MAGICLINKS | libc::RESOLVE_IN_ROOT;
    if without_links {
        how.flags |= libc::O_DIRECTORY as u64;
        how.resolve |= libc::RESOLVE_NO_SYMLINKS;
    }
    let (number, size) = (libc::SYS_openat2, size_of::<libc::open_how>());
    let open = || {
        let (fd, path) = (root.as_raw_fd(), path.as_ptr());
        // SAFETY: path and how live through the call, and the size is that of how; the new descriptor has no other owner.
        unsafe {
            let opened = check(libc::syscall(number, fd, path, &raw const how, size));
            opened.map(|fd| OwnedFd::from_raw_fd(fd))
        }
    };
    // A link with `..` cannot be followed while any file of the host is renamed (openat2(2), EAGAIN).
    (0..OPEN_ATTEMPTS)
        .map(|_| open())
        .find(|opened| !matches!(opened, Err(error) if error.kind() == io::ErrorKind::WouldBlock))
        .unwrap_or_else(|| Err(io::ErrorKind::WouldBlock.into()))
}

/// Performs an action on files with the rights of a user: `groups` starts with the group of the user. The kernel ignores the
/// capabilities of root for files meanwhile (setfsuid(2), capabilities(7)), and counts the process as one of the user, since a
/// file system may never answer. For a process that has called [`die_with_parent`].
pub(crate) fn with_file_rights<T>(
    uid: u32,
    groups: &[u32],
    action: impl FnOnce() -> T,
) -> Result<T, SysError> {
    set_file_rights(uid, groups)?;
    let result = action();
    set_file_rights(0, &[0])?;
    Ok(result)
}

fn set_file_rights(uid: u32, groups: &[u32]) -> Result<(), SysError> {
    let failed = || cannot("set the user for files")(io::ErrorKind::PermissionDenied.into());
    let gid = *groups.first().ok_or_else(failed)?;
    // SAFETY: the list lives through the call. The other calls take numbers; they report no error, but their previous value.
    unsafe {
        check(libc::setgroups(groups.len(), groups.as_ptr())).map_err(cannot("set the groups"))?;
        super::count_as(uid);
        libc::setfsgid(gid);
        libc::setfsuid(uid);
        let set = [libc::setfsuid(u32::MAX), libc::setfsgid(u32::MAX)];
        if set.map(c_int::cast_unsigned) != [uid, gid] {
            return Err(failed());
        }
    }
    die_with_parent()
}

/// Replaces the scheduling class, priority, processors and priority of I/O that the caller chose by the ordinary ones
/// (sched(7), ioprio_set(2)). The kernel limits the processors to those of the cpuset (cpuset(7)). Failures leave what the caller chose.
pub(crate) fn reset_scheduling() {
    let parameters = libc::sched_param { sched_priority: 0 };
    let processors = [u64::MAX; 16];
    let size = size_of_val(&processors);
    // SAFETY: the structures live through the calls; a set of processors is an array of bits, and the size is its own. The
    // last call takes numbers: 1 is `IOPRIO_WHO_PROCESS` of linux/ioprio.h.
    unsafe {
        libc::sched_setscheduler(0, libc::SCHED_OTHER, &raw const parameters);
        libc::setpriority(libc::PRIO_PROCESS, 0, 0);
        libc::sched_setaffinity(0, size, (&raw const processors).cast());
        libc::syscall(libc::SYS_ioprio_set, 1, 0, 0);
    }
}

/// Makes the next child the first process of a new pid namespace, whose processes end with it (pid_namespaces(7)).
pub(crate) fn unshare_pids() -> io::Result<()> {
    // SAFETY: flags only.
    check(unsafe { libc::unshare(libc::CLONE_NEWPID) }).map(drop)
}

/// Installs a seccomp filter for this process and its descendants (seccomp(2)). Requires no_new_privs.
pub(crate) fn install_filter(filter: &[BpfInstruction]) -> Result<(), SysError> {
    let instructions: Vec<_> = filter
        .iter()
        .map(|instruction| libc::sock_filter {
            code: instruction.code,
            jt: instruction.if_true,
            jf: instruction.if_false,
            k: instruction.value,
        })
        .collect();
    let program = libc::sock_fprog {
        // The kernel accepts at most 4096 (`BPF_MAXINSNS`).
        len: instructions.len() as u16,
        filter: instructions.as_ptr().cast_mut(),
    };
    let mode = libc::SECCOMP_MODE_FILTER;
    // SAFETY: program and its instructions live through the call, which only reads them.
    check(unsafe { libc::prctl(libc::PR_SET_SECCOMP, mode, &raw const program) })
        .map(drop)
        .map_err(cannot("install the seccomp filter"))
}

/// Empties the capability bounding set, so that no later program gains a capability (capabilities(7)). Requires root.
pub(crate) fn drop_capability_bounds() {
    for capability in 0..64 {
        // SAFETY: prctl(2) with numbers; an unknown capability returns EINVAL.
        unsafe { libc::prctl(libc::PR_CAPBSET_DROP, capability, 0, 0, 0) };
    }
}

/// Kills this process when its parent ends. A change of the user, or of the user for files, undoes it (prctl(2)).
pub(crate) fn die_with_parent() -> Result<(), SysError> {
    // SAFETY: prctl(2) with numbers.
    check(unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL, 0, 0, 0) })
        .map(drop)
        .map_err(cannot("set the parent-death signal"))
}

/// Makes this process untraceable by its user, ends it with its parent, empties its capability sets, of which [`super::become_user`]
/// leaves the inheritable one, prevents it from gaining privileges by execve(2), and gives it a new session keyring (prctl(2),
/// capset(2), keyctl(2)). A change of user undoes the first two, so call it afterwards.
pub(crate) fn restrict_process() -> Result<(), SysError> {
    // `_LINUX_CAPABILITY_VERSION_3` with the pid 0, this process.
    let header = [0x2008_0522_u32, 0];
    let sets = [0_u32; 6];
    die_with_parent()?;
    // SAFETY: personality(2), prctl(2) and keyctl(2) with numbers and a null name; the arrays of capset(2) live through the
    // call.
    unsafe {
        let (header, sets) = (&raw const header, &raw const sets);
        libc::personality(0);
        check(libc::prctl(libc::PR_SET_DUMPABLE, 0, 0, 0, 0))
            .and_then(|_| check(libc::syscall(libc::SYS_capset, header, sets)))
            .and_then(|_| check(libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)))
            .map_err(cannot("restrict the process"))?;
        let join = libc::KEYCTL_JOIN_SESSION_KEYRING;
        match check(libc::syscall(libc::SYS_keyctl, join, 0, 0, 0, 0)) {
            // Without keys, or where a container denies them, the caller's keyring is out of reach too.
            Err(error) if !matches!(error.raw_os_error(), Some(libc::ENOSYS | libc::EPERM)) => {
                Err(cannot("leave the caller's session keyring")(error))
            }
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stat_is_parsed_after_any_command_name() {
        let tail = "7 1 1 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 1 0 4711 9 9";
        let found = Some(ProcessInfo {
            parent: 7,
            start: 4711,
        });
        for (stat, expected) in [
            (format!("12 (sh) S {tail}"), found),
            (format!("12 (a) R 1 (b)) S {tail}"), found),
            (format!("12 (sh) Z {tail}"), None),
            ("12 (sh) S 7 1".to_owned(), None),
            ("12 (sh)".to_owned(), None),
            (String::new(), None),
        ] {
            assert_eq!(parse_stat(&stat), expected, "{stat}");
        }
        let info = process_info(std::process::id()).unwrap();
        assert_eq!(info.parent, std::os::unix::process::parent_id());
        let mut child = std::process::Command::new("true").spawn().unwrap();
        child.wait().unwrap();
        assert_eq!(read_process(child.id()).unwrap(), None);
    }

    #[test]
    fn process_with_a_name_that_is_not_utf8_is_found() {
        let pid = std::process::id();
        let before = (process_info(pid), has_root_uid(pid));
        assert!(before.0.is_some());
        let name = fs::read("/proc/self/comm").unwrap();
        fs::write("/proc/self/comm", b"a\xff) Z\nUid:\t0").unwrap();
        let renamed = (process_info(pid), has_root_uid(pid));
        fs::write("/proc/self/comm", name).unwrap();
        assert_eq!(renamed, before);
    }
}
