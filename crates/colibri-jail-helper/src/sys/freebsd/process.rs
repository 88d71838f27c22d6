//! Processes: sysctl(3), procctl(2), wait(2), kill(2).

use std::ffi::{CStr, c_int, c_uint};
use std::fs::OpenOptions;
use std::io;
use std::os::unix::fs::OpenOptionsExt;

use super::{SysError, cannot, check};
use crate::sys::ProcessEnd;

/// A running process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct ProcessInfo {
    pub(crate) parent: u32,
    /// Real uid.
    pub(crate) uid: u32,
    /// Start time, in microseconds since 1970.
    pub(crate) start: u64,
    /// Id of the jail, 0 for the host.
    pub(crate) jid: i32,
}

/// `SZOMB` of sys/proc.h.
const ZOMBIE: i8 = 5;

/// Reads a value (sysctl(3)), and returns its size.
pub(super) fn read_sysctl(name: &CStr, buffer: &mut [u8]) -> io::Result<usize> {
    let mut size = buffer.len();
    let (value, none) = (buffer.as_mut_ptr().cast(), std::ptr::null());
    // SAFETY: a C string, and a buffer of `size` bytes; both live through the call, and nothing is set.
    check(unsafe { libc::sysctlbyname(name.as_ptr(), value, &raw mut size, none, 0) })?;
    Ok(size)
}

/// Returns the identity of this boot (sysctl(3), `kern.boot_id`): ids of jails are reused after a boot. Empty on a kernel
/// that has none.
pub(crate) fn boot_id() -> String {
    let mut id = [0; 16];
    match read_sysctl(c"kern.boot_id", &mut id) {
        Ok(16) => id.iter().map(|byte| format!("{byte:02x}")).collect(),
        _ => String::new(),
    }
}

/// Returns a process that has not ended (sysctl(3), `KERN_PROC_PID`).
pub(crate) fn process_info(pid: u32) -> Option<ProcessInfo> {
    let pid = c_int::try_from(pid).ok()?;
    let mib = [libc::CTL_KERN, libc::KERN_PROC, libc::KERN_PROC_PID, pid];
    // SAFETY: all bytes zero is a valid kinfo_proc, which consists of numbers, arrays and pointers.
    let mut info: libc::kinfo_proc = unsafe { std::mem::zeroed() };
    let mut size = size_of::<libc::kinfo_proc>();
    let (value, none) = ((&raw mut info).cast(), std::ptr::null());
    // SAFETY: mib has four numbers, info has size bytes, and nothing is set.
    check(unsafe { libc::sysctl(mib.as_ptr(), 4, value, &raw mut size, none, 0) }).ok()?;
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
        uid: info.ki_ruid,
        start: seconds.checked_mul(1_000_000)?.checked_add(microseconds)?,
        jid: info.ki_jid,
    })
}

/// `struct procctl_reaper_status`, the argument of `PROC_REAP_STATUS` (procctl(2)).
#[repr(C)]
#[derive(Default)]
struct ReaperStatus {
    flags: c_uint,
    children: c_uint,
    descendants: c_uint,
    reaper: libc::pid_t,
    pid: libc::pid_t,
    pad: [c_uint; 15],
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

/// `struct procctl_reaper_kill`, the argument of `PROC_REAP_KILL` (procctl(2)).
#[repr(C)]
#[derive(Default)]
struct ReaperKill {
    signal: c_int,
    flags: c_uint,
    subtree: libc::pid_t,
    killed: c_uint,
    first_failed: libc::pid_t,
    pad: [c_uint; 15],
}

/// `REAPER_PIDINFO_VALID` of sys/procctl.h.
const VALID: c_uint = 1;

/// `REAPER_PIDINFO_REAPER` of sys/procctl.h: the process has its own list of descendants.
const REAPER: c_uint = 4;

/// Free elements in a list of descendants, for processes that start while it is read.
const SPARE_PIDS: c_uint = 64;

/// Calls procctl(2) for a process; 0 is this one.
fn procctl<T>(pid: u32, command: c_int, argument: &mut T) -> io::Result<()> {
    let id = libc::id_t::from(pid);
    // SAFETY: every caller passes the argument type of its command, and the argument lives through the call.
    check(unsafe { libc::procctl(libc::P_PID, id, command, (&raw mut *argument).cast()) }).map(drop)
}

/// Makes this process the reaper of its descendants (procctl(2), `PROC_REAP_ACQUIRE`).
pub(crate) fn become_reaper() -> io::Result<()> {
    let (command, none) = (libc::PROC_REAP_ACQUIRE, std::ptr::null_mut());
    // SAFETY: the command has no argument.
    check(unsafe { libc::procctl(libc::P_PID, 0, command, none) }).map(drop)
}

/// Returns the descendants of a reaper, those of reapers among them included, and zombies (procctl(2)). With `child`,
/// only those that this child of the reaper started, and the child. Empty if the process is not a reaper.
pub(crate) fn descendants(reaper: u32, child: Option<u32>) -> Vec<u32> {
    let mut found = Vec::new();
    let mut reapers = vec![(reaper, child)];
    while let Some((reaper, child)) = reapers.pop() {
        for entry in reaper_pids(reaper).unwrap_or_default() {
            let pid = entry.pid.unsigned_abs();
            if child.is_some_and(|child| entry.subtree.unsigned_abs() != child) || pid == reaper {
                continue;
            }
            if entry.flags & REAPER != 0 {
                reapers.push((pid, None));
            }
            found.push(pid);
        }
    }
    found
}

fn reaper_pids(reaper: u32) -> io::Result<Vec<ReaperPid>> {
    let mut status = ReaperStatus::default();
    procctl(reaper, libc::PROC_REAP_STATUS, &mut status)?;
    // Of a process that is not a reaper, both commands return the descendants of its reaper, such as init.
    if status.reaper.unsigned_abs() != reaper {
        return Ok(Vec::new());
    }
    let count = status.descendants.saturating_add(SPARE_PIDS);
    let mut pids = vec![ReaperPid::default(); count as usize];
    let mut request = ReaperPids {
        count,
        pad: [0; 15],
        pids: pids.as_mut_ptr(),
    };
    procctl(reaper, libc::PROC_REAP_GETPIDS, &mut request)?;
    pids.retain(|entry| entry.flags & VALID != 0);
    Ok(pids)
}

/// Reports whether this reaper has descendants, zombies included. True if the kernel does not tell (procctl(2)).
pub(crate) fn has_descendants() -> bool {
    let mut status = ReaperStatus::default();
    procctl(0, libc::PROC_REAP_STATUS, &mut status).is_err() || status.descendants > 0
}

/// Sends KILL to all descendants of this reaper in one call, those that are being forked included (procctl(2),
/// `PROC_REAP_KILL`).
pub(crate) fn kill_descendants() {
    let mut request = ReaperKill {
        signal: libc::SIGKILL,
        ..ReaperKill::default()
    };
    // The caller verifies the end of the processes.
    let _ = procctl(0, libc::PROC_REAP_KILL, &mut request);
}

/// Disables the parent-death signal that this process inherited, so that it can clean up after its parent's end
/// (procctl(2)), and asks the kernel not to choose it when memory is short (protect(1)).
pub(crate) fn prepare_monitor() -> io::Result<()> {
    let mut none: c_int = 0;
    procctl(0, libc::PROC_PDEATHSIG_CTL, &mut none)?;
    let mut protect: c_int = 1; // PPROT_SET of sys/procctl.h
    let _ = procctl(0, libc::PROC_SPROTECT, &mut protect);
    Ok(())
}

/// Signals a process (kill(2)).
pub(crate) fn kill(pid: u32, signal: c_int) -> io::Result<()> {
    let pid = libc::pid_t::try_from(pid).map_err(io::Error::other)?;
    // SAFETY: numbers only.
    check(unsafe { libc::kill(pid, signal) }).map(drop)
}

/// Sets KILL as the parent-death signal of this process (procctl(2)).
pub(crate) fn die_with_parent() -> Result<(), SysError> {
    let mut signal = libc::SIGKILL;
    procctl(0, libc::PROC_PDEATHSIG_CTL, &mut signal).map_err(cannot("set the parent-death signal"))
}

/// Sets KILL as the parent-death signal of this process and prevents it from gaining privileges by execve(2) (procctl(2)).
pub(crate) fn restrict_process() -> Result<(), SysError> {
    let failed = "restrict the process by procctl(2)";
    let (mut signal, mut enable) = (libc::SIGKILL, libc::PROC_NO_NEW_PRIVS_ENABLE);
    procctl(0, libc::PROC_PDEATHSIG_CTL, &mut signal).map_err(cannot(failed))?;
    procctl(0, libc::PROC_NO_NEW_PRIVS_CTL, &mut enable).map_err(cannot(failed))
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

/// Collects one ended child. Returns `None` if no further child has ended.
///
/// # Errors
/// There is no child (`ECHILD`).
pub(crate) fn collect_child() -> io::Result<Option<(u32, ProcessEnd)>> {
    let mut status = 0;
    // SAFETY: status lives through the call.
    match check(unsafe { libc::waitpid(-1, &raw mut status, libc::WNOHANG) })? {
        0 => Ok(None),
        pid => Ok(Some((pid.unsigned_abs(), ProcessEnd::from_status(status)))),
    }
}

/// Makes this process the leader of a new process group (setpgid(2)).
pub(crate) fn lead_process_group() -> io::Result<()> {
    // SAFETY: numbers only.
    check(unsafe { libc::setpgid(0, 0) }).map(drop)
}

/// Returns the process group of a process (getpgid(2)).
pub(crate) fn process_group(pid: u32) -> Option<u32> {
    let pid = libc::pid_t::try_from(pid).ok()?;
    // SAFETY: a number only.
    let group = check(unsafe { libc::getpgid(pid) });
    group.ok().map(c_int::unsigned_abs)
}

/// Replaces the scheduling class, priority and processors that the caller chose by the ordinary ones and all of the cpuset
/// (rtprio(2), setpriority(2), cpuset_setaffinity(2)). Failures leave what the caller chose.
pub(crate) fn reset_scheduling() {
    /// `RTP_SET` of sys/rtprio.h.
    const RTP_SET: c_int = 1;
    let mut ordinary = libc::rtprio {
        type_: libc::RTP_PRIO_NORMAL,
        prio: 0,
    };
    let (which, size) = (libc::CPU_WHICH_PID, size_of::<libc::cpuset_t>());
    // SAFETY: the structures live through the calls, and the size is that of the set, an array of numbers. 0 and -1 are this
    // process.
    unsafe {
        libc::rtprio_thread(RTP_SET, 0, &raw mut ordinary);
        libc::setpriority(libc::PRIO_PROCESS, 0, 0);
        let mut all: libc::cpuset_t = std::mem::zeroed();
        if libc::cpuset_getaffinity(libc::CPU_LEVEL_CPUSET, which, -1, size, &raw mut all) == 0 {
            libc::cpuset_setaffinity(libc::CPU_LEVEL_WHICH, which, -1, size, &raw const all);
        }
    }
}
