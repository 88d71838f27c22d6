//! Linux. A jail is a bubblewrap sandbox for one agent. docs/decisions/0006 has the reasons.

use std::convert::Infallible;
use std::fs::File;
use std::io;

use colibri_jail_core::{
    Bubblewrap, CommandLine, Ip4Policy, JailEngine, JailName, JailOp, JailPath, JailSetup, Signal,
};

use super::{Job, own_record, tidy};
use crate::error::Stop;
use crate::place::{self, PlaceError, Trust};
use crate::record::{Process, Record, Records};
use crate::request::RequestError;
use crate::users::Entry;
use crate::{environment, fixed, sys, users};

/// Directories that a sandbox has of its own, where a look into the root tells nothing.
const PRIVATE: [&str; 3] = ["/proc/", "/dev/", "/tmp/"];
/// How often the way up from a process is looked at, if it changes meanwhile.
const LOOKS: usize = 5;
/// How long a sandbox may take to end after KILL, in seconds.
const END: u64 = 5;

/// Makes a sandbox for one agent and becomes it.
pub(super) fn create(
    job: &Job<'_>,
    path: &JailPath,
    ip4: &Ip4Policy,
    hide: &[JailPath],
) -> Result<Infallible, Stop> {
    let (uid, gid) = numbers(job)?;
    let bwrap = bwrap()?;
    let records = Records::open()?;

    // From here on every mount is this process's alone. The root is put onto a place of root's by its
    // descriptor: bubblewrap, which knows paths only, finds it there whatever happens to its own path.
    let onto: JailPath = fixed::records().parse().map_err(RequestError::from)?;
    sys::own_mounts().map_err(|error| Stop::system("making a mount namespace", error))?;
    let root = place::directory(path, Trust::NoLinks)?;
    sys::bind(&root, onto.as_str())
        .map_err(|error| Stop::system(format!("binding {path}"), error))?;
    let root = place::directory(&onto, Trust::NoLinks)?;
    for hidden in hide {
        let place = place::directory_in(&root, hidden, Trust::NoLinks)?;
        sys::hide(&place).map_err(|error| Stop::system(format!("hiding {hidden}"), error))?;
    }
    let there = |program: &&String| {
        PRIVATE.iter().any(|own| program.starts_with(own))
            || sys::exists_in_root(&root, program).is_ok()
    };
    let program = job.programs.iter().find(there);
    let program = program.ok_or_else(|| Stop::NoProgram(job.programs.join(" or ")))?;

    let engine = JailEngine::Bubblewrap(Bubblewrap {
        program: bwrap,
        ..Bubblewrap::default()
    });
    let command = engine
        .command_line(&JailOp::Create {
            name: job.jail.clone(),
            path: onto,
            ip4: ip4.clone(),
            // This process becomes that user itself.
            user: None,
            workdir: job.run.workdir.clone(),
            setup: JailSetup::default(),
            command: CommandLine::new(program.clone(), job.run.command.args())
                .map_err(RequestError::from)?,
        })
        .map_err(RequestError::from)?;

    let record = own_record(job, true, 0)?;
    let lock = records.lock()?;
    if records.made(job.jail).is_some_and(|old| !is_gone(&old)) {
        return Err(Stop::JailExists(job.jail.to_string()));
    }
    tidy(&records)?;
    records.write(&record)?;
    drop(lock);

    let env = env(job, uid);
    let asker = asker(&record)?;
    become_agent(job, uid, gid)?;
    end_with(&asker)?;
    sys::close_from(3)?;
    sys::unblock_signals();
    let (program, args) = command.into_parts();
    Err(sys::execute(&[program], &args, &env))
}

/// The process that asked for an agent, which must not outlive it. The kernel would not tell: the signal of a
/// parent's death is the parent's to send, and it may not signal another user's process.
fn asker(record: &Record) -> Result<std::os::fd::OwnedFd, Stop> {
    let asker = sys::pidfd(record.parent.pid).map_err(|_| orphaned())?;
    if sys::parent_pid() == record.parent.pid {
        Ok(asker)
    } else {
        Err(orphaned())
    }
}

/// Leaves a process beside this one, as the same user, that ends it when `asker` has ended.
fn end_with(asker: &std::os::fd::OwnedFd) -> Result<(), Stop> {
    let itself =
        sys::pidfd(std::process::id()).map_err(|error| Stop::system("pidfd_open", error))?;
    if let sys::Fork::Child = sys::fork().map_err(|error| Stop::system("fork", error))? {
        // Signals stay blocked: those to the agent's processes are not for this one.
        if sys::keep_only(asker, &itself).is_err() {
            sys::exit(71);
        }
        let (asker, agent) = sys::kept();
        if sys::first_ends(&asker, &agent) {
            let _ = sys::pidfd_signal(&agent, libc::SIGKILL);
        }
        sys::exit(0);
    }
    Ok(())
}

/// Gives up root, and what a user's own process keeps.
fn become_agent(job: &Job<'_>, uid: u32, gid: u32) -> Result<(), Stop> {
    sys::apply_limits(&job.rule.limits)?;
    sys::drop_capability_bounds();
    sys::become_user(uid, gid)?;
    sys::seclude()
}

fn orphaned() -> Stop {
    Stop::system(
        "starting the agent",
        io::Error::other("the process that asked for it has ended"),
    )
}

fn numbers(job: &Job<'_>) -> Result<(u32, u32), Stop> {
    users::resolve(&job.user).ok_or_else(|| Stop::NoUser(job.user.to_string()))
}

fn env(job: &Job<'_>, uid: u32) -> Vec<Vec<u8>> {
    let table = users::host_table("/etc/passwd").unwrap_or_default();
    let user: Option<Entry> = users::entry(&table, |_, known| known == uid);
    environment::filter(sys::environment(), &job.rule.environment, user.as_ref())
}

/// The first bubblewrap that is there and that only root could have written.
fn bwrap() -> Result<JailPath, Stop> {
    let mut last = None;
    for path in fixed::BWRAP {
        let place: JailPath = path.parse().map_err(RequestError::from)?;
        match check_program(&place) {
            Ok(()) => return Ok(place),
            Err(error) => last = Some(error),
        }
    }
    Err(last.map_or_else(|| Stop::NoProgram("bwrap".to_owned()), Stop::from))
}

fn check_program(path: &JailPath) -> Result<(), PlaceError> {
    let (above, name) = place::parent(path);
    let above = place::directory(&above, Trust::RootOnly)?;
    let shown = path.as_str();
    let io = |error| PlaceError::Io(shown.to_owned(), error);
    let data = sys::open_file_at(&above, name)
        .map(File::from)
        .and_then(|file| file.metadata())
        .map_err(io)?;
    if !data.is_file() {
        return Err(PlaceError::NotAFile(shown.to_owned()));
    }
    place::only_root_writes(shown, &data)
}

/// A process, held so that no reuse of its pid changes it, and the jail that it was found in.
pub(super) type Found = (std::os::fd::OwnedFd, JailName);

/// Each process must be one of `own`, or a descendant of one: what is orphaned in a sandbox becomes a child of
/// the sandbox's first process, so the way up always leads to the recorded one while that lives. A process that
/// has ended needs no signal and is passed over, unless there is no other.
pub(super) fn find(
    pids: &[u32],
    own: &[Record],
    jail: Option<&JailName>,
) -> Result<Vec<Found>, Stop> {
    let mut found = Vec::new();
    let mut ended = None;
    for pid in pids {
        // Opened before the looks: if the pid is reused after one of them, the signal goes nowhere.
        let process = sys::pidfd(*pid).ok();
        let record = process.as_ref().and_then(|_| {
            // A parent may end between two looks, and the way is another one then.
            (0..LOOKS).find_map(|_| {
                let way = way_up(*pid)?;
                // Every parent was there before and after its child named it, so it is the one meant.
                (way_up(*pid).as_ref() == Some(&way)).then_some(way)
            })
        });
        let record = record.and_then(|way| own.iter().find(|record| way.contains(&record.first)));
        match (process, record) {
            (Some(process), Some(record)) => found.push((process, record.jail.clone())),
            _ if sys::parent_and_start(*pid).is_none() => ended = Some(*pid),
            _ => return Err(super::stranger(*pid, jail)),
        }
    }
    match ended {
        Some(pid) if found.is_empty() => Err(super::stranger(pid, jail)),
        _ => Ok(found),
    }
}

/// A process and all its ancestors.
fn way_up(pid: u32) -> Option<Vec<Process>> {
    let mut way = Vec::new();
    let mut pid = pid;
    while pid > 1 {
        let (parent, start) = sys::parent_and_start(pid)?;
        way.push(Process { pid, start });
        // A loop is not possible in one look, but these are many.
        if way.len() > 10_000 {
            return None;
        }
        pid = parent;
    }
    Some(way)
}

/// All were found before the first is signalled. One that has ended since needs no signal.
pub(super) fn signal(found: Vec<Found>, signal: Signal) -> Result<(), Stop> {
    for (process, _) in found {
        match sys::pidfd_signal(&process, sys::number(signal)) {
            Err(error) if error.raw_os_error() != Some(libc::ESRCH) => {
                return Err(Stop::system("sending the signal", error));
            }
            _ => {}
        }
    }
    Ok(())
}

/// Ends the sandbox by its first process on the host, and waits until the one inside has taken all with it.
pub(super) fn remove(record: &Record) -> Result<(), Stop> {
    let Process { pid, start } = record.first;
    let Ok(outer) = sys::pidfd(pid) else {
        return Ok(());
    };
    // Held before the look, so it is the recorded one or its signal goes nowhere.
    if is_gone(record) {
        return Ok(());
    }
    let inner: Vec<_> = sys::children(pid)
        .into_iter()
        .filter_map(|child| sys::pidfd(child).ok())
        .collect();
    if sys::parent_and_start(pid).is_some_and(|(_, found)| found == start) {
        let _ = sys::pidfd_signal(&outer, libc::SIGKILL);
    }
    let milliseconds = i32::try_from(END * 1000).unwrap_or(i32::MAX);
    if sys::ends_within(&outer, milliseconds)
        && inner
            .iter()
            .all(|inner| sys::ends_within(inner, milliseconds))
    {
        return Ok(());
    }
    Err(Stop::NotEmpty {
        jail: record.jail.to_string(),
        seconds: END,
    })
}

/// Whether the agent of a record has ended.
pub(super) fn is_gone(record: &Record) -> bool {
    record.boot != sys::boot()
        || sys::parent_and_start(record.first.pid)
            .is_none_or(|(_, start)| start != record.first.start)
}
