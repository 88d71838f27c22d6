//! Tables and short forms of values, for `ps`, `runs`, `doctor` and `top`.

use std::cmp::Ordering;

use colibri_client::{
    Agent, AgentState, Exit, ExitReason, ExitStatus, Finding, FindingStatus, JailConfig,
    NetworkAction, NetworkRecord, Run,
};
use jiff::Timestamp;

use crate::output::{coloured, sanitize};

/// Compares two agents by their order in `ps` and `top`: running ones first, then ended ones, each the newest first.
/// Times are RFC 3339 in UTC and sort as text.
pub(crate) fn list_order(a: &Agent, b: &Agent) -> Ordering {
    let [ended_a, ended_b] = [a, b].map(|agent| agent.exited_at.is_some());
    let [time_a, time_b] =
        [a, b].map(|agent| agent.exited_at.as_ref().unwrap_or(&agent.started_at));
    (ended_a, time_b, &a.id).cmp(&(ended_b, time_a, &b.id))
}

/// Formats the table of `ps`.
pub(crate) fn agents(agents: &[Agent], now: Timestamp) -> String {
    let mut table = format!(
        "{:<10}  {:<16}  {:<8}  {:<12}  {:<8}  {:<16}  {:>6}  {:>8}  COMMAND\n",
        "ID", "NAME", "STATE", "EXIT", "RUNTIME", "JAIL", "AGE", "OUTPUT"
    );
    for agent in agents {
        let exit = match agent.exit {
            None if agent.exited_at.is_none() => "-".to_owned(),
            exit => short_exit(exit),
        };
        let state = format!("{:<8}", state_text(agent));
        let state = match agent.state {
            AgentState::Working => coloured(&state, "32"),
            AgentState::Blocked | AgentState::Stalled => coloured(&state, "33"),
            AgentState::Error => coloured(&state, "31"),
            _ => state,
        };
        table.push_str(&format!(
            "{:<10}  {:<16}  {state}  {exit:<12}  {:<8}  {:<16}  {:>6}  {:>8}  {}\n",
            agent.id,
            sanitize(agent.name.as_deref().unwrap_or("-"), 16),
            agent.runtime,
            sanitize(jail_name(agent.jail.as_ref()), 16),
            age(&agent.started_at, now),
            short_bytes(agent.stdout_bytes + agent.stderr_bytes),
            sanitize(&command(agent), 60),
        ));
    }
    table
}

/// Formats the state; a question mark follows a guess.
pub(crate) fn state_text(agent: &Agent) -> String {
    let mark = if agent.guessed { "?" } else { "" };
    format!("{}{mark}", agent.state)
}

/// Formats a report of an agent's proxy. Untrusted text is sanitized.
pub(crate) fn network_text(record: &NetworkRecord) -> String {
    let reason = record.reason.as_deref();
    let reason = reason.map_or(String::new(), |reason| {
        format!(" ({})", sanitize(reason, 300))
    });
    match record.action {
        NetworkAction::Refused => {
            let host = sanitize(record.host.as_deref().unwrap_or("-"), 253);
            let port = record.port.unwrap_or(0);
            format!("refused {host}:{port}{reason}")
        }
        NetworkAction::Dropped => {
            format!("refused {} more", record.count.unwrap_or(0))
        }
        NetworkAction::Full => "log is full".to_owned(),
    }
}

/// Returns the name or the root of a jail; `-` without one.
pub(crate) fn jail_name(jail: Option<&JailConfig>) -> &str {
    jail.and_then(|jail| {
        let mut names = [&jail.name, &jail.path, &jail.template].into_iter();
        names.find_map(Option::as_deref)
    })
    .unwrap_or("-")
}

/// Returns the command line of an agent; not quoted.
pub(crate) fn command(agent: &Agent) -> String {
    let words = std::iter::once(&agent.program).chain(&agent.args);
    Vec::from_iter(words.map(String::as_str)).join(" ")
}

/// Formats the time since `start` (RFC 3339) in one unit.
pub(crate) fn age(start: &str, now: Timestamp) -> String {
    let start = start.parse::<Timestamp>();
    short_age(start.map_or(0, |start| now.as_second() - start.as_second()))
}

/// Formats why an agent or a run ended, in one or two words.
pub(crate) fn short_exit(exit: Option<Exit>) -> String {
    match exit.map(|exit| exit.reason) {
        Some(ExitReason::KilledByUser) => "killed".to_owned(),
        Some(ExitReason::WallTime) => "wall time".to_owned(),
        Some(ExitReason::NotStarted) => "not started".to_owned(),
        Some(ExitReason::Exited | ExitReason::Signalled) => {
            exit_status(exit).unwrap_or_else(|| "lost".to_owned())
        }
        _ => "lost".to_owned(),
    }
}

fn exit_status(exit: Option<Exit>) -> Option<String> {
    Some(match exit?.status? {
        ExitStatus::Code(code) => format!("code {code}"),
        ExitStatus::Signal(signal) => format!("signal {signal}"),
    })
}

/// Formats why an agent ended, with its exit status where the reason does not contain it.
pub(crate) fn full_exit(exit: Option<Exit>) -> String {
    let short = short_exit(exit);
    match exit_status(exit).filter(|status| *status != short) {
        Some(status) => format!("{short}, {status}"),
        None => short,
    }
}

/// Formats the table of `runs`.
pub(crate) fn runs(runs: &[Run]) -> String {
    let mut table = format!(
        "{:>4}  {:<24}  {:<24}  {:<10}  {:>10}  {:>10}  {:>10}  {:>10}  ERROR\n",
        "RUN", "STARTED", "ENDED", "EXIT", "OUT FROM", "OUT TO", "ERR FROM", "ERR TO"
    );
    for run in runs {
        table.push_str(&format!(
            "{:>4}  {:<24}  {:<24}  {:<10}  {:>10}  {:>10}  {:>10}  {:>10}  {}\n",
            run.run,
            run.started_at,
            run.exited_at,
            short_exit(run.exit),
            run.stdout.start,
            run.stdout.end,
            run.stderr.start,
            run.stderr.end,
            sanitize(run.error.as_deref().unwrap_or("-"), 120),
        ));
    }
    table
}

/// Formats an age in one unit.
pub(crate) fn short_age(seconds: i64) -> String {
    match seconds.max(0) {
        s @ 0..120 => format!("{s}s"),
        s @ 120..7200 => format!("{}m", s / 60),
        s @ 7200..172_800 => format!("{}h", s / 3600),
        s => format!("{}d", s / 86400),
    }
}

/// Formats a size in one unit.
pub(crate) fn short_bytes(bytes: u64) -> String {
    short_count(bytes, "B")
}

/// Formats a count with a decimal prefix of its unit.
pub(crate) fn short_count(count: u64, unit: &str) -> String {
    match count {
        n @ 0..10_000 => format!("{n}{unit}"),
        n @ 10_000..10_000_000 => format!("{}k{unit}", n / 1000),
        n => format!("{}M{unit}", n / 1_000_000),
    }
}

/// Formats the findings of `doctor`.
pub(crate) fn findings(findings: &[Finding]) -> String {
    let mut lines = String::new();
    for finding in findings {
        let status = match finding.status {
            FindingStatus::Ok => coloured("ok  ", "32"),
            FindingStatus::Warn => coloured("warn", "33"),
            FindingStatus::Fail => coloured("fail", "31"),
        };
        lines.push_str(&format!("{status}  {}\n", indented(&finding.what)));
        if let Some(fix) = &finding.fix {
            lines.push_str(&format!("      fix: {}\n", indented(fix)));
        }
    }
    lines
}

/// Sanitizes text of several lines, which a program of the host may have written, and indents all but the first.
fn indented(text: &str) -> String {
    let lines: Vec<_> = text
        .lines()
        .map(|line| sanitize(line, usize::MAX))
        .collect();
    lines.join("\n      ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exit_shows_the_reason_before_the_status() {
        let exit = |code: Option<i32>, signal: Option<i32>, reason| {
            let status = code
                .map(ExitStatus::Code)
                .or(signal.map(ExitStatus::Signal));
            let exit = Exit { status, reason };
            format!("{} / {}", short_exit(Some(exit)), full_exit(Some(exit)))
        };
        for (shown, expected) in [
            (exit(Some(7), None, ExitReason::Exited), "code 7 / code 7"),
            (
                exit(None, Some(9), ExitReason::Signalled),
                "signal 9 / signal 9",
            ),
            (
                exit(None, Some(15), ExitReason::KilledByUser),
                "killed / killed, signal 15",
            ),
            (
                exit(Some(0), None, ExitReason::KilledByUser),
                "killed / killed, code 0",
            ),
            (
                exit(None, Some(9), ExitReason::WallTime),
                "wall time / wall time, signal 9",
            ),
            (exit(None, None, ExitReason::Lost), "lost / lost"),
            (
                exit(None, None, ExitReason::NotStarted),
                "not started / not started",
            ),
        ] {
            assert_eq!(shown, expected);
        }
        assert_eq!(short_exit(None), "lost");
    }

    #[test]
    fn list_has_running_agents_first_and_newest_first() {
        let agent = |id: &str, started: &str, exited: Option<&str>| -> Agent {
            serde_json::from_value(serde_json::json!({"id": id, "name": null, "state": "idle", "pid": null,
                "program": "sh", "args": [], "jail": null, "runtime": "generic", "started_at": started,
                "exited_at": exited, "stdout_bytes": 0, "stderr_bytes": 0}))
            .unwrap()
        };
        let mut agents = [
            agent(
                "long-ago",
                "2026-01-01T00:00:00Z",
                Some("2026-01-01T01:00:00Z"),
            ),
            agent("old", "2026-01-01T02:00:00Z", None),
            agent(
                "ended-last",
                "2026-01-01T00:00:00Z",
                Some("2026-01-02T00:00:00Z"),
            ),
            agent("new", "2026-01-01T03:00:00Z", None),
        ];
        agents.sort_by(list_order);
        let ids: Vec<&str> = agents.iter().map(|agent| agent.id.as_str()).collect();
        assert_eq!(ids, ["new", "old", "ended-last", "long-ago"]);
    }

    #[test]
    fn agent_table_is_sanitized() {
        let agent = |state, exit: Option<Exit>, name: &str, args: &str| Agent {
            warnings: Vec::new(),
            id: "k3x9abcdef".into(),
            name: Some(name.into()),
            state,
            pid: None,
            program: "sh".into(),
            args: vec!["-c".into(), args.into()],
            cwd: None,
            jail: None,
            runtime: Default::default(),
            terminal: None,
            guessed: false,
            preset: None,
            added_args: Vec::new(),
            variables: Vec::new(),
            asks: false,
            resumes: None,
            restart: None,
            run: 1,
            started_at: "2026-01-01T00:00:00Z".into(),
            exited_at: exit.map(|_| "2026-01-01T01:00:00Z".into()),
            exit,
            error: None,
            stdout_bytes: 12_345,
            stderr_bytes: 0,
            network: None,
            last_event_at: None,
            view: None,
        };
        let now = "2026-01-01T03:00:00Z".parse().unwrap();
        insta::assert_snapshot!(agents(
            &[
                agent(AgentState::Working, None, "night shift", "make test"),
                agent(
                    AgentState::Error,
                    Some(Exit::new(Some(ExitStatus::Signal(9)), None)),
                    "evil\x1b[2J\n",
                    &"x".repeat(99)
                ),
                agent(
                    AgentState::Done,
                    Some(Exit::new(Some(ExitStatus::Code(0)), None)),
                    "a name that is too long for the table",
                    ""
                ),
            ],
            now
        ));
    }
}
