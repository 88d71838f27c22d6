//! FreeBSD: this process creates or enters the jail by system calls and executes the agent, so pid, stdio and exit status
//! are the agent's.

use std::convert::Infallible;
use std::os::unix::process::parent_id;

use colibri_jail_core::{EphemeralJail, JailName, JailPath, JailUser, Signal};

use super::Lookup;
use super::records::{ProcessId, Record, Records};
use crate::authorize::Grant;
use crate::error::HelperError;
use crate::safe_open::{self, OpenError, Trust};
use crate::sys::{self, cannot};
use crate::users::{self, PasswdEntry, UserIds};

/// Creates a jail for one agent and becomes it.
pub(crate) fn create(
    caller_uid: u32,
    grant: &Grant<'_>,
    jail: &EphemeralJail,
) -> Result<Infallible, HelperError> {
    if !jail.masked.is_empty() {
        return Err(HelperError::HideOnFreeBsd);
    }
    leave_terminal()?;
    let records = Records::open()?;
    let lock = records.lock()?;
    if sys::jail_id(grant.jail).is_some() {
        return Err(HelperError::JailExists(grant.jail.to_string()));
    }
    records.prune(has_ended)?;
    let root = safe_open::directory(&jail.path, Trust::AnyOwner)?;
    sys::change_directory(&root).map_err(cannot(format!("change directory to {}", jail.path)))?;
    drop(root);
    let jid = sys::create_jail(grant.jail, &jail.ip4)
        .map_err(cannot(format!("create jail {}", grant.jail)))?;
    // This process is inside the jail now; the records are reached by their descriptor, which is then closed.
    records.write(&super::agent_record(caller_uid, grant, true, jid)?)?;
    drop((lock, records));
    become_agent(grant)
}

/// Enters an existing jail and becomes an agent in it.
pub(crate) fn attach(caller_uid: u32, grant: &Grant<'_>) -> Result<Infallible, HelperError> {
    leave_terminal()?;
    let jid =
        sys::jail_id(grant.jail).ok_or_else(|| HelperError::NoJail(grant.jail.to_string()))?;
    let records = Records::open()?;
    let lock = records.lock()?;
    records.prune(has_ended)?;
    records.write(&super::agent_record(caller_uid, grant, false, jid)?)?;
    drop((lock, records));
    sys::attach_jail(jid).map_err(cannot(format!("enter jail {}", grant.jail)))?;
    become_agent(grant)
}

/// Starts a session without a controlling terminal. A group leader cannot; its session must not have a terminal.
fn leave_terminal() -> Result<(), HelperError> {
    if sys::new_session().is_err() && sys::has_terminal() {
        return Err(HelperError::Terminal);
    }
    Ok(())
}

/// Drops root and executes the agent. This process is inside the jail: every file that it reads may be hostile.
fn become_agent(grant: &Grant<'_>) -> Result<Infallible, HelperError> {
    let user = jail_user(&grant.user)?;
    let environment = super::agent_environment(grant, user.entry.as_ref());
    let parent = parent_id();
    super::apply_limits(&grant.rule.limits)?;
    sys::become_user(user.ids.uid, user.ids.gid)?;
    sys::restrict_process()?;
    if parent_id() != parent {
        return Err(HelperError::Orphaned);
    }
    let workdir = grant.run.workdir.as_ref().map_or("/", JailPath::as_str);
    std::env::set_current_dir(workdir)
        .map_err(cannot(format!("change directory to {workdir} in the jail")))?;
    sys::close_from(3)?;
    sys::unblock_signals();
    Err(sys::execute(&grant.programs, grant.run.command.args(), &environment).into())
}

/// A user of a jail, with its passwd(5) entry there if it has one.
struct ResolvedUser {
    ids: UserIds,
    entry: Option<PasswdEntry>,
}

/// Resolves a user by the jail's own passwd(5). Only the name root resolves to uid 0; other names of uid 0 are refused.
fn jail_user(user: &JailUser) -> Result<ResolvedUser, HelperError> {
    let table = jail_passwd();
    if let Some(ids) = UserIds::numeric(user) {
        let entry = users::find_user(&table.unwrap_or_default(), |_, uid| uid == ids.uid);
        return Ok(ResolvedUser { ids, entry });
    }
    let name = user.to_string();
    match users::find_user(&table?, |known, _| known == name) {
        Some(entry) if entry.ids.uid != 0 || name == "root" => Ok(ResolvedUser {
            ids: entry.ids,
            entry: Some(entry),
        }),
        _ => Err(HelperError::NoUser(name)),
    }
}

fn jail_passwd() -> Result<String, OpenError> {
    let etc = safe_open::directory(&safe_open::fixed_path("/etc")?, Trust::AnyOwner)?;
    let shown = "/etc/passwd in the jail";
    let file = safe_open::regular_file_at(&etc, "passwd", shown)?;
    safe_open::read_text(shown, file, users::MAX_TABLE)
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
/// descendants of the agent's first process do, orphans included, as its reaper lists them.
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
    match records.iter().find(owns) {
        Some(record) => Lookup::Owned(Target {
            jail: record.jail.clone(),
            process: ProcessId {
                pid,
                start: info.start,
            },
            jid: record.jid,
        }),
        None => Lookup::NotOwned,
    }
}

/// Reports whether the agent of a record is or started the process.
fn has_started(record: &Record, pid: u32) -> bool {
    if record.first.pid == pid {
        return record.first.is_running();
    }
    // The reaper is checked before and after its list is read, so that its pid was not reused.
    record.parent.is_running()
        && sys::descendants(record.parent.pid, record.first.pid).contains(&pid)
        && record.parent.is_running()
}

/// Enters the jail and signals the processes. FreeBSD has no descriptor for a process of another parent; from inside the
/// jail, a reused pid outside of it cannot be signalled.
pub(crate) fn send_signal(targets: Vec<Target>, signal: Signal) -> Result<(), HelperError> {
    let Some(Target { jid, jail, .. }) = targets.first() else {
        return Ok(());
    };
    sys::attach_jail(*jid).map_err(cannot(format!("enter jail {jail}")))?;
    for target in &targets {
        if !target.process.is_running() {
            continue;
        }
        match sys::kill(target.process.pid, sys::signal_number(signal)) {
            Err(error) if error.raw_os_error() != Some(libc::ESRCH) => {
                return Err(cannot("send the signal")(error).into());
            }
            _ => {}
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

/// Reports whether no process of a record's agent can exist: its created jail is removed, or the reaper of an entered
/// jail's agent has ended, and all descendants with it.
fn has_ended(record: &Record) -> bool {
    if record.created {
        sys::jail_id(&record.jail) != Some(record.jid)
    } else {
        !record.parent.is_running()
    }
}
