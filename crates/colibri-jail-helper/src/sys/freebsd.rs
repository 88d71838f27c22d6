//! FreeBSD: jails by jail_set(2), jail_get(2) and jail_attach(2), processes by sysctl(3) and procctl(2).

use std::ffi::{c_int, c_uint, c_void};
use std::fs::OpenOptions;
use std::io;
use std::net::Ipv4Addr;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;

use colibri_jail_core::{Ip4Policy, JailName};

use super::{SysError, cannot, check};

/// A running process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct ProcessInfo {
    pub(crate) parent: u32,
    /// Start time, in microseconds since 1970.
    pub(crate) start: u64,
    /// Id of the jail, 0 for the host.
    pub(crate) jid: i32,
}

/// `SZOMB` of sys/proc.h.
const ZOMBIE: i8 = 5;

/// Closes every descriptor from `first` up (closefrom(2)).
pub(crate) fn close_from(first: c_int) -> Result<(), SysError> {
    // SAFETY: a number only; callers use no descriptor from `first` up afterwards.
    unsafe { libc::closefrom(first) };
    Ok(())
}

/// Returns a constant: start times are absolute, so a record of another boot matches no process.
pub(crate) fn boot_id() -> String {
    String::new()
}

/// Returns a process that has not ended (sysctl(3), `KERN_PROC_PID`).
pub(crate) fn process_info(pid: u32) -> Option<ProcessInfo> {
    let pid = c_int::try_from(pid).ok()?;
    let mib = [libc::CTL_KERN, libc::KERN_PROC, libc::KERN_PROC_PID, pid];
    // SAFETY: all bytes zero is a valid kinfo_proc, which consists of numbers, arrays and pointers.
    let mut info: libc::kinfo_proc = unsafe { std::mem::zeroed() };
    let mut size = size_of::<libc::kinfo_proc>();
    // SAFETY: mib has four numbers, info has size bytes, and nothing is set.
    check(unsafe {
        libc::sysctl(
            mib.as_ptr(),
            4,
            (&raw mut info).cast(),
            &raw mut size,
            std::ptr::null(),
            0,
        )
    })
    .ok()?;
    // A different size is the layout of another kernel version.
    let is_known_layout =
        size == size_of::<libc::kinfo_proc>() && info.ki_structsize as usize == size;
    if !is_known_layout || info.ki_pid != pid || info.ki_stat as i8 == ZOMBIE {
        return None;
    }
    let seconds = u64::try_from(info.ki_start.tv_sec).ok()?;
    let microseconds = u64::try_from(info.ki_start.tv_usec).ok()?;
    Some(ProcessInfo {
        parent: info.ki_ppid.unsigned_abs(),
        start: seconds.checked_mul(1_000_000)?.checked_add(microseconds)?,
        jid: info.ki_jid,
    })
}

/// `struct procctl_reaper_pidinfo`, an element of the list of `PROC_REAP_GETPIDS` (procctl(2)).
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct ReaperPid {
    pid: libc::pid_t,
    subtree: libc::pid_t,
    flags: c_uint,
    pad: [c_uint; 15],
}

/// `struct procctl_reaper_pids`, the argument of `PROC_REAP_GETPIDS` (procctl(2)).
#[repr(C)]
struct ReaperPids {
    count: c_uint,
    pad: [c_uint; 15],
    pids: *mut ReaperPid,
}

/// `REAPER_PIDINFO_VALID` of sys/procctl.h.
const VALID: c_uint = 1;

/// Returns the descendants of a reaper that its child `child` started, orphans included (procctl(2)).
pub(crate) fn descendants(reaper: u32, child: u32) -> Vec<u32> {
    const MAX_PIDS: usize = 99_999; // PID_MAX of sys/proc.h
    let mut pids = vec![ReaperPid::default(); MAX_PIDS];
    let mut request = ReaperPids {
        count: MAX_PIDS as c_uint,
        pad: [0; 15],
        pids: pids.as_mut_ptr(),
    };
    let id = libc::id_t::from(reaper);
    // SAFETY: the request points to `count` elements, and both live through the call.
    let filled = unsafe {
        libc::procctl(
            libc::P_PID,
            id,
            libc::PROC_REAP_GETPIDS,
            (&raw mut request).cast(),
        )
    };
    if filled < 0 {
        return Vec::new();
    }
    pids.iter()
        .filter(|found| found.flags & VALID != 0 && found.subtree.unsigned_abs() == child)
        .map(|found| found.pid.unsigned_abs())
        .collect()
}

/// Signals a process (kill(2)).
pub(crate) fn kill(pid: u32, signal: c_int) -> io::Result<()> {
    let pid = libc::pid_t::try_from(pid).map_err(io::Error::other)?;
    // SAFETY: numbers only.
    check(unsafe { libc::kill(pid, signal) }).map(drop)
}

/// Changes the working directory to an open one (fchdir(2)).
pub(crate) fn change_directory(directory: &OwnedFd) -> io::Result<()> {
    // SAFETY: an open descriptor.
    check(unsafe { libc::fchdir(directory.as_raw_fd()) }).map(drop)
}

/// A parameter of jail_set(2) or jail_get(2): its name with a final NUL, and the bytes of its value.
struct Parameter(&'static [u8], Vec<u8>);

/// Calls jail_set(2) or jail_get(2). Returns the jail's id; an error contains the kernel's `errmsg`.
fn jail(
    call: unsafe extern "C" fn(*mut libc::iovec, c_uint, c_int) -> c_int,
    parameters: Vec<Parameter>,
    flags: c_int,
) -> io::Result<i32> {
    let mut message = vec![0_u8; 256];
    let mut parameters = parameters;
    let mut vector: Vec<libc::iovec> = Vec::new();
    let mut push = |name: &'static [u8], value: &mut Vec<u8>| {
        vector.push(libc::iovec {
            iov_base: name.as_ptr().cast_mut().cast::<c_void>(),
            iov_len: name.len(),
        });
        vector.push(libc::iovec {
            iov_base: value.as_mut_ptr().cast(),
            iov_len: value.len(),
        });
    };
    for Parameter(name, value) in &mut parameters {
        push(name, value);
    }
    push(b"errmsg\0", &mut message);
    let count = c_uint::try_from(vector.len()).map_err(io::Error::other)?;
    // SAFETY: every element points to `iov_len` bytes, which live through the call; the kernel writes
    // to values only, never to names.
    let jid = unsafe { call(vector.as_mut_ptr(), count, flags) };
    check(jid).map_err(|error| {
        let reason = message.split(|byte| *byte == 0).next().unwrap_or_default();
        if reason.is_empty() {
            return error;
        }
        io::Error::new(
            error.kind(),
            format!("{} ({error})", String::from_utf8_lossy(reason)),
        )
    })
}

fn text(value: &str) -> Vec<u8> {
    [value.as_bytes(), b"\0"].concat()
}

/// Returns the id of a jail, if it exists.
pub(crate) fn jail_id(name: &JailName) -> Option<i32> {
    jail(
        libc::jail_get,
        vec![Parameter(b"name\0", text(name.as_str()))],
        0,
    )
    .ok()
}

/// Creates a jail whose root is the working directory, and enters it (jail_set(2)). One call does both, so that a jail
/// without a process never remains. The kernel removes the jail with its last process.
pub(crate) fn create_jail(name: &JailName, ip4: &Ip4Policy) -> io::Result<i32> {
    let number = |value: c_int| value.to_ne_bytes().to_vec();
    let mut parameters = vec![
        Parameter(b"name\0", text(name.as_str())),
        // Relative to the working directory, whose descriptor was checked; its path may have changed since.
        Parameter(b"path\0", text(".")),
        Parameter(b"ip6\0", number(libc::JAIL_SYS_DISABLE)),
    ];
    let (mode, addresses): (c_int, &[Ipv4Addr]) = match ip4 {
        Ip4Policy::Inherit => (libc::JAIL_SYS_INHERIT, &[]),
        Ip4Policy::Disable => (libc::JAIL_SYS_DISABLE, &[]),
        Ip4Policy::New => (libc::JAIL_SYS_NEW, &[]),
        Ip4Policy::Addresses(list) => (libc::JAIL_SYS_NEW, list),
    };
    parameters.push(Parameter(b"ip4\0", number(mode)));
    if !addresses.is_empty() {
        // struct in_addr, in network byte order.
        let bytes = addresses.iter().flat_map(Ipv4Addr::octets).collect();
        parameters.push(Parameter(b"ip4.addr\0", bytes));
    }
    jail(
        libc::jail_set,
        parameters,
        libc::JAIL_CREATE | libc::JAIL_ATTACH,
    )
}

/// Enters a jail (jail_attach(2)); its root becomes the root and the working directory.
pub(crate) fn attach_jail(jid: i32) -> io::Result<()> {
    // SAFETY: a number only.
    check(unsafe { libc::jail_attach(jid) }).map(drop)
}

/// Removes a jail and kills its processes (jail_remove(2)).
pub(crate) fn remove_jail(jid: i32) -> io::Result<()> {
    // SAFETY: a number only.
    check(unsafe { libc::jail_remove(jid) }).map(drop)
}

/// Sets KILL as the parent-death signal of this process and prevents it from gaining privileges by execve(2) (procctl(2)).
pub(crate) fn restrict_process() -> Result<(), SysError> {
    for (command, value) in [
        (libc::PROC_PDEATHSIG_CTL, libc::SIGKILL),
        (libc::PROC_NO_NEW_PRIVS_CTL, libc::PROC_NO_NEW_PRIVS_ENABLE),
    ] {
        let mut value = value;
        // SAFETY: both commands take a pointer to an int; id 0 is this process.
        check(unsafe { libc::procctl(libc::P_PID, 0, command, (&raw mut value).cast()) })
            .map_err(cannot("restrict the process by procctl(2)"))?;
    }
    Ok(())
}

/// Starts a session without a controlling terminal (setsid(2)).
pub(crate) fn new_session() -> io::Result<()> {
    // SAFETY: setsid(2) has no arguments.
    check(unsafe { libc::setsid() }).map(drop)
}

/// Reports whether there is a controlling terminal, into which a process could inject input (tty(4), TIOCSTI).
pub(crate) fn has_terminal() -> bool {
    let mut options = OpenOptions::new();
    let nonblocking = options.read(true).custom_flags(libc::O_NONBLOCK);
    nonblocking.open("/dev/tty").is_ok()
}
