//! The control socket: one JSON object a line, both ways.
//!
//! A request carries a sequence number, and its reply the same one; events carry none and go to
//! connections that sent `watch`. The bytes of an `input` request follow its line raw, `len` of them, so
//! that input need not be text.
//!
//! Version 2 adds `expires_ms`, `restart`, and `last` of `signal`. A shim reports its version in `shim.json`; a caller
//! sends an earlier version only the operations that it knows.

use serde::{Deserialize, Serialize};

use crate::record::ExitRecord;

/// Longest request line that a shim accepts, in bytes.
pub const MAX_REQUEST: usize = 4096;
/// Most bytes that one `input` request may carry.
pub const MAX_INPUT: usize = 65_536;
/// Input that the agent has not read yet is kept up to this many bytes; what is over is not accepted.
pub const INPUT_BACKLOG: usize = 1 << 20;

/// Version of this protocol. A shim that reports no version speaks version 1.
pub const PROTOCOL: u32 = 2;

/// Returns the time on the clock for [`Request::expires_ms`]: milliseconds of CLOCK_MONOTONIC, which all processes of a
/// host share (clock_gettime(2)).
#[must_use]
pub fn clock_ms() -> u64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    let seconds = u64::try_from(now.tv_sec).unwrap_or(0);
    let milliseconds = u64::try_from(now.tv_nsec / 1_000_000).unwrap_or(0);
    seconds.saturating_mul(1000).saturating_add(milliseconds)
}

/// A numbered request.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Request {
    /// Chosen by the client, repeated in the reply.
    pub seq: u64,
    /// Time ([`clock_ms`]) after which the shim does not carry out the request, because the caller has timed out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires_ms: Option<u64>,
    /// What to do.
    #[serde(flatten)]
    pub op: Op,
}

/// What a shim can be asked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "op", rename_all = "kebab-case")]
pub enum Op {
    /// Send events from now on, a [`Event::Status`] at once.
    Watch,
    /// Deliver a signal to the agent and do no more.
    Signal {
        /// Name without `SIG`, as in signal(7).
        signal: String,
        /// No run follows the current one, whatever the restart policy.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        last: bool,
    },
    /// Signal, grace, KILL, and a reply when nothing is left or nothing more can be done.
    Kill {
        /// The first signal; name without `SIG`.
        signal: String,
        /// How long to wait before KILL, in milliseconds.
        grace_ms: u64,
    },
    /// End the current run as a kill with TERM does, and start the next one immediately, whatever the restart policy.
    Restart {
        /// Time between TERM and KILL, in milliseconds.
        grace_ms: u64,
    },
    /// Queue `len` bytes, which follow this line, for the agent's stdin.
    Input {
        /// How many raw bytes follow.
        len: usize,
    },
    /// Close the agent's stdin once what is queued has been written.
    CloseInput,
}

/// What comes back.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Message {
    /// The answer to one request.
    Reply {
        /// The request's number.
        seq: u64,
        /// Outcome.
        reply: Reply,
    },
    /// Something happened.
    Event(Event),
}

/// The answer to a request.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Reply {
    /// Done.
    Ok,
    /// So many bytes of an `input` were queued; the rest was not.
    Written(usize),
    /// The signal was sent.
    Signalled(Delivery),
    /// A kill has ended.
    Killed {
        /// KILL was needed.
        forced: bool,
        /// Processes of the agent that are still there; empty when the kill is verified.
        remaining: Vec<i32>,
        /// Those of them that this user may not signal.
        denied: Vec<i32>,
    },
    /// The agent's stdin is closed.
    InputClosed,
    /// The request is invalid, or not possible in the current state.
    Refused(String),
    /// The request was read after its expiry and was not carried out.
    Expired,
}

/// Whom a signal reached.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Delivery {
    /// How many processes were signalled.
    pub sent: usize,
    /// Processes that this user may not signal.
    pub denied: Vec<i32>,
}

/// What watchers are told.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "kebab-case")]
pub enum Event {
    /// The latest counts; several changes may share one event.
    Status(Status),
    /// `exit.json` is written; the shim ends now.
    Exit(ExitRecord),
}

/// A shim's state at a glance.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    /// Length of the stdout journal, in bytes.
    pub stdout: u64,
    /// Length of the stderr journal, in bytes.
    pub stderr: u64,
    /// Why output is not read at the moment (the disk is full), if it is not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stalled: Option<String>,
    /// The first process has ended, descendants of it have not.
    #[serde(default)]
    pub lingering: bool,
    /// The first process; absent when it has ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pid: Option<i32>,
    /// Number of the run, from 1.
    #[serde(default)]
    pub run: u32,
    /// Where the run's output begins in the stdout journal.
    #[serde(default)]
    pub run_from: u64,
    /// The run has ended and another is to come: how it ended, and when the next is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub waiting: Option<String>,
}

#[cfg(test)]
mod tests {
    use super::*;
    use colibri_types::ExitStatus;

    #[test]
    fn frames_read_as_documented() {
        let table: Vec<(String, &str)> = vec![
            (
                serde_json::to_string(&Request {
                    seq: 1,
                    expires_ms: None,
                    op: Op::Watch,
                })
                .unwrap(),
                r#"{"seq":1,"op":"watch"}"#,
            ),
            (
                serde_json::to_string(&Request {
                    seq: 2,
                    expires_ms: None,
                    op: Op::Kill {
                        signal: "TERM".into(),
                        grace_ms: 5000,
                    },
                })
                .unwrap(),
                r#"{"seq":2,"op":"kill","signal":"TERM","grace_ms":5000}"#,
            ),
            (
                serde_json::to_string(&Request {
                    seq: 3,
                    expires_ms: Some(9),
                    op: Op::Input { len: 5 },
                })
                .unwrap(),
                r#"{"seq":3,"expires_ms":9,"op":"input","len":5}"#,
            ),
            (
                serde_json::to_string(&Request {
                    seq: 4,
                    expires_ms: None,
                    op: Op::Signal {
                        signal: "INT".into(),
                        last: true,
                    },
                })
                .unwrap(),
                r#"{"seq":4,"op":"signal","signal":"INT","last":true}"#,
            ),
            (
                serde_json::to_string(&Message::Reply {
                    seq: 4,
                    reply: Reply::Expired,
                })
                .unwrap(),
                r#"{"seq":4,"reply":"expired"}"#,
            ),
            (
                serde_json::to_string(&Message::Reply {
                    seq: 3,
                    reply: Reply::Written(5),
                })
                .unwrap(),
                r#"{"seq":3,"reply":{"written":5}}"#,
            ),
            (
                serde_json::to_string(&Message::Event(Event::Exit(ExitRecord {
                    exit: Some(ExitStatus::Code(7)),
                    reason: None,
                    error: None,
                    exited_at_ns: 1,
                    stdout_bytes: 2,
                    stderr_bytes: 3,
                    run: 1,
                })))
                .unwrap(),
                r#"{"event":"exit","exit":{"code":7},"exited_at_ns":1,"stdout_bytes":2,"stderr_bytes":3,"run":1}"#,
            ),
        ];
        for (written, expected) in table {
            assert_eq!(written, expected);
        }
        let event: Message =
            serde_json::from_str(r#"{"event":"status","stdout":1,"stderr":2}"#).unwrap();
        assert_eq!(
            event,
            Message::Event(Event::Status(Status {
                stdout: 1,
                stderr: 2,
                ..Status::default()
            }))
        );
    }
}
