//! The init process of a sandbox: completes it, starts the agent, and returns its exit status.

use std::ffi::CStr;
use std::io;
use std::net::{Ipv4Addr, TcpListener};
use std::os::fd::OwnedFd;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use colibri_jail_core::{PROXY_PORT, PROXY_VARIABLE, Restriction, USER_VARIABLE};
use rustix::mount::{MountFlags, MountPropagationFlags, mount_change, mount_remount};
use rustix::process::{
    DumpableBehavior, Resource, Rlimit, WaitOptions, getrlimit, ioctl_tiocsctty,
    set_dumpable_behavior, setrlimit, setsid, wait,
};
use rustix::thread::{CapabilitySet, CapabilitySets};

use crate::confine::Confinement;
use crate::options::{Enter, parse_ids};
use crate::paths::{self, Covers};
use crate::pre_exec::restrict_before_exec;
use crate::watch::Watch;
use crate::{EXIT_FAILURE, SandboxError, cannot, report};

/// Exit code if the program does not exist, as of a shell.
const EXIT_NOT_FOUND: u8 = 127;
/// Exit code if the program cannot be executed, as of a shell.
const EXIT_NOT_EXECUTABLE: u8 = 126;
/// Files with the keys that the user of a process may see (keyrings(7)).
const KEYS: &[&str] = &["/proc/keys", "/proc/key-users"];
/// File with the maximum number of user namespaces in that of this process (namespaces(7)).
const MAX_USER_NAMESPACES: &str = "/proc/sys/user/max_user_namespaces";
/// Files with the maximum numbers of inotify(7) instances and watches of a user, and those for the user namespace of this
/// process.
const INOTIFY: [(&str, &str); 2] = [
    (
        "/proc/sys/fs/inotify/max_user_instances",
        "/proc/sys/user/max_inotify_instances",
    ),
    (
        "/proc/sys/fs/inotify/max_user_watches",
        "/proc/sys/user/max_inotify_watches",
    ),
];
/// Maximum number of pending signals and timers of an agent.
const PENDING_SIGNALS: u64 = 4096;
/// Options of the private file system of pseudo-terminals: without `max`, an agent could use up those of the host (mount(8)).
const TERMINALS: &CStr = c"max=256,mode=620,ptmxmode=666";
/// The part of them that an agent may use, as a divisor: the user's other programs need the rest.
const INOTIFY_SHARE: u64 = 4;

/// Completes the sandbox and runs the agent; returns its exit code, or 128 and the number of the signal.
pub(crate) fn enter(options: Enter) -> Result<ExitCode, SandboxError> {
    let proxy = options
        .proxy
        .then(|| open_ports(&options.ports))
        .transpose()?;
    // Inherited descriptors stay open for the locks that they hold, and never reach the agent.
    colibri_sys::descriptors::close_on_exec_from(3).map_err(cannot("restrict descriptors"))?;
    // A mount of the host that appears later would be writable.
    mount_change(
        "/",
        MountPropagationFlags::PRIVATE | MountPropagationFlags::REC,
    )
    .map_err(cannot("separate the mounts of the sandbox"))?;
    mount_remount(
        "/dev/pts",
        MountFlags::NOSUID | MountFlags::NOEXEC,
        TERMINALS,
    )
    .map_err(cannot("limit the pseudo-terminals"))?;
    for (staged, target) in &options.moved {
        paths::move_to(staged, target)?;
    }
    let keys = options.applies(Restriction::Keyrings).then_some(KEYS);
    let keys = keys.into_iter().flatten().map(Path::new);
    let moved = options.moved.iter().map(|(_, target)| target);
    let parents = options.masked.iter().chain(&options.read_only).chain(moved);
    let parents = parents.filter_map(|path| path.parent());
    let git = options.protected_git.iter().map(PathBuf::as_path);
    paths::pin(parents.chain(git), &options.protected)?;
    let covers = Covers::open()?;
    let masked = options.masked.iter().chain(&options.hidden);
    for path in masked.map(PathBuf::as_path).chain(keys) {
        covers.mask(path)?;
    }
    for path in &options.read_only {
        paths::make_read_only(path)?;
    }
    for path in &options.protected {
        paths::protect(path, &options.unprotected)?;
    }
    for path in &options.protected_git {
        paths::protect_git(path, &options.unprotected)?;
    }
    if options.applies(Restriction::UserNamespaces) {
        // The one that this process creates next is the last.
        std::fs::write(MAX_USER_NAMESPACES, "1").map_err(cannot("deny user namespaces"))?;
    }
    for (all, own) in INOTIFY {
        limit_share(all, own).map_err(cannot(format!("set {own}")))?;
    }
    enter_user_namespace(&options)?;
    drop_capabilities().map_err(cannot("drop capabilities"))?;
    // No process of the agent can trace this one, read its memory, or open its program and its descriptors by /proc.
    set_dumpable_behavior(DumpableBehavior::NotDumpable)
        .map_err(cannot("protect the init process"))?;
    if let Some(workdir) = &options.workdir {
        std::env::set_current_dir(workdir)
            .map_err(cannot(format!("enter the directory {}", workdir.display())))?;
    }
    let mut confinement = Confinement::prepare(&options)?;
    let command = options.command.ok_or("no command")?;
    let mut agent = Command::new(&command.program);
    agent
        .args(&command.args)
        // bwrap has set it to the directory that it entered.
        .env("PWD", options.workdir.as_deref().unwrap_or(Path::new("/")))
        .env_remove(PROXY_VARIABLE)
        .env_remove(USER_VARIABLE);
    // bwrap needs more files. The numbers of processes and of pending signals, timers included, are counted for each user namespace
    // (getrlimit(2), user_namespaces(7)).
    let limits = [
        (Resource::Nofile, options.open_files),
        (Resource::Nproc, options.processes),
        (Resource::Sigpending, Some(PENDING_SIGNALS)),
    ];
    // A lower limit of the daemon applies already.
    let lowered = limits.map(|(resource, limit)| {
        let present = getrlimit(resource).maximum;
        let limit = limit.map(|limit| present.map_or(limit, |present| present.min(limit)));
        (resource, limit)
    });
    let terminal = options.terminal;
    restrict_before_exec(&mut agent, move || {
        if terminal {
            // The signals of the terminal go to the agent's session, and so not to this process.
            setsid()?;
            ioctl_tiocsctty(rustix::stdio::stdin())?;
        }
        for (resource, limit) in lowered {
            if limit.is_some() {
                let limit = Rlimit {
                    current: limit,
                    maximum: limit,
                };
                setrlimit(resource, limit)?;
            }
        }
        confinement.apply()
    });
    let watched = [options.protected, options.protected_git, options.masked].concat();
    let watch = Watch::of(watched)?;
    let agent = match agent.spawn() {
        Ok(agent) => agent,
        Err(error) => {
            let program = command.program.to_string_lossy();
            report(&format!("cannot execute {program}: {error}"));
            return Ok(ExitCode::from(match error.kind() {
                io::ErrorKind::NotFound => EXIT_NOT_FOUND,
                io::ErrorKind::PermissionDenied => EXIT_NOT_EXECUTABLE,
                _ => EXIT_FAILURE,
            }));
        }
    };
    watch.start()?;
    let code = wait_for(i32::try_from(agent.id())?)?;
    drop(proxy);
    Ok(code)
}

/// Waits for all processes that end until the agent does. The kernel ends the others with this process
/// (pid_namespaces(7)).
fn wait_for(agent: i32) -> Result<ExitCode, SandboxError> {
    loop {
        let ended = match wait(WaitOptions::empty()) {
            Ok(ended) => ended,
            Err(rustix::io::Errno::INTR) => continue,
            Err(error) => return Err(cannot("wait for the agent")(error)),
        };
        if let Some((pid, status)) = ended
            && pid.as_raw_nonzero().get() == agent
        {
            let status = std::process::ExitStatus::from_raw(status.as_raw());
            let code = status.code().or(status.signal().map(|signal| 128 + signal));
            let code = code.and_then(|code| u8::try_from(code).ok());
            return Ok(ExitCode::from(code.unwrap_or(EXIT_FAILURE)));
        }
    }
}

/// Opens the ports on which the agent finds the proxy and loopback ports of the host, and sends the listening sockets to the
/// proxy. Returns the connection whose end ends the proxy.
fn open_ports(ports: &[u16]) -> Result<OwnedFd, SandboxError> {
    let socket = std::env::var(PROXY_VARIABLE)
        .ok()
        .and_then(|number| number.parse().ok())
        .and_then(colibri_sys::descriptors::take_inherited_socket)
        .ok_or_else(|| format!("{PROXY_VARIABLE} does not name a socket"))?;
    let open = |port| {
        TcpListener::bind((Ipv4Addr::LOCALHOST, port))
            .map_err(cannot(format!("open port {port} in the sandbox")))
    };
    let all = std::iter::once(PROXY_PORT).chain(ports.iter().copied());
    let listeners: Vec<TcpListener> = all.map(open).collect::<Result<_, _>>()?;
    colibri_sys::socket_passing::send_held(&socket, &listeners)
        .map_err(cannot("send the listening sockets to the proxy"))?;
    Ok(socket)
}

/// Limits a number in the user namespace of this process to a part of the limit for all.
fn limit_share(all: &str, own: &str) -> io::Result<()> {
    let limit = match std::fs::read_to_string(all) {
        Ok(text) => text.trim().parse::<u64>().ok(),
        // A kernel without inotify.
        Err(error) if error.kind() == io::ErrorKind::NotFound => None,
        Err(error) => return Err(error),
    };
    match limit {
        Some(limit) => std::fs::write(own, (limit / INOTIFY_SHARE).max(1).to_string()),
        None => Ok(()),
    }
}

/// Enters a user namespace that owns none of the sandbox's other namespaces, so that a capability in it changes none of them.
fn enter_user_namespace(options: &Enter) -> Result<(), SandboxError> {
    let on_host = || parse_ids(&std::env::var(USER_VARIABLE).ok()?);
    let (uid, gid) = options.user.or_else(on_host).ok_or_else(|| {
        format!("{USER_VARIABLE} is not set; start this part with colibri-sandbox run")
    })?;
    let enter = || -> io::Result<()> {
        colibri_sys::kernel::unshare_users()?;
        std::fs::write("/proc/self/setgroups", "deny")?;
        std::fs::write("/proc/self/uid_map", format!("{uid} 0 1\n"))?;
        std::fs::write("/proc/self/gid_map", format!("{gid} 0 1\n"))
    };
    enter().map_err(cannot("enter the user namespace of the agent"))
}

/// Drops all capabilities for good: no execve(2) gives them back, not even to a uid 0 in the namespace.
fn drop_capabilities() -> io::Result<()> {
    rustix::thread::clear_ambient_capability_set()?;
    for number in 0..u64::BITS {
        let capability = CapabilitySet::from_bits_retain(1 << number);
        match rustix::thread::remove_capability_from_bounding_set(capability) {
            Ok(()) => {}
            // The kernel has no more.
            Err(rustix::io::Errno::INVAL) => break,
            Err(error) => return Err(error.into()),
        }
    }
    let none = CapabilitySet::empty();
    rustix::thread::set_capabilities(
        None,
        CapabilitySets {
            effective: none,
            permitted: none,
            inheritable: none,
        },
    )?;
    Ok(())
}
