//! The boundary to the system: all unsafe code of this program, in small functions that are safe to call. It is
//! single-threaded from its start to its execve(2), which several reasons below rest on.
#![allow(unsafe_code)]

#[cfg(target_os = "freebsd")]
mod freebsd;
#[cfg(target_os = "linux")]
mod linux;

#[cfg(target_os = "freebsd")]
pub(crate) use freebsd::*;
#[cfg(target_os = "linux")]
pub(crate) use linux::*;

use std::ffi::{CStr, CString, c_char, c_int};
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use colibri_jail_core::Signal;

use crate::error::Stop;
use crate::policy::Limits;

/// Who started this program, as the kernel says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Caller {
    pub(crate) uid: u32,
    /// All groups, the real one among them.
    pub(crate) groups: Vec<u32>,
}

fn check(result: c_int) -> io::Result<c_int> {
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(result)
    }
}

/// A word for a system call. Words of a request hold no NUL; one of a program's own name might.
fn c_string(text: impl Into<Vec<u8>>) -> io::Result<CString> {
    Ok(CString::new(text)?)
}

/// The words of the command line, the program's own name first; none where argc is 0.
pub(crate) fn words(argc: c_int, argv: *const *const c_char) -> Vec<Vec<u8>> {
    let count = usize::try_from(argc).unwrap_or(0);
    let mut words = Vec::with_capacity(count);
    for place in 0..count {
        // SAFETY: the C runtime passes argc valid pointers to strings that live as long as the process; a null
        // one, which ends the list, is looked for all the same.
        unsafe {
            let word = *argv.add(place);
            if word.is_null() {
                break;
            }
            words.push(CStr::from_ptr(word).to_bytes().to_vec());
        }
    }
    words
}

/// The real uid.
pub(crate) fn real_uid() -> u32 {
    // SAFETY: getuid(2) has no arguments and cannot fail.
    unsafe { libc::getuid() }
}

/// Whether the effective uid is 0.
pub(crate) fn is_effectively_root() -> bool {
    // SAFETY: geteuid(2) has no arguments and cannot fail.
    unsafe { libc::geteuid() == 0 }
}

/// Descriptors 0 to 2 are open, 0 to read and the others to write, and none is a directory, by which a
/// confined agent could get at what is outside. The C library opens /dev/full or /dev/null in the wrong
/// direction for a setuid program whose caller closed one (glibc, `__libc_check_standard_fds`), so the
/// direction tells.
pub(crate) fn check_standard_descriptors() -> Result<(), Stop> {
    for fd in 0..=2 {
        // SAFETY: fcntl(2) F_GETFL takes any number and reads nothing of ours.
        let flags = unsafe { libc::fcntl(fd, libc::F_GETFL) };
        if flags < 0 {
            return Err(Stop::Descriptor(fd, "is closed"));
        }
        let wrong = if fd == 0 {
            libc::O_WRONLY
        } else {
            libc::O_RDONLY
        };
        if flags & libc::O_ACCMODE == wrong || flags & libc::O_PATH != 0 {
            return Err(Stop::Descriptor(
                fd,
                "is closed, or open in the wrong direction",
            ));
        }
        // SAFETY: all bytes zero is a valid stat.
        let mut data: libc::stat = unsafe { std::mem::zeroed() };
        // SAFETY: data is a stat that lives through the call.
        if unsafe { libc::fstat(fd, &raw mut data) } < 0 {
            return Err(Stop::Descriptor(fd, "cannot be looked at"));
        }
        if data.st_mode & libc::S_IFMT == libc::S_IFDIR {
            return Err(Stop::Descriptor(fd, "is a directory"));
        }
    }
    Ok(())
}

/// Who started this program. To be read before [`become_root_alone`].
pub(crate) fn caller() -> Caller {
    let mut groups = vec![0; 1 << 16];
    // SAFETY: the buffer has the given number of elements; Linux has at most 65536 groups, FreeBSD 1023.
    let count = unsafe { libc::getgroups(1 << 16, groups.as_mut_ptr()) };
    groups.truncate(usize::try_from(count).unwrap_or(0));
    // SAFETY: getgid(2) has no arguments and cannot fail.
    groups.push(unsafe { libc::getgid() });
    Caller {
        uid: real_uid(),
        groups,
    }
}

/// Ignored and blocked signals and running timers are inherited by execve(2). From here on all signals wait:
/// a terminal's could stop this program with a lock in its hand. [`unblock_signals`] ends that.
pub(crate) fn reset_signals_and_timers() -> Result<(), Stop> {
    // SAFETY: plain calls with values on the stack; SIG_DFL is a valid disposition for every signal, and those
    // that cannot be changed answer EINVAL.
    unsafe {
        let mut all: libc::sigset_t = std::mem::zeroed();
        libc::sigfillset(&raw mut all);
        if libc::sigprocmask(libc::SIG_SETMASK, &raw const all, std::ptr::null_mut()) < 0 {
            return Err(Stop::system("blocking signals", io::Error::last_os_error()));
        }
        for signal in 1..128 {
            libc::signal(signal, libc::SIG_DFL);
        }
        // The C library keeps these for itself and refuses to change them (nptl(7)); inherited they may be ignored.
        #[cfg(target_os = "linux")]
        for signal in [32, 33] {
            let default = [0_u8; 64];
            libc::syscall(
                libc::SYS_rt_sigaction,
                signal,
                default.as_ptr(),
                std::ptr::null_mut::<u8>(),
                8,
            );
        }
        let none: libc::itimerval = std::mem::zeroed();
        for timer in [libc::ITIMER_REAL, libc::ITIMER_VIRTUAL, libc::ITIMER_PROF] {
            libc::setitimer(timer, &raw const none, std::ptr::null_mut());
        }
    }
    Ok(())
}

/// Lets signals come again, just before another program runs.
pub(crate) fn unblock_signals() {
    // SAFETY: an empty set on the stack.
    unsafe {
        let mut none: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&raw mut none);
        libc::sigprocmask(libc::SIG_SETMASK, &raw const none, std::ptr::null_mut());
    }
}

/// The caller's limits could end this program half way (`RLIMIT_FSIZE`, `RLIMIT_CPU`): its own are the widest.
pub(crate) fn reset_limits() -> Result<(), Stop> {
    limit(libc::RLIMIT_CORE, 0)?;
    for resource in [
        libc::RLIMIT_FSIZE,
        libc::RLIMIT_CPU,
        libc::RLIMIT_AS,
        libc::RLIMIT_DATA,
        libc::RLIMIT_NPROC,
    ] {
        limit(resource, libc::RLIM_INFINITY)?;
    }
    limit(libc::RLIMIT_NOFILE, 65_536)?;
    set_limit(libc::RLIMIT_STACK, 8 << 20, libc::RLIM_INFINITY)
}

/// The agent's limits. Processes are counted for its user, so this comes last.
pub(crate) fn apply_limits(limits: &Limits) -> Result<(), Stop> {
    let or_none =
        |value: Option<u64>| value.map_or(libc::RLIM_INFINITY, |value| value as libc::rlim_t);
    limit(libc::RLIMIT_AS, or_none(limits.memory))?;
    limit(libc::RLIMIT_FSIZE, or_none(limits.file_size))?;
    limit(libc::RLIMIT_CPU, or_none(limits.cpu_seconds))?;
    limit(libc::RLIMIT_NOFILE, limits.open_files as libc::rlim_t)?;
    limit(libc::RLIMIT_NPROC, limits.processes as libc::rlim_t)
}

#[cfg(target_os = "linux")]
type Resource = libc::__rlimit_resource_t;
#[cfg(not(target_os = "linux"))]
type Resource = c_int;

fn limit(resource: Resource, value: libc::rlim_t) -> Result<(), Stop> {
    set_limit(resource, value, value)
}

fn set_limit(resource: Resource, soft: libc::rlim_t, hard: libc::rlim_t) -> Result<(), Stop> {
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
            // A container may keep the right to raise limits from its root: then there is no more than there is.
            let mut present = libc::rlimit {
                rlim_cur: 0,
                rlim_max: 0,
            };
            // SAFETY: present lives through the call.
            check(unsafe { libc::getrlimit(resource, &raw mut present) })?;
            set(soft.min(present.rlim_max), hard.min(present.rlim_max))
        })
        .map_err(|error| Stop::system(format!("setting resource limit {resource}"), error))
}

/// Real, effective and saved uid and gid become 0 and supplementary groups go, so that the caller, whose real
/// uid this was, can send no signal any more (kill(2)).
pub(crate) fn become_root_alone() -> Result<(), Stop> {
    become_user(0, 0)
}

/// Becomes that user for good. Groups first: afterwards the right to set them is gone.
pub(crate) fn become_user(uid: u32, gid: u32) -> Result<(), Stop> {
    let failed = |what: &'static str| move |error| Stop::system(what, error);
    // (uid_t)-1 means "leave as it is" to setresuid(2): it would leave root. No type lets it come here.
    if uid == u32::MAX || gid == u32::MAX {
        return Err(Stop::NoUser(format!("{uid}:{gid}")));
    }
    // SAFETY: one group on the stack; the other calls take numbers. One thread: the process changes whole.
    unsafe {
        check(libc::setgroups(1, &raw const gid)).map_err(failed("setgroups"))?;
        check(libc::setresgid(gid, gid, gid)).map_err(failed("setresgid"))?;
        check(libc::setresuid(uid, uid, uid)).map_err(failed("setresuid"))?;
        let mut ids = [u32::MAX; 6];
        let [a, b, c, d, e, f] = &mut ids;
        check(libc::getresuid(a, b, c)).map_err(failed("getresuid"))?;
        check(libc::getresgid(d, e, f)).map_err(failed("getresgid"))?;
        let group_count = libc::getgroups(0, std::ptr::null_mut());
        let back = uid != 0
            && (libc::setuid(0) == 0
                || libc::setgid(0) == 0
                || libc::setgroups(0, std::ptr::null()) == 0);
        if ids != [uid, uid, uid, gid, gid, gid] || group_count != 1 || back {
            return Err(Stop::system(
                "giving up root",
                io::Error::other("the system kept some of it"),
            ));
        }
    }
    Ok(())
}

/// Files of the agent are as of a login.
pub(crate) fn reset_umask() {
    // SAFETY: umask(2) takes a number and cannot fail.
    unsafe { libc::umask(0o022) };
}

/// chdir(2).
pub(crate) fn change_directory(path: &str) -> io::Result<()> {
    let path = c_string(path)?;
    // SAFETY: path is a C string that lives through the call.
    check(unsafe { libc::chdir(path.as_ptr()) }).map(drop)
}

/// A session of its own, without a controlling terminal.
#[cfg(target_os = "freebsd")]
pub(crate) fn new_session() -> io::Result<()> {
    // SAFETY: setsid(2) has no arguments.
    check(unsafe { libc::setsid() }).map(drop)
}

const DIRECTORY: c_int = libc::O_RDONLY | libc::O_DIRECTORY | libc::O_NOFOLLOW | libc::O_CLOEXEC;

/// `/`.
pub(crate) fn open_root() -> io::Result<OwnedFd> {
    open_at(libc::AT_FDCWD, "/", DIRECTORY, 0)
}

/// A directory in a directory, not through a link.
pub(crate) fn open_directory_at(directory: &OwnedFd, name: &str) -> io::Result<OwnedFd> {
    open_at(directory.as_raw_fd(), name, DIRECTORY, 0)
}

/// A file to read, not through a link, and without waiting for the other end of a FIFO.
pub(crate) fn open_file_at(directory: &OwnedFd, name: &str) -> io::Result<OwnedFd> {
    let flags =
        libc::O_RDONLY | libc::O_NOFOLLOW | libc::O_NONBLOCK | libc::O_NOCTTY | libc::O_CLOEXEC;
    open_at(directory.as_raw_fd(), name, flags, 0)
}

/// A file to write, new ones of root's alone; `exclusive` refuses one that exists.
pub(crate) fn create_file_at(
    directory: &OwnedFd,
    name: &str,
    exclusive: bool,
) -> io::Result<OwnedFd> {
    let flags = libc::O_WRONLY | libc::O_CREAT | libc::O_NOFOLLOW | libc::O_CLOEXEC;
    let exclusive = if exclusive { libc::O_EXCL } else { 0 };
    open_at(directory.as_raw_fd(), name, flags | exclusive, 0o600)
}

fn open_at(directory: c_int, name: &str, flags: c_int, mode: libc::c_uint) -> io::Result<OwnedFd> {
    let name = c_string(name)?;
    // SAFETY: name is a C string that lives through the call; the new descriptor is owned by nobody else.
    unsafe {
        check(libc::openat(directory, name.as_ptr(), flags, mode))
            .map(|fd| OwnedFd::from_raw_fd(fd))
    }
}

/// mkdirat(2).
pub(crate) fn make_directory_at(
    directory: &OwnedFd,
    name: &str,
    mode: libc::mode_t,
) -> io::Result<()> {
    let name = c_string(name)?;
    // SAFETY: name is a C string that lives through the call.
    check(unsafe { libc::mkdirat(directory.as_raw_fd(), name.as_ptr(), mode) }).map(drop)
}

/// unlinkat(2).
pub(crate) fn remove_file_at(directory: &OwnedFd, name: &str) -> io::Result<()> {
    let name = c_string(name)?;
    // SAFETY: name is a C string that lives through the call.
    check(unsafe { libc::unlinkat(directory.as_raw_fd(), name.as_ptr(), 0) }).map(drop)
}

/// renameat(2), in one directory.
pub(crate) fn rename_at(directory: &OwnedFd, from: &str, to: &str) -> io::Result<()> {
    let (from, to) = (c_string(from)?, c_string(to)?);
    let fd = directory.as_raw_fd();
    // SAFETY: both are C strings that live through the call.
    check(unsafe { libc::renameat(fd, from.as_ptr(), fd, to.as_ptr()) }).map(drop)
}

/// All names in a directory but `.` and `..`.
pub(crate) fn names_in(directory: &OwnedFd) -> io::Result<Vec<String>> {
    let own = open_directory_at(directory, ".")?;
    let mut names = Vec::new();
    // SAFETY: fdopendir(3) takes over the descriptor, which is given up here, and closedir(3) closes it; an
    // entry is read before the next call of readdir(3), and its name is a C string.
    unsafe {
        let stream = libc::fdopendir(std::os::fd::IntoRawFd::into_raw_fd(own));
        if stream.is_null() {
            return Err(io::Error::last_os_error());
        }
        loop {
            let entry = libc::readdir(stream);
            if entry.is_null() {
                break;
            }
            if let Ok(name) = CStr::from_ptr((*entry).d_name.as_ptr()).to_str()
                && !matches!(name, "." | "..")
            {
                names.push(name.to_owned());
            }
        }
        libc::closedir(stream);
    }
    Ok(names)
}

/// execve(2) of the first of `programs` that exists; returns only if none could be executed.
pub(crate) fn execute(programs: &[String], args: &[String], env: &[Vec<u8>]) -> Stop {
    let shown = programs.join(" or ");
    let prepared = || -> io::Result<(Vec<CString>, Vec<CString>)> {
        let args = args
            .iter()
            .map(|word| c_string(word.as_str()))
            .collect::<io::Result<_>>()?;
        let env = env
            .iter()
            .map(|word| c_string(word.as_slice()))
            .collect::<io::Result<_>>()?;
        Ok((args, env))
    };
    let (args, env) = match prepared() {
        Ok(prepared) => prepared,
        Err(error) => return Stop::system(format!("executing {shown}"), error),
    };
    let pointers = |words: &[CString]| -> Vec<*const c_char> {
        words
            .iter()
            .map(|word| word.as_ptr())
            .chain([std::ptr::null()])
            .collect()
    };
    let envp = pointers(&env);
    for program in programs {
        let Ok(program) = c_string(program.as_str()) else {
            continue;
        };
        // As a shell does, argv[0] is what was found.
        let mut argv = pointers(&args);
        argv.insert(0, program.as_ptr());
        // SAFETY: both lists end with null and point to C strings that live through the call.
        unsafe { libc::execve(program.as_ptr(), argv.as_ptr(), envp.as_ptr()) };
        let error = io::Error::last_os_error();
        if error.kind() != io::ErrorKind::NotFound {
            return Stop::system(format!("executing {}", program.to_string_lossy()), error);
        }
    }
    Stop::NoProgram(shown)
}

/// The host's number of a signal.
pub(crate) fn number(signal: Signal) -> c_int {
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

/// The caller's variables, in the order in which it gave them.
pub(crate) fn environment() -> Vec<(Vec<u8>, Vec<u8>)> {
    use std::os::unix::ffi::OsStringExt;
    std::env::vars_os()
        .map(|(name, value)| (name.into_vec(), value.into_vec()))
        .collect()
}

/// The process that started this one.
pub(crate) fn parent_pid() -> u32 {
    // SAFETY: getppid(2) has no arguments and cannot fail.
    unsafe { libc::getppid() }.unsigned_abs()
}
