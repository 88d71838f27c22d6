//! FreeBSD. This process makes or enters the jail by system calls and executes the agent itself, so that pid,
//! stdio and exit status are the agent's.

use std::convert::Infallible;
use std::fs::File;

use colibri_jail_core::{Ip4Policy, JailName, JailPath, JailUser, Signal};

use super::{Job, own_record, tidy};
use crate::error::Stop;
use crate::place::{self, PlaceError, Trust};
use crate::record::{Process, Record, Records};
use crate::users::{self, Entry};
use crate::{environment, sys};

/// Larger tables than a jail of plain files has.
const TABLE: u64 = 4 << 20;

/// Makes a jail for one agent and becomes it.
pub(super) fn create(
    job: &Job<'_>,
    path: &JailPath,
    ip4: &Ip4Policy,
    hide: &[JailPath],
) -> Result<Infallible, Stop> {
    if !hide.is_empty() {
        return Err(Stop::BadJail(
            job.jail.to_string(),
            "--hide is of Linux; on FreeBSD a jail has a root of its own",
        ));
    }
    leave_terminal()?;
    let records = Records::open()?;
    let lock = records.lock()?;
    if sys::jail_id(job.jail).is_some() {
        return Err(Stop::JailExists(job.jail.to_string()));
    }
    tidy(&records)?;
    let root = place::directory(path, Trust::NoLinks)?;
    sys::change_to(&root).map_err(|error| Stop::system(format!("going to {path}"), error))?;
    drop(root);
    let jid = sys::make_jail(job.jail, ip4)
        .map_err(|error| Stop::system(format!("making jail {}", job.jail), error))?;
    // In the jail by now; the records are reached by the descriptor from before, which is closed at once.
    records.write(&own_record(job, true, jid)?)?;
    drop((lock, records));
    become_agent(job)
}

/// Enters a jail that exists and becomes the agent.
pub(super) fn attach(job: &Job<'_>) -> Result<Infallible, Stop> {
    leave_terminal()?;
    let jid = sys::jail_id(job.jail).ok_or_else(|| Stop::NoJail(job.jail.to_string()))?;
    let records = Records::open()?;
    let lock = records.lock()?;
    tidy(&records)?;
    records.write(&own_record(job, false, jid)?)?;
    drop((lock, records));
    sys::attach_jail(jid)
        .map_err(|error| Stop::system(format!("entering jail {}", job.jail), error))?;
    become_agent(job)
}

/// A group leader cannot leave its session; then there must be no terminal in it.
fn leave_terminal() -> Result<(), Stop> {
    if sys::new_session().is_err() && sys::has_terminal() {
        return Err(Stop::Terminal("this session"));
    }
    Ok(())
}

/// Inside the jail: everything read here is the jail's own and may be hostile.
fn become_agent(job: &Job<'_>) -> Result<Infallible, Stop> {
    let (entry, uid, gid) = user(&job.user)?;
    let env = environment::filter(sys::environment(), &job.rule.environment, entry.as_ref());
    let parent = sys::parent_pid();
    sys::apply_limits(&job.rule.limits)?;
    sys::become_user(uid, gid)?;
    sys::seclude()?;
    if sys::parent_pid() != parent {
        return Err(Stop::system(
            "starting the agent",
            std::io::Error::other("the process that asked for it has ended"),
        ));
    }
    let workdir = job.run.workdir.as_ref().map_or("/", JailPath::as_str);
    sys::change_directory(workdir)
        .map_err(|error| Stop::system(format!("going to {workdir} in the jail"), error))?;
    sys::close_from(3)?;
    sys::unblock_signals();
    Err(sys::execute(job.programs, job.run.command.args(), &env))
}

/// By the jail's own passwd(5). A name other than root's never means uid 0, whatever the table says.
fn user(user: &JailUser) -> Result<(Option<Entry>, u32, u32), Stop> {
    let table = passwd();
    match user {
        JailUser::Id { uid, gid } => {
            let table = table.unwrap_or_default();
            let entry = users::entry(&table, |_, known| known == *uid);
            Ok((entry, *uid, gid.unwrap_or(*uid)))
        }
        JailUser::Name(name) => {
            let unknown = || Stop::NoUser(user.to_string());
            let entry =
                users::entry(&table?, |known, _| known == name.as_ref()).ok_or_else(unknown)?;
            if entry.uid == 0 && name.as_ref() != "root" {
                return Err(unknown());
            }
            let (uid, gid) = (entry.uid, entry.gid);
            Ok((Some(entry), uid, gid))
        }
    }
}

fn passwd() -> Result<String, Stop> {
    let shown = "/etc/passwd in the jail";
    let io = |error| PlaceError::Io(shown.to_owned(), error);
    let etc = sys::open_root()
        .and_then(|root| sys::open_directory_at(&root, "etc"))
        .map_err(io)?;
    let file = File::from(sys::open_file_at(&etc, "passwd").map_err(io)?);
    if !file.metadata().map_err(io)?.is_file() {
        return Err(PlaceError::NotAFile(shown.to_owned()).into());
    }
    Ok(place::text(shown, file, TABLE)?)
}

/// A process, the jail that it was found in, and that jail's id.
pub(super) type Found = ((Process, i32), JailName);

/// Each process must be in the jail of one of `own`, and all in the same one. In a jail that was made every
/// process is the agent's; in one that was entered only those are that the agent itself started, which its
/// reaper's list tells, orphans included. A process that has ended needs no signal and is passed over, unless
/// there is no other.
pub(super) fn find(
    pids: &[u32],
    own: &[Record],
    jail: Option<&JailName>,
) -> Result<Vec<Found>, Stop> {
    let mut found: Vec<Found> = Vec::new();
    let mut ended = None;
    for pid in pids {
        let stranger = || super::stranger(*pid, jail);
        let Some(seen) = sys::look(*pid) else {
            ended = Some(*pid);
            continue;
        };
        let ours = |record: &&Record| {
            record.jid == seen.jid
                && record.jid != 0
                && !is_gone(record)
                && (record.made || started(record, *pid))
        };
        let record = own.iter().find(ours).ok_or_else(stranger)?;
        if found.iter().any(|((_, jid), _)| *jid != record.jid) {
            return Err(stranger());
        }
        let process = Process {
            pid: *pid,
            start: seen.start,
        };
        found.push(((process, record.jid), record.jail.clone()));
    }
    match ended {
        Some(pid) if found.is_empty() => Err(super::stranger(pid, jail)),
        _ => Ok(found),
    }
}

fn started(record: &Record, pid: u32) -> bool {
    let is = |process: &Process| {
        sys::parent_and_start(process.pid).is_some_and(|(_, start)| start == process.start)
    };
    if record.first.pid == pid {
        return is(&record.first);
    }
    is(&record.parent)
        && sys::subtree(record.parent.pid, record.first.pid).contains(&pid)
        && is(&record.parent)
}

/// This process enters the jail first: from inside, a signal reaches nothing that is outside, even if a pid has
/// been reused between the last look and the signal. The kernel has no descriptor for another's process.
pub(super) fn signal(found: Vec<Found>, signal: Signal) -> Result<(), Stop> {
    let Some(((_, jid), jail)) = found.first() else {
        return Ok(());
    };
    sys::attach_jail(*jid).map_err(|error| Stop::system(format!("entering jail {jail}"), error))?;
    for ((process, _), _) in &found {
        if sys::look(process.pid).is_none_or(|seen| seen.start != process.start) {
            continue;
        }
        match sys::kill(process.pid, sys::number(signal)) {
            Err(error) if error.raw_os_error() != Some(libc::ESRCH) => {
                return Err(Stop::system("sending the signal", error));
            }
            _ => {}
        }
    }
    Ok(())
}

/// Removes the jail that was made, unless its name is another's by now.
pub(super) fn remove(record: &Record) -> Result<(), Stop> {
    if sys::jail_id(&record.jail) != Some(record.jid) {
        return Ok(());
    }
    sys::remove_jail(record.jid)
        .map_err(|error| Stop::system(format!("removing jail {}", record.jail), error))
}

/// Whether nothing of a record's agent can be left: a jail that was made is gone, or the reaper is, with which
/// all that was started in an entered one has gone.
pub(super) fn is_gone(record: &Record) -> bool {
    if record.made {
        return sys::jail_id(&record.jail) != Some(record.jid);
    }
    sys::parent_and_start(record.parent.pid).is_none_or(|(_, start)| start != record.parent.start)
}
