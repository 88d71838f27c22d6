//! Takes rights from the proxy's processes.

use std::io;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Descriptors of `serve` besides those of connections.
const OTHER_DESCRIPTORS: u64 = 64;

/// Prevents other processes of the user from reading this one's memory, and core dumps of it. An execve(2) ends the former, and
/// [`CoreLimit::restore`] the latter.
pub(crate) fn hide_memory() -> io::Result<CoreLimit> {
    #[cfg(target_os = "linux")]
    rustix::process::set_dumpable_behavior(rustix::process::DumpableBehavior::NotDumpable)?;
    #[cfg(target_os = "freebsd")]
    colibri_sys::process::deny_tracing()?;
    let limit = getrlimit(Resource::Core);
    let none = Rlimit {
        current: Some(0),
        maximum: limit.maximum,
    };
    setrlimit(Resource::Core, none)?;
    Ok(CoreLimit(limit))
}

/// The limit of core dumps before [`hide_memory`].
pub(crate) struct CoreLimit(Rlimit);

impl CoreLimit {
    /// Restores the limit for a program that this process executes.
    pub(crate) fn restore(self) {
        // A limit up to the unchanged maximum is always permitted (setrlimit(2)).
        let _ = setrlimit(Resource::Core, self.0);
    }
}

/// User and group without rights on files: the overflow uid of the kernel.
#[cfg(target_os = "linux")]
const UNPRIVILEGED: u32 = 65_534;

/// Gives up root's rights for good, if this process has them: the uid becomes 65534, without groups. Ends the effects of
/// [`hide_memory`] and of a signal at the end of the parent (prctl(2)).
#[cfg(target_os = "linux")]
pub(crate) fn leave_root() -> io::Result<()> {
    use rustix::process::{Gid, Uid, geteuid, getgid, getuid};
    if !geteuid().is_root() {
        return Ok(());
    }
    let (user, group) = (Uid::from_raw(UNPRIVILEGED), Gid::from_raw(UNPRIVILEGED));
    rustix::thread::set_thread_groups(&[])?;
    rustix::thread::set_thread_res_gid(group, group, group)?;
    rustix::thread::set_thread_res_uid(user, user, user)?;
    match [getuid(), geteuid()] == [user; 2] && getgid() == group {
        true => Ok(()),
        false => Err(io::Error::other("the user did not change")),
    }
}

/// Does nothing on this system: the processes have the user of the daemon.
#[cfg(not(target_os = "linux"))]
pub(crate) fn leave_root() -> io::Result<()> {
    Ok(())
}

/// Prevents this process and those that it starts from getting privileges by an execve(2).
pub(crate) fn deny_new_privileges() -> io::Result<()> {
    #[cfg(target_os = "linux")]
    rustix::thread::set_no_new_privs(true)?;
    #[cfg(target_os = "freebsd")]
    rustix::process::set_no_new_privs(None)?;
    Ok(())
}

/// Raises the limit of open files for `connections` connections, as far as possible. Returns the number of connections for which
/// the limit is sufficient.
pub(crate) fn allow_connections(connections: usize) -> usize {
    let wanted = 2 * connections as u64 + OTHER_DESCRIPTORS;
    let limit = getrlimit(Resource::Nofile);
    let reachable = limit.maximum.map_or(wanted, |maximum| maximum.min(wanted));
    let current = match limit.current {
        Some(current) if current < reachable => {
            let raised = Rlimit {
                current: Some(reachable),
                maximum: limit.maximum,
            };
            setrlimit(Resource::Nofile, raised).map_or(current, |()| reachable)
        }
        Some(current) => current,
        None => wanted,
    };
    let sufficient = current.saturating_sub(OTHER_DESCRIPTORS) / 2;
    usize::try_from(sufficient)
        .unwrap_or(connections)
        .clamp(1, connections)
}

#[cfg(all(
    target_os = "linux",
    any(target_arch = "x86_64", target_arch = "aarch64")
))]
pub(crate) use filter::deny_files_and_programs;

/// Does nothing on this system: FreeBSD's capability mode denies connect(2) too.
#[cfg(not(all(
    target_os = "linux",
    any(target_arch = "x86_64", target_arch = "aarch64")
)))]
pub(crate) fn deny_files_and_programs() -> io::Result<()> {
    Ok(())
}

#[cfg(all(
    target_os = "linux",
    any(target_arch = "x86_64", target_arch = "aarch64")
))]
mod filter {
    use std::collections::BTreeMap;
    use std::io;

    use seccompiler::{
        BackendError, BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition,
        SeccompFilter, SeccompRule,
    };

    /// System calls with any arguments: I/O on open descriptors, TCP, memory, time, and the end of the process.
    const ALLOWED: &[libc::c_long] = &[
        libc::SYS_accept4,
        libc::SYS_brk,
        libc::SYS_clock_gettime,
        libc::SYS_clock_nanosleep,
        libc::SYS_close,
        libc::SYS_connect,
        libc::SYS_dup,
        libc::SYS_epoll_create1,
        libc::SYS_epoll_ctl,
        libc::SYS_epoll_pwait,
        libc::SYS_epoll_pwait2,
        libc::SYS_eventfd2,
        libc::SYS_exit,
        libc::SYS_exit_group,
        libc::SYS_fcntl,
        libc::SYS_futex,
        libc::SYS_getpeername,
        libc::SYS_getpid,
        libc::SYS_getrandom,
        libc::SYS_getsockname,
        libc::SYS_getsockopt,
        libc::SYS_gettid,
        libc::SYS_madvise,
        libc::SYS_mremap,
        libc::SYS_munmap,
        libc::SYS_nanosleep,
        libc::SYS_ppoll,
        libc::SYS_read,
        libc::SYS_readv,
        libc::SYS_recvfrom,
        libc::SYS_recvmsg,
        libc::SYS_restart_syscall,
        libc::SYS_rt_sigaction,
        libc::SYS_rt_sigprocmask,
        libc::SYS_rt_sigreturn,
        libc::SYS_sched_yield,
        libc::SYS_sendmsg,
        libc::SYS_sendto,
        libc::SYS_setsockopt,
        libc::SYS_shutdown,
        libc::SYS_sigaltstack,
        libc::SYS_write,
        libc::SYS_writev,
        // Only x86-64 has these two.
        #[cfg(target_arch = "x86_64")]
        libc::SYS_epoll_wait,
        #[cfg(target_arch = "x86_64")]
        libc::SYS_poll,
    ];

    fn condition(
        argument: u8,
        operator: SeccompCmpOp,
        value: u64,
    ) -> Result<SeccompCondition, BackendError> {
        SeccompCondition::new(argument, SeccompCmpArgLen::Dword, operator, value)
    }

    fn filter() -> Result<BpfProgram, BackendError> {
        let equal =
            |argument, value: libc::c_int| condition(argument, SeccompCmpOp::Eq, value as u64);
        // Memory is never executable.
        let not_executable = || {
            let mask = libc::PROT_EXEC as u64;
            SeccompRule::new(vec![condition(2, SeccompCmpOp::MaskedEq(mask), 0)?])
        };
        let mut rules: BTreeMap<i64, Vec<SeccompRule>> =
            ALLOWED.iter().map(|call| (*call, Vec::new())).collect();
        for family in [libc::AF_INET, libc::AF_INET6] {
            let rule = SeccompRule::new(vec![equal(0, family)?])?;
            rules.entry(libc::SYS_socket).or_default().push(rule);
        }
        rules.insert(libc::SYS_mmap, vec![not_executable()?]);
        rules.insert(libc::SYS_mprotect, vec![not_executable()?]);
        // FIONBIO makes a socket non-blocking (ioctl(2)).
        #[allow(clippy::unnecessary_cast)] // The type of FIONBIO differs between C libraries.
        let non_blocking = condition(1, SeccompCmpOp::Eq, libc::FIONBIO as u64)?;
        rules.insert(libc::SYS_ioctl, vec![SeccompRule::new(vec![non_blocking])?]);
        SeccompFilter::new(
            rules,
            SeccompAction::Errno(libc::EPERM as u32),
            SeccompAction::Allow,
            std::env::consts::ARCH.try_into()?,
        )?
        .try_into()
    }

    /// Denies all threads of this process system calls other than those that connections need: opening files, executing
    /// programs, creating processes, other kinds of sockets, and executable memory fail with EPERM. Sets no_new_privs too.
    pub(crate) fn deny_files_and_programs() -> io::Result<()> {
        let filter = filter().map_err(io::Error::other)?;
        seccompiler::apply_filter_all_threads(&filter).map_err(io::Error::other)
    }

    #[cfg(test)]
    mod tests {
        use super::*;

        #[test]
        #[allow(clippy::disallowed_methods)]
        fn files_and_programs_are_denied_after_the_lockdown() {
            let (reader, mut writer) = std::io::pipe().unwrap();
            // In a thread: the test harness needs its own calls after the test.
            let filter = filter().unwrap();
            let results = std::thread::spawn(move || {
                seccompiler::apply_filter(&filter).unwrap();
                let denied = |result: io::Result<()>| {
                    result.unwrap_err().raw_os_error() == Some(libc::EPERM)
                };
                [
                    denied(std::fs::File::open("/dev/null").map(drop)),
                    denied(std::fs::read_link("/proc/self/exe").map(drop)),
                    denied(std::process::Command::new("/bin/true").spawn().map(drop)),
                    denied(std::os::unix::net::UnixStream::pair().map(drop)),
                    denied(std::os::unix::net::UnixDatagram::unbound().map(drop)),
                    std::net::TcpStream::connect(("127.0.0.1", 1))
                        .unwrap_err()
                        .kind()
                        == io::ErrorKind::ConnectionRefused,
                    std::io::Write::write_all(&mut writer, b"x").is_ok(),
                ]
            })
            .join()
            .unwrap();
            assert_eq!(results, [true; 7]);
            drop(reader);
        }
    }
}
