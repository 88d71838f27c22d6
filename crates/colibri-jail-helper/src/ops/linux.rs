//! Linux: a jail is a bubblewrap sandbox for one agent. docs/decisions/0006 states why root does so little of it, and
//! docs/decisions/0030 which process ends it.
//!
//! ```text
//! monitor, root                              first process: pid 1 of a pid namespace
//!   fork -------------------------------->     make the sandbox's root, become the agent's user
//!   wait for a byte <---------------------     "ready"
//!   lock, add the record, unlock
//!   send a byte ------------------------->     execute bubblewrap, which starts the agent
//!   wait for the end of the requester, then KILL, or of the first process, with which the namespace ends
//!   delete the record, reap the first process, exit with its code
//! ```

use std::convert::Infallible;
use std::ffi::c_int;
use std::fs::File;
use std::io::{self, ErrorKind, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::os::unix::process::parent_id;
use std::time::{Duration, Instant};

use colibri_jail_core::{
    Bubblewrap, CommandLine, EphemeralJail, JailEngine, JailName, JailOp, JailPath, Signal,
    without_set_id_files,
};

use super::Lookup;
use super::records::{ProcessId, Record, Records};
use crate::authorize::{Grant, Refusal};
use crate::error::HelperError;
use crate::paths;
use crate::request::{HelperRequest, RequestError};
use crate::safe_open::{self, OpenError};
use crate::sys::{self, Caller, Fork, ProcessInfo, SysError, cannot};
use crate::users::{self, UserIds};

/// Directories that every sandbox mounts privately, so a program in them cannot be looked up in the root directory.
const PRIVATE: [&str; 3] = ["/proc/", "/dev/", "/tmp/"];
/// Maximum number of attempts to read a process's ancestors without a change in between.
const ANCESTOR_ATTEMPTS: usize = 5;
/// Maximum number of ancestors. Reparenting between two reads could form a loop.
const MAX_ANCESTORS: usize = 10_000;
/// Maximum time from KILL to the end of a sandbox.
const REMOVE_TIMEOUT: Duration = Duration::from_secs(5);

/// The process that requested an agent.
pub(crate) struct Requester {
    pid: u32,
}

impl Requester {
    /// Closes all descriptors from 3 up.
    pub(crate) fn take() -> Result<Self, SysError> {
        sys::close_from(3)?;
        Ok(Self { pid: parent_id() })
    }

    /// Opens the process, which the agent must not outlive. init(8), which never ends, is the parent of this program if the
    /// requester has ended.
    fn open(&self) -> Result<OwnedFd, HelperError> {
        match sys::pidfd(self.pid) {
            Ok(process) if self.pid > 1 && parent_id() == self.pid => Ok(process),
            _ => Err(HelperError::Orphaned),
        }
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

/// Creates a sandbox for one agent and monitors it. Returns the exit code of the agent, and in the first process of the
/// sandbox only errors.
pub(crate) fn create(
    caller: &Caller,
    grant: &Grant<'_>,
    jail: &EphemeralJail,
    is_filtered: bool,
    requester: Requester,
) -> Result<c_int, HelperError> {
    if is_filtered {
        return Err(HelperError::FilterOnLinux);
    }
    let records = Records::open(caller.uid)?;
    let requester_process = requester.open()?;
    sys::unshare_pids().map_err(cannot("create a pid namespace"))?;
    let (mut start, start_of_child) = UnixStream::pair().map_err(cannot("create a socket pair"))?;
    // The child keeps the scheduling that the caller chose; this process loses it with its first lock.
    let pid = match sys::fork().map_err(cannot("fork"))? {
        Fork::Parent(pid) => pid,
        Fork::Child => {
            drop((start, records, requester_process));
            return become_agent(caller, grant, jail, start_of_child).map(|never| match never {});
        }
    };
    drop(start_of_child);
    // The pid is not reused before wait(2) below. The first process ends with `start`, also after an error.
    let reap = || sys::wait_for(pid).map_err(cannot("wait for the sandbox"));
    let first = sys::pidfd(pid).map_err(cannot("open a pidfd"))?;
    if start.read_exact(&mut [0]).is_err() {
        // It has reported why it cannot become the agent.
        return Ok(reap()?.code());
    }
    let limit = grant.rule.limits.agents;
    let added =
        super::agent_record(caller.uid, grant, true, 0, pid, requester.pid).and_then(|record| {
            if record.boot.is_empty() {
                return Err(cannot("read the boot id")(ErrorKind::NotFound.into()).into());
            }
            // An agent whose process cannot be read may run.
            let has_ended =
                |other: &Record| other.boot != record.boot || has_ended(other).unwrap_or(false);
            records.add(&record, limit, has_ended).map(|()| record)
        });
    let record = match added {
        Ok(record) => record,
        Err(error) => {
            drop(start);
            reap()?;
            return Err(error);
        }
    };
    // The close of a file of the caller may hang (FUSE), so this process counts for the caller meanwhile. If it fails, the readers
    // of the agent's pipes see their end later, with that of this process.
    sys::count_as(caller.uid);
    let _ = sys::release_stdio();
    sys::count_as(0);
    sys::limit_time(0, caller);
    // A failure means that the first process has ended.
    let _ = start.write_all(&[0]);
    drop(start);
    if let [true, false] = sys::wait_exit([&requester_process, &first], None) {
        let _ = sys::pidfd_signal(&first, libc::SIGKILL);
    }
    sys::wait_exit([&first], None);
    // A record that stays is that of an ended agent.
    let _ = records.remove(&record);
    Ok(reap()?.code())
}

/// Makes the sandbox and executes the agent in it, after this process has a record. Returns only errors. The end of the
/// monitor ends this process: the kernel sends the parent-death signal with the rights of the monitor, which is root.
fn become_agent(
    caller: &Caller,
    grant: &Grant<'_>,
    jail: &EphemeralJail,
    mut start: UnixStream,
) -> Result<Infallible, HelperError> {
    sys::die_with_parent()?;
    let ids = (grant.ids).ok_or_else(|| Refusal::UnknownUser(grant.user.to_string()))?;
    let filter = without_set_id_files().ok_or(HelperError::NoFilter)?;
    let bubblewrap = bubblewrap()?;

    // From here on mounts are private to this process. The root is bound by its descriptor to a directory of root's:
    // bubblewrap resolves paths again, and the caller cannot replace this one.
    sys::unshare_mounts().map_err(cannot("create a mount namespace"))?;
    let mount_point = bind_root(caller, ids, jail)?;
    let root = host_directory(&mount_point)?;
    let programs = &grant.programs;
    let program = sys::with_file_rights(ids.uid, &[ids.gid], || {
        programs.iter().find(|program| {
            PRIVATE.iter().any(|prefix| program.starts_with(prefix))
                || sys::open_in_root(&root, program, false).is_ok()
        })
    })?;
    let program = program.ok_or_else(|| SysError::NoProgram(programs.join(" or ")))?;
    let command = Bubblewrap::new(bubblewrap)
        .without_user_namespaces()
        .command_line(&JailOp::Create {
            // Without a user and masks: this process itself becomes the user, and has masked the directories.
            jail: EphemeralJail {
                ip4: jail.ip4.clone(),
                ..EphemeralJail::new(jail.name.clone(), mount_point)
            },
            workdir: grant.run.workdir.clone(),
            command: CommandLine::new(program.clone(), grant.run.command.args())
                .map_err(RequestError::from)?,
        })
        .map_err(RequestError::from)?;
    let passwd = users::host_table("/etc/passwd").unwrap_or_default();
    let entry = users::find_user(&passwd, |_, uid| uid == ids.uid);
    let environment = super::agent_environment(grant, entry.as_ref());

    super::apply_limits(&grant.rule.limits)?;
    sys::drop_capability_bounds();
    sys::become_user(ids.uid, ids.gid)?;
    sys::restrict_process()?;
    sys::install_filter(&filter)?;
    if start.write_all(&[0]).is_err() || start.read_exact(&mut [0]).is_err() {
        // The monitor reports why it has no record, unless it was killed.
        sys::exit(sys::EXIT_FAILED);
    }
    drop((root, start));
    sys::close_from(3)?;
    sys::unblock_signals();
    let (program, args) = command.into_parts();
    Err(sys::execute(&[program], &args, &environment).into())
}

/// Binds the root directory of a jail to a directory of root's, masks directories in it, and returns its path. The root is
/// opened with the rights of the agent, and what the caller masks with those of the caller, so that neither learns about
/// other directories.
fn bind_root(caller: &Caller, ids: UserIds, jail: &EphemeralJail) -> Result<JailPath, HelperError> {
    let open = |root: &OwnedFd, path: &JailPath, uid, groups: &[u32]| {
        sys::with_file_rights(uid, groups, || sys::open_in_root(root, path.as_str(), true))?
            .map_err(|error| match error.kind() {
                ErrorKind::NotFound | ErrorKind::PermissionDenied => HelperError::Unreachable {
                    path: path.to_string(),
                    uid,
                },
                _ => safe_open::open_error(path.as_str(), error).into(),
            })
    };
    // Only root can change this path, and the agent has no use for what the mount hides.
    let mount_point = safe_open::fixed_path(&paths::records())?;
    let host = host_directory(&JailPath::root())?;
    let root = open(&host, &jail.path, ids.uid, &[ids.gid])?;
    sys::bind_mount(&root, mount_point.as_str()).map_err(cannot(format!("bind {}", jail.path)))?;
    let root = host_directory(&mount_point)?;
    for hidden in &jail.masked {
        let directory = open(&root, hidden, caller.uid, &caller.groups)?;
        sys::mount_empty(&directory).map_err(cannot(format!("hide {hidden}")))?;
    }
    Ok(mount_point)
}

/// Opens a directory whose path only root can change.
fn host_directory(path: &JailPath) -> Result<OwnedFd, HelperError> {
    let directory = File::open(path.as_str()).map_err(cannot(format!("open {path}")))?;
    Ok(directory.into())
}

/// Refuses the request, as [`crate::authorize::attach`] does.
pub(crate) fn attach(
    _caller: &Caller,
    grant: &Grant<'_>,
    _requester: Requester,
) -> Result<c_int, HelperError> {
    Err(Refusal::AttachOnLinux(grant.jail.to_string()).into())
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
/// sandbox becomes a child of the sandbox's first process, so this holds while that process runs. The monitor stands for the
/// first process. A process of root's is never a target.
pub(super) fn find_target(pid: u32, records: &[Record]) -> Lookup {
    let monitored = records.iter().find(|record| record.parent.pid == pid);
    let pid = match monitored {
        Some(record) if record.parent.is_running() => record.first.pid,
        _ => pid,
    };
    // Opened before the ancestors are read: if the pid is reused afterwards, the signal fails.
    let process = sys::pidfd(pid).ok();
    let record = process.as_ref().and_then(|_| {
        let ancestors = stable_ancestors(pid)?;
        let mut records = records.iter();
        records.find(|record| ancestors.contains(&record.first))
    });
    match (process, record) {
        (Some(process), Some(record)) if !sys::has_root_uid(pid) => Lookup::Owned(Target {
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
        let ProcessInfo { parent, start } = sys::process_info(pid)?;
        ancestors.push(ProcessId { pid, start });
        if ancestors.len() > MAX_ANCESTORS {
            return None;
        }
        pid = parent;
    }
    Some(ancestors)
}

/// Signals the processes.
pub(crate) fn send_signal(targets: Vec<Target>, signal: Signal) -> Result<(), HelperError> {
    let number = sys::signal_number(signal);
    for target in targets {
        super::check_sent(sys::pidfd_signal(&target.process, number))?;
    }
    Ok(())
}

/// Kills the first process of the sandbox, and with it its pid namespace, and waits until it and its monitor have ended.
pub(super) fn remove_jail(record: &Record) -> Result<(), HelperError> {
    let Record { first, parent, .. } = record;
    // Opened before the check, so that a descriptor is of the recorded process or of one that is not waited for.
    let [first_process, monitor] = [first, parent].map(|process| sys::pidfd(process.pid));
    if has_ended(record).map_err(cannot("read the first process"))? {
        return Ok(());
    }
    let first_process = first_process.map_err(cannot("open a pidfd"))?;
    let _ = sys::pidfd_signal(&first_process, libc::SIGKILL);
    let monitor = monitor.ok().filter(|_| parent.is_running());
    let deadline = Instant::now() + REMOVE_TIMEOUT;
    let has_ended = |process| {
        let timeout = deadline.saturating_duration_since(Instant::now());
        sys::wait_exit([process], Some(timeout)) == [true]
    };
    match [&first_process].into_iter().chain(&monitor).all(has_ended) {
        true => Ok(()),
        false => Err(HelperError::NotEmpty {
            jail: record.jail.to_string(),
            seconds: REMOVE_TIMEOUT.as_secs(),
        }),
    }
}

/// Reports whether the agent of a record of this boot has ended. What cannot be read is an error.
fn has_ended(record: &Record) -> io::Result<bool> {
    let first = sys::read_process(record.first.pid)?;
    Ok(first.is_none_or(|first| first.start != record.first.start))
}
