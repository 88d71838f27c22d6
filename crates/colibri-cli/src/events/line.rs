//! The lines of `colibri events`.

use colibri_client::{
    AgentRuntime, AgentState, Exit, ExitReason, NetworkRecord, OutputData, Stream,
};
use serde::Serialize;

use crate::output::{self, sanitize};
use crate::tables::{network_text, short_exit};

/// A line. colibri(1) documents the fields.
#[derive(Debug, Serialize)]
pub(super) struct EventLine {
    pub(super) time: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) id: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) name: Option<String>,
    #[serde(flatten)]
    pub(super) event: EventKind,
}

#[derive(Debug, Serialize)]
#[serde(tag = "event", rename_all = "lowercase")]
pub(super) enum EventKind {
    Spawned {
        program: String,
        runtime: AgentRuntime,
    },
    State {
        state: AgentState,
        previous_state: Option<AgentState>,
        #[serde(skip_serializing_if = "colibri_types::is_zero")]
        merged: u64,
        #[serde(skip_serializing_if = "Option::is_none")]
        current_tool: Option<String>,
        #[serde(skip_serializing_if = "Option::is_none")]
        error: Option<String>,
    },
    Run {
        run: u32,
        #[serde(skip_serializing_if = "colibri_types::is_zero")]
        merged: u64,
        #[serde(skip_serializing_if = "Option::is_none")]
        error: Option<String>,
    },
    Kill {
        signal: String,
        escalate: bool,
        uid: u32,
        #[serde(skip_serializing_if = "colibri_types::is_zero")]
        merged: u64,
    },
    Network {
        #[serde(flatten)]
        record: NetworkRecord,
        #[serde(skip_serializing_if = "colibri_types::is_zero")]
        merged: u64,
    },
    Exit {
        state: AgentState,
        exit_code: Option<i32>,
        exit_signal: Option<i32>,
        #[serde(skip_serializing_if = "Option::is_none")]
        reason: Option<ExitReason>,
        #[serde(skip_serializing_if = "Option::is_none")]
        error: Option<String>,
        /// For the text.
        #[serde(skip)]
        exit: Option<Exit>,
    },
    Output {
        stream: Stream,
        offset: u64,
        #[serde(flatten)]
        data: OutputData,
    },
    Removed {},
    Gap {
        reason: String,
        #[serde(skip_serializing_if = "Option::is_none")]
        missed: Option<u64>,
    },
}

/// Returns the current time as RFC 3339.
pub(super) fn now() -> String {
    format!("{:.3}", jiff::Timestamp::now())
}

impl EventKind {
    pub(super) fn exit(state: AgentState, exit: Option<Exit>, error: Option<String>) -> Self {
        Self::Exit {
            state,
            exit_code: exit.and_then(Exit::code),
            exit_signal: exit.and_then(Exit::signal),
            reason: exit.map(|exit| exit.reason),
            error,
            exit,
        }
    }

    /// Formats the event: one line, or one for each line of output.
    fn to_lines(&self) -> Vec<String> {
        let note = |merged: &u64, which: &str| match merged {
            0 => String::new(),
            count => format!(" [{count} {which} merged]"),
        };
        let in_parentheses = |reason: &Option<String>| match reason {
            Some(reason) => format!(" ({})", sanitize(reason, 300)),
            None => String::new(),
        };
        vec![match self {
            Self::Spawned { program, runtime } => {
                format!("spawned {} ({runtime})", sanitize(program, 100))
            }
            Self::State {
                state,
                previous_state,
                merged,
                current_tool,
                error,
            } => {
                // Without a change of the state, the tool or the error has changed.
                let from = previous_state.filter(|from| from != state || *merged > 0);
                let from = from.map_or(String::new(), |from| format!("{from} -> "));
                let to = output::coloured(&state.to_string(), "1");
                let between = note(merged, "in between");
                let tool = in_parentheses(current_tool);
                format!("state   {from}{to}{between}{tool}{}", in_parentheses(error))
            }
            Self::Run { run, merged, error } => {
                let before = note(merged, "before");
                format!("run     {run}{before}{}", in_parentheses(error))
            }
            Self::Kill {
                signal,
                escalate,
                uid,
                merged,
            } => {
                let then = if *escalate { ", then KILL" } else { "" };
                let before = note(merged, "before");
                format!("kill    {signal}{then}, by uid {uid}{before}")
            }
            Self::Network { record, merged } => {
                let before = note(merged, "before");
                format!("network {}{before}", network_text(record))
            }
            Self::Exit { exit, error, .. } => {
                format!("exit    {}{}", short_exit(*exit), in_parentheses(error))
            }
            Self::Output { stream, data, .. } => {
                let stream = match stream {
                    Stream::Stdout => "out",
                    Stream::Stderr => "err",
                };
                let bytes = data.clone().into_bytes().unwrap_or_default();
                return String::from_utf8_lossy(&bytes)
                    .lines()
                    .map(|line| format!("{stream}     {}", sanitize(line, 4096)))
                    .collect();
            }
            Self::Removed {} => "removed".to_owned(),
            Self::Gap { reason, missed } => {
                let missed = missed.map_or(String::new(), |count| format!(" [{count} missed]"));
                format!("gap     {reason}{missed}")
            }
        }]
    }
}

impl EventLine {
    /// Creates the line for missing events.
    pub(super) fn gap(reason: &str, missed: Option<u64>) -> Self {
        Self {
            time: now(),
            id: None,
            name: None,
            event: EventKind::Gap {
                reason: reason.to_owned(),
                missed,
            },
        }
    }

    /// Formats the line for a terminal. Untrusted text is sanitized.
    pub(super) fn to_text(&self) -> String {
        let id = self.id.as_deref().unwrap_or("-");
        let name = self.name.as_deref();
        let name = name.map_or(String::new(), |name| format!(" {}", sanitize(name, 24)));
        let head = format!("{} {id:<10}{name}", self.time);
        let lines = self.event.to_lines();
        lines
            .iter()
            .map(|line| format!("{head}  {line}\n"))
            .collect()
    }
}
