//! The state machine: events of an agent in, its state and counters out.
//!
//! ```text
//!                               event               question
//! starting -- first output --> idle -----> working ----------> blocked
//!                               ^           |   ^                 |
//!                               '-- settled '   '--- progress ----'
//!
//! starting, idle, working, blocked -- set_stalled(true) ---> stalled
//! stalled --------------------------- set_stalled(false) --> the state that the events led to meanwhile
//! any state ------------------------- record_restart ------> starting
//! any state ------------------------- record_exit ---------> done or error (final)
//! ```
//!
//! An agent without a known runtime has no events, so its state is a guess: output leads to `working`, and 10 s without
//! output to `idle`.

use crate::cost::Cost;
use crate::event::{Content, Event, TokenUsage};
use crate::line_splitter::LineSplitter;
use crate::runtimes::{EventReader, LineKind, Mismatch};
use crate::sanitize::{sanitize_line, sanitize_text};
use crate::transcript::content_text;
use crate::{Activity, AgentRuntime, AgentState, AgentView, Exit, ExitReason, ExitStatus};

/// Time without output after which an agent without events is idle, in milliseconds.
const IDLE_AFTER_MS: u64 = 10_000;
/// Maximum length of a text in the view, and of a tool's id, in characters.
const MAX_CHARS: usize = 200;
/// Maximum length of the answer in the view, in characters.
const MAX_ANSWER_CHARS: usize = 1000;
/// Maximum number of tools tracked as running; beyond it the oldest are dropped.
const MAX_TOOLS: usize = 64;

/// A running tool; [`AgentView::tools`] contains its name.
#[derive(Debug)]
struct RunningTool {
    id: String,
    /// The tool has reported progress, so it no longer waits for a permission.
    progressed: bool,
}

/// A change of a tool.
#[derive(Debug, Clone, Copy)]
enum ToolStep<'a> {
    /// The tool of this name started.
    Started(&'a str),
    Progressed,
    Ended,
}

/// The state of one agent, derived from its output.
#[derive(Debug, Default)]
pub struct Glasspane {
    reader: EventReader,
    lines: LineSplitter,
    view: AgentView,
    mismatch: Option<Mismatch>,
    tools: Vec<RunningTool>,
    /// The start of the message that is being streamed.
    message: String,
    /// The agent has reported that its work failed, and no success since.
    work_failed: bool,
    /// The state without regard to a stall.
    unstalled_state: AgentState,
    stalled: bool,
    exited: bool,
    state_changes: u64,
    tool_changes: u64,
}

impl Glasspane {
    /// Creates the state machine of an agent that was started at `now`.
    #[must_use]
    pub fn new(runtime: AgentRuntime, now: u64) -> Self {
        Self {
            reader: EventReader::new(runtime),
            view: AgentView {
                runtime,
                since: now,
                guessed: is_guessed(runtime),
                ..AgentView::default()
            },
            ..Self::default()
        }
    }

    /// Returns how often the state has changed. Two equal results mean that it did not change in between.
    #[must_use]
    pub fn state_changes(&self) -> u64 {
        self.state_changes
    }

    /// Returns how often the current tool has changed.
    #[must_use]
    pub fn tool_changes(&self) -> u64 {
        self.tool_changes
    }

    /// Returns the current state and counters.
    #[must_use]
    pub fn view(&self) -> &AgentView {
        &self.view
    }

    /// Returns whether [`Glasspane::push_output`] must receive every byte. Changes to `false` when an unknown runtime has
    /// turned out to be `generic`.
    #[must_use]
    pub fn needs_output(&self) -> bool {
        self.reader.runtime() != AgentRuntime::Generic
    }

    /// Returns whether [`Glasspane::record_activity`] must be called when the agent has written something to either stream.
    #[must_use]
    pub fn needs_activity(&self) -> bool {
        self.view.guessed
    }

    /// Parses bytes that the agent wrote to stdout.
    pub fn push_output(&mut self, bytes: &[u8], now: u64) {
        if !self.needs_output() {
            return self.record_activity(now);
        }
        self.view.last_activity = Some(now);
        let mut lines = std::mem::take(&mut self.lines);
        lines.push(bytes, |line| self.read_line(line, now));
        self.lines = lines;
        if self.view.guessed {
            self.record_activity(now);
        } else if self.unstalled_state == AgentState::Starting {
            self.set_state(AgentState::Idle, now);
        }
    }

    /// Records that `bytes` of stdout were skipped. The next output may begin within a line; the rest of that line is
    /// ignored.
    pub fn skip_output(&mut self, bytes: u64) {
        self.view.skipped_bytes = self.view.skipped_bytes.saturating_add(bytes);
        self.lines = LineSplitter::mid_line();
    }

    /// Records that the agent wrote something.
    pub fn record_activity(&mut self, now: u64) {
        self.view.last_activity = Some(now);
        if self.view.guessed {
            self.set_state(AgentState::Working, now);
        }
    }

    /// Records whether the agent is stalled: its output is not read because it cannot be stored.
    pub fn set_stalled(&mut self, stalled: bool, now: u64) {
        self.stalled = stalled;
        self.set_state(self.unstalled_state, now);
    }

    /// Records that a run ended and another one follows. `reason` is set while the next run is delayed. Discards an
    /// incomplete last line.
    pub fn record_restart(&mut self, reason: Option<&str>, now: u64) {
        self.lines = LineSplitter::default();
        self.reader.reset();
        self.work_failed = false;
        self.clear_tools();
        self.view.queued = 0;
        if let Some(reason) = reason {
            self.view.last_error = Some(sanitize_line(reason, MAX_CHARS));
        }
        self.set_state(AgentState::Starting, now);
    }

    /// Records the end of the agent. The state is final: `done` after exit code 0, unless the agent has reported that its
    /// work failed. `error` is the reason if the end is not the agent's own, such as a limit, or if the exit status is
    /// unknown.
    pub fn record_exit(&mut self, exit: &Exit, error: Option<&str>, now: u64) {
        self.stalled = false;
        let killed = exit.status.is_some() && exit.reason == ExitReason::KilledByUser;
        let failed = match (exit.status, error) {
            _ if killed => false,
            (None, _) | (_, Some(_)) => {
                let reason = error.unwrap_or_default();
                self.view.last_error = Some(sanitize_line(reason, MAX_CHARS));
                true
            }
            (Some(status), None) => status != ExitStatus::Code(0) || self.work_failed,
        };
        self.reader.end();
        self.view.runtime = self.reader.runtime();
        self.set_mismatch(self.reader.mismatch(true));
        let state = match failed {
            true => AgentState::Error,
            false => AgentState::Done,
        };
        self.clear_tools();
        self.view.queued = 0;
        self.set_state(state, now);
        self.exited = true;
    }

    /// Returns when [`Glasspane::tick`] must be called if nothing happens before; `None` if it need not be called.
    #[must_use]
    pub fn deadline(&self) -> Option<u64> {
        let has_timeout =
            self.view.guessed && self.unstalled_state == AgentState::Working && !self.exited;
        self.view
            .last_activity
            .filter(|_| has_timeout)
            .map(|last| last.saturating_add(IDLE_AFTER_MS))
    }

    /// Applies the idle timeout of an agent without events if `now` has reached the deadline.
    pub fn tick(&mut self, now: u64) {
        if self.deadline().is_some_and(|deadline| now >= deadline) {
            self.set_state(AgentState::Idle, now);
        }
    }

    fn read_line(&mut self, line: Option<&[u8]>, now: u64) {
        self.view.events += 1;
        let mut reader = std::mem::take(&mut self.reader);
        let kind = match line {
            Some(line) => reader.read(line, &mut |event| {
                if !self.exited {
                    self.apply(event, now);
                }
            }),
            None => LineKind::NotAnEvent,
        };
        let runtime = reader.runtime();
        if runtime != self.view.runtime {
            self.view.runtime = runtime;
            self.view.guessed = is_guessed(runtime);
        }
        self.set_mismatch(reader.mismatch(false));
        self.reader = reader;
        let is_empty = line.is_some_and(|line| line.trim_ascii().is_empty());
        if kind == LineKind::NotAnEvent && !is_empty && !self.view.guessed {
            self.view.malformed_lines += 1;
        }
    }

    fn apply(&mut self, event: Event<'_>, now: u64) {
        use AgentState::{Blocked, Idle, Working};
        match event {
            Event::Working(activity) => self.set_activity(Working, activity, now),
            Event::Idle => {
                self.clear_tools();
                self.set_activity(Idle, None, now);
            }
            Event::Session(id) if !id.is_empty() => {
                self.view.session = Some(sanitize_line(id, MAX_CHARS));
            }
            Event::Prompt(_) => self.set_activity(Working, None, now),
            Event::MessageStarted => {
                self.message.clear();
                self.set_activity(Working, Some(Activity::Waiting), now);
            }
            Event::Text(text) => {
                let room = MAX_ANSWER_CHARS.saturating_sub(self.message.len());
                self.message
                    .push_str(&text[..text.floor_char_boundary(room)]);
                self.set_activity(Working, Some(Activity::Writing), now);
            }
            Event::Thinking(_) => self.set_activity(Working, Some(Activity::Thinking), now),
            Event::BlockEnded => {
                let message = std::mem::take(&mut self.message);
                self.set_answer(&message);
            }
            Event::Message(content) => {
                self.message.clear();
                self.set_message(content);
                self.set_activity(Working, None, now);
            }
            Event::ToolStarted { id, name, .. } => {
                self.work_failed = false;
                let started = ToolStep::Started(name);
                self.apply_tool_step(id, started, now);
            }
            Event::ToolProgressed(id) => self.apply_tool_step(id, ToolStep::Progressed, now),
            Event::ToolEnded { id, .. } => self.apply_tool_step(id, ToolStep::Ended, now),
            Event::Question(_) => self.set_activity(Blocked, None, now),
            Event::TurnsEnded(turns) => self.view.turns = self.view.turns.saturating_add(turns),
            Event::Usage(usage) => self.add_usage(usage),
            Event::Queued(queued) => self.view.queued = queued,
            Event::Failed(error) => {
                self.work_failed = true;
                // Some agents report the error as a message of the model, too.
                self.view.answer.take_if(|answer| *answer == error);
                self.set_error(&error);
            }
            Event::Error(error) => self.set_error(&error),
            Event::Response(response) => {
                if let Some(error) = response.error {
                    self.set_error(&error);
                }
            }
            Event::Session(_) | Event::Notice(_) | Event::Output(_) => {}
        }
    }

    fn set_mismatch(&mut self, mismatch: Option<Mismatch>) {
        if self.mismatch != mismatch {
            self.mismatch = mismatch;
            self.view.mismatch = mismatch.map(|mismatch| mismatch.message(self.view.runtime));
        }
    }

    fn set_error(&mut self, error: &str) {
        self.view.last_error = Some(sanitize_line(error, MAX_CHARS));
    }

    fn set_activity(&mut self, state: AgentState, activity: Option<Activity>, now: u64) {
        self.view.activity = activity;
        self.set_state(state, now);
    }

    fn add_usage(&mut self, usage: TokenUsage) {
        let view = &mut self.view;
        view.input_tokens = view.input_tokens.saturating_add(usage.input);
        view.cached_tokens = view.cached_tokens.saturating_add(usage.cached);
        view.output_tokens = view.output_tokens.saturating_add(usage.output);
        view.cost_usd = Cost::new(view.cost_usd).plus(usage.cost).usd();
    }

    /// Records a complete message. It proves that the model answers again.
    fn set_message(&mut self, content: Content<'_>) {
        let text = content_text(content);
        if !text.trim().is_empty() {
            self.work_failed = false;
            self.set_answer(&text);
        }
    }

    fn set_answer(&mut self, text: &str) {
        if text.trim().is_empty() {
            return;
        }
        let start: String = text.chars().take(MAX_ANSWER_CHARS).collect();
        self.view.answer = Some(sanitize_text(&start));
    }

    /// Updates the running tools. Tools run in parallel, and one of them may wait for a person: an event of a tool that
    /// has already progressed does not end the blocked state.
    fn apply_tool_step(&mut self, id: &str, step: ToolStep<'_>, now: u64) {
        let id = truncate_id(id);
        let index = self.tools.iter().position(|tool| tool.id == id);
        let had_progressed = match (step, index) {
            (ToolStep::Started(name), index) => {
                if index.is_none() || id.is_empty() {
                    self.add_tool(id, name);
                }
                false
            }
            (ToolStep::Progressed, Some(index)) => {
                let tool = self.tools.get_mut(index);
                tool.is_some_and(|tool| std::mem::replace(&mut tool.progressed, true))
            }
            (ToolStep::Ended, Some(index)) => {
                self.view.tools.remove(index);
                self.tools.remove(index).progressed
            }
            // The end of a call may follow the end of the work that was aborted.
            (_, None) if self.unstalled_state == AgentState::Idle => return,
            (_, None) => false,
        };
        if self.view.current_tool.as_ref() != self.view.tools.last() {
            self.view.current_tool = self.view.tools.last().cloned();
            self.tool_changes += 1;
        }
        self.view.activity = None;
        if !(had_progressed && self.unstalled_state == AgentState::Blocked) {
            self.set_state(AgentState::Working, now);
        }
    }

    fn add_tool(&mut self, id: &str, name: &str) {
        if self.tools.len() >= MAX_TOOLS {
            self.tools.remove(0);
            self.view.tools.remove(0);
        }
        self.view.tools.push(sanitize_line(name, MAX_CHARS));
        self.tools.push(RunningTool {
            id: id.to_owned(),
            progressed: false,
        });
    }

    fn clear_tools(&mut self) {
        self.tools.clear();
        self.view.tools.clear();
        self.view.current_tool = None;
        self.view.activity = None;
    }

    fn set_state(&mut self, state: AgentState, now: u64) {
        if self.exited {
            return;
        }
        self.unstalled_state = state;
        let state = match self.stalled {
            true => AgentState::Stalled,
            false => state,
        };
        if self.view.state != state {
            self.view.state = state;
            self.view.since = now;
            self.state_changes += 1;
        }
    }
}

/// Returns whether the state of an agent of this runtime is a guess.
fn is_guessed(runtime: AgentRuntime) -> bool {
    matches!(runtime, AgentRuntime::Auto | AgentRuntime::Generic)
}

/// Returns the stored part of a tool's id: at most [`MAX_CHARS`] characters.
fn truncate_id(id: &str) -> &str {
    let end = id.char_indices().nth(MAX_CHARS);
    end.and_then(|(end, _)| id.get(..end)).unwrap_or(id)
}

#[cfg(test)]
mod tests {
    use super::*;
    use AgentState::{Blocked, Done, Error, Idle, Starting, Working};
    use proptest::prelude::*;

    #[test]
    fn pi_session_changes_state_line_by_line() {
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
            pane.push_output(format!("{line}\n").as_bytes(), 1);
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
        pane.record_exit(&Exit::new(Some(ExitStatus::Signal(9)), None), None, 2);
        pane.push_output(b"{\"type\":\"agent_start\"}\n", 3);
        assert_eq!(pane.view().state, Error, "the end is final");
    }

    #[test]
    fn parallel_tools_report_last_running_and_keep_blocked() {
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
            // Fields of the wrong type are ignored.
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
            pane.push_output(format!("{line}\n").as_bytes(), 1);
            let view = pane.view();
            let actual = (view.state, view.current_tool.as_deref());
            assert_eq!(actual, (state, current), "{line}");
        }
        assert_eq!(pane.view().malformed_lines, 0);
    }

    #[test]
    fn generic_agent_follows_activity_timeout_and_exit() {
        let mut pane = Glasspane::new(AgentRuntime::Generic, 0);
        assert_eq!(pane.deadline(), None, "no timer before the first output");
        pane.record_activity(100);
        assert_eq!(
            (pane.view().state, pane.deadline()),
            (Working, Some(100 + IDLE_AFTER_MS))
        );
        pane.tick(99 + IDLE_AFTER_MS);
        assert_eq!(pane.view().state, Working);
        pane.tick(100 + IDLE_AFTER_MS);
        assert_eq!((pane.view().state, pane.deadline()), (Idle, None));
        pane.set_stalled(true, 20_000);
        assert_eq!(pane.view().state, AgentState::Stalled);
        pane.set_stalled(false, 20_001);
        assert_eq!(pane.view().state, Idle);
        pane.record_exit(&Exit::new(Some(ExitStatus::Code(0)), None), None, 20_002);
        assert_eq!(pane.view().state, Done);
    }

    #[test]
    fn restart_discards_partial_line_and_keeps_counters() {
        let mut pane = Glasspane::new(AgentRuntime::Pi, 0);
        pane.push_output(b"{\"type\":\"turn_end\"}\n{\"type\":\"tool_execution_start\",\"toolName\":\"bash\"}\n{\"type\":\"agent_", 1);
        pane.record_restart(Some("run 1 ended with code 1\n"), 2);
        let view = pane.view();
        assert_eq!((view.state, view.since, view.turns), (Starting, 2, 1));
        assert_eq!(view.last_error.as_deref(), Some("run 1 ended with code 1 "));
        assert_eq!(view.current_tool, None);
        pane.record_restart(None, 3);
        pane.push_output(b"{\"type\":\"agent_start\"}\n", 4);
        let view = pane.view();
        assert_eq!((view.state, view.malformed_lines), (Working, 0));
        assert!(view.last_error.is_some(), "the restart reason stays");
    }

    #[test]
    fn skipped_bytes_are_counted_and_partial_line_ignored() {
        let mut pane = Glasspane::new(AgentRuntime::Pi, 0);
        pane.push_output(b"{\"type\":\"agent_", 1);
        pane.skip_output(1000);
        pane.push_output(b"rest of a line\"}\n{\"type\":\"agent_start\"}\n", 2);
        let view = pane.view();
        assert_eq!((view.state, view.malformed_lines), (Working, 0));
        assert_eq!(view.skipped_bytes, 1000);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(if cfg!(miri) { 8 } else { 128 }))]
        #[test]
        fn state_is_independent_of_chunk_size(
            lines in prop::collection::vec(prop_oneof![
                Just(b"{\"type\":\"agent_start\"}".to_vec()),
                Just(b"{\"type\":\"tool_execution_start\",\"toolName\":\"x\"}".to_vec()),
                Just(b"{\"type\":7}".to_vec()),
                prop::collection::vec(any::<u8>(), 0..40),
            ], 0..12),
            chunk_size in 1..30_usize,
        ) {
            let stream = lines.join(&b'\n');
            let mut whole = Glasspane::new(AgentRuntime::Pi, 0);
            whole.push_output(&stream, 1);
            let mut chunked = Glasspane::new(AgentRuntime::Pi, 0);
            chunked.push_output(&[], 1);
            for chunk in stream.chunks(chunk_size) {
                chunked.push_output(chunk, 1);
            }
            prop_assert_eq!(whole.view(), chunked.view());
        }
    }

    #[test]
    #[cfg_attr(miri, ignore = "megabytes take an interpreter minutes")]
    fn line_over_maximum_is_counted_once() {
        let mut pane = Glasspane::new(AgentRuntime::Pi, 0);
        for _ in 0..40 {
            pane.push_output(&vec![b'x'; 65_536], 0);
        }
        pane.push_output(b"\n{\"type\":\"agent_start\"}\n", 0);
        assert_eq!(
            (pane.view().malformed_lines, pane.view().state),
            (1, Working)
        );
    }
}
