//! Linux: reads /proc, and signals through pidfds, so that no reused pid is hit.

use std::fs;
use std::io;

use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use super::usage::Measured;
use super::{ListedProcess, NamespacePids, Process, with_descendants};

/// Returns the process with a pid; `None` if there is none, or a zombie.
///
/// # Errors
/// The system cannot report the process.
pub fn find(pid: i32) -> io::Result<Option<Process>> {
    Ok(stat(pid)?.as_deref().and_then(parse_stat))
}

/// Returns the text of `/proc/PID/stat`; `None` if the process has ended. The command name in it may contain any bytes,
/// and a name that is not UTF-8 must not hide a process.
fn stat(pid: i32) -> io::Result<Option<String>> {
    match fs::read(format!("/proc/{pid}/stat")) {
        Ok(stat) => Ok(Some(String::from_utf8_lossy(&stat).into_owned())),
        Err(error) if has_ended(&error) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Returns the pids of a process in each pid namespace, of the calling process if `pid` is `None`. Returns `None` if the
/// process does not exist, and on systems without pid namespaces (FreeBSD).
///
/// Reads `State` and `NSpid` (proc_pid_status(5)). The name of the process, which is in the same file, may be invalid
/// UTF-8.
#[must_use]
pub fn namespace_pids(pid: Option<i32>) -> Option<NamespacePids> {
    let process = pid.map_or("self".to_owned(), |pid| pid.to_string());
    let status = fs::read(format!("/proc/{process}/status")).ok()?;
    let status = String::from_utf8_lossy(&status);
    let field = |name: &str| status.lines().find_map(|line| line.strip_prefix(name));
    let pids = field("NSpid:")?.split_whitespace();
    Some(NamespacePids {
        pids: pids.map(|pid| pid.parse().ok()).collect::<Option<_>>()?,
        is_zombie: field("State:")?.trim_start().starts_with(['Z', 'X']),
    })
}

/// Returns all processes, marked if the initial environment contains `variable`. The environment of another user's
/// process cannot be read and counts as one without it.
pub(super) fn list(variable: &str) -> io::Result<Vec<ListedProcess>> {
    let mut found = Vec::new();
    for pid in pids()? {
        if let Some(process) = find(pid)? {
            let environment = fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
            let is_marked = environment
                .split(|byte| *byte == 0)
                .any(|entry| entry == variable.as_bytes());
            found.push(ListedProcess { process, is_marked });
        }
    }
    Ok(found)
}

/// Returns the pids of all descendants of a process from the parents of all processes, in no particular order. Skips a
/// process that cannot be read: with `hidepid` (proc(5)) it belongs to another user.
///
/// # Errors
/// The system cannot list its processes.
pub fn descendants(root: i32) -> io::Result<Vec<i32>> {
    let processes = pids()?
        .into_iter()
        .filter_map(|pid| find(pid).ok().flatten())
        .map(|process| (process.pid, process.parent));
    let mut found = with_descendants(processes, std::iter::once(root), 0);
    found.remove(&root);
    Ok(found.into_iter().collect())
}

/// Returns the pids of all processes.
fn pids() -> io::Result<Vec<i32>> {
    let mut pids = Vec::new();
    for entry in fs::read_dir("/proc")? {
        let name = entry?.file_name();
        pids.extend(name.to_str().and_then(|name| name.parse::<i32>().ok()));
    }
    Ok(pids)
}

/// Sends KILL to the process, and never to a later process with the same pid. Returns whether it was running.
///
/// # Errors
/// The process belongs to another user.
// Opens the pidfd before it compares the start time, so that both refer to the same process.
pub fn kill(process: &Process) -> io::Result<bool> {
    let Some(pid) = Pid::from_raw(process.pid) else {
        return Ok(false);
    };
    let descriptor = match pidfd_open(pid, PidfdFlags::empty()) {
        Ok(descriptor) => descriptor,
        Err(Errno::SRCH) => return Ok(false),
        Err(error) => return Err(error.into()),
    };
    if find(process.pid)?.is_none_or(|now| now.start != process.start) {
        return Ok(false);
    }
    match pidfd_send_signal(&descriptor, Signal::KILL) {
        Ok(()) => Ok(true),
        Err(Errno::SRCH) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

/// Returns the usage of all processes. Skips a process that ends meanwhile.
pub(super) fn measure() -> io::Result<Vec<Measured>> {
    let ticks = rustix::param::clock_ticks_per_second().max(1);
    let page = rustix::param::page_size() as u64;
    let mut found = Vec::new();
    for pid in pids()? {
        let stat = stat(pid)?;
        found.extend(stat.and_then(|stat| parse_usage(&stat, ticks, page)));
    }
    Ok(found)
}

/// Parses the usage in `/proc/PID/stat` (proc_pid_stat(5)): fields 14 to 17 are times in clock ticks, field 24 is the
/// approximate number of resident pages.
fn parse_usage(stat: &str, ticks: u64, page: u64) -> Option<Measured> {
    let (before, after) = stat.rsplit_once(')')?;
    let pid = before.split_once(' ')?.0.parse().ok()?;
    let fields: Vec<&str> = after.split_whitespace().collect();
    let field = |number: usize| fields.get(number - 3).copied();
    let time = |number| -> Option<u64> {
        let counted: i64 = field(number)?.parse().ok()?;
        Some(u64::try_from(counted).unwrap_or(0).saturating_mul(1000) / ticks)
    };
    let pages: i64 = field(24)?.parse().ok()?;
    Some(Measured {
        pid,
        parent: field(4)?.parse().ok()?,
        own_ms: time(14)?.saturating_add(time(15)?),
        waited_ms: time(16)?.saturating_add(time(17)?),
        rss: u64::try_from(pages).unwrap_or(0).saturating_mul(page),
        zombie: matches!(field(3)?, "Z" | "X"),
    })
}

/// Returns whether the error of a read from /proc reports that the process has ended.
fn has_ended(error: &io::Error) -> bool {
    matches!(
        Errno::from_io_error(error),
        Some(Errno::NOENT | Errno::SRCH)
    )
}

/// Parses `/proc/PID/stat` (proc_pid_stat(5)); returns `None` for a zombie. The command name ends at the last `)`, because
/// it may contain others. A process whose first thread has ended has the state of a zombie while other threads run, so the
/// number of threads decides.
fn parse_stat(stat: &str) -> Option<Process> {
    let (before, after) = stat.rsplit_once(')')?;
    let pid = before.split_once(' ')?.0.parse().ok()?;
    // The first of these fields is number 3, the state.
    let fields: Vec<&str> = after.split_whitespace().collect();
    let field = |number: usize| fields.get(number - 3).copied();
    let threads: u32 = field(20)?.parse().ok()?;
    if matches!(field(3)?, "Z" | "X") && threads < 2 {
        return None;
    }
    Some(Process {
        pid,
        parent: field(4)?.parse().ok()?,
        session: field(6)?.parse().ok()?,
        start: field(22)?.parse().ok()?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stat_is_parsed_after_any_command_name() {
        let rest = "S 7 12 9 0 -1 4194560 1 0 0 0 0 0 0 0 20 0 1 0 4711 2 3";
        let expected = Some(Process {
            pid: 12,
            parent: 7,
            session: 9,
            start: 4711,
        });
        for (line, found) in [
            (format!("12 (sh) {rest}"), expected),
            (format!("12 (a) R 1 (b\n) {rest}"), expected),
            (format!("12 (sh) {}", rest.replacen('S', "Z", 1)), None),
            (
                format!(
                    "12 (sh) {}",
                    rest.replacen('S', "Z", 1)
                        .replace(" 20 0 1 0 ", " 20 0 2 0 ")
                ),
                expected,
            ),
            ("12 (sh) S 7".to_owned(), None),
            ("12 (".to_owned(), None),
            (String::new(), None),
        ] {
            assert_eq!(parse_stat(&line), found, "{line}");
        }
    }

    #[test]
    fn usage_is_parsed_after_any_command_name() {
        let line = "12 (a) R 1 (b) S 7 12 9 0 -1 4194560 1 0 0 0 25 5 100 -1 20 0 1 0 4711 2 3 4";
        let expected = Measured {
            pid: 12,
            parent: 7,
            own_ms: 300,
            waited_ms: 1000,
            rss: 3 * 4096,
            zombie: false,
        };
        for (line, found) in [
            (line.to_owned(), Some(expected)),
            (
                line.replace(") S 7", ") Z 7"),
                Some(Measured {
                    zombie: true,
                    ..expected
                }),
            ),
            (line.replace(" 4711 2 3 4", " 4711 2"), None),
            (String::new(), None),
        ] {
            assert_eq!(parse_usage(&line, 100, 4096), found, "{line}");
        }
    }
}
