//! Linux: a jail is a bubblewrap sandbox for one agent. docs/decisions/0006 states why root does so little of it.

use std::ffi::c_int;
use std::os::fd::OwnedFd;
use std::os::unix::process::parent_id;

use colibri_jail_core::{
    Bubblewrap, CommandLine, EphemeralJail, JailEngine, JailName, JailOp, JailPath, Signal,
};

use super::records::{ProcessId, Record, Records};
use super::{Family, Lookup};
use crate::authorize::{Grant, Refusal};
use crate::error::HelperError;
use crate::paths;
use crate::request::{HelperRequest, RequestError};
use crate::safe_open::{self, OpenError, Trust};
use crate::sys::{self, SysError, cannot};
use crate::users::{self, UserIds};

/// Directories that every sandbox mounts privately, so a program in them cannot be looked up in the root directory.
const PRIVATE: [&str; 3] = ["/proc/", "/dev/", "/tmp/"];
/// Maximum number of attempts to read a process's ancestors without a change in between.
const ANCESTOR_ATTEMPTS: usize = 5;
/// Maximum number of ancestors. Reparenting between two reads could form a loop.
const MAX_ANCESTORS: usize = 10_000;
/// Maximum time from KILL to the end of a sandbox, in seconds.
const REMOVE_TIMEOUT: u64 = 5;

/// The process that requested an agent; nothing of it is needed on Linux.
pub(crate) struct Requester;

impl Requester {
    /// Closes all descriptors from 3 up.
    pub(crate) fn take() -> Result<Self, SysError> {
        sys::close_from(3).map(|()| Self)
    }
}

/// Refuses the request.
pub(crate) fn perform_for_root(_: HelperRequest, _: Requester) -> Result<c_int, HelperError> {
    Err(HelperError::MonitorOnLinux)
}

/// Does nothing: the daemon's user can create a sandbox without this program.
pub(crate) fn probe() -> Result<(), HelperError> {
    Ok(())
}

/// Creates a sandbox for one agent and becomes it. Returns only errors.
pub(crate) fn create(
    caller_uid: u32,
    grant: &Grant<'_>,
    jail: &EphemeralJail,
    is_filtered: bool,
    _requester: Requester,
) -> Result<c_int, HelperError> {
    if is_filtered {
        return Err(HelperError::FilterOnLinux);
    }
    let user = &grant.user;
    let ids = users::host_ids(user).ok_or_else(|| HelperError::NoUser(user.to_string()))?;
    let bubblewrap = bubblewrap()?;
    let records = Records::open()?;

    // From here on mounts are private to this process. The root is bound by its descriptor to a directory of root's:
    // bubblewrap resolves paths again, and the caller cannot replace this one.
    let mount_point = &records.path;
    sys::unshare_mounts().map_err(cannot("create a mount namespace"))?;
    let root = safe_open::directory(&jail.path, Trust::AnyOwner)?;
    sys::bind_mount(&root, mount_point.as_str()).map_err(cannot(format!("bind {}", jail.path)))?;
    let root = safe_open::directory(mount_point, Trust::AnyOwner)?;
    for hidden in &jail.masked {
        let start = root.try_clone().map_err(cannot("duplicate a descriptor"))?;
        let directory = safe_open::directory_in(start, hidden, Trust::AnyOwner)?;
        sys::mount_empty(&directory).map_err(cannot(format!("hide {hidden}")))?;
    }

    let programs = &grant.programs;
    let program = programs.iter().find(|program| {
        PRIVATE.iter().any(|prefix| program.starts_with(prefix))
            || sys::check_exists_in_root(&root, program).is_ok()
    });
    let program = program.ok_or_else(|| SysError::NoProgram(programs.join(" or ")))?;
    let engine = Bubblewrap::new(bubblewrap);
    let command = engine
        .command_line(&JailOp::Create {
            // Without a user and masks: this process itself becomes the user, and has masked the directories.
            jail: EphemeralJail {
                ip4: jail.ip4.clone(),
                ..EphemeralJail::new(jail.name.clone(), mount_point.clone())
            },
            workdir: grant.run.workdir.clone(),
            command: CommandLine::new(program.clone(), grant.run.command.args())
                .map_err(RequestError::from)?,
        })
        .map_err(RequestError::from)?;

    let family = Family {
        first: std::process::id(),
        parent: parent_id(),
        requester: parent_id(),
    };
    let record = super::agent_record(caller_uid, grant, true, 0, family)?;
    let lock = records.lock()?;
    if records
        .created(grant.jail)
        .is_some_and(|existing| !has_ended(&existing))
    {
        return Err(HelperError::JailExists(grant.jail.to_string()));
    }
    records.prune(has_ended)?;
    records.write(&record)?;
    drop(lock);

    let passwd = users::host_table("/etc/passwd").unwrap_or_default();
    let entry = users::find_user(&passwd, |_, uid| uid == ids.uid);
    let environment = super::agent_environment(grant, entry.as_ref());
    let requester = open_requester(&record)?;
    become_agent(grant, ids)?;
    start_watchdog(&requester)?;
    sys::close_from(3)?;
    sys::unblock_signals();
    let (program, args) = command.into_parts();
    Err(sys::execute(&[program], &args, &environment).into())
}

/// Refuses the request, as [`crate::authorize::attach`] does.
pub(crate) fn attach(
    _caller_uid: u32,
    grant: &Grant<'_>,
    _requester: Requester,
) -> Result<c_int, HelperError> {
    Err(Refusal::AttachOnLinux(grant.jail.to_string()).into())
}

/// Opens the process that requested the agent. The agent must not outlive it.
fn open_requester(record: &Record) -> Result<OwnedFd, HelperError> {
    let requester = sys::pidfd(record.parent.pid).map_err(|_| HelperError::Orphaned)?;
    if parent_id() == record.parent.pid {
        Ok(requester)
    } else {
        Err(HelperError::Orphaned)
    }
}

/// Forks a watchdog that kills this process when `requester` has ended. The kernel does not send the parent-death signal
/// across users (docs/decisions/0008). The watchdog runs as the agent's user.
fn start_watchdog(requester: &OwnedFd) -> Result<(), SysError> {
    let agent = sys::pidfd(std::process::id()).map_err(cannot("open a pidfd"))?;
    if let sys::Fork::Child = sys::fork().map_err(cannot("fork"))? {
        // Signals stay blocked: signals to all of the agent's processes must not end the watchdog.
        let Ok([requester, agent]) = sys::keep_only([requester, &agent]) else {
            sys::exit(71);
        };
        if let [true, _] = sys::wait_exit([&requester, &agent], None) {
            let _ = sys::pidfd_signal(&agent, libc::SIGKILL);
        }
        sys::exit(0);
    }
    Ok(())
}

/// Drops root for good.
fn become_agent(grant: &Grant<'_>, ids: UserIds) -> Result<(), SysError> {
    super::apply_limits(&grant.rule.limits)?;
    sys::drop_capability_bounds();
    sys::become_user(ids.uid, ids.gid)?;
    sys::restrict_process()
}

/// Returns the first bubblewrap that only root can write.
fn bubblewrap() -> Result<JailPath, OpenError> {
    let usable = |path: &str| {
        let path = safe_open::fixed_path(path)?;
        safe_open::root_owned_file(&path).map(|_| path)
    };
    let [packaged, local] = paths::BWRAP;
    usable(packaged).or_else(|_| usable(local))
}

/// A process to signal. Its descriptor does not change when the pid is reused.
pub(crate) struct Target {
    pub(crate) jail: JailName,
    process: OwnedFd,
}

impl Target {
    /// Reports whether one request can signal both processes.
    pub(super) fn combines_with(&self, _other: &Self) -> bool {
        true
    }
}

/// Finds the record of a process: the record's first process must be the process or an ancestor of it. An orphan of a
/// sandbox becomes a child of the sandbox's first process, so this holds while that process runs.
pub(super) fn find_target(pid: u32, records: &[Record]) -> Lookup {
    // Opened before the ancestors are read: if the pid is reused afterwards, the signal fails.
    let process = sys::pidfd(pid).ok();
    let record = process.as_ref().and_then(|_| {
        let ancestors = stable_ancestors(pid)?;
        records
            .iter()
            .find(|record| ancestors.contains(&record.first))
    });
    match (process, record) {
        (Some(process), Some(record)) => Lookup::Owned(Target {
            jail: record.jail.clone(),
            process,
        }),
        _ if sys::process_info(pid).is_none() => Lookup::Ended,
        _ => Lookup::NotOwned,
    }
}

/// Returns a process and its ancestors as two successive reads agree on them. Each ancestor existed before and after
/// its child named it, so no pid was reused in between.
fn stable_ancestors(pid: u32) -> Option<Vec<ProcessId>> {
    (0..ANCESTOR_ATTEMPTS).find_map(|_| {
        let ancestors = ancestors(pid)?;
        (self::ancestors(pid).as_ref() == Some(&ancestors)).then_some(ancestors)
    })
}

/// Returns a process and its ancestors, without pid 1.
fn ancestors(mut pid: u32) -> Option<Vec<ProcessId>> {
    let mut ancestors = Vec::new();
    while pid > 1 {
        let info = sys::process_info(pid)?;
        ancestors.push(ProcessId {
            pid,
            start: info.start,
        });
        if ancestors.len() > MAX_ANCESTORS {
            return None;
        }
        pid = info.parent;
    }
    Some(ancestors)
}

/// Signals the processes. A process that has ended in the meantime is not an error.
pub(crate) fn send_signal(targets: Vec<Target>, signal: Signal) -> Result<(), HelperError> {
    for target in targets {
        match sys::pidfd_signal(&target.process, sys::signal_number(signal)) {
            Err(error) if error.raw_os_error() != Some(libc::ESRCH) => {
                return Err(cannot("send the signal")(error).into());
            }
            _ => {}
        }
    }
    Ok(())
}

/// Kills the sandbox's first process on the host, and waits until the first process inside has ended, and with it the
/// pid namespace.
pub(super) fn remove_jail(record: &Record) -> Result<(), HelperError> {
    let Ok(outer) = sys::pidfd(record.first.pid) else {
        return Ok(());
    };
    // Opened before the check, so the descriptor is of the recorded process or its signal fails.
    if has_ended(record) {
        return Ok(());
    }
    let mut processes: Vec<_> = sys::children(record.first.pid)
        .into_iter()
        .filter_map(|child| sys::pidfd(child).ok())
        .collect();
    if record.first.is_running() {
        let _ = sys::pidfd_signal(&outer, libc::SIGKILL);
    }
    processes.insert(0, outer);
    let timeout = Some(std::time::Duration::from_secs(REMOVE_TIMEOUT));
    if processes
        .iter()
        .all(|process| sys::wait_exit([process], timeout) == [true])
    {
        return Ok(());
    }
    Err(HelperError::NotEmpty {
        jail: record.jail.to_string(),
        seconds: REMOVE_TIMEOUT,
    })
}

/// Reports whether the agent of a record has ended.
fn has_ended(record: &Record) -> bool {
    record.boot != sys::boot_id() || !record.first.is_running()
}
