//! FreeBSD: jails by jail_set(2), jail_get(2) and jail_attach(2), processes by sysctl(3) and procctl(2).

use std::ffi::{CStr, c_int, c_long, c_uint, c_void};
use std::fs::OpenOptions;
use std::io;
use std::net::Ipv4Addr;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, IntoRawFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::time::Duration;

use colibri_jail_core::{Ip4Policy, JailName};

use super::{SysError, c_string, cannot, check};

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

/// Returns the identity of this boot (sysctl(3), `kern.boot_id`): ids of jails are reused after a boot. Empty on a kernel
/// that has none.
pub(crate) fn boot_id() -> String {
    let mut id = [0_u8; 16];
    let mut size = id.len();
    let name = c"kern.boot_id";
    // SAFETY: a C string, and a buffer of `size` bytes; both live through the call, and nothing is set.
    let result = unsafe {
        libc::sysctlbyname(
            name.as_ptr(),
            id.as_mut_ptr().cast(),
            &raw mut size,
            std::ptr::null(),
            0,
        )
    };
    match (result, size) {
        (0, 16) => id.iter().map(|byte| format!("{byte:02x}")).collect(),
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
    // SAFETY: the command has no argument.
    check(unsafe {
        libc::procctl(
            libc::P_PID,
            0,
            libc::PROC_REAP_ACQUIRE,
            std::ptr::null_mut(),
        )
    })
    .map(drop)
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
    mut parameters: Vec<Parameter>,
    flags: c_int,
) -> io::Result<i32> {
    jail_values(call, &mut parameters, flags)
}

/// As [`jail`], and leaves the values that the kernel returns in the parameters.
fn jail_values(
    call: unsafe extern "C" fn(*mut libc::iovec, c_uint, c_int) -> c_int,
    parameters: &mut [Parameter],
    flags: c_int,
) -> io::Result<i32> {
    let mut message = vec![0_u8; 256];
    let mut vector: Vec<libc::iovec> = Vec::new();
    let mut push = |name: &'static [u8], value: &mut Vec<u8>| {
        vector.push(libc::iovec {
            iov_base: name.as_ptr().cast_mut().cast::<c_void>(),
            iov_len: name.len(),
        });
        let base: *mut c_void = match value.is_empty() {
            true => std::ptr::null_mut(),
            false => value.as_mut_ptr().cast(),
        };
        vector.push(libc::iovec {
            iov_base: base,
            iov_len: value.len(),
        });
    };
    for Parameter(name, value) in parameters {
        push(name, value);
    }
    push(b"errmsg\0", &mut message);
    let count = c_uint::try_from(vector.len()).map_err(io::Error::other)?;
    // SAFETY: every element points to `iov_len` bytes, or is null and empty; the bytes live through the call; the kernel
    // writes to values only, never to names.
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

/// Returns a number, or all of a structure, as bytes.
fn number(value: c_int) -> Vec<u8> {
    value.to_ne_bytes().to_vec()
}

/// Flags of jail_set(2) and jail_get(2) that older headers lack.
const JAIL_OWN_DESC: c_int = 0x80;

/// A jail that this process created or found, with an owning descriptor if the kernel has them (jail_set(2), 15.0): the
/// kernel removes the jail when the descriptor is closed, also if this process is killed. The descriptor never leaves
/// this process: its holder may enter the jail without privilege (sys/kern/kern_jail.c, `sys_jail_attach_jd`).
pub(crate) struct Jail {
    pub(crate) jid: i32,
    _owner: Option<OwnedFd>,
}

/// Calls `jail` with a request for an owning descriptor, and without it on a kernel that has none.
fn jail_with_owner(
    call: unsafe extern "C" fn(*mut libc::iovec, c_uint, c_int) -> c_int,
    parameters: &dyn Fn() -> Vec<Parameter>,
    flags: c_int,
) -> io::Result<Jail> {
    let mut descriptor: c_int = -1;
    let mut with_descriptor = parameters();
    with_descriptor.push(Parameter(b"desc\0", number(-1)));
    match jail_values(call, &mut with_descriptor, flags | JAIL_OWN_DESC) {
        Ok(jid) => {
            if let Some(Parameter(_, value)) = with_descriptor.last()
                && let Ok(bytes) = <[u8; 4]>::try_from(value.as_slice())
            {
                descriptor = c_int::from_ne_bytes(bytes);
            }
            // SAFETY: the kernel has just opened the descriptor; it has no other owner.
            let owner = (descriptor >= 0).then(|| unsafe { OwnedFd::from_raw_fd(descriptor) });
            if let Some(owner) = &owner {
                close_on_exec(owner)?;
            }
            Ok(Jail { jid, _owner: owner })
        }
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => Ok(Jail {
            jid: jail_values(call, &mut parameters(), flags)?,
            _owner: None,
        }),
        Err(error) => Err(error),
    }
}

fn close_on_exec(fd: &impl AsRawFd) -> io::Result<()> {
    // SAFETY: an open descriptor and a number.
    check(unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_SETFD, libc::FD_CLOEXEC) }).map(drop)
}

/// The network of a created jail.
#[derive(Debug, Clone, Copy)]
pub(crate) enum JailNetwork<'a> {
    /// The network of the host, with this IPv4 policy and without IPv6.
    OfHost(&'a Ip4Policy),
    /// A network stack that contains an unconfigured loopback interface (vnet(9)).
    LoopbackOnly,
}

/// Creates a jail whose root is the working directory (jail_set(2)). It is persistent until [`end_with_processes`].
pub(crate) fn create_jail(name: &JailName, network: JailNetwork<'_>) -> io::Result<Jail> {
    jail_with_owner(
        libc::jail_set,
        &|| {
            let mut parameters = vec![
                Parameter(b"name\0", text(name.as_str())),
                // Relative to the working directory, whose descriptor was checked; its path may have changed since.
                Parameter(b"path\0", text(".")),
                Parameter(b"persist\0", Vec::new()),
            ];
            parameters.extend(
                RESTRICTIONS
                    .iter()
                    .map(|(name, value)| Parameter(name, value.map(number).unwrap_or_default())),
            );
            if has_parameter(c"security.jail.param.mac.do.") {
                let disable = number(libc::JAIL_SYS_DISABLE);
                parameters.push(Parameter(b"mac.do\0", disable));
            }
            let ip4 = match network {
                // Such a jail cannot have IP address parameters (jail_set(2)).
                JailNetwork::LoopbackOnly => {
                    parameters.push(Parameter(b"vnet\0", number(libc::JAIL_SYS_NEW)));
                    return parameters;
                }
                JailNetwork::OfHost(ip4) => ip4,
            };
            let disable = number(libc::JAIL_SYS_DISABLE);
            parameters.push(Parameter(b"ip6\0", disable));
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
            parameters
        },
        libc::JAIL_CREATE,
    )
}

/// Parameters that take rights from every created jail (jail(8)); `None` is a parameter without a value.
const RESTRICTIONS: &[(&[u8], Option<c_int>)] = &[
    (b"securelevel\0", Some(3)),
    (b"enforce_statfs\0", Some(2)),
    (b"children.max\0", Some(0)),
    (b"allow.noset_hostname\0", None),
];

/// Reports whether the kernel knows a jail parameter, by its sysctl(3) name.
fn has_parameter(name: &CStr) -> bool {
    let mut size = 0;
    // SAFETY: a C string, no buffer, and the size lives through the call.
    unsafe {
        libc::sysctlbyname(
            name.as_ptr(),
            std::ptr::null_mut(),
            &raw mut size,
            std::ptr::null(),
            0,
        ) == 0
    }
}

/// Returns a jail of another process with an owning descriptor of it.
pub(crate) fn own_jail(name: &JailName) -> io::Result<Jail> {
    jail_with_owner(
        libc::jail_get,
        &|| vec![Parameter(b"name\0", text(name.as_str()))],
        0,
    )
}

/// Makes the kernel remove a jail with its last process (jail_set(2), `nopersist`).
pub(crate) fn end_with_processes(jid: i32) -> io::Result<()> {
    let parameters = vec![
        Parameter(b"jid\0", number(jid)),
        Parameter(b"nopersist\0", Vec::new()),
    ];
    jail(libc::jail_set, parameters, libc::JAIL_UPDATE).map(drop)
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

/// Sets KILL as the parent-death signal of this process (procctl(2)).
pub(crate) fn die_with_parent() -> Result<(), SysError> {
    let mut signal = libc::SIGKILL;
    procctl(0, libc::PROC_PDEATHSIG_CTL, &mut signal).map_err(cannot("set the parent-death signal"))
}

/// Sets KILL as the parent-death signal of this process and prevents it from gaining privileges by execve(2) (procctl(2)).
pub(crate) fn restrict_process() -> Result<(), SysError> {
    for (command, value) in [
        (libc::PROC_PDEATHSIG_CTL, libc::SIGKILL),
        (libc::PROC_NO_NEW_PRIVS_CTL, libc::PROC_NO_NEW_PRIVS_ENABLE),
    ] {
        let mut value = value;
        procctl(0, command, &mut value).map_err(cannot("restrict the process by procctl(2)"))?;
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

/// An event that a [`Queue`] reports.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Event {
    /// A child has ended.
    ChildEnded,
    /// The watched descriptor has input, or its other end is closed.
    Readable,
    /// A followed process has started a child.
    Forked { parent: u32, child: u32 },
    /// A watched process has executed a program.
    Executed { pid: u32 },
    /// A watched process has ended, with this status of wait(2).
    Ended { pid: u32, status: c_int },
}

/// What to report of a process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Watch {
    /// Its next execve(2) and its end.
    Process,
    /// The same of it and of all processes that it starts.
    Follow,
}

/// A kernel event queue (kqueue(2)).
pub(crate) struct Queue(OwnedFd);

impl Queue {
    pub(crate) fn new() -> io::Result<Self> {
        // SAFETY: no arguments; the new descriptor has no other owner.
        let queue = unsafe { OwnedFd::from_raw_fd(check(libc::kqueue())?) };
        close_on_exec(&queue)?;
        Ok(Self(queue))
    }

    /// Reports [`Event::ChildEnded`], also while the signal is blocked.
    pub(crate) fn watch_children(&self) -> io::Result<()> {
        self.add(
            libc::SIGCHLD as usize,
            libc::EVFILT_SIGNAL,
            libc::EV_CLEAR,
            0,
        )
    }

    /// Reports [`Event::Readable`] for a descriptor.
    pub(crate) fn watch_input(&self, fd: BorrowedFd<'_>) -> io::Result<()> {
        self.add(
            fd.as_raw_fd().unsigned_abs() as usize,
            libc::EVFILT_READ,
            0,
            0,
        )
    }

    /// Reports the execve(2), the children or the end of a process. A second call replaces the first.
    ///
    /// # Errors
    /// The process does not exist (`ESRCH`).
    pub(crate) fn watch_process(&self, pid: u32, watch: Watch) -> io::Result<()> {
        let follow = match watch {
            Watch::Process => 0,
            Watch::Follow => libc::NOTE_TRACK,
        };
        let events = libc::NOTE_EXIT | libc::NOTE_EXEC | follow;
        self.add(pid as usize, libc::EVFILT_PROC, libc::EV_CLEAR, events)
    }

    fn add(&self, ident: usize, filter: i16, flags: u16, events: u32) -> io::Result<()> {
        // SAFETY: all bytes zero is a valid kevent.
        let mut change: libc::kevent = unsafe { std::mem::zeroed() };
        change.ident = ident;
        change.filter = filter;
        change.flags = libc::EV_ADD | flags;
        change.fflags = events;
        // SAFETY: one change that lives through the call, and no room for events.
        check(unsafe {
            libc::kevent(
                self.0.as_raw_fd(),
                &raw const change,
                1,
                std::ptr::null_mut(),
                0,
                std::ptr::null(),
            )
        })
        .map(drop)
    }

    /// Waits for events, at most `timeout`. No event is a timeout.
    pub(crate) fn wait(&self, timeout: Option<Duration>) -> io::Result<Vec<Event>> {
        const MAX_EVENTS: usize = 32;
        // SAFETY: all bytes zero is a valid kevent.
        let mut events: [libc::kevent; MAX_EVENTS] = unsafe { std::mem::zeroed() };
        let limit = timeout.map(|timeout| libc::timespec {
            tv_sec: timeout.as_secs().try_into().unwrap_or(libc::time_t::MAX),
            tv_nsec: timeout.subsec_nanos().into(),
        });
        let limit = limit.as_ref().map_or(std::ptr::null(), std::ptr::from_ref);
        // SAFETY: no change; room for MAX_EVENTS events, which live through the call, as does the timeout.
        let count = check(unsafe {
            libc::kevent(
                self.0.as_raw_fd(),
                std::ptr::null(),
                0,
                events.as_mut_ptr(),
                MAX_EVENTS as c_int,
                limit,
            )
        });
        let count = match count {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => 0,
            other => other?.unsigned_abs() as usize,
        };
        let mut found = Vec::new();
        for event in events.iter().take(count) {
            let pid = event.ident as u32;
            match event.filter {
                libc::EVFILT_SIGNAL => found.push(Event::ChildEnded),
                libc::EVFILT_READ => found.push(Event::Readable),
                _ if event.fflags & libc::NOTE_CHILD != 0 => found.push(Event::Forked {
                    parent: event.data as u32,
                    child: pid,
                }),
                _ => {
                    if event.fflags & libc::NOTE_EXEC != 0 {
                        found.push(Event::Executed { pid });
                    }
                    if event.fflags & libc::NOTE_EXIT != 0 {
                        found.push(Event::Ended {
                            pid,
                            status: event.data as c_int,
                        });
                    }
                }
            }
        }
        Ok(found)
    }
}

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ProcessEnd {
    Code(c_int),
    Signal(c_int),
}

impl ProcessEnd {
    /// Converts a status of wait(2).
    pub(crate) fn from_status(status: c_int) -> Self {
        match libc::WIFSIGNALED(status) {
            true => Self::Signal(libc::WTERMSIG(status)),
            false => Self::Code(libc::WEXITSTATUS(status)),
        }
    }
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

/// Waits for the end of a child.
pub(crate) fn wait_for(pid: u32) -> io::Result<ProcessEnd> {
    let pid = libc::pid_t::try_from(pid).map_err(io::Error::other)?;
    loop {
        let mut status = 0;
        // SAFETY: status lives through the call.
        match check(unsafe { libc::waitpid(pid, &raw mut status, 0) }) {
            Ok(_) => return Ok(ProcessEnd::from_status(status)),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
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
    check(unsafe { libc::getpgid(pid) })
        .ok()
        .map(c_int::unsigned_abs)
}

/// Returns a pipe, the reading end first. Both ends are closed by execve(2).
pub(crate) fn pipe() -> io::Result<(OwnedFd, OwnedFd)> {
    let mut ends = [-1; 2];
    // SAFETY: room for two descriptors; the new descriptors have no other owner.
    unsafe {
        check(libc::pipe2(ends.as_mut_ptr(), libc::O_CLOEXEC))?;
        Ok((OwnedFd::from_raw_fd(ends[0]), OwnedFd::from_raw_fd(ends[1])))
    }
}

/// Takes descriptor `fd` if it is a Unix stream socket, and closes it on execve(2).
pub(crate) fn take_socket(fd: c_int) -> Option<OwnedFd> {
    // SAFETY: all bytes zero is a valid address, which lives through the call with its size, as does the type.
    unsafe {
        let mut address: libc::sockaddr_un = std::mem::zeroed();
        let mut size = size_of::<libc::sockaddr_un>() as libc::socklen_t;
        if libc::getsockname(fd, (&raw mut address).cast(), &raw mut size) < 0
            || c_int::from(address.sun_family) != libc::AF_UNIX
        {
            return None;
        }
        let mut kind: c_int = 0;
        let mut size = size_of::<c_int>() as libc::socklen_t;
        let value = (&raw mut kind).cast();
        if libc::getsockopt(fd, libc::SOL_SOCKET, libc::SO_TYPE, value, &raw mut size) < 0
            || kind != libc::SOCK_STREAM
        {
            return None;
        }
        libc::fcntl(fd, libc::F_SETFD, libc::FD_CLOEXEC);
        // Descriptors from 3 up have no other owner at the start of the program.
        Some(OwnedFd::from_raw_fd(fd))
    }
}

/// Sends bytes, as many as the socket has room for. `O_NONBLOCK` does not suffice: the flag belongs to all copies of the
/// descriptor, and the caller may have one (fcntl(2)).
pub(crate) fn send_now(socket: &OwnedFd, bytes: &[u8]) -> io::Result<usize> {
    let flags = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;
    // SAFETY: the bytes live through the call.
    let count = unsafe {
        libc::send(
            socket.as_raw_fd(),
            bytes.as_ptr().cast(),
            bytes.len(),
            flags,
        )
    };
    usize::try_from(count).map_err(|_| io::Error::last_os_error())
}

/// Receives bytes, 0 if the other end is closed, without waiting. Descriptors that were sent with them are dropped
/// (unix(4)).
///
/// # Errors
/// There are none now (`EAGAIN`).
pub(crate) fn receive_now(socket: &OwnedFd, buffer: &mut [u8]) -> io::Result<usize> {
    let (start, size) = (buffer.as_mut_ptr().cast(), buffer.len());
    // SAFETY: room for `size` bytes, which live through the call.
    let count = unsafe { libc::recv(socket.as_raw_fd(), start, size, libc::MSG_DONTWAIT) };
    usize::try_from(count).map_err(|_| io::Error::last_os_error())
}

/// Moves descriptors to 3 and the following numbers, closes every other one from there up, and returns them.
pub(crate) fn keep_only<const N: usize>(
    kept: [Option<OwnedFd>; N],
) -> io::Result<[Option<OwnedFd>; N]> {
    let free = c_int::try_from(N).map_err(io::Error::other)? + 3;
    let mut next = 3;
    let mut moved = [const { None }; N];
    // Above their new numbers, so that none replaces another.
    let mut above = [const { None }; N];
    for (above, fd) in above.iter_mut().zip(kept) {
        if let Some(fd) = fd {
            // SAFETY: an open descriptor and a number; the new descriptor has no other owner.
            *above = Some(unsafe {
                let new = check(libc::fcntl(fd.into_raw_fd(), libc::F_DUPFD_CLOEXEC, free))?;
                OwnedFd::from_raw_fd(new)
            });
        }
    }
    for (moved, above) in moved.iter_mut().zip(above) {
        if let Some(fd) = above {
            // SAFETY: open descriptors and numbers. No value owns a descriptor from 3 to `free`; the caller's are moved.
            *moved = Some(unsafe {
                check(libc::dup2(fd.into_raw_fd(), next))?;
                OwnedFd::from_raw_fd(next)
            });
            close_on_exec(moved.as_ref().ok_or(io::ErrorKind::NotFound)?)?;
            next += 1;
        }
    }
    // SAFETY: a number only. Callers use no other descriptor from there up afterwards.
    unsafe { libc::closefrom(next) };
    Ok(moved)
}

/// Moves a descriptor to 3, closes every other one from 3 up, and returns it.
pub(crate) fn keep_one(kept: OwnedFd) -> io::Result<OwnedFd> {
    let [kept] = keep_only([Some(kept)])?;
    kept.ok_or(io::ErrorKind::NotFound.into())
}

/// Redirects descriptors 0, 1 and 2 to /dev/null, so that the agent's pipes end with the agent.
pub(crate) fn release_stdio() -> io::Result<()> {
    let null = OpenOptions::new()
        .read(true)
        .write(true)
        .open("/dev/null")?;
    for fd in 0..=2 {
        // SAFETY: open descriptors; 0 to 2 stay open.
        check(unsafe { libc::dup2(null.as_raw_fd(), fd) })?;
    }
    Ok(())
}

/// Flag of unmount(2): the text is `FSID:` with the two numbers of a file system id (sys/mount.h).
const MNT_BYFSID: c_int = 0x0800_0000;
/// Types of file systems that Colibri mounts in a jail.
const MOUNTED_TYPES: [&[u8]; 5] = [b"nullfs", b"unionfs", b"devfs", b"fdescfs", b"tmpfs"];

/// A mount in the root directory of a jail.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct MountPoint {
    pub(crate) path: Vec<u8>,
    id: String,
}

/// Returns the mounts on exactly these paths, the last one first (getfsstat(2)). The kernel recorded their paths when they
/// were mounted, so a directory that was replaced since leads to no other mount.
pub(crate) fn mounts_on(paths: &[&str]) -> io::Result<Vec<MountPoint>> {
    find_mounts(&|path| paths.iter().any(|one| one.as_bytes() == path))
}

/// Returns the mounts on a directory and in it, the last one first; see [`mounts_on`].
pub(crate) fn mounts_in(directory: &str) -> io::Result<Vec<MountPoint>> {
    find_mounts(&|path| {
        let rest = path.strip_prefix(directory.as_bytes());
        rest.is_some_and(|rest| rest.is_empty() || rest.starts_with(b"/"))
    })
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

fn find_mounts(is_wanted: &dyn Fn(&[u8]) -> bool) -> io::Result<Vec<MountPoint>> {
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
        let path = name_bytes(&mount.f_mntonname);
        let kind = name_bytes(&mount.f_fstypename);
        if !MOUNTED_TYPES.contains(&kind.as_slice()) || !is_wanted(&path) {
            continue;
        }
        // SAFETY: fsid_t consists of two 32-bit numbers (sys/_types.h).
        let [low, high]: [i32; 2] = unsafe { std::mem::transmute_copy(&mount.f_fsid) };
        found.push(MountPoint {
            path,
            id: format!("FSID:{low}:{high}"),
        });
    }
    found.reverse();
    Ok(found)
}

/// Unmounts a file system (unmount(2)).
pub(crate) fn unmount(mount: &MountPoint) -> io::Result<()> {
    let id = c_string(mount.id.as_str())?;
    // SAFETY: a C string that lives through the call.
    check(unsafe { libc::unmount(id.as_ptr(), MNT_BYFSID) }).map(drop)
}

/// Unmounts a file system, also while files of it are open, which then return errors (unmount(2)).
pub(crate) fn unmount_by_force(mount: &MountPoint) -> io::Result<()> {
    let id = c_string(mount.id.as_str())?;
    let flags = MNT_BYFSID | libc::MNT_FORCE;
    // SAFETY: a C string that lives through the call.
    check(unsafe { libc::unmount(id.as_ptr(), flags) }).map(drop)
}

/// Protection of a new mount.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum MountMode {
    ReadOnly,
    /// Writable, without setuid programs.
    NoSetuid,
}

/// Mounts a file system of this type on the working directory (nmount(2)). An option without a value has an empty one.
pub(crate) fn mount_here(kind: &str, options: &[(&str, &str)], mode: MountMode) -> io::Result<()> {
    let mut words = Vec::new();
    // Relative to the working directory, which was opened without following links.
    for (name, value) in [("fstype", kind), ("fspath", ".")].iter().chain(options) {
        words.push(text(name));
        words.push(if value.is_empty() {
            Vec::new()
        } else {
            text(value)
        });
    }
    let mut message = vec![0_u8; 256];
    words.push(text("errmsg"));
    let mut vector: Vec<libc::iovec> = words
        .iter_mut()
        .chain([&mut message])
        .map(|word| libc::iovec {
            iov_base: match word.is_empty() {
                true => std::ptr::null_mut(),
                false => word.as_mut_ptr().cast(),
            },
            iov_len: word.len(),
        })
        .collect();
    let count = c_uint::try_from(vector.len()).map_err(io::Error::other)?;
    let flags = match mode {
        MountMode::ReadOnly => libc::MNT_RDONLY,
        MountMode::NoSetuid => libc::MNT_NOSUID,
    };
    // SAFETY: every element points to `iov_len` bytes, or is null and empty; the bytes live through the call; the kernel
    // writes to the message only.
    check(unsafe { libc::nmount(vector.as_mut_ptr(), count, flags) }).map_err(|error| {
        let reason = message.split(|byte| *byte == 0).next().unwrap_or_default();
        match reason {
            [] => error,
            reason => io::Error::new(
                error.kind(),
                format!("{} ({error})", String::from_utf8_lossy(reason)),
            ),
        }
    })?;
    Ok(())
}

/// Returns the names of the host's disks (sysctl(3), `kern.disks`).
pub(crate) fn disks() -> io::Result<Vec<String>> {
    let mut bytes = vec![0_u8; 1 << 16];
    let mut size = bytes.len();
    // SAFETY: a C string; a buffer of `size` bytes and the size live through the call; nothing is set.
    check(unsafe {
        libc::sysctlbyname(
            c"kern.disks".as_ptr(),
            bytes.as_mut_ptr().cast(),
            &raw mut size,
            std::ptr::null(),
            0,
        )
    })?;
    bytes.truncate(size);
    let names = String::from_utf8_lossy(&bytes);
    let names = names.trim_end_matches('\0').split_whitespace();
    Ok(names.map(str::to_owned).collect())
}

/// Removes all resource limits of a jail (rctl_remove_rule(2)). No limit, and a kernel without rctl(4), are not errors.
pub(crate) fn remove_limits(jail: &JailName) -> io::Result<()> {
    /// The system call's number (sys/syscall.h).
    const REMOVE_RULE: c_int = 529;
    let rule = c_string(format!("jail:{jail}"))?;
    let bytes = rule.as_bytes_with_nul();
    let none = std::ptr::null_mut::<c_void>();
    // SAFETY: the rule lives through the call, which writes nothing without room for output.
    let result = unsafe { libc::syscall(REMOVE_RULE, bytes.as_ptr(), bytes.len(), none, 0_usize) };
    let error = io::Error::last_os_error();
    let is_harmless = matches!(error.raw_os_error(), Some(libc::ESRCH | libc::ENOSYS));
    match result {
        ..0 if !is_harmless => Err(error),
        _ => Ok(()),
    }
}

/// Waits for a time shorter than a second.
pub(crate) fn pause(time: Duration) {
    std::thread::sleep(time);
}

/// `SIOCAIFADDR` of sys/sockio.h: `_IOW('i', 43, struct ifaliasreq)`.
const SIOCAIFADDR: libc::c_ulong =
    0x8000_0000 | ((size_of::<libc::ifaliasreq>() as libc::c_ulong) << 16) | 0x692b;

fn internet_address(address: Ipv4Addr, port: u16) -> libc::sockaddr_in {
    libc::sockaddr_in {
        sin_len: size_of::<libc::sockaddr_in>() as u8,
        sin_family: libc::AF_INET as libc::sa_family_t,
        sin_port: port.to_be(),
        sin_addr: libc::in_addr {
            s_addr: u32::from_ne_bytes(address.octets()),
        },
        sin_zero: [0; 8],
    }
}

/// Opens a TCP socket (socket(2)).
fn tcp_socket() -> io::Result<OwnedFd> {
    // SAFETY: numbers only; the new descriptor has no other owner.
    unsafe {
        let kind = libc::SOCK_STREAM | libc::SOCK_CLOEXEC;
        Ok(OwnedFd::from_raw_fd(check(libc::socket(
            libc::AF_INET,
            kind,
            0,
        ))?))
    }
}

/// Gives lo0 of this process's network stack the address 127.0.0.1/8, which also brings it up (netintro(4), lo(4)).
pub(crate) fn configure_loopback() -> io::Result<()> {
    let socket = tcp_socket()?;
    // SAFETY: all bytes zero is a valid ifaliasreq; a sockaddr_in has the size of a sockaddr.
    let request: libc::ifaliasreq = unsafe {
        let mut request: libc::ifaliasreq = std::mem::zeroed();
        for (place, byte) in request.ifra_name.iter_mut().zip(b"lo0") {
            *place = *byte as libc::c_char;
        }
        request.ifra_addr = std::mem::transmute::<libc::sockaddr_in, libc::sockaddr>(
            internet_address(Ipv4Addr::LOCALHOST, 0),
        );
        request.ifra_mask = std::mem::transmute::<libc::sockaddr_in, libc::sockaddr>(
            internet_address(Ipv4Addr::new(255, 0, 0, 0), 0),
        );
        request
    };
    // SAFETY: the argument has the type of the request and lives through the call.
    check(unsafe { libc::ioctl(socket.as_raw_fd(), SIOCAIFADDR, &raw const request) }).map(drop)
}

/// Returns a socket that is bound to a TCP port of 127.0.0.1 and does not listen.
pub(crate) fn bound_socket(port: u16) -> io::Result<OwnedFd> {
    let socket = tcp_socket()?;
    let address = internet_address(Ipv4Addr::LOCALHOST, port);
    let length = size_of::<libc::sockaddr_in>() as libc::socklen_t;
    // SAFETY: an address of that length, which lives through the call.
    check(unsafe { libc::bind(socket.as_raw_fd(), (&raw const address).cast(), length) })?;
    Ok(socket)
}

/// Sends a byte with a descriptor over a Unix socket (unix(4), `SCM_RIGHTS`), and waits for a byte as the answer.
pub(crate) fn send_descriptor(
    socket: &OwnedFd,
    byte: u8,
    sent: BorrowedFd<'_>,
    timeout: Duration,
) -> io::Result<()> {
    // SAFETY: numbers only.
    let space = unsafe { libc::CMSG_SPACE(size_of::<c_int>() as c_uint) } as usize;
    // u64 for the alignment of a cmsghdr.
    let mut control = vec![0_u64; space.div_ceil(size_of::<u64>())];
    let mut text = byte;
    let mut part = libc::iovec {
        iov_base: (&raw mut text).cast(),
        iov_len: 1,
    };
    // SAFETY: all bytes zero is a valid msghdr. Its buffers live through the calls; the control buffer has room for one
    // header with one descriptor, which CMSG_FIRSTHDR and CMSG_DATA point to.
    let count = unsafe {
        let mut message: libc::msghdr = std::mem::zeroed();
        message.msg_iov = &raw mut part;
        message.msg_iovlen = 1;
        message.msg_control = control.as_mut_ptr().cast();
        message.msg_controllen = space as libc::socklen_t;
        let header = libc::CMSG_FIRSTHDR(&raw const message);
        if header.is_null() {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        (*header).cmsg_level = libc::SOL_SOCKET;
        (*header).cmsg_type = libc::SCM_RIGHTS;
        (*header).cmsg_len = libc::CMSG_LEN(size_of::<c_int>() as c_uint);
        let place = libc::CMSG_DATA(header).cast::<c_int>();
        place.write_unaligned(sent.as_raw_fd());
        let flags = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;
        libc::sendmsg(socket.as_raw_fd(), &raw const message, flags)
    };
    check(count as c_long)?;
    let mut poll = libc::pollfd {
        fd: socket.as_raw_fd(),
        events: libc::POLLIN,
        revents: 0,
    };
    let milliseconds = c_int::try_from(timeout.as_millis()).unwrap_or(c_int::MAX);
    // SAFETY: one element that lives through the call.
    if check(unsafe { libc::poll(&raw mut poll, 1, milliseconds) })? == 0 {
        return Err(io::ErrorKind::TimedOut.into());
    }
    match receive_now(socket, &mut [0])? {
        0 => Err(io::Error::other("the proxy has ended")),
        _ => Ok(()),
    }
}
