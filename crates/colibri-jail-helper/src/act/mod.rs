//! Does what was granted. `attach` and `create` end by executing the agent, so they return only failures.

#[cfg(target_os = "freebsd")]
mod freebsd;
#[cfg(target_os = "linux")]
mod linux;

#[cfg(target_os = "freebsd")]
use freebsd as host;
#[cfg(target_os = "linux")]
use linux as host;

use std::convert::Infallible;
use std::io::{self, Write};

use colibri_jail_core::{JailName, JailUser};

use crate::decide::{Grant, Refusal};
use crate::error::Stop;
use crate::log::Log;
use crate::policy::Rule;
use crate::record::{Process, Record, Records};
use crate::request::{Request, Run};
use crate::sys::{self, Caller};

/// One call in so many looks at all records and drops those of agents that have ended: each call then costs
/// the same on the whole, however many agents there are.
const TIDY: u32 = 16;

/// What is to be executed, and as whom.
struct Job<'a> {
    caller: u32,
    jail: &'a JailName,
    run: &'a Run,
    rule: &'a Rule,
    user: JailUser,
    programs: &'a [String],
}

/// Does it.
pub(crate) fn perform(
    caller: &Caller,
    rules: &[&Rule],
    request: &Request,
    grant: &Grant<'_>,
    log: &Log,
) -> Result<(), Stop> {
    let job = |jail, run| -> Result<Job<'_>, Stop> {
        Ok(Job {
            caller: caller.uid,
            jail,
            run,
            rule: grant.rule,
            user: grant.user.clone().ok_or(Refusal::NoUser)?,
            programs: &grant.programs,
        })
    };
    let never: Infallible = match request {
        #[cfg(target_os = "linux")]
        Request::Attach { jail, .. } => {
            return Err(Refusal::AttachOnLinux(jail.to_string()).into());
        }
        #[cfg(target_os = "freebsd")]
        Request::Attach { jail, run } => {
            let job = job(jail, run)?;
            log.allowed(&format!("as={}", job.user))?;
            host::attach(&job)?
        }
        Request::Create {
            jail,
            path,
            ip4,
            hide,
            run,
        } => {
            let job = job(jail, run)?;
            log.allowed(&format!("as={}", job.user))?;
            host::create(&job, path, ip4, hide)?
        }
        Request::Signal { jail, signal, pids } => {
            let mut own = Records::open()?.of(caller.uid)?;
            if let Some(jail) = jail {
                own.retain(|record| record.jail == *jail);
            }
            let found = host::find(pids, &own, jail.as_ref())?;
            for (_, jail) in &found {
                crate::decide::may_signal(rules, jail, *signal)?;
            }
            log.allowed("tie=proved")?;
            return host::signal(found, *signal);
        }
        Request::Remove { jail } => {
            let records = Records::open()?;
            let record = match records.made(jail) {
                Some(record) if record.uid == caller.uid => record,
                // The same words for a jail of somebody else's and for none, so that nobody learns of others'.
                _ => return Err(Refusal::NotOwnJail(jail.to_string()).into()),
            };
            log.allowed("tie=proved")?;
            host::remove(&record)?;
            records.forget(&record);
            return Ok(());
        }
        Request::Check => {
            log.allowed("")?;
            let mut out = io::stdout().lock();
            return writeln!(
                out,
                "uid {} may use this helper, by these rules:",
                caller.uid
            )
            .and_then(|()| rules.iter().try_for_each(|rule| write!(out, "\n{rule}")))
            .map_err(|error| Stop::system("writing to descriptor 1", error));
        }
    };
    match never {}
}

/// A record of this process, which is about to become the agent.
fn own_record(job: &Job<'_>, made: bool, jid: i32) -> Result<Record, Stop> {
    let process = |pid: u32| -> Result<Process, Stop> {
        let (_, start) = sys::parent_and_start(pid).ok_or_else(|| {
            Stop::system(
                format!("looking at process {pid}"),
                io::Error::other("it has ended"),
            )
        })?;
        Ok(Process { pid, start })
    };
    Ok(Record {
        uid: job.caller,
        jail: job.jail.clone(),
        made,
        first: process(std::process::id())?,
        parent: process(sys::parent_pid())?,
        jid,
        boot: sys::boot(),
    })
}

/// The answer for a process that is not proved to be the caller's, whosever it is.
fn stranger(pid: u32, jail: Option<&JailName>) -> Stop {
    let place = jail.map_or(String::new(), |jail| format!(" in jail {jail}"));
    Refusal::NotOwnProcess(pid, place).into()
}

/// Forgets ended agents, sometimes. The lock is held.
fn tidy(records: &Records) -> Result<(), Stop> {
    if std::process::id().is_multiple_of(TIDY) {
        for record in records.all()?.iter().filter(|record| host::is_gone(record)) {
            records.forget(record);
        }
    }
    Ok(())
}
