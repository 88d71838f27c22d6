//! FreeBSD: a child of this process creates or enters the jail by system calls and executes the agent; this process
//! monitors it.

use std::ffi::c_int;
use std::io::ErrorKind;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStringExt;
use std::os::unix::process::parent_id;

use colibri_jail_core::{
    CONTROL_VARIABLE, CommandLine, EphemeralJail, Ip4Policy, JailName, JailPath, PROXY_VARIABLE,
    Signal,
};

use super::Lookup;
use super::monitor::{self, First, Monitor, Remains};
use super::network::{self, ProxyLink};
use super::records::{ProcessId, Record, Records};
use super::root::JailRoot;
use crate::authorize::{Grant, Refusal};
use crate::error::HelperError;
use crate::request::{HelperRequest, MonitoredJail, MountRequest, RootRequest};
use crate::safe_open::{self, OpenError, Trust};
use crate::sys::{self, Caller, Jail, SysError, cannot};
use crate::users::{self, PasswdEntry, UserIds};

/// Directory of the probe's jail. Its content does not matter.
const PROBE_ROOT: &str = "/var/empty";
/// The user table of a jail, for a process inside.
const PASSWD: &str = "/etc/passwd";

/// The process that requested an agent.
pub(crate) struct Requester {
    pid: u32,
    control: Option<OwnedFd>,
    proxy: Option<OwnedFd>,
}

impl Requester {
    /// Takes the control socket and the socket of the proxy, and closes every other descriptor from 3 up.
    pub(crate) fn take() -> Result<Self, SysError> {
        let number = |variable| -> Option<c_int> {
            let number = std::env::var(variable).ok()?.parse().ok()?;
            (number > 2).then_some(number)
        };
        let control = number(CONTROL_VARIABLE);
        let proxy = number(PROXY_VARIABLE).filter(|number| Some(*number) != control);
        let [control, proxy] =
            sys::keep_only([control, proxy].map(|fd| fd.and_then(sys::take_socket)))
                .map_err(cannot("close descriptors"))?;
        Ok(Self {
            pid: parent_id(),
            control,
            proxy,
        })
    }

    /// Refuses a requester that has ended: the parent of this program is init(8) then, which never ends and is the reaper of
    /// processes of all users.
    fn refuse_orphan(&self) -> Result<(), HelperError> {
        match self.pid {
            ..=1 => Err(HelperError::Orphaned),
            _ => Ok(()),
        }
    }

    /// Returns the socket of the proxy, if the jail is filtered.
    fn proxy_for(&mut self, is_filtered: bool) -> Result<Option<OwnedFd>, HelperError> {
        match (is_filtered, self.proxy.take()) {
            (true, None) => Err(HelperError::NoProxy(PROXY_VARIABLE)),
            (true, proxy) => Ok(proxy),
            (false, _) => Ok(None),
        }
    }
}

/// Performs `monitor`, `clean` and `await-proxy`, for a caller who is root.
pub(crate) fn perform_for_root(
    request: HelperRequest,
    requester: Requester,
) -> Result<c_int, HelperError> {
    match request {
        HelperRequest::Clean { jail, root } => {
            let remains = remains(&jail, root.as_ref(), &[]);
            remains.remove().map(|()| 0)
        }
        HelperRequest::Monitor { created, command } => {
            monitor_command(created.as_ref(), &command, requester)
        }
        HelperRequest::AwaitProxy(jail) => network::await_proxy(&jail).map(|()| 0),
        _ => Err(Refusal::RootOnly.into()),
    }
}

/// Returns what can remain of a jail that jail(8) created.
fn remains<'a>(
    jail: &'a JailName,
    root: Option<&'a RootRequest>,
    mounts: &'a [MountRequest],
) -> Remains<'a> {
    let root = root.map(|request| JailRoot {
        jail,
        request,
        mounts,
    });
    Remains {
        jail,
        jid: None,
        root,
    }
}

/// Runs a command of root under a monitor.
fn monitor_command(
    created: Option<&MonitoredJail>,
    command: &CommandLine,
    mut requester: Requester,
) -> Result<c_int, HelperError> {
    let is_filtered = created.is_some_and(|created| created.is_filtered);
    let proxy = requester.proxy_for(is_filtered)?;
    become_monitor()?;
    let remains =
        created.map(|created| remains(&created.jail, created.root.as_ref(), &created.mounts));
    if let Some(created) = created
        && sys::jail_id(&created.jail).is_some()
    {
        return Err(HelperError::JailExists(created.jail.to_string()));
    }
    if let Some(remains) = remains
        && let Some(root) = &remains.root
        && let Err(error) = root.prepare()
    {
        // The error of the preparation says more than that of the clean-up, which `clean` repeats.
        let _ = remains.remove();
        return Err(error);
    }
    let environment: Vec<Vec<u8>> = std::env::vars_os()
        .filter(|(name, _)| name != CONTROL_VARIABLE && name != PROXY_VARIABLE)
        .map(|(name, value)| [name.into_vec(), value.into_vec()].join(&b'='))
        .collect();
    let programs = [command.program().to_owned()];
    let child = monitor::fork(|| {
        sys::unblock_signals();
        sys::execute(&programs, command.args(), &environment).into()
    });
    let run = child.and_then(|child| {
        let mut monitor = Monitor::new(child, requester.pid, requester.control);
        if let Some(created) = created {
            monitor.first = First::Expected(created.setup_commands);
        }
        monitor.proxy = proxy.map(ProxyLink::Waiting);
        monitor.remains = remains;
        monitor.run()
    });
    if let (Err(_), Some(remains)) = (&run, remains) {
        // The agent was not started, or could not be supervised to its end. The first error is reported.
        let _ = remains.remove();
    }
    run
}

/// Prepares this process for its life as a monitor.
fn become_monitor() -> Result<(), SysError> {
    sys::prepare_monitor().map_err(cannot("reset the parent-death signal"))?;
    sys::become_reaper().map_err(cannot("become the reaper of the agent's processes"))
}

/// Creates a jail for one agent and monitors it.
pub(crate) fn create(
    caller: &Caller,
    grant: &Grant<'_>,
    jail: &EphemeralJail,
    is_filtered: bool,
    mut requester: Requester,
) -> Result<c_int, HelperError> {
    requester.refuse_orphan()?;
    if !jail.masked.is_empty() {
        return Err(HelperError::HideOnFreeBsd);
    }
    let proxy = requester.proxy_for(is_filtered)?;
    become_monitor()?;
    leave_terminal()?;
    let records = Records::open(caller.uid)?;
    let ip4 = (!is_filtered).then_some(&jail.ip4);
    let created = create_jail(grant.jail, &jail.path, ip4)?;
    let jid = created.jid;
    // A kernel without jail descriptors keeps the jail.
    let child = start(caller.uid, grant, true, jid, records, requester.pid)
        .inspect_err(|_| drop(sys::remove_jail(jid)))?;
    // Without the lock: the proxy belongs to the caller, who may let it wait.
    if let Some(proxy) = &proxy
        && let Err(error) = network::open_port(grant.jail, jid, proxy)
    {
        child.end();
        let _ = sys::remove_jail(jid);
        return Err(error);
    }
    let mut monitor = Monitor::new(child, requester.pid, requester.control);
    monitor.rule = Some(grant.rule);
    monitor.proxy = proxy.map(ProxyLink::Open);
    monitor.own_jail(grant.jail, created);
    sys::limit_time(0, caller);
    monitor.run()
}

/// Creates a jail with a root directory of the caller, without the lock on the records: its file system may hang, which must not
/// delay other callers. The kernel refuses a name in use.
fn create_jail(
    name: &JailName,
    path: &JailPath,
    ip4: Option<&Ip4Policy>,
) -> Result<Jail, HelperError> {
    let root = safe_open::directory(path, Trust::AnyOwner)?;
    sys::change_directory(&root).map_err(cannot(format!("change directory to {path}")))?;
    drop(root);
    sys::create_jail(name, ip4).map_err(|error| match error.kind() {
        ErrorKind::AlreadyExists => HelperError::JailExists(name.to_string()),
        _ => cannot(format!("create jail {name}"))(error).into(),
    })
}

/// Monitors an agent in an existing jail.
pub(crate) fn attach(
    caller: &Caller,
    grant: &Grant<'_>,
    requester: Requester,
) -> Result<c_int, HelperError> {
    requester.refuse_orphan()?;
    become_monitor()?;
    leave_terminal()?;
    let jid =
        sys::jail_id(grant.jail).ok_or_else(|| HelperError::NoJail(grant.jail.to_string()))?;
    let records = Records::open(caller.uid)?;
    let child = start(caller.uid, grant, false, jid, records, requester.pid)?;
    let mut monitor = Monitor::new(child, requester.pid, requester.control);
    monitor.rule = Some(grant.rule);
    sys::limit_time(0, caller);
    monitor.run()
}

/// Forks the process that becomes the agent, and records it before it starts.
fn start(
    caller_uid: u32,
    grant: &Grant<'_>,
    created: bool,
    jid: i32,
    records: Records,
    requester: u32,
) -> Result<monitor::Child, HelperError> {
    let child = monitor::fork(|| become_agent(grant, jid).unwrap_or_else(|error| error))?;
    let limit = grant.rule.limits.agents;
    let added = super::agent_record(caller_uid, grant, created, jid, child.pid, requester)
        .and_then(|record| records.add(&record, limit, has_ended));
    if let Err(error) = added {
        child.end();
        return Err(error);
    }
    Ok(child)
}

/// Creates a jail as [`create`] does, enters it with a child, and removes it.
pub(crate) fn probe() -> Result<(), HelperError> {
    become_monitor()?;
    let name: JailName = format!("colibri-check-{}", std::process::id())
        .parse()
        .map_err(crate::request::RequestError::Value)?;
    let root = safe_open::fixed_path(PROBE_ROOT)?;
    let jail = create_jail(&name, &root, Some(&Ip4Policy::Disable))?;
    let jid = jail.jid;
    let child = monitor::fork(|| match sys::attach_jail(jid) {
        Ok(()) => sys::exit(0),
        Err(error) => cannot("enter the created jail")(error).into(),
    })?;
    let mut monitor = Monitor::new(child, parent_id(), None);
    monitor.own_jail(&name, jail);
    monitor.releases_stdio = false;
    match monitor.run()? {
        0 => Ok(()),
        _ => Err(HelperError::Probe),
    }
}

/// Starts a session without a controlling terminal. A group leader cannot; its session must not have a terminal.
fn leave_terminal() -> Result<(), HelperError> {
    if sys::new_session().is_err() && sys::has_terminal() {
        return Err(HelperError::Terminal);
    }
    Ok(())
}

/// Enters the jail, drops root and executes the agent. Every file that it reads inside may be hostile. Returns the
/// error.
fn become_agent(grant: &Grant<'_>, jid: i32) -> Result<HelperError, HelperError> {
    // The kernel refuses a process with an open directory (jail_attach(2)); this one has none.
    sys::attach_jail(jid).map_err(cannot(format!("enter jail {}", grant.jail)))?;
    let (ids, entry) = jail_user(grant)?;
    let environment = super::agent_environment(grant, entry.as_ref());
    super::apply_limits(&grant.rule.limits)?;
    sys::become_user(ids.uid, ids.gid)?;
    sys::restrict_process()?;
    let workdir = grant.run.workdir.as_ref().map_or("/", JailPath::as_str);
    std::env::set_current_dir(workdir)
        .map_err(cannot(format!("change directory to {workdir} in the jail")))?;
    sys::unblock_signals();
    Ok(sys::execute(&grant.programs, grant.run.command.args(), &environment).into())
}

/// Resolves a user inside the jail, with its passwd(5) entry there if it has one. The ids of a name are those of the jail's
/// passwd(5), which only root may be able to write: the table selects the rights of the agent on files and devices of the host.
/// The ids of a number are those that the policy allows; the table only adds the name and the directories of its variables.
fn jail_user(grant: &Grant<'_>) -> Result<(UserIds, Option<PasswdEntry>), HelperError> {
    if let Some(ids) = grant.ids {
        let table = table_of_any_owner().unwrap_or_default();
        let entry = users::find_user(&table, |_, uid| uid == ids.uid);
        return Ok((ids, entry));
    }
    let user = grant.user.to_string();
    let table = safe_open::read_root_owned(PASSWD, users::MAX_TABLE)
        .map_err(|error| untrusted_table(&user, error))?;
    let Some(entry) = users::find_user(&table, |known, _| known == user) else {
        return Err(HelperError::NoUser(user));
    };
    let ids = entry.ids;
    if ids.is_root() || ids.reads_devices() {
        let UserIds { uid, gid } = ids;
        return Err(HelperError::PrivilegedUser { user, uid, gid });
    }
    Ok((ids, Some(entry)))
}

/// Adds the user to the error of an unsafe owner or mode, whose paths are those of the jail.
fn untrusted_table(user: &str, error: OpenError) -> HelperError {
    let problem = match error {
        OpenError::Owner(path, uid) => format!("{path} of the jail belongs to uid {uid}"),
        OpenError::Mode(path, mode, _) => {
            format!("{path} of the jail has mode {mode:o}, so that others can write it")
        }
        error => return error.into(),
    };
    HelperError::UserTable {
        user: user.to_owned(),
        problem,
    }
}

/// Reads the user table of the jail, which any user may be able to write.
fn table_of_any_owner() -> Result<String, OpenError> {
    let etc = safe_open::directory(&safe_open::fixed_path("/etc")?, Trust::AnyOwner)?;
    let file = safe_open::regular_file_at(&etc, "passwd", PASSWD)?;
    safe_open::read_text(PASSWD, file, users::MAX_TABLE)
}

/// A process to signal.
pub(crate) struct Target {
    pub(crate) jail: JailName,
    process: ProcessId,
    jid: i32,
}

impl Target {
    /// Reports whether one request can signal both processes: signals are sent from inside one jail.
    pub(super) fn combines_with(&self, other: &Self) -> bool {
        self.jid == other.jid
    }
}

/// Finds the record of a process. In a created jail every process belongs to the agent; in an entered jail only the
/// descendants of the agent's first process do, orphans included, as their reaper lists them.
pub(super) fn find_target(pid: u32, records: &[Record]) -> Lookup {
    let Some(info) = sys::process_info(pid) else {
        return Lookup::Ended;
    };
    let owns = |record: &&Record| {
        record.jid == info.jid
            && record.jid != 0
            && !has_ended(record)
            && (record.created || has_started(record, pid))
    };
    let Some(record) = records.iter().find(owns) else {
        return Lookup::NotOwned;
    };
    let start = info.start;
    Lookup::Owned(Target {
        jail: record.jail.clone(),
        process: ProcessId { pid, start },
        jid: record.jid,
    })
}

/// Reports whether the agent of a record is or started the process.
fn has_started(record: &Record, pid: u32) -> bool {
    if record.first.pid == pid {
        return record.first.is_running();
    }
    // A reaper is checked before and after its list is read, so that its pid was not reused.
    let has_descendant = |reaper: ProcessId, child| {
        reaper.is_running()
            && sys::descendants(reaper.pid, child).contains(&pid)
            && reaper.is_running()
    };
    has_descendant(record.parent, Some(record.first.pid))
        || reaper_of_orphans(record).is_some_and(|reaper| has_descendant(reaper, None))
}

/// Returns the process that may be the reaper of the agent's processes after its monitor was killed: the running requester,
/// if it is a process of the caller. A reaper of another user, such as init(8), has descendants that are not the caller's.
fn reaper_of_orphans(record: &Record) -> Option<ProcessId> {
    let ProcessId { pid, start } = record.requester;
    let info = sys::process_info(pid)?;
    let is_callers = pid > 1 && info.start == start && info.uid == record.uid;
    is_callers.then_some(record.requester)
}

/// Enters the jail and signals the processes. FreeBSD has no descriptor for a process of another parent; from inside the
/// jail, a reused pid outside of it cannot be signalled.
pub(crate) fn send_signal(targets: Vec<Target>, signal: Signal) -> Result<(), HelperError> {
    let Some(Target { jid, jail, .. }) = targets.first() else {
        return Ok(());
    };
    sys::attach_jail(*jid).map_err(cannot(format!("enter jail {jail}")))?;
    for target in &targets {
        if target.process.is_running() {
            let sent = sys::kill(target.process.pid, sys::signal_number(signal));
            super::check_sent(sent)?;
        }
    }
    Ok(())
}

/// Removes the created jail, unless another jail has its name by now.
pub(super) fn remove_jail(record: &Record) -> Result<(), HelperError> {
    if sys::jail_id(&record.jail) != Some(record.jid) {
        return Ok(());
    }
    Ok(sys::remove_jail(record.jid).map_err(cannot(format!("remove jail {}", record.jail)))?)
}

/// Reports whether no process can belong to a record's agent: its created jail is removed, or both reapers of an entered jail's
/// agent have ended.
fn has_ended(record: &Record) -> bool {
    if record.created {
        sys::jail_id(&record.jail) != Some(record.jid)
    } else {
        !record.parent.is_running() && reaper_of_orphans(record).is_none()
    }
}
