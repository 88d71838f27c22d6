//! `colibri status`: the details of agents.

use colibri_client::{Agent, AgentState};
use jiff::Timestamp;

use crate::args::Global;
use crate::commands::for_each_agent;
use crate::error::CliError;
use crate::output::{self, sanitize};
use crate::tables::{command, full_exit, network_text, short_age, short_bytes};

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
    let mut page = Page::default();
    page.rows("id", [&agent.id]);
    page.rows("name", &agent.name);
    page.rows("state", [state(agent, now)]);
    page.rows("because", &agent.error);
    page.rows("warning", &agent.warnings);
    page.rows("runtime", [agent.runtime.as_str()]);
    page.rows("command", [command(agent)]);
    if let Some(size) = agent.terminal {
        page.rows(
            "terminal",
            [format!("{} rows, {} columns", size.rows(), size.cols())],
        );
    }
    let started = format!("{} (run {})", agent.started_at, agent.run);
    page.rows("started", [started]);
    if let Some(exited_at) = &agent.exited_at {
        let exit = full_exit(agent.exit);
        page.rows("ended", [format!("{exited_at} ({exit})")]);
    }
    let [stdout, stderr] = [agent.stdout_bytes, agent.stderr_bytes].map(short_bytes);
    let last = agent.last_event_at.as_ref();
    let last = last.map_or(String::new(), |at| format!(", last at {at}"));
    page.rows(
        "output",
        [format!("{stdout} stdout, {stderr} stderr{last}")],
    );
    if let Some(network) = &agent.network {
        let last = network.last.as_ref();
        let last = last.map_or(String::new(), |last| {
            format!(", last at {}: {}", last.at, network_text(last))
        });
        page.rows("network", [format!("{} refused{last}", network.refused)]);
    }
    if let Some(view) = &agent.view {
        page.rows("mismatch", &view.mismatch);
        page.rows("session", &view.session);
        page.rows("answer", &view.answer);
        page.rows("turns", [view.turns.to_string()]);
        let [read, cached, written] = [view.input_tokens, view.cached_tokens, view.output_tokens];
        let tokens = format!("{read} read, {cached} from a cache or to it, {written} written");
        page.rows("tokens", [tokens]);
        page.rows("cost", [format!("${:.4}", view.cost_usd)]);
        let queued = format!("{} prompt(s)", view.queued);
        page.rows("queued", Some(queued).filter(|_| view.queued > 0));
        let malformed = view.malformed_lines;
        let text = format!("{malformed} of {} lines are not events", view.events);
        page.rows("malformed", Some(text).filter(|_| malformed > 0));
        page.rows("last error", &view.last_error);
    }
    page.0
}

/// Rows of names and values.
#[derive(Default)]
struct Page(String);

impl Page {
    /// Adds a row for each value. Untrusted text is sanitized.
    fn rows(&mut self, name: &str, values: impl IntoIterator<Item = impl AsRef<str>>) {
        for value in values {
            let value = sanitize(value.as_ref(), MAX_VALUE);
            self.0.push_str(&format!("{name:<10}  {value}\n"));
        }
    }
}

/// Formats the state, its duration, and the current tool or activity.
fn state(agent: &Agent, now: Timestamp) -> String {
    let mut text = agent.state.to_string();
    if agent.guessed {
        text.push_str(" (a guess from its output, because its runtime is not known)");
    }
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
    use colibri_client::{Exit, ExitStatus, NetworkAction, NetworkRecord, NetworkSummary};

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
            terminal: Some(Default::default()),
            guessed: false,
            preset: None,
            added_args: Vec::new(),
            variables: Vec::new(),
            asks: false,
            resumes: None,
            restart: None,
            run: 1,
            started_at: "2026-01-01T00:00:00Z".into(),
            exited_at: None,
            exit: None,
            warnings: vec!["no limit of memory here".into()],
            error: None,
            stdout_bytes: 12_345,
            stderr_bytes: 0,
            network: Some(NetworkSummary {
                refused: 3,
                last: Some(NetworkRecord {
                    at: "2026-01-01T00:00:00.5Z".into(),
                    action: NetworkAction::Refused,
                    host: Some("evil\u{200b}\u{e0041}.example".into()),
                    port: Some(443),
                    reason: Some("it is not in the allow list".into()),
                    count: None,
                }),
            }),
            last_event_at: Some("2026-01-01T00:00:00Z".into()),
            view: Some(pane.view().clone()),
        };
        let now = "2026-01-01T00:01:00Z".parse().unwrap();
        let working = page(&agent, now);
        pane.record_exit(
            &Exit::new(Some(ExitStatus::Code(1)), None),
            None,
            1_767_225_660_000,
        );
        agent.state = AgentState::Error;
        agent.exited_at = Some("2026-01-01T00:01:00Z".into());
        agent.exit = Some(Exit::new(Some(ExitStatus::Code(1)), None));
        agent.view = Some(pane.view().clone());
        let ended = page(&agent, now);
        agent.view = None;
        agent.runtime = AgentRuntime::Generic;
        agent.guessed = true;
        insta::assert_snapshot!(format!("{working}\n{ended}\n{}", page(&agent, now)));
    }
}
