//! FreeBSD: asks the kernel for one process, and ps(1), which needs no unsafe code, for all.

// Other hosts compile only the parsers, for their tests.
#![cfg_attr(not(target_os = "freebsd"), allow(dead_code, unreachable_pub))]

use std::collections::HashMap;
use std::io;
use std::process::Command;

#[cfg(target_os = "freebsd")]
use rustix::{
    io::Errno,
    process::{Pid, Signal, kill_process},
};

use super::usage::Measured;
use super::{ListedProcess, Process};

/// `-e` prints the environment of the caller's processes before the command, `-ww` does not truncate it.
const LIST: &[&str] = &["-axeww"];
const COLUMNS: &[&str] = &[
    "-o", "pid=", "-o", "ppid=", "-o", "sid=", "-o", "state=", "-o", "lstart=", "-o", "command=",
];
/// Columns of the resource usage. With `-S` the time includes that of children that the process has waited for.
const USAGE: &[&str] = &[
    "-o", "pid=", "-o", "ppid=", "-o", "state=", "-o", "time=", "-o", "rss=",
];
const MONTHS: &str = "JanFebMarAprMayJunJulAugSepOctNovDec";

/// Returns the process with a pid; `None` if there is none, or a zombie.
///
/// # Errors
/// The system cannot report the process.
#[cfg(target_os = "freebsd")]
pub fn find(pid: i32) -> io::Result<Option<Process>> {
    super::kinfo::find(pid)
}

/// Returns the pids of a process in each pid namespace, of the calling process if `pid` is `None`. Returns `None` if the
/// process does not exist, and on systems without pid namespaces (FreeBSD).
#[must_use]
pub fn namespace_pids(_: Option<i32>) -> Option<super::NamespacePids> {
    None
}

pub(super) fn list(variable: &str) -> io::Result<Vec<ListedProcess>> {
    Ok(ps(LIST, COLUMNS)?
        .lines()
        .filter_map(|line| parse(line, variable))
        .collect())
}

/// Sends KILL to the process, and never to a later process with the same pid. Returns whether it was running.
///
/// # Errors
/// The process belongs to another user.
// The pid could be reused between the check and the signal. Only pdfork(2) avoids that, and only for children.
#[cfg(target_os = "freebsd")]
pub fn kill(process: &Process) -> io::Result<bool> {
    let Some(pid) = Pid::from_raw(process.pid) else {
        return Ok(false);
    };
    if find(process.pid)?.is_none_or(|now| now.start != process.start) {
        return Ok(false);
    }
    match kill_process(pid, Signal::KILL) {
        Ok(()) => Ok(true),
        Err(Errno::SRCH) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

/// Returns the usage of all processes.
pub(super) fn measure() -> io::Result<Vec<Measured>> {
    let own = ps(&["-ax"], USAGE)?;
    let with_children = ps(&["-axS"], USAGE)?;
    Ok(merge(&own, &with_children))
}

/// Merges two lists of usage, of which the second includes the times of children.
fn merge(own: &str, with_children: &str) -> Vec<Measured> {
    let own: HashMap<i32, u64> = own
        .lines()
        .filter_map(parse_usage)
        .map(|process| (process.pid, process.own_ms))
        .collect();
    with_children
        .lines()
        .filter_map(parse_usage)
        .map(|process| {
            let all = process.own_ms;
            // A process that started between the two lists has no ended children.
            let own_ms = own.get(&process.pid).copied().unwrap_or(all).min(all);
            Measured {
                own_ms,
                waited_ms: all - own_ms,
                ..process
            }
        })
        .collect()
}

/// Parses a line of usage: pid, parent, state, time (`12:34.56`, minutes), resident kilobytes.
fn parse_usage(line: &str) -> Option<Measured> {
    let mut words = line.split_whitespace();
    let pid = words.next()?.parse().ok()?;
    let parent = words.next()?.parse().ok()?;
    let zombie = words.next()?.starts_with('Z');
    let (minutes, seconds) = words.next()?.split_once(':')?;
    let (seconds, hundredths) = seconds.split_once('.')?;
    let minutes: u64 = minutes.parse().ok()?;
    let seconds: u64 = seconds.parse().ok()?;
    let hundredths: u64 = hundredths.parse().ok()?;
    let rss: u64 = words.next()?.parse().ok()?;
    Some(Measured {
        pid,
        parent,
        own_ms: (minutes * 60 + seconds) * 1000 + hundredths * 10,
        waited_ms: 0,
        rss: rss * 1024,
        zombie,
    })
}

fn ps(selection: &[&str], columns: &[&str]) -> io::Result<String> {
    let output = Command::new("/bin/ps")
        .args(selection)
        .args(columns)
        .env_clear()
        .envs([("LC_ALL", "C"), ("TZ", "UTC0")])
        .output()?;
    // ps(1) exits with 1 if it has no process to list.
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Parses a line: pid, parent, session, state, start (`Tue Nov 24 16:08:55 2026`), environment and command. The
/// process is marked if its environment contains `variable`. Returns `None` for a zombie or an invalid line.
fn parse(line: &str, variable: &str) -> Option<ListedProcess> {
    let mut words = line.split_whitespace();
    let mut number = || words.next()?.parse::<i32>().ok();
    let (pid, parent, session) = (number()?, number()?, number()?);
    if words.next()?.starts_with('Z') {
        return None;
    }
    let _weekday = words.next()?;
    let month = MONTHS.find(words.next()?)? as u64 / 3 + 1;
    let day: u64 = words.next()?.parse().ok()?;
    let mut clock = 0;
    for part in words.next()?.split(':') {
        clock = clock * 60 + part.parse::<u64>().ok()?;
    }
    let year: u64 = words.next()?.parse().ok()?;
    let start = days_since_1970(year, month, day)? * 86_400 + clock;
    let process = Process {
        pid,
        parent,
        session,
        start,
    };
    Some(ListedProcess {
        process,
        is_marked: words.any(|word| word == variable),
    })
}

/// Returns the days from 1970-01-01 to a date of the Gregorian calendar, whose months count from 1.
fn days_since_1970(year: u64, month: u64, day: u64) -> Option<u64> {
    // Years that begin in March have the leap day at the end.
    let (year, month) = match month {
        1..=2 => (year.checked_sub(1)?, month + 9),
        _ => (year, month - 3),
    };
    let leap_days = year / 4 - year / 100 + year / 400;
    (year.checked_mul(365)? + leap_days + (153 * month + 2) / 5 + day).checked_sub(719_469)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ps_lines_are_parsed() {
        let line = |rest: &str| format!("  812     1   640 {rest}");
        let process = |start| Process {
            pid: 812,
            parent: 1,
            session: 640,
            start,
        };
        let listed = |process, is_marked| ListedProcess { process, is_marked };
        let november = 1_795_536_535;
        for (text, expected) in [
            (
                line(
                    "I     Tue Nov 24 16:08:55 2026 PATH=/bin COLIBRI_AGENT_ID=k3x9 sleep 1000 (sleep)",
                ),
                Some(listed(process(november), true)),
            ),
            (
                line("SsJ   Tue Nov 24 16:08:56 2026 sleep COLIBRI_AGENT_ID=k3x9abc"),
                Some(listed(process(november + 1), false)),
            ),
            (line("Z     Tue Nov 24 16:08:55 2026 <defunct>"), None),
            (
                line("I     Thu Feb 29 00:00:01 2024 sh"),
                Some(listed(process(1_709_164_801), false)),
            ),
            (
                line("I     Thu Jan  1 00:00:00 1970 sh"),
                Some(listed(process(0), false)),
            ),
            (line("I     Tue Foo 24 16:08:55 2026 x"), None),
            ("".to_owned(), None),
        ] {
            assert_eq!(parse(&text, "COLIBRI_AGENT_ID=k3x9"), expected, "{text}");
        }
    }

    #[test]
    fn usage_lists_are_merged_into_own_and_waited_time() {
        let own = "  812     1 Is      0:01.50  2048\n  900   812 Z       0:00.10     0\n";
        let both = "  812     1 Is      1:01.50  2048\n  900   812 Z       0:00.10     0\nnonsense\n  901   812 R       0:00.03   512\n";
        let process = |pid, parent, own_ms, waited_ms, rss, zombie| Measured {
            pid,
            parent,
            own_ms,
            waited_ms,
            rss,
            zombie,
        };
        assert_eq!(
            merge(own, both),
            [
                process(812, 1, 1500, 60_000, 2048 * 1024, false),
                process(900, 812, 100, 0, 0, true),
                process(901, 812, 30, 0, 512 * 1024, false),
            ]
        );
    }
}
