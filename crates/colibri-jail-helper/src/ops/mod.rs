//! Performs authorized requests. `create` and `attach` become the monitor of the agent.

#[cfg(target_os = "freebsd")]
mod freebsd;
#[cfg(target_os = "linux")]
mod linux;
#[cfg(target_os = "freebsd")]
mod monitor;
#[cfg(target_os = "freebsd")]
mod mounts;
#[cfg(target_os = "freebsd")]
mod network;
mod records;
#[cfg(target_os = "freebsd")]
mod root;

#[cfg(target_os = "freebsd")]
use freebsd as host;
#[cfg(target_os = "linux")]
use linux as host;

use std::io::{self, Write};

use colibri_jail_core::JailName;

pub(crate) use host::{Requester, Target, attach, create, perform_for_root, probe, send_signal};

use crate::authorize::{Grant, Refusal};
use crate::environment;
use crate::error::HelperError;
use crate::policy::{HelperLimits, Rule};
use crate::sys::{self, SysError};
use crate::users::PasswdEntry;
use records::{ProcessId, Record, Records};

/// Returns the record of an agent, whose monitor is this process. `jid` is 0 on Linux.
fn agent_record(
    caller_uid: u32,
    grant: &Grant<'_>,
    created: bool,
    jid: i32,
    first: u32,
    requester: u32,
) -> Result<Record, HelperError> {
    let process = |pid| ProcessId::of(pid).ok_or(HelperError::Orphaned);
    Ok(Record {
        uid: caller_uid,
        jail: grant.jail.clone(),
        created,
        first: process(first)?,
        parent: process(std::process::id())?,
        requester: process(requester)?,
        jid,
        boot: sys::boot_id(),
    })
}

/// Returns the environment of the agent, whose passwd(5) entry is `user`.
fn agent_environment(grant: &Grant<'_>, user: Option<&PasswdEntry>) -> Vec<Vec<u8>> {
    let is_allowed = |name: &str| grant.rule.allows_variable(name);
    environment::filter(std::env::vars_os(), is_allowed, user)
}

/// A process of a signal request.
enum Lookup {
    Owned(Target),
    /// It has ended or never existed.
    Ended,
    /// It does not provably belong to the caller.
    NotOwned,
}

/// Returns the processes of the request, each of which must belong to an agent of the caller. Ended processes are
/// omitted, unless all have ended.
pub(crate) fn find_targets(
    caller_uid: u32,
    jail: Option<&JailName>,
    pids: &[u32],
) -> Result<Vec<Target>, HelperError> {
    // The same answer for every process of others, so that it reveals nothing about them.
    let not_owned = |pid| {
        let suffix = jail.map_or(String::new(), |jail| format!(" in jail {jail}"));
        Err(Refusal::NotOwnProcess(pid, suffix).into())
    };
    let mut records = Records::open(caller_uid)?.all()?;
    if let Some(jail) = jail {
        records.retain(|record| record.jail == *jail);
    }
    let mut targets: Vec<Target> = Vec::new();
    let mut ended = None;
    for &pid in pids {
        let combines = |target: &Target| targets.iter().all(|other| other.combines_with(target));
        match host::find_target(pid, &records) {
            Lookup::Owned(target) if combines(&target) => targets.push(target),
            Lookup::Ended => ended = Some(pid),
            _ => return not_owned(pid),
        }
    }
    match ended {
        Some(pid) if targets.is_empty() => not_owned(pid),
        _ => Ok(targets),
    }
}

/// Checks the result of a signal. A process that has ended in the meantime is not an error.
fn check_sent(sent: io::Result<()>) -> Result<(), SysError> {
    match sent {
        Err(error) if error.raw_os_error() == Some(libc::ESRCH) => Ok(()),
        sent => sent.map_err(sys::cannot("send the signal")),
    }
}

/// Returns the record of a jail if it was created for the caller. The refusal does not reveal whether it exists.
pub(crate) fn find_created_jail(caller_uid: u32, jail: &JailName) -> Result<Record, HelperError> {
    let record = Records::open(caller_uid)?.created(jail);
    record.ok_or_else(|| Refusal::NotOwnJail(jail.to_string()).into())
}

/// Kills all processes of a created jail, waits until it is removed, and deletes its record.
pub(crate) fn remove_jail(record: &Record) -> Result<(), HelperError> {
    host::remove_jail(record)?;
    Records::open(record.uid)?.remove(record)
}

/// Prints the caller's rules on descriptor 1.
pub(crate) fn print_rules(caller_uid: u32, rules: &[&Rule]) -> Result<(), HelperError> {
    let mut out = io::stdout().lock();
    writeln!(out, "uid {caller_uid} may use this helper, by these rules:")
        .and_then(|()| rules.iter().try_for_each(|rule| write!(out, "\n{rule}")))
        .map_err(|error| sys::cannot("write to descriptor 1")(error).into())
}

/// Applies the resource limits of the rule. `RLIMIT_NPROC` counts the processes of the user, so the agent's user must
/// be set directly afterwards.
fn apply_limits(limits: &HelperLimits) -> Result<(), SysError> {
    let or_unlimited =
        |value: Option<u64>| value.map_or(libc::RLIM_INFINITY, |value| value as libc::rlim_t);
    sys::set_limit(libc::RLIMIT_AS, or_unlimited(limits.memory))?;
    sys::set_limit(libc::RLIMIT_FSIZE, or_unlimited(limits.file_size))?;
    sys::set_limit(libc::RLIMIT_CPU, or_unlimited(limits.cpu_seconds))?;
    sys::set_limit(libc::RLIMIT_NOFILE, limits.open_files as libc::rlim_t)?;
    sys::set_limit(libc::RLIMIT_NPROC, limits.processes as libc::rlim_t)
}

#[cfg(test)]
mod protocol_model;
