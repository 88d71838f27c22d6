//! Linux: namespaces, mounts, pidfds and /proc.

use std::ffi::{c_int, c_long};
use std::fs;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use super::{c_string, check};
use crate::error::Stop;

/// `RESOLVE_NO_MAGICLINKS` and `RESOLVE_IN_ROOT` of linux/openat2.h.
const IN_ROOT: u64 = 0x02 | 0x10;

/// `struct open_how` (openat2(2)).
#[repr(C)]
struct OpenHow {
    flags: u64,
    mode: u64,
    resolve: u64,
}

fn check_long(result: c_long) -> io::Result<c_int> {
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    c_int::try_from(result).map_err(io::Error::other)
}

/// Closes every descriptor from `first` up (close_range(2)).
pub(crate) fn close_from(first: libc::c_uint) -> Result<(), Stop> {
    // SAFETY: numbers only; no descriptor from 3 up is in use when this is called at the start or before execve.
    let closed = unsafe { libc::syscall(libc::SYS_close_range, first, libc::c_uint::MAX, 0) };
    check_long(closed)
        .map(drop)
        .map_err(|error| Stop::system("closing descriptors", error))
}

/// This boot's id.
pub(crate) fn boot() -> String {
    fs::read_to_string("/proc/sys/kernel/random/boot_id")
        .map(|id| id.trim().to_owned())
        .unwrap_or_default()
}

/// Parent and start time of a process that has not ended, in clock ticks since boot (proc_pid_stat(5)).
pub(crate) fn parent_and_start(pid: u32) -> Option<(u32, u64)> {
    parse_stat(&fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)
}

/// The command name may hold anything, also `)`: the last one counts.
fn parse_stat(stat: &str) -> Option<(u32, u64)> {
    let mut fields = stat.get(stat.rfind(')')? + 1..)?.split_whitespace();
    let state = fields.next()?;
    let parent = fields.next()?.parse().ok()?;
    let start = fields.nth(17)?.parse().ok()?;
    (!matches!(state, "Z" | "X")).then_some((parent, start))
}

/// Children of a process's first thread, by a look at all of /proc: not every kernel has `children` files.
pub(crate) fn children(parent: u32) -> Vec<u32> {
    let Ok(entries) = fs::read_dir("/proc") else {
        return Vec::new();
    };
    entries
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .filter(|pid| parent_and_start(*pid).is_some_and(|(found, _)| found == parent))
        .collect()
}

/// A descriptor of a process, which no reuse of its pid changes (pidfd_open(2)).
pub(crate) fn pidfd(pid: u32) -> io::Result<OwnedFd> {
    // SAFETY: numbers only; the new descriptor is owned by nobody else.
    unsafe {
        check_long(libc::syscall(libc::SYS_pidfd_open, pid, 0)).map(|fd| OwnedFd::from_raw_fd(fd))
    }
}

/// Signals the process behind a pidfd; one that has ended is `ESRCH`.
pub(crate) fn pidfd_signal(process: &OwnedFd, signal: c_int) -> io::Result<()> {
    let null = std::ptr::null::<libc::siginfo_t>();
    // SAFETY: a null siginfo is allowed (pidfd_send_signal(2)).
    let sent = unsafe {
        libc::syscall(
            libc::SYS_pidfd_send_signal,
            process.as_raw_fd(),
            signal,
            null,
            0,
        )
    };
    check_long(sent).map(drop)
}

/// Whether the process behind a pidfd ends within that many milliseconds.
pub(crate) fn ends_within(process: &OwnedFd, milliseconds: c_int) -> bool {
    let mut poll = libc::pollfd {
        fd: process.as_raw_fd(),
        events: libc::POLLIN,
        revents: 0,
    };
    // SAFETY: one element that lives through the call. Signals are blocked, so it is not interrupted.
    unsafe { libc::poll(&raw mut poll, 1, milliseconds) == 1 }
}

/// Waits until one of two processes has ended; whether it is the first.
pub(crate) fn first_ends(first: &OwnedFd, second: &OwnedFd) -> bool {
    loop {
        let mut poll = [first, second].map(|process| libc::pollfd {
            fd: process.as_raw_fd(),
            events: libc::POLLIN,
            revents: 0,
        });
        // SAFETY: two elements that live through the call.
        if unsafe { libc::poll(poll.as_mut_ptr(), 2, -1) } > 0 {
            return poll[0].revents != 0;
        }
    }
}

/// Keeps `first` and `second` only, and gives up what else is open, stdio too: a pipe's other end would wait.
pub(crate) fn keep_only(first: &OwnedFd, second: &OwnedFd) -> Result<(), Stop> {
    let failed = |error| Stop::system("giving up descriptors", error);
    // SAFETY: both are open and above 2; 0 and 1 become theirs, and nothing here uses another one afterwards.
    unsafe {
        check(libc::dup2(first.as_raw_fd(), 0)).map_err(failed)?;
        check(libc::dup2(second.as_raw_fd(), 1)).map_err(failed)?;
    }
    close_from(2)
}

/// Descriptors 0 and 1 after [`keep_only`].
pub(crate) fn kept() -> (OwnedFd, OwnedFd) {
    // SAFETY: keep_only has made them, and the process ends with their owner.
    unsafe { (OwnedFd::from_raw_fd(0), OwnedFd::from_raw_fd(1)) }
}

/// A mount namespace of its own, of which nothing comes back to the host.
pub(crate) fn own_mounts() -> io::Result<()> {
    // SAFETY: flags only.
    check(unsafe { libc::unshare(libc::CLONE_NEWNS) })?;
    mount(None, "/", None, libc::MS_REC | libc::MS_PRIVATE, None)
}

/// Puts the tree at an open directory onto another directory.
pub(crate) fn bind(tree: &OwnedFd, onto: &str) -> io::Result<()> {
    mount(
        Some(&by_number(tree)),
        onto,
        None,
        libc::MS_BIND | libc::MS_REC,
        None,
    )
}

/// An empty file system onto an open directory.
pub(crate) fn hide(directory: &OwnedFd) -> io::Result<()> {
    let flags = libc::MS_NOSUID | libc::MS_NODEV | libc::MS_NOEXEC | libc::MS_RDONLY;
    mount(
        Some("colibri"),
        &by_number(directory),
        Some("tmpfs"),
        flags,
        Some("mode=0555,size=4k"),
    )
}

/// The kernel's own name for an open descriptor (proc_pid_fd(5)), which no rename of the file changes.
fn by_number(fd: &OwnedFd) -> String {
    format!("/proc/self/fd/{}", fd.as_raw_fd())
}

fn mount(
    source: Option<&str>,
    target: &str,
    kind: Option<&str>,
    flags: libc::c_ulong,
    data: Option<&str>,
) -> io::Result<()> {
    let optional = |text: Option<&str>| text.map(c_string).transpose();
    let (source, kind, data) = (optional(source)?, optional(kind)?, optional(data)?);
    let target = c_string(target)?;
    let pointer = |text: &Option<std::ffi::CString>| {
        text.as_ref().map_or(std::ptr::null(), |text| text.as_ptr())
    };
    // SAFETY: every pointer is null or to a C string that lives through the call.
    check(unsafe {
        libc::mount(
            pointer(&source),
            target.as_ptr(),
            pointer(&kind),
            flags,
            pointer(&data).cast(),
        )
    })
    .map(drop)
}

/// Opens a path as a process would whose root is `root` (openat2(2)), only to see that it is there.
pub(crate) fn exists_in_root(root: &OwnedFd, path: &str) -> io::Result<()> {
    let path = c_string(path)?;
    let how = OpenHow {
        flags: (libc::O_PATH | libc::O_CLOEXEC) as u64,
        mode: 0,
        resolve: IN_ROOT,
    };
    // SAFETY: path and how live through the call, and the size is that of how; the descriptor is owned here.
    unsafe {
        check_long(libc::syscall(
            libc::SYS_openat2,
            root.as_raw_fd(),
            path.as_ptr(),
            &raw const how,
            size_of::<OpenHow>(),
        ))
        .map(|fd| drop(OwnedFd::from_raw_fd(fd)))
    }
}

/// Which of two processes this is after fork(2).
pub(crate) enum Fork {
    Child,
    Parent,
}

/// fork(2).
pub(crate) fn fork() -> io::Result<Fork> {
    // SAFETY: there is one thread, so the child may go on as any process.
    Ok(match check(unsafe { libc::fork() })? {
        0 => Fork::Child,
        _ => Fork::Parent,
    })
}

/// Ends this process at once.
pub(crate) fn exit(code: c_int) -> ! {
    // SAFETY: _exit(2) does not return.
    unsafe { libc::_exit(code) }
}

/// No program that is executed later can get any capability (capabilities(7)); needs root.
pub(crate) fn drop_capability_bounds() {
    for capability in 0..64 {
        // SAFETY: prctl(2) with numbers; one that this kernel does not know answers EINVAL.
        unsafe { libc::prctl(libc::PR_CAPBSET_DROP, capability, 0, 0, 0) };
    }
}

/// Cannot be traced or looked into by its user; ends with its parent; gains nothing by execve(2); and its keys
/// are its own (prctl(2), keyctl(2)). The first two are undone by a change of user, so this comes after it.
pub(crate) fn seclude() -> Result<(), Stop> {
    /// `KEYCTL_JOIN_SESSION_KEYRING` of linux/keyctl.h.
    const JOIN_SESSION_KEYRING: c_long = 1;
    // SAFETY: prctl(2) and keyctl(2) with numbers and a null name. A kernel without keys answers ENOSYS.
    unsafe {
        check(libc::prctl(libc::PR_SET_DUMPABLE, 0, 0, 0, 0))
            .and_then(|_| check(libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL, 0, 0, 0)))
            .and_then(|_| check(libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)))
            .map_err(|error| Stop::system("prctl", error))?;
        libc::syscall(libc::SYS_keyctl, JOIN_SESSION_KEYRING, 0, 0, 0, 0);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parent_and_start_are_found_behind_any_command_name() {
        let tail = "7 1 1 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 1 0 4711 9 9";
        for (stat, found) in [
            (format!("12 (sh) S {tail}"), Some((7, 4711))),
            (format!("12 (a) R 1 (b)) S {tail}"), Some((7, 4711))),
            (format!("12 (sh) Z {tail}"), None),
            ("12 (sh) S 7 1".to_owned(), None),
            ("12 (sh)".to_owned(), None),
            (String::new(), None),
        ] {
            assert_eq!(parse_stat(&stat), found, "{stat}");
        }
        let own = parent_and_start(std::process::id()).unwrap();
        assert_eq!(own.0, super::super::parent_pid());
    }
}
