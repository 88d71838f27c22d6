//! System calls: all unsafe code of this program, in small functions that are safe to call. The program has one thread
//! from its start to its execve(2); several SAFETY comments rely on that.
#![allow(unsafe_code)]

#[cfg(target_os = "freebsd")]
mod freebsd;
#[cfg(target_os = "linux")]
mod linux;

#[cfg(target_os = "freebsd")]
pub(crate) use freebsd::*;
#[cfg(target_os = "linux")]
pub(crate) use linux::*;

use std::convert::Infallible;
use std::ffi::{CStr, CString, c_char, c_int, c_long, c_uint};
use std::fs::OpenOptions;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::sync::atomic::{AtomicU32, Ordering};

use colibri_jail_core::Signal;

#[cfg(target_os = "linux")]
use libc::__errno_location as errno;
#[cfg(target_os = "freebsd")]
use libc::__error as errno;
use libc::mode_t;

/// `EX_OSERR` of sysexits(3).
pub(crate) const EXIT_FAILED: c_int = 71;

/// Why a function of this module failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SysError {
    #[error(
        "descriptor {0} {1}; open 0 for reading, 1 and 2 for writing, each as a pipe, a file or a terminal"
    )]
    Descriptor(c_int, &'static str),
    #[error("no program {0} in the jail; give an existing one")]
    NoProgram(String),
    #[error("cannot {action}: {error}")]
    Failed { action: String, error: io::Error },
}

/// Returns a function for `map_err` that adds the action to an error of the system.
pub(crate) fn cannot(action: impl Into<String>) -> impl FnOnce(io::Error) -> SysError {
    let action = action.into();
    |error| SysError::Failed { action, error }
}

/// The user that started this program, as reported by the kernel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Caller {
    pub(crate) uid: u32,
    /// All groups, the real one first.
    pub(crate) groups: Vec<u32>,
}

/// Returns the error of the last system call if its result is negative.
fn check(result: impl Into<c_long>) -> io::Result<c_int> {
    match result.into() {
        ..0 => Err(io::Error::last_os_error()),
        result => c_int::try_from(result).map_err(io::Error::other),
    }
}

/// Converts a text for a system call. A text with a NUL byte is an error.
fn c_string(text: impl Into<Vec<u8>>) -> io::Result<CString> {
    Ok(CString::new(text)?)
}

/// Returns the arguments, the program's name first. Empty if argc is 0.
pub(crate) fn argv(argc: c_int, argv: *const *const c_char) -> Vec<Vec<u8>> {
    let count = usize::try_from(argc).unwrap_or(0);
    let arguments = (0..count).map_while(|index| {
        // SAFETY: the C runtime passes argc valid pointers to strings that live as long as the process; a null
        // pointer, which ends the list, is checked for all the same.
        unsafe {
            let argument = *argv.add(index);
            (!argument.is_null()).then(|| CStr::from_ptr(argument).to_bytes().to_vec())
        }
    });
    arguments.collect()
}

/// Reports whether a descriptor accepts a message at once (poll(2)).
pub(crate) fn is_writable(fd: c_int) -> bool {
    let mut poll = libc::pollfd {
        fd,
        events: libc::POLLOUT,
        revents: 0,
    };
    // SAFETY: one element that lives through the call.
    unsafe { libc::poll(&raw mut poll, 1, 0) == 1 }
}

/// Reports whether the effective uid is 0.
pub(crate) fn has_effective_root() -> bool {
    // SAFETY: geteuid(2) has no arguments and cannot fail.
    unsafe { libc::geteuid() == 0 }
}

/// Checks that descriptor 0 is open for reading, that 1 and 2 are open for writing, and that each is a pipe, a regular file or
/// a device. A directory would lead the agent out of its jail, a Unix socket can pass it one (unix(7), `SCM_RIGHTS`), and a
/// ring of io_uring(7) lets its other users act with the agent's rights. For a setuid program whose caller closed one, the C
/// library opens /dev/full or /dev/null in the wrong direction (glibc, `__libc_check_standard_fds`), so the direction reveals
/// it.
pub(crate) fn check_standard_descriptors() -> Result<(), SysError> {
    for fd in 0..=2 {
        let refuse = |problem| Err(SysError::Descriptor(fd, problem));
        // SAFETY: fcntl(2) F_GETFL takes any number and reads no memory.
        let flags = unsafe { libc::fcntl(fd, libc::F_GETFL) };
        if flags < 0 {
            return refuse("is closed");
        }
        let wrong = match fd {
            0 => libc::O_WRONLY,
            _ => libc::O_RDONLY,
        };
        if flags & libc::O_ACCMODE == wrong || flags & libc::O_PATH != 0 {
            return refuse("is closed, or open in the wrong direction");
        }
        // SAFETY: all bytes zero is a valid stat.
        let mut data: libc::stat = unsafe { std::mem::zeroed() };
        // SAFETY: data is a stat that lives through the call.
        if unsafe { libc::fstat(fd, &raw mut data) } < 0 {
            return refuse("cannot be examined");
        }
        match data.st_mode & libc::S_IFMT {
            libc::S_IFIFO | libc::S_IFREG | libc::S_IFCHR => {}
            libc::S_IFDIR => return refuse("is a directory"),
            libc::S_IFSOCK => return refuse("is a socket"),
            _ => return refuse("is not a pipe, a file or a terminal"),
        }
    }
    Ok(())
}

/// Returns the user that started this program. Call it before [`become_user`].
pub(crate) fn caller() -> Caller {
    // SAFETY: getgid(2) has no arguments and cannot fail.
    let gid = unsafe { libc::getgid() };
    let mut groups = vec![0; 1 << 16];
    // SAFETY: the buffer has the given number of elements; Linux has at most 65536 groups, FreeBSD 1023.
    let count = unsafe { libc::getgroups(1 << 16, groups.as_mut_ptr()) };
    groups.truncate(usize::try_from(count).unwrap_or(0));
    groups.retain(|group| *group != gid);
    groups.insert(0, gid);
    Caller {
        // SAFETY: getuid(2) has no arguments and cannot fail.
        uid: unsafe { libc::getuid() },
        groups,
    }
}

/// Resets signal dispositions and timers, which execve(2) inherits, and blocks all signals until [`unblock_signals`]: a
/// signal of a terminal could stop this program while it holds a lock. Only ALRM is not blocked, for [`limit_time`].
pub(crate) fn reset_signals_and_timers() -> Result<(), SysError> {
    // SAFETY: plain calls with values on the stack; SIG_DFL is a valid disposition for every signal, and a signal
    // whose disposition is fixed returns EINVAL.
    unsafe {
        let mut all: libc::sigset_t = std::mem::zeroed();
        libc::sigfillset(&raw mut all);
        libc::sigdelset(&raw mut all, libc::SIGALRM);
        if libc::sigprocmask(libc::SIG_SETMASK, &raw const all, std::ptr::null_mut()) < 0 {
            return Err(cannot("block signals")(io::Error::last_os_error()));
        }
        for signal in 1..128 {
            libc::signal(signal, libc::SIG_DFL);
        }
        // The C library reserves these and refuses to change them (nptl(7)), but they may be inherited as ignored.
        #[cfg(target_os = "linux")]
        for signal in [32, 33] {
            let (default, none) = ([0_u8; 64], std::ptr::null_mut::<u8>());
            libc::syscall(libc::SYS_rt_sigaction, signal, default.as_ptr(), none, 8);
        }
        let none: libc::itimerval = std::mem::zeroed();
        for timer in [libc::ITIMER_REAL, libc::ITIMER_VIRTUAL, libc::ITIMER_PROF] {
            libc::setitimer(timer, &raw const none, std::ptr::null_mut());
        }
    }
    Ok(())
}

/// The user as whose process this program ends by [`limit_time`].
static CALLER: AtomicU32 = AtomicU32::new(0);

extern "C" fn end_by_alarm(_: c_int) {
    count_as(CALLER.load(Ordering::Relaxed));
    exit(EXIT_FAILED);
}

/// Ends this program after a time in seconds, or with 0 never (alarm(2)): a file system of the caller may never answer. A child
/// has no such limit.
pub(crate) fn limit_time(seconds: u32, caller: &Caller) {
    CALLER.store(caller.uid, Ordering::Relaxed);
    let handler = end_by_alarm as *const ();
    // SAFETY: alarm(2) takes a number; the handler makes system calls only (signal-safety(7)).
    unsafe {
        libc::signal(libc::SIGALRM, handler as libc::sighandler_t);
        libc::alarm(seconds);
    }
}

/// Unblocks all signals, directly before execve(2).
pub(crate) fn unblock_signals() {
    // SAFETY: an empty set on the stack.
    unsafe {
        let mut none: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&raw mut none);
        libc::sigprocmask(libc::SIG_SETMASK, &raw const none, std::ptr::null_mut());
    }
}

/// Raises the resource limits, which the caller could set to end this program between two steps (`RLIMIT_FSIZE`,
/// `RLIMIT_CPU`), and disables core files.
pub(crate) fn reset_limits() -> Result<(), SysError> {
    set_limit(libc::RLIMIT_CORE, 0)?;
    for resource in [
        libc::RLIMIT_FSIZE,
        libc::RLIMIT_CPU,
        libc::RLIMIT_AS,
        libc::RLIMIT_DATA,
        libc::RLIMIT_NPROC,
    ] {
        set_limit(resource, libc::RLIM_INFINITY)?;
    }
    set_limit(libc::RLIMIT_NOFILE, 65_536)?;
    set_limits(libc::RLIMIT_STACK, 8 << 20, libc::RLIM_INFINITY)
}

#[cfg(target_os = "linux")]
type Resource = libc::__rlimit_resource_t;
#[cfg(not(target_os = "linux"))]
type Resource = c_int;

/// Sets the soft and the hard value of a resource limit (setrlimit(2)).
pub(crate) fn set_limit(resource: Resource, value: libc::rlim_t) -> Result<(), SysError> {
    set_limits(resource, value, value)
}

fn set_limits(resource: Resource, soft: libc::rlim_t, hard: libc::rlim_t) -> Result<(), SysError> {
    let set = |soft, hard| {
        let limit = libc::rlimit {
            rlim_cur: soft,
            rlim_max: hard,
        };
        // SAFETY: limit lives through the call.
        check(unsafe { libc::setrlimit(resource, &raw const limit) }).map(drop)
    };
    set(soft, hard)
        .or_else(|error| {
            if error.kind() != io::ErrorKind::PermissionDenied {
                return Err(error);
            }
            // Root of a container may lack the right to raise limits (CAP_SYS_RESOURCE); the present maximum remains.
            let mut present = libc::rlimit {
                rlim_cur: 0,
                rlim_max: 0,
            };
            // SAFETY: present lives through the call.
            check(unsafe { libc::getrlimit(resource, &raw mut present) })?;
            set(soft.min(present.rlim_max), hard.min(present.rlim_max))
        })
        .map_err(cannot(format!("set resource limit {resource}")))
}

/// Becomes root alone. The caller loses the right to signal this process (kill(2)).
pub(crate) fn become_root() -> Result<(), SysError> {
    set_ids(0, 0)
}

/// Sets the real uid alone. The process then counts as one of this user (setrlimit(2), `RLIMIT_NPROC`), who can signal it, but
/// not trace it (ptrace(2)). A failure leaves the previous one.
pub(crate) fn count_as(uid: u32) {
    // SAFETY: setresuid(2) takes numbers; -1 leaves an id.
    unsafe { libc::setresuid(uid, u32::MAX, u32::MAX) };
}

/// Drops root irrevocably. The ids 0 are refused, even if a check before has failed.
pub(crate) fn become_user(uid: u32, gid: u32) -> Result<(), SysError> {
    // setresuid(2) ignores (uid_t)-1 and would leave root. The types of a request exclude the value already.
    if [uid, gid].iter().any(|id| [0, u32::MAX].contains(id)) {
        let error = io::ErrorKind::InvalidInput.into();
        return Err(cannot(format!("become user {uid}:{gid}"))(error));
    }
    set_ids(uid, gid)
}

/// Sets the real, effective and saved uid and gid, and drops all supplementary groups. Groups are set first, while the
/// process still has the right.
fn set_ids(uid: u32, gid: u32) -> Result<(), SysError> {
    // SAFETY: one group on the stack; the other calls take numbers. With one thread, the whole process changes.
    unsafe {
        check(libc::setgroups(1, &raw const gid)).map_err(cannot("set the groups"))?;
        check(libc::setresgid(gid, gid, gid)).map_err(cannot("set the gid"))?;
        check(libc::setresuid(uid, uid, uid)).map_err(cannot("set the uid"))?;
        let mut ids = [u32::MAX; 6];
        let [a, b, c, d, e, f] = &mut ids;
        check(libc::getresuid(a, b, c)).map_err(cannot("read the uid"))?;
        check(libc::getresgid(d, e, f)).map_err(cannot("read the gid"))?;
        let group_count = libc::getgroups(0, std::ptr::null_mut());
        let regained = uid != 0
            && (libc::setuid(0) == 0
                || libc::setgid(0) == 0
                || libc::setgroups(0, std::ptr::null()) == 0);
        if ids != [uid, uid, uid, gid, gid, gid] || group_count != 1 || regained {
            let problem = "the process kept an id, a group or the right to change them";
            return Err(cannot("drop root")(io::Error::other(problem)));
        }
    }
    Ok(())
}

/// Sets the umask of a login session, 022.
pub(crate) fn reset_umask() {
    // SAFETY: umask(2) takes a number and cannot fail.
    unsafe { libc::umask(0o022) };
}

/// Opens a directory in a directory, not through a link.
pub(crate) fn open_directory_at(directory: &OwnedFd, name: &str) -> io::Result<OwnedFd> {
    let flags = libc::O_RDONLY | libc::O_DIRECTORY | libc::O_NOFOLLOW;
    open_at(directory, name, flags, 0)
}

/// Opens a file for reading, not through a link, and without waiting for the writer of a FIFO.
pub(crate) fn open_file_at(directory: &OwnedFd, name: &str) -> io::Result<OwnedFd> {
    let flags = libc::O_RDONLY | libc::O_NOFOLLOW | libc::O_NONBLOCK | libc::O_NOCTTY;
    open_at(directory, name, flags, 0)
}

/// Opens a file for appending; a new one has mode 0600. With `exclusive`, an existing file is an error.
pub(crate) fn create_file_at(parent: &OwnedFd, name: &str, exclusive: bool) -> io::Result<OwnedFd> {
    let exclusive = if exclusive { libc::O_EXCL } else { 0 };
    let flags = libc::O_WRONLY | libc::O_APPEND | libc::O_CREAT | libc::O_NOFOLLOW | exclusive;
    open_at(parent, name, flags, 0o600)
}

/// Opens a file in a directory; execve(2) closes it (openat(2)).
fn open_at(directory: &OwnedFd, name: &str, flags: c_int, mode: c_uint) -> io::Result<OwnedFd> {
    let (directory, flags) = (directory.as_raw_fd(), flags | libc::O_CLOEXEC);
    let name = c_string(name)?;
    // SAFETY: name is a C string that lives through the call; the new descriptor has no other owner.
    unsafe {
        check(libc::openat(directory, name.as_ptr(), flags, mode))
            .map(|fd| OwnedFd::from_raw_fd(fd))
    }
}

/// Creates a directory (mkdirat(2)).
pub(crate) fn make_directory_at(parent: &OwnedFd, name: &str, mode: mode_t) -> io::Result<()> {
    let name = c_string(name)?;
    // SAFETY: name is a C string that lives through the call.
    check(unsafe { libc::mkdirat(parent.as_raw_fd(), name.as_ptr(), mode) }).map(drop)
}

/// Deletes a file (unlinkat(2)).
pub(crate) fn remove_file_at(directory: &OwnedFd, name: &str) -> io::Result<()> {
    let name = c_string(name)?;
    // SAFETY: name is a C string that lives through the call.
    check(unsafe { libc::unlinkat(directory.as_raw_fd(), name.as_ptr(), 0) }).map(drop)
}

/// Renames a file within a directory (renameat(2)).
pub(crate) fn rename_at(directory: &OwnedFd, from: &str, to: &str) -> io::Result<()> {
    let (from, to) = (c_string(from)?, c_string(to)?);
    let fd = directory.as_raw_fd();
    // SAFETY: both are C strings that live through the call.
    check(unsafe { libc::renameat(fd, from.as_ptr(), fd, to.as_ptr()) }).map(drop)
}

/// Returns all names in a directory but `.` and `..`.
pub(crate) fn names_in(directory: &OwnedFd) -> io::Result<Vec<String>> {
    let reopened = open_directory_at(directory, ".")?;
    let mut names = Vec::new();
    // SAFETY: fdopendir(3) takes ownership of the descriptor, and closedir(3) closes it; an
    // entry is read before the next call of readdir(3), and its name is a C string. errno belongs to this thread.
    unsafe {
        let stream = libc::fdopendir(std::os::fd::IntoRawFd::into_raw_fd(reopened));
        if stream.is_null() {
            return Err(io::Error::last_os_error());
        }
        let ended = loop {
            // readdir(3) returns null at the end, and on an error, which only errno shows.
            *errno() = 0;
            let entry = libc::readdir(stream);
            if entry.is_null() {
                break io::Error::last_os_error();
            }
            if let Ok(name) = CStr::from_ptr((*entry).d_name.as_ptr()).to_str()
                && !matches!(name, "." | "..")
            {
                names.push(name.to_owned());
            }
        };
        libc::closedir(stream);
        match ended.raw_os_error() {
            Some(0) => Ok(names),
            _ => Err(ended),
        }
    }
}

/// Executes the first of `programs` that exists. Returns only if none could be executed.
pub(crate) fn execute(programs: &[String], args: &[String], environment: &[Vec<u8>]) -> SysError {
    for program in programs {
        match execute_one(program, args, environment) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return cannot(format!("execute {program}"))(error),
        }
    }
    SysError::NoProgram(programs.join(" or "))
}

/// Executes a program (execve(2)). As in a shell, argv[0] is the path that was found.
fn execute_one(program: &str, args: &[String], environment: &[Vec<u8>]) -> io::Result<Infallible> {
    let words = std::iter::once(program).chain(args.iter().map(String::as_str));
    let argv: Vec<CString> = words.map(c_string).collect::<io::Result<_>>()?;
    let variables = environment.iter().map(Vec::as_slice);
    let environment: Vec<CString> = variables.map(c_string).collect::<io::Result<_>>()?;
    let [argv_pointers, envp] = [&argv, &environment].map(|strings| -> Vec<*const c_char> {
        let pointers = strings.iter().map(|string| string.as_ptr());
        pointers.chain([std::ptr::null()]).collect()
    });
    // SAFETY: argv has the program; both lists end with null and point to C strings that live through the call.
    unsafe { libc::execve(argv_pointers[0], argv_pointers.as_ptr(), envp.as_ptr()) };
    Err(io::Error::last_os_error())
}

/// Returns the host's number of a signal.
pub(crate) fn signal_number(signal: Signal) -> c_int {
    match signal.name() {
        "HUP" => libc::SIGHUP,
        "INT" => libc::SIGINT,
        "QUIT" => libc::SIGQUIT,
        "ABRT" => libc::SIGABRT,
        "KILL" => libc::SIGKILL,
        "ALRM" => libc::SIGALRM,
        "USR1" => libc::SIGUSR1,
        "USR2" => libc::SIGUSR2,
        "CONT" => libc::SIGCONT,
        "STOP" => libc::SIGSTOP,
        "TSTP" => libc::SIGTSTP,
        "TTIN" => libc::SIGTTIN,
        "TTOU" => libc::SIGTTOU,
        "WINCH" => libc::SIGWINCH,
        _ => libc::SIGTERM,
    }
}

/// The process that returns from [`fork`].
pub(crate) enum Fork {
    Child,
    /// The parent, with the pid of the child.
    Parent(u32),
}

/// Forks (fork(2)).
pub(crate) fn fork() -> io::Result<Fork> {
    // SAFETY: with one thread, the child may call any function.
    Ok(match check(unsafe { libc::fork() })? {
        0 => Fork::Child,
        pid => Fork::Parent(pid.unsigned_abs()),
    })
}

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ProcessEnd {
    Code(c_int),
    Signal(c_int),
}

impl ProcessEnd {
    /// Returns the exit code, or 128 plus the number of the signal.
    pub(crate) fn code(self) -> c_int {
        match self {
            Self::Code(code) => code,
            Self::Signal(signal) => 128 + signal,
        }
    }

    /// Converts a status of wait(2).
    pub(crate) fn from_status(status: c_int) -> Self {
        match libc::WIFSIGNALED(status) {
            true => Self::Signal(libc::WTERMSIG(status)),
            false => Self::Code(libc::WEXITSTATUS(status)),
        }
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

/// Redirects descriptors 0, 1 and 2 to /dev/null, so that the agent's pipes end with the agent.
pub(crate) fn release_stdio() -> io::Result<()> {
    let mut options = OpenOptions::new();
    let null = options.read(true).write(true).open("/dev/null")?;
    for fd in 0..=2 {
        // SAFETY: open descriptors; 0 to 2 stay open.
        check(unsafe { libc::dup2(null.as_raw_fd(), fd) })?;
    }
    Ok(())
}

/// Ends this process without cleanup (_exit(2)).
pub(crate) fn exit(code: c_int) -> ! {
    // SAFETY: _exit(2) does not return.
    unsafe { libc::_exit(code) }
}
