//! `colibri status`: the details of agents.

use colibri_client::{Agent, AgentState};
use jiff::Timestamp;

use crate::args::Global;
use crate::commands::for_each_agent;
use crate::error::CliError;
use crate::output::{self, sanitize};
use crate::tables::{command, full_exit, short_age, short_bytes};

/// Maximum length of a value, in characters.
const MAX_VALUE: usize = 300;

/// Prints the details of each agent. Reports an unknown agent, and exits with 1.
pub(crate) async fn status(global: &Global, ids: &[String], json: bool) -> Result<u8, CliError> {
    let mut printed = 0;
    for_each_agent(global, ids, async |_, agent| {
        let gap = if printed > 0 { "\n" } else { "" };
        printed += 1;
        output::print_result(json, &agent, |agent| {
            format!("{gap}{}", page(agent, Timestamp::now()))
        })
    })
    .await
}

fn page(agent: &Agent, now: Timestamp) -> String {
    let mut rows = vec![("id", agent.id.clone())];
    rows.extend(agent.name.clone().map(|name| ("name", name)));
    rows.push(("state", state(agent, now)));
    rows.extend(agent.error.clone().map(|error| ("because", error)));
    rows.extend(
        agent
            .warnings
            .iter()
            .map(|warning| ("warning", warning.clone())),
    );
    rows.push(("runtime", agent.runtime.to_string()));
    rows.push(("command", command(agent)));
    rows.push((
        "started",
        format!("{} (run {})", agent.started_at, agent.run),
    ));
    if let Some(exited_at) = &agent.exited_at {
        rows.push(("ended", format!("{exited_at} ({})", full_exit(agent.exit))));
    }
    let [stdout, stderr] = [agent.stdout_bytes, agent.stderr_bytes].map(short_bytes);
    let last = agent.last_event_at.as_ref();
    let last = last.map_or(String::new(), |at| format!(", last at {at}"));
    rows.push(("output", format!("{stdout} stdout, {stderr} stderr{last}")));
    if let Some(view) = &agent.view {
        rows.push(("turns", view.turns.to_string()));
        rows.push((
            "tokens",
            format!(
                "{} read, {} from a cache or to it, {} written",
                view.input_tokens, view.cached_tokens, view.output_tokens
            ),
        ));
        rows.push(("cost", format!("${:.4}", view.cost_usd)));
        if view.queued > 0 {
            rows.push(("queued", format!("{} prompt(s)", view.queued)));
        }
        if view.malformed_lines > 0 {
            rows.push((
                "malformed",
                format!(
                    "{} of {} lines are not events",
                    view.malformed_lines, view.events
                ),
            ));
        }
        rows.extend(view.last_error.clone().map(|error| ("last error", error)));
    }
    let row =
        |(name, value): &(&str, String)| format!("{name:<10}  {}\n", sanitize(value, MAX_VALUE));
    rows.iter().map(row).collect()
}

/// Formats the state, its duration, and the current tool or activity.
fn state(agent: &Agent, now: Timestamp) -> String {
    let mut text = agent.state.to_string();
    let Some(view) = &agent.view else { return text };
    let ended = matches!(agent.state, AgentState::Done | AgentState::Error);
    let since = i64::try_from(view.since / 1000).unwrap_or(i64::MAX);
    text.push_str(&format!(
        " for {}",
        short_age(now.as_second().saturating_sub(since))
    ));
    let activity = view.activity.map(|activity| activity.to_string());
    if let Some(activity) = view.current_tool.clone().or(activity).filter(|_| !ended) {
        text.push_str(&format!(" ({activity})"));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use colibri_client::AgentRuntime;
    use colibri_client::glasspane::Glasspane;
    use colibri_client::{Exit, ExitStatus};

    #[test]
    fn status_shows_all_details_and_is_sanitized() {
        let mut pane = Glasspane::new(AgentRuntime::Pi, 0);
        pane.push_output(
            b"{\"type\":\"tool_execution_start\",\"toolName\":\"bash\"}\nWarning\n{\"type\":\"error\",\"error\":\"no\\u001b[2J\"}\n\
              {\"type\":\"queue_update\",\"steering\":[\"a\",\"b\"]}\n",
            1_767_225_600_000,
        );
        let mut agent = Agent {
            id: "k3x9abcdef".into(),
            name: Some("evil\x1b[2J".into()),
            state: AgentState::Working,
            pid: Some(7),
            program: "pi".into(),
            args: vec!["--mode".into(), "rpc".into()],
            cwd: None,
            jail: None,
            runtime: AgentRuntime::Pi,
            restart: None,
            run: 1,
            started_at: "2026-01-01T00:00:00Z".into(),
            exited_at: None,
            exit: None,
            exit_note: None,
            warnings: vec!["no limit of memory here".into()],
            error: None,
            stdout_bytes: 12_345,
            stderr_bytes: 0,
            last_event_at: Some("2026-01-01T00:00:00Z".into()),
            view: Some(pane.view().clone()),
        };
        let now = "2026-01-01T00:01:00Z".parse().unwrap();
        let working = page(&agent, now);
        pane.record_exit(
            &Exit::from_status(Some(ExitStatus::Code(1))),
            None,
            1_767_225_660_000,
        );
        agent.state = AgentState::Error;
        agent.exited_at = Some("2026-01-01T00:01:00Z".into());
        agent.exit = Some(Exit::from_status(Some(ExitStatus::Code(1))));
        agent.view = Some(pane.view().clone());
        let ended = page(&agent, now);
        agent.view = None;
        agent.runtime = AgentRuntime::Generic;
        insta::assert_snapshot!(format!("{working}\n{ended}\n{}", page(&agent, now)));
    }
}
