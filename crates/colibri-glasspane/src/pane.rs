//! The state machine: what happens, in; what to show, out.

use crate::clean;
use crate::events::{self, Meaning, Tool};
use crate::lines::Lines;
use crate::{AgentRuntime, AgentState, Exit, ExitReason, ExitStatus, View};

/// A generic agent that writes nothing for so long, in milliseconds, counts as idle.
const QUIET: u64 = 10_000;
/// Longest text kept of an agent's own words, in characters.
const MAX_TEXT: usize = 200;
/// Most tools that are known to run at the same time; of more, the oldest are forgotten.
const MAX_TOOLS: usize = 64;

/// A tool at work.
#[derive(Debug)]
struct Running {
    id: String,
    name: String,
    /// It has shown that it is past whatever it may have had to ask.
    progressed: bool,
}

/// An agent seen from outside.
#[derive(Debug)]
pub struct Glasspane {
    runtime: AgentRuntime,
    lines: Lines,
    view: View,
    tools: Vec<Running>,
    /// What it would be doing if it were not stalled.
    beneath: AgentState,
    stalled: bool,
    ended: bool,
    changes: u64,
    tool_changes: u64,
}

impl Glasspane {
    /// A pane for an agent that was started `now`.
    #[must_use]
    pub fn new(runtime: AgentRuntime, now: u64) -> Self {
        let view = View {
            state: AgentState::Starting,
            since: now,
            current_tool: None,
            activity: None,
            queued: 0,
            turns: 0,
            input_tokens: 0,
            cached_tokens: 0,
            output_tokens: 0,
            cost_usd: 0.0,
            last_error: None,
            events: 0,
            malformed_lines: 0,
            skipped_bytes: 0,
            last_activity: None,
        };
        Self {
            runtime,
            lines: Lines::default(),
            view,
            tools: Vec::new(),
            beneath: AgentState::Starting,
            stalled: false,
            ended: false,
            changes: 0,
            tool_changes: 0,
        }
    }

    /// Returns how often the tool has changed.
    #[must_use]
    pub fn tool_changes(&self) -> u64 {
        self.tool_changes
    }

    /// How often the state has changed. Whoever looks now and then sees by it whether changes lie between.
    #[must_use]
    pub fn changes(&self) -> u64 {
        self.changes
    }

    /// What is known.
    #[must_use]
    pub fn view(&self) -> &View {
        &self.view
    }

    /// Whether [`Glasspane::output`] must see every byte; otherwise [`Glasspane::active`] is enough.
    #[must_use]
    pub fn needs_bytes(&self) -> bool {
        self.runtime != AgentRuntime::Generic
    }

    /// The agent wrote these bytes to its stdout.
    pub fn output(&mut self, bytes: &[u8], now: u64) {
        if self.runtime == AgentRuntime::Generic {
            return self.active(now);
        }
        self.view.last_activity = Some(now);
        let mut lines = std::mem::take(&mut self.lines);
        lines.push(bytes, |line| self.line(line, now));
        self.lines = lines;
        if self.beneath == AgentState::Starting {
            self.become_(AgentState::Idle, now);
        }
    }

    /// Records that `bytes` of stdout were skipped. The next output may begin within a line; the rest of that line is
    /// ignored.
    pub fn skipped(&mut self, bytes: u64) {
        self.view.skipped_bytes = self.view.skipped_bytes.saturating_add(bytes);
        self.lines = Lines::within_line();
    }

    /// The agent wrote something.
    pub fn active(&mut self, now: u64) {
        self.view.last_activity = Some(now);
        if self.runtime == AgentRuntime::Generic {
            self.become_(AgentState::Working, now);
        }
    }

    /// Its output cannot be stored, or can again.
    pub fn stalled(&mut self, stalled: bool, now: u64) {
        self.stalled = stalled;
        self.become_(self.beneath, now);
    }

    /// A run has ended and another follows: what its last line lacks does not come any more. The reason, if
    /// the next run is still waited for.
    pub fn restarting(&mut self, reason: Option<&str>, now: u64) {
        self.lines = Lines::default();
        self.rest();
        self.view.queued = 0;
        if let Some(reason) = reason {
            self.view.last_error = Some(words(reason));
        }
        self.become_(AgentState::Starting, now);
    }

    /// Records the end of the agent. The state is final. `error` is the reason if the end is not the agent's own, such as
    /// a limit, or if the exit status is unknown.
    pub fn exited(&mut self, exit: &Exit, error: Option<&str>, now: u64) {
        self.stalled = false;
        let killed = exit.status.is_some() && exit.reason == ExitReason::KilledByUser;
        let failed = match (exit.status, error) {
            _ if killed => false,
            (None, _) | (_, Some(_)) => {
                self.view.last_error = Some(words(error.unwrap_or_default()));
                true
            }
            (Some(status), None) => status != ExitStatus::Code(0),
        };
        let state = match failed {
            true => AgentState::Error,
            false => AgentState::Done,
        };
        self.rest();
        self.view.queued = 0;
        self.become_(state, now);
        self.ended = true;
    }

    /// When [`Glasspane::tick`] has something to do, if nothing happens before.
    #[must_use]
    pub fn deadline(&self) -> Option<u64> {
        let waits = self.runtime == AgentRuntime::Generic
            && self.beneath == AgentState::Working
            && !self.ended;
        self.view
            .last_activity
            .filter(|_| waits)
            .map(|last| last.saturating_add(QUIET))
    }

    /// Time has passed.
    pub fn tick(&mut self, now: u64) {
        if self.deadline().is_some_and(|deadline| now >= deadline) {
            self.become_(AgentState::Idle, now);
        }
    }

    fn line(&mut self, line: Option<&[u8]>, now: u64) {
        self.view.events += 1;
        let Some(meaning) = line.and_then(|line| events::read(self.runtime, line)) else {
            if line.is_none_or(|line| !line.trim_ascii().is_empty()) {
                self.view.malformed_lines += 1;
            }
            return;
        };
        if !self.ended {
            self.take(meaning, now);
        }
    }

    fn take(&mut self, meaning: Meaning, now: u64) {
        let view = &mut self.view;
        view.turns += u64::from(meaning.turn);
        let usage = meaning.usage;
        view.input_tokens = view.input_tokens.saturating_add(usage.input);
        view.cached_tokens = view.cached_tokens.saturating_add(usage.cached);
        view.output_tokens = view.output_tokens.saturating_add(usage.output);
        view.cost_usd += usage.cost;
        if let Some(error) = meaning.error {
            view.last_error = Some(words(&error));
        }
        if let Some(queued) = meaning.queued {
            view.queued = queued;
        }
        if let Some(state) = meaning.state {
            if state == AgentState::Idle {
                self.rest();
            }
            self.view.activity = meaning.activity;
            self.become_(state, now);
        }
        if let Some(tool) = meaning.tool {
            self.tool(tool, now);
        }
    }

    /// Several tools may run at once, and one of them may wait for a person meanwhile: only news of that one
    /// ends the waiting, as far as can be told.
    fn tool(&mut self, tool: Tool, now: u64) {
        let at = |tools: &[Running], id: &str| tools.iter().position(|tool| tool.id == short(id));
        let going = match tool {
            Tool::Started { id, name } => {
                if self.tools.len() >= MAX_TOOLS {
                    self.tools.remove(0);
                }
                self.tools.push(Running {
                    id: short(&id).to_owned(),
                    name: words(&name),
                    progressed: false,
                });
                false
            }
            Tool::Progressed { id } => at(&self.tools, &id)
                .and_then(|place| self.tools.get_mut(place))
                .is_some_and(|tool| std::mem::replace(&mut tool.progressed, true)),
            Tool::Ended { id } => {
                at(&self.tools, &id).is_some_and(|place| self.tools.remove(place).progressed)
            }
        };
        let current = self.tools.last().map(|tool| tool.name.clone());
        if self.view.current_tool != current {
            self.view.current_tool = current;
            self.tool_changes += 1;
        }
        self.view.activity = None;
        if !(going && self.beneath == AgentState::Blocked) {
            self.become_(AgentState::Working, now);
        }
    }

    /// Nothing is at work any more.
    fn rest(&mut self) {
        self.tools.clear();
        self.view.current_tool = None;
        self.view.activity = None;
    }

    fn become_(&mut self, state: AgentState, now: u64) {
        if self.ended {
            return;
        }
        self.beneath = state;
        let shown = if self.stalled {
            AgentState::Stalled
        } else {
            state
        };
        if self.view.state != shown {
            self.view.state = shown;
            self.view.since = now;
            self.changes += 1;
        }
    }
}

/// As much of an id as is kept.
fn short(id: &str) -> &str {
    let end = id.char_indices().nth(MAX_TEXT);
    end.and_then(|(end, _)| id.get(..end)).unwrap_or(id)
}

/// Untrusted words, fit for a terminal and a log.
fn words(text: &str) -> String {
    clean::line(text, MAX_TEXT)
}

#[cfg(test)]
mod tests {
    use super::*;
    use AgentState::{Blocked, Done, Error, Idle, Starting, Working};
    use proptest::prelude::*;

    #[test]
    fn a_pi_session_line_by_line() {
        let mut pane = Glasspane::new(AgentRuntime::Pi, 0);
        assert_eq!(pane.view().state, Starting);
        for (line, state, tool) in [
            (
                r#"{"type":"session","version":3,"id":"u","cwd":"/w"}"#,
                Idle,
                None,
            ),
            (r#"{"type":"agent_start"}"#, Working, None),
            (r#"{"type":"turn_start"}"#, Working, None),
            (
                r#"{"type":"tool_execution_start","toolCallId":"1","toolName":"bash","args":{}}"#,
                Working,
                Some("bash"),
            ),
            (
                r#"{"type":"tool_execution_end","toolCallId":"1","toolName":"bash","isError":false}"#,
                Working,
                None,
            ),
            (
                r#"{"type":"extension_ui_request","id":"1","method":"confirm"}"#,
                Blocked,
                None,
            ),
            (
                r#"{"type":"extension_ui_request","id":"2","method":"notify"}"#,
                Blocked,
                None,
            ),
            (
                r#"{"type":"message_end","message":{"role":"assistant","stopReason":"error","errorMessage":"no\u001b[2J","usage":{"input":10,"output":5,"cost":{"total":0.5}}}}"#,
                Working,
                None,
            ),
            (
                r#"{"type":"turn_end","message":{},"toolResults":[]}"#,
                Working,
                None,
            ),
            (r#"{"type":"a_new_event","of":"tomorrow"}"#, Working, None),
            ("not json", Working, None),
            (r#"{"type":"agent_end","messages":[]}"#, Idle, None),
        ] {
            pane.output(format!("{line}\n").as_bytes(), 1);
            assert_eq!(
                (pane.view().state, pane.view().current_tool.as_deref()),
                (state, tool),
                "{line}"
            );
        }
        let view = pane.view();
        assert_eq!(
            (
                view.turns,
                view.input_tokens,
                view.output_tokens,
                view.malformed_lines
            ),
            (1, 10, 5, 1)
        );
        assert_eq!(view.last_error.as_deref(), Some("no"));
        assert!((view.cost_usd - 0.5).abs() < 1e-9);
        pane.exited(&Exit::from_status(Some(ExitStatus::Signal(9))), None, 2);
        pane.output(b"{\"type\":\"agent_start\"}\n", 3);
        assert_eq!(pane.view().state, Error, "an end is final");
    }

    #[test]
    fn of_several_tools_the_one_that_is_left_is_the_current_one_and_one_may_wait_for_a_person() {
        let mut pane = Glasspane::new(AgentRuntime::Pi, 0);
        let tool = |kind: &str, id: &str| {
            format!(r#"{{"type":"tool_execution_{kind}","toolCallId":"{id}","toolName":"{id}"}}"#)
        };
        let ask = r#"{"type":"extension_ui_request","id":"1","method":"confirm"}"#.to_owned();
        for (line, state, current) in [
            (tool("start", "bash"), Working, Some("bash")),
            (tool("update", "bash"), Working, Some("bash")),
            (tool("start", "edit"), Working, Some("edit")),
            (ask.clone(), Blocked, Some("edit")),
            (tool("update", "bash"), Blocked, Some("edit")),
            (tool("end", "bash"), Blocked, Some("edit")),
            (tool("end", "unknown"), Working, Some("edit")),
            (ask, Blocked, Some("edit")),
            (tool("update", "edit"), Working, Some("edit")),
            (tool("start", "read"), Working, Some("read")),
            (tool("end", "edit"), Working, Some("read")),
            (tool("end", "read"), Working, None),
            // What is not as it should be is passed over.
            (
                r#"{"type":"tool_execution_start","toolName":7}"#.to_owned(),
                Working,
                Some(""),
            ),
            (
                r#"{"type":"agent_end","willRetry":"?"}"#.to_owned(),
                Idle,
                None,
            ),
        ] {
            pane.output(format!("{line}\n").as_bytes(), 1);
            let view = pane.view();
            let seen = (view.state, view.current_tool.as_deref());
            assert_eq!(seen, (state, current), "{line}");
        }
        assert_eq!(pane.view().malformed_lines, 0);
    }

    #[test]
    fn a_generic_agent_goes_by_activity_time_and_exit() {
        let mut pane = Glasspane::new(AgentRuntime::Generic, 0);
        assert_eq!(
            pane.deadline(),
            None,
            "no wake-up for an agent that has done nothing"
        );
        pane.active(100);
        assert_eq!(
            (pane.view().state, pane.deadline()),
            (Working, Some(100 + QUIET))
        );
        pane.tick(99 + QUIET);
        assert_eq!(pane.view().state, Working);
        pane.tick(100 + QUIET);
        assert_eq!((pane.view().state, pane.deadline()), (Idle, None));
        pane.stalled(true, 20_000);
        assert_eq!(pane.view().state, AgentState::Stalled);
        pane.stalled(false, 20_001);
        assert_eq!(pane.view().state, Idle);
        pane.exited(&Exit::from_status(Some(ExitStatus::Code(0))), None, 20_002);
        assert_eq!(pane.view().state, Done);
    }

    #[test]
    fn a_new_run_starts_with_a_new_line_and_keeps_the_counts() {
        let mut pane = Glasspane::new(AgentRuntime::Pi, 0);
        pane.output(b"{\"type\":\"turn_end\"}\n{\"type\":\"tool_execution_start\",\"toolName\":\"bash\"}\n{\"type\":\"agent_", 1);
        pane.restarting(Some("run 1 ended with code 1\n"), 2);
        let view = pane.view();
        assert_eq!((view.state, view.since, view.turns), (Starting, 2, 1));
        assert_eq!(view.last_error.as_deref(), Some("run 1 ended with code 1 "));
        assert_eq!(view.current_tool, None);
        pane.restarting(None, 3);
        pane.output(b"{\"type\":\"agent_start\"}\n", 4);
        let view = pane.view();
        assert_eq!((view.state, view.malformed_lines), (Working, 0));
        assert!(view.last_error.is_some(), "why it was restarted stays");
    }

    #[test]
    fn skipped_bytes_are_counted_and_the_cut_line_ignored() {
        let mut pane = Glasspane::new(AgentRuntime::Pi, 0);
        pane.output(b"{\"type\":\"agent_", 1);
        pane.skipped(1000);
        pane.output(b"rest of a line\"}\n{\"type\":\"agent_start\"}\n", 2);
        let view = pane.view();
        assert_eq!((view.state, view.malformed_lines), (Working, 0));
        assert_eq!(view.skipped_bytes, 1000);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(if cfg!(miri) { 8 } else { 128 }))]
        #[test]
        fn how_bytes_are_cut_changes_nothing_and_no_bytes_panic(
            lines in prop::collection::vec(prop_oneof![
                Just(b"{\"type\":\"agent_start\"}".to_vec()),
                Just(b"{\"type\":\"tool_execution_start\",\"toolName\":\"x\"}".to_vec()),
                Just(b"{\"type\":7}".to_vec()),
                prop::collection::vec(any::<u8>(), 0..40),
            ], 0..12),
            cut in 1..30_usize,
        ) {
            let stream = lines.join(&b'\n');
            let mut whole = Glasspane::new(AgentRuntime::Pi, 0);
            whole.output(&stream, 1);
            let mut pieces = Glasspane::new(AgentRuntime::Pi, 0);
            pieces.output(&[], 1);
            for piece in stream.chunks(cut) {
                pieces.output(piece, 1);
            }
            prop_assert_eq!(whole.view(), pieces.view());
        }
    }

    #[test]
    #[cfg_attr(miri, ignore = "megabytes take an interpreter minutes")]
    fn a_line_without_end_takes_bounded_memory_and_is_counted_once() {
        let mut pane = Glasspane::new(AgentRuntime::Pi, 0);
        for _ in 0..40 {
            pane.output(&vec![b'x'; 65_536], 0);
        }
        pane.output(b"\n{\"type\":\"agent_start\"}\n", 0);
        assert_eq!(
            (pane.view().malformed_lines, pane.view().state),
            (1, Working)
        );
    }
}
