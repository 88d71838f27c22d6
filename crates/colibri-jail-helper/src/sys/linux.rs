//! Linux: mount namespaces, mounts, pidfds and /proc.

use std::ffi::c_int;
use std::fs;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::time::Duration;

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
    parse_stat(&fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)
}

/// Parses the fields after the command name, which may itself contain `)`.
fn parse_stat(stat: &str) -> Option<ProcessInfo> {
    let mut fields = stat.get(stat.rfind(')')? + 1..)?.split_whitespace();
    let state = fields.next()?;
    let parent = fields.next()?.parse().ok()?;
    let start = fields.nth(17)?.parse().ok()?;
    (!matches!(state, "Z" | "X")).then_some(ProcessInfo { parent, start })
}

/// Returns the children of a process by a scan of /proc: not every kernel has `children` files.
pub(crate) fn children(parent: u32) -> Vec<u32> {
    let entries = fs::read_dir("/proc").into_iter().flatten();
    entries
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .filter(|pid| process_info(*pid).is_some_and(|info| info.parent == parent))
        .collect()
}

/// Opens a process. The descriptor does not change when the pid is reused (pidfd_open(2)).
pub(crate) fn pidfd(pid: u32) -> io::Result<OwnedFd> {
    // SAFETY: numbers only; the new descriptor has no other owner.
    unsafe { check(libc::syscall(libc::SYS_pidfd_open, pid, 0)).map(|fd| OwnedFd::from_raw_fd(fd)) }
}

/// Signals a process (pidfd_send_signal(2)); `ESRCH` if it has ended.
pub(crate) fn pidfd_signal(process: &OwnedFd, signal: c_int) -> io::Result<()> {
    let null = std::ptr::null::<libc::siginfo_t>();
    // SAFETY: a null siginfo is allowed.
    let sent = unsafe {
        libc::syscall(
            libc::SYS_pidfd_send_signal,
            process.as_raw_fd(),
            signal,
            null,
            0,
        )
    };
    check(sent).map(drop)
}

/// Waits until a process has ended or the timeout expires; without a timeout, until one has ended (poll(2)). Returns which
/// of the processes have ended.
pub(crate) fn wait_exit<const N: usize>(
    processes: [&OwnedFd; N],
    timeout: Option<Duration>,
) -> [bool; N] {
    let timeout = timeout.map_or(-1, |timeout| {
        c_int::try_from(timeout.as_millis()).unwrap_or(c_int::MAX)
    });
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

/// Moves two descriptors to 0 and 1 and closes all others, stdio included: an open end of a pipe would keep its reader
/// waiting. The caller must leave this process by [`exit`].
pub(crate) fn keep_only(kept: [&OwnedFd; 2]) -> Result<[OwnedFd; 2], SysError> {
    let [first, second] = kept.map(AsRawFd::as_raw_fd);
    // SAFETY: both descriptors are open and above 2, so that neither call closes the other's source.
    unsafe {
        check(libc::dup2(first, 0)).map_err(cannot("duplicate a descriptor"))?;
        check(libc::dup2(second, 1)).map_err(cannot("duplicate a descriptor"))?;
    }
    close_from(2)?;
    // SAFETY: the calls above opened 0 and 1. The process ends by exit, so no earlier owner closes a descriptor.
    Ok([0, 1].map(|fd| unsafe { OwnedFd::from_raw_fd(fd) }))
}

/// Enters a new mount namespace whose mounts do not propagate to the host (unshare(2)).
pub(crate) fn unshare_mounts() -> io::Result<()> {
    // SAFETY: flags only.
    check(unsafe { libc::unshare(libc::CLONE_NEWNS) })?;
    mount("none", "/", "", libc::MS_REC | libc::MS_PRIVATE, "")
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

/// Checks that a path exists for a process with the root directory `root` (openat2(2)).
pub(crate) fn check_exists_in_root(root: &OwnedFd, path: &str) -> io::Result<()> {
    let path = c_string(path)?;
    // SAFETY: all bytes zero is a valid open_how, which consists of numbers.
    let mut how: libc::open_how = unsafe { std::mem::zeroed() };
    how.flags = (libc::O_PATH | libc::O_CLOEXEC) as u64;
    how.resolve = libc::RESOLVE_NO_MAGICLINKS | libc::RESOLVE_IN_ROOT;
    // SAFETY: path and how live through the call, and the size is that of how; the descriptor is owned here.
    unsafe {
        check(libc::syscall(
            libc::SYS_openat2,
            root.as_raw_fd(),
            path.as_ptr(),
            &raw const how,
            size_of::<libc::open_how>(),
        ))
        .map(|fd| drop(OwnedFd::from_raw_fd(fd)))
    }
}

/// Empties the capability bounding set, so that no later program gains a capability (capabilities(7)). Requires root.
pub(crate) fn drop_capability_bounds() {
    for capability in 0..64 {
        // SAFETY: prctl(2) with numbers; an unknown capability returns EINVAL.
        unsafe { libc::prctl(libc::PR_CAPBSET_DROP, capability, 0, 0, 0) };
    }
}

/// Makes this process untraceable by its user, sets KILL as its parent-death signal, prevents it from gaining privileges by
/// execve(2), and gives it a new session keyring (prctl(2), keyctl(2)). A change of user undoes the first two, so call it
/// afterwards.
pub(crate) fn restrict_process() -> Result<(), SysError> {
    // SAFETY: prctl(2) and keyctl(2) with numbers and a null name. A kernel without keys returns ENOSYS.
    unsafe {
        check(libc::prctl(libc::PR_SET_DUMPABLE, 0, 0, 0, 0))
            .and_then(|_| check(libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL, 0, 0, 0)))
            .and_then(|_| check(libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)))
            .map_err(cannot("restrict the process by prctl(2)"))?;
        let join = libc::KEYCTL_JOIN_SESSION_KEYRING;
        libc::syscall(libc::SYS_keyctl, join, 0, 0, 0, 0);
    }
    Ok(())
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
    }
}
