//! The protocol of the control socket: one JSON object per line in both directions.
//!
//! A request has a sequence number, which its reply repeats. Events have none; they go to connections that sent `watch`.
//! An `input` request is followed by `len` raw bytes, because input need not be text.
//!
//! Version 2 adds `expires_ms`, `restart`, and `last` of `signal`. A shim of version 3 runs the commands of the privilege
//! backend itself for processes that it may not signal, and reports their errors as `reason`. Version 4
//! adds `network` of `watch` and of the status, and `network` events. Version 5 adds `resize` and `terminal` of the status. A shim reports its version in `shim.json`. A client sends
//! only operations that the shim's version has.

use std::time::Duration;

use colibri_types::{NetworkRecord, NetworkSummary, TerminalSize};
use serde::{Deserialize, Serialize};

use crate::record::ExitRecord;

/// Maximum length of a request line, in bytes.
pub const MAX_REQUEST: usize = 4096;
/// Maximum number of bytes in one `input` request.
pub const MAX_INPUT: usize = 65_536;
/// Maximum number of queued bytes that the agent has not read; the shim accepts no more.
pub const INPUT_BACKLOG: usize = 1 << 20;

/// Version of this protocol. A shim that reports no version speaks version 1.
pub const PROTOCOL: u32 = 5;
/// Maximum time that the commands of the privilege backend add to a request.
pub const ELEVATION_TIMEOUT: Duration = Duration::from_secs(60);

/// Returns the time on the clock for [`ShimRequest::expires_ms`]: milliseconds of CLOCK_MONOTONIC, which all processes of a
/// host share (clock_gettime(2)).
#[must_use]
pub fn clock_ms() -> u64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    let seconds = u64::try_from(now.tv_sec).unwrap_or(0);
    let milliseconds = u64::try_from(now.tv_nsec / 1_000_000).unwrap_or(0);
    seconds.saturating_mul(1000).saturating_add(milliseconds)
}

/// A request with its sequence number.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ShimRequest {
    /// Chosen by the client, repeated in the reply.
    pub seq: u64,
    /// Time ([`clock_ms`]) after which the shim does not carry out the request, because the caller has timed out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires_ms: Option<u64>,
    /// The operation.
    #[serde(flatten)]
    pub op: ShimOp,
}

/// An operation of a shim.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "op", rename_all = "kebab-case")]
pub enum ShimOp {
    /// Send events to this connection, starting with an [`ShimEvent::Status`].
    Watch {
        /// Send [`ShimEvent::Network`] too.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        network: bool,
    },
    /// Send a signal to the agent.
    Signal {
        /// Name as in signal(7), without `SIG`.
        signal: String,
        /// The current run is the last one, regardless of the restart policy.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        last: bool,
    },
    /// Send a signal, then KILL after the grace period. The reply follows when no process is left, or when the kill
    /// could not be verified in time.
    Kill {
        /// Name of the first signal, without `SIG`.
        signal: String,
        /// Time between the signal and KILL, in milliseconds.
        grace_ms: u64,
    },
    /// End the current run as a kill with TERM does, and start the next one immediately, regardless of the policy.
    Restart {
        /// Time between TERM and KILL, in milliseconds.
        grace_ms: u64,
    },
    /// Queue the bytes that follow this line for the agent's stdin.
    Input {
        /// Number of bytes.
        len: usize,
    },
    /// Close the agent's stdin after the last queued byte. Refused for a terminal.
    CloseInput,
    /// Set the size of the agent's terminal, also for later runs.
    Resize(TerminalSize),
}

/// A message of a shim.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum ShimMessage {
    /// The reply to a request.
    Reply {
        /// Sequence number of the request.
        seq: u64,
        /// The outcome.
        reply: ShimReply,
    },
    /// An event.
    Event(ShimEvent),
}

/// The outcome of a request.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ShimReply {
    /// The request was carried out.
    Ok,
    /// Number of bytes of an `input` request that were queued; the others were not.
    Written(usize),
    /// The signal was sent.
    Signalled(SignalDelivery),
    /// The kill is complete.
    Killed(KillReport),
    /// The agent's stdin is closed.
    InputClosed,
    /// The request is invalid, or not possible in the current state.
    Refused(String),
    /// The request was read after its expiry and was not carried out.
    Expired,
}

/// Result of a kill.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct KillReport {
    /// KILL was sent.
    pub forced: bool,
    /// Pids of the agent's processes that still exist; empty if the kill is verified.
    pub remaining: Vec<i32>,
    /// Pids of the remaining processes that this user may not signal.
    pub denied: Vec<i32>,
    /// Why the processes of `denied` remain, if the shim has tried to signal them through the privilege backend.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

/// Result of sending a signal.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SignalDelivery {
    /// Number of processes and process groups that were signalled.
    pub sent: usize,
    /// Pids of processes that this user may not signal, and that were not signalled through the privilege backend either.
    pub denied: Vec<i32>,
    /// Why the processes of `denied` were not signalled, if the shim has tried to do that through the privilege backend.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

/// An event, sent to connections that watch the shim.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "kebab-case")]
pub enum ShimEvent {
    /// The latest status. Several changes may be coalesced into one event.
    Status(ShimStatus),
    /// A report of the agent's proxy. Not sent to a connection that does not read its previous messages.
    Network(NetworkRecord),
    /// The agent has ended; the shim exits after this event.
    Exit(ExitRecord),
}

/// Status of a shim and its agent.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ShimStatus {
    /// Length of the stdout journal, in bytes.
    pub stdout: u64,
    /// Length of the stderr journal, in bytes.
    pub stderr: u64,
    /// Why output is not stored or the end of a run is not recorded at the moment, such as a full disk.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stalled: Option<String>,
    /// The first process has ended, and some of its descendants have not.
    #[serde(default)]
    pub lingering: bool,
    /// Pid of the first process; absent when it has ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pid: Option<i32>,
    /// Number of the run, from 1.
    #[serde(default)]
    pub run: u32,
    /// Offset in the stdout journal at which the output of the run starts.
    #[serde(default)]
    pub run_from: u64,
    /// While another run is pending: how the previous run ended, and when the next one starts.
    #[serde(default, rename = "waiting", skip_serializing_if = "Option::is_none")]
    pub restart_message: Option<String>,
    /// What the agent's proxy has refused.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub network: Option<NetworkSummary>,
    /// Size of the agent's terminal, if it has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub terminal: Option<TerminalSize>,
}

#[cfg(test)]
mod tests {
    use super::*;
    use colibri_types::ExitStatus;

    #[test]
    fn messages_have_the_documented_form() {
        let table: Vec<(String, &str)> = vec![
            (
                serde_json::to_string(&ShimRequest {
                    seq: 1,
                    expires_ms: None,
                    op: ShimOp::Watch { network: false },
                })
                .unwrap(),
                r#"{"seq":1,"op":"watch"}"#,
            ),
            (
                serde_json::to_string(&ShimRequest {
                    seq: 2,
                    expires_ms: None,
                    op: ShimOp::Kill {
                        signal: "TERM".into(),
                        grace_ms: 5000,
                    },
                })
                .unwrap(),
                r#"{"seq":2,"op":"kill","signal":"TERM","grace_ms":5000}"#,
            ),
            (
                serde_json::to_string(&ShimRequest {
                    seq: 3,
                    expires_ms: Some(9),
                    op: ShimOp::Input { len: 5 },
                })
                .unwrap(),
                r#"{"seq":3,"expires_ms":9,"op":"input","len":5}"#,
            ),
            (
                serde_json::to_string(&ShimRequest {
                    seq: 4,
                    expires_ms: None,
                    op: ShimOp::Signal {
                        signal: "INT".into(),
                        last: true,
                    },
                })
                .unwrap(),
                r#"{"seq":4,"op":"signal","signal":"INT","last":true}"#,
            ),
            (
                serde_json::to_string(&ShimRequest {
                    seq: 5,
                    expires_ms: None,
                    op: ShimOp::Resize(TerminalSize::default()),
                })
                .unwrap(),
                r#"{"seq":5,"op":"resize","rows":24,"cols":80}"#,
            ),
            (
                serde_json::to_string(&ShimMessage::Reply {
                    seq: 4,
                    reply: ShimReply::Expired,
                })
                .unwrap(),
                r#"{"seq":4,"reply":"expired"}"#,
            ),
            (
                serde_json::to_string(&ShimMessage::Reply {
                    seq: 3,
                    reply: ShimReply::Written(5),
                })
                .unwrap(),
                r#"{"seq":3,"reply":{"written":5}}"#,
            ),
            (
                serde_json::to_string(&ShimMessage::Event(ShimEvent::Exit(ExitRecord {
                    exit: Some(ExitStatus::Code(7)),
                    reason: None,
                    error: None,
                    exited_at_ns: 1,
                    stdout_bytes: 2,
                    stderr_bytes: 3,
                    run: 1,
                    network: None,
                    terminated: false,
                })))
                .unwrap(),
                r#"{"event":"exit","exit":{"code":7},"exited_at_ns":1,"stdout_bytes":2,"stderr_bytes":3,"run":1}"#,
            ),
        ];
        let watch: ShimRequest =
            serde_json::from_str(r#"{"seq":1,"op":"watch","later":1}"#).unwrap();
        assert_eq!(watch.op, ShimOp::Watch { network: false });
        for (written, expected) in table {
            assert_eq!(written, expected);
        }
        let event: ShimMessage =
            serde_json::from_str(r#"{"event":"status","stdout":1,"stderr":2}"#).unwrap();
        assert_eq!(
            event,
            ShimMessage::Event(ShimEvent::Status(ShimStatus {
                stdout: 1,
                stderr: 2,
                ..ShimStatus::default()
            }))
        );
    }
}
