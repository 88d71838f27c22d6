//! Reads the lines of an agent with the parser of its runtime, and recognizes the runtime if it is not known.

use super::{Dialect, LineKind, LineParser, recognize_line};
use crate::AgentRuntime;
use crate::event::Event;

/// Number of lines without a recognized event after which a runtime is decided.
const MAX_UNRECOGNIZED_LINES: u32 = 32;
/// Number of bytes without a recognized event after which a runtime is decided.
const MAX_UNRECOGNIZED_BYTES: usize = 64 << 10;

/// Turns the lines of one agent into events.
#[derive(Debug, Default)]
pub(crate) struct EventReader {
    runtime: AgentRuntime,
    /// Absent without a runtime that has events.
    parser: Option<Box<dyn LineParser>>,
    fit: Fit,
}

/// Whether the output fits the runtime.
#[derive(Debug, Default)]
struct Fit {
    /// An event was found that only this runtime has.
    is_confirmed: bool,
    /// A line was found that the parser knows.
    found_event: bool,
    lines: u32,
    bytes: usize,
    /// Another runtime, of which an event was found that only it has.
    other: Option<AgentRuntime>,
}

impl EventReader {
    pub(crate) fn new(runtime: AgentRuntime) -> Self {
        Self {
            runtime,
            parser: Dialect::of(runtime).map(|dialect| (dialect.new_parser)()),
            fit: Fit::default(),
        }
    }

    /// Returns the runtime: the given one, or the recognized one.
    pub(crate) fn runtime(&self) -> AgentRuntime {
        self.runtime
    }

    /// Returns whether the runtime has events.
    pub(crate) fn has_events(&self) -> bool {
        self.parser.is_some()
    }

    /// Records that no more output follows: an unknown runtime becomes `generic`.
    pub(crate) fn end(&mut self) {
        if self.runtime == AgentRuntime::Auto {
            self.runtime = AgentRuntime::Generic;
        }
    }

    /// Forgets the events before a gap or a restart, but not the runtime.
    pub(crate) fn reset(&mut self) {
        *self = Self::new(self.runtime);
    }

    /// Calls `emit` for each event of the line.
    pub(crate) fn read(&mut self, line: &[u8], emit: &mut dyn FnMut(Event<'_>)) -> LineKind {
        if !self.fit.is_confirmed && !self.fit.is_decided() {
            self.check_fit(line);
        }
        let kind = match &mut self.parser {
            Some(parser) => parser.parse(line, emit),
            None => LineKind::NotAnEvent,
        };
        self.fit.found_event |= kind == LineKind::Event;
        kind
    }

    /// Recognizes the runtime if it is unknown, and otherwise checks whether the line fits it.
    fn check_fit(&mut self, line: &[u8]) {
        match recognize_line(line) {
            Some(runtime) if self.runtime == AgentRuntime::Auto => {
                *self = Self::new(runtime);
                self.fit.is_confirmed = true;
            }
            Some(runtime) if self.runtime == runtime => {
                self.fit = Fit {
                    is_confirmed: true,
                    ..Fit::default()
                };
            }
            other => {
                self.fit.other = self.fit.other.or(other);
                if !line.trim_ascii().is_empty() {
                    self.count_unrecognized(line.len());
                }
            }
        }
    }

    /// Counts output that no runtime has for itself. An unknown runtime becomes `generic` after a bounded amount of it.
    pub(crate) fn count_unrecognized(&mut self, bytes: usize) {
        self.fit.lines = self.fit.lines.saturating_add(1);
        self.fit.bytes = self.fit.bytes.saturating_add(bytes);
        if self.runtime == AgentRuntime::Auto && self.fit.is_decided() {
            self.runtime = AgentRuntime::Generic;
        }
    }

    /// Returns why the output does not fit the runtime. `has_ended` is whether no more output follows.
    pub(crate) fn mismatch(&self, has_ended: bool) -> Option<Mismatch> {
        let fit = &self.fit;
        if self.parser.is_none() || fit.is_confirmed || fit.lines == 0 {
            return None;
        }
        let no_events = !fit.found_event && (has_ended || fit.is_decided());
        let other = fit.other.map(Mismatch::OtherRuntime);
        other.or_else(|| no_events.then_some(Mismatch::NoEvents))
    }
}

/// Why the output of an agent does not fit its runtime.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mismatch {
    /// It contains an event that only another runtime has.
    OtherRuntime(AgentRuntime),
    /// It contains no event.
    NoEvents,
}

impl Mismatch {
    /// Returns a message for the user.
    pub(crate) fn message(self, runtime: AgentRuntime) -> String {
        match self {
            Self::OtherRuntime(other) => format!(
                "the output is that of runtime {other}, not {runtime}; give --runtime {other} or auto"
            ),
            Self::NoEvents => format!(
                "the output contains no event of runtime {runtime}; check the agent's options, or give --runtime auto"
            ),
        }
    }
}

impl Fit {
    fn is_decided(&self) -> bool {
        self.lines >= MAX_UNRECOGNIZED_LINES || self.bytes >= MAX_UNRECOGNIZED_BYTES
    }
}
