//! How an agent ended, and why.

use serde::{Deserialize, Serialize};
use strum::Display;

/// How the first process of a run ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ExitStatus {
    /// It exited with this code.
    Code(i32),
    /// This signal ended it (the host's number).
    Signal(i32),
}

/// Why an agent ended. The names are stable: they are in `exit.json` and on the wire.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Display, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "kebab-case")]
#[strum(serialize_all = "kebab-case")]
#[non_exhaustive]
pub enum ExitReason {
    /// Its first process exited by itself.
    Exited,
    /// A signal that did not come from Colibri ended its first process.
    Signalled,
    /// A user ended it: by a kill, or by a signal that `run` forwarded.
    KilledByUser,
    /// It reached its wall-clock limit.
    WallTime,
    /// Its program could not be started.
    NotStarted,
    /// Its shim was killed, so its exit status was never collected.
    Lost,
}

/// How an agent or one of its runs ended: an exit code, a signal, or neither, and the reason.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(from = "WireExit", into = "WireExit")]
pub struct Exit {
    /// Exit status of the first process; absent if it was never collected (`reason` is `lost` or `not-started`).
    pub status: Option<ExitStatus>,
    /// Why it ended.
    pub reason: ExitReason,
}

impl Exit {
    /// Returns an exit with this reason, or with the one that follows from the exit status if `reason` is absent, as in
    /// records of earlier releases.
    #[must_use]
    pub fn new(status: Option<ExitStatus>, reason: Option<ExitReason>) -> Self {
        let reason = reason.unwrap_or(match status {
            Some(ExitStatus::Code(_)) => ExitReason::Exited,
            Some(ExitStatus::Signal(_)) => ExitReason::Signalled,
            None => ExitReason::Lost,
        });
        Self { status, reason }
    }

    /// Returns the exit code that a shell reports: 128+N for signal N, and 1 if the exit status is unknown.
    #[must_use]
    pub fn shell_code(self) -> i32 {
        match self.status {
            Some(ExitStatus::Code(code)) => code,
            Some(ExitStatus::Signal(signal)) => 128 + signal,
            None => 1,
        }
    }

    /// Returns the exit code, if a code ended it.
    #[must_use]
    pub fn code(self) -> Option<i32> {
        match self.status {
            Some(ExitStatus::Code(code)) => Some(code),
            _ => None,
        }
    }

    /// Returns the signal (the host's number), if one ended it.
    #[must_use]
    pub fn signal(self) -> Option<i32> {
        match self.status {
            Some(ExitStatus::Signal(signal)) => Some(signal),
            _ => None,
        }
    }

    /// Reports whether the exit code is 0.
    #[must_use]
    pub fn is_success(self) -> bool {
        self.code() == Some(0)
    }
}

/// The form of [`Exit`] on the wire.
#[derive(Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[cfg_attr(feature = "schema", schemars(rename = "Exit"))]
struct WireExit {
    /// The exit code of the first process.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    code: Option<i32>,
    /// The signal that ended the first process (the host's number).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    signal: Option<i32>,
    /// Why it ended. Absent in messages of earlier releases; it then follows from the exit status.
    reason: Option<ExitReason>,
}

impl From<Exit> for WireExit {
    fn from(exit: Exit) -> Self {
        Self {
            code: exit.code(),
            signal: exit.signal(),
            reason: Some(exit.reason),
        }
    }
}

impl From<WireExit> for Exit {
    fn from(wire: WireExit) -> Self {
        let (code, signal) = (wire.code, wire.signal);
        let status = code.map(ExitStatus::Code);
        Self::new(status.or(signal.map(ExitStatus::Signal)), wire.reason)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reason_name_equals_its_serialized_form() {
        for reason in [
            ExitReason::Exited,
            ExitReason::Signalled,
            ExitReason::KilledByUser,
            ExitReason::WallTime,
            ExitReason::NotStarted,
            ExitReason::Lost,
        ] {
            let json = serde_json::to_value(reason).unwrap();
            assert_eq!(json, reason.to_string());
        }
    }

    #[test]
    fn exit_keeps_its_wire_form_and_derives_a_missing_reason() {
        for (status, reason, text) in [
            (
                Some(ExitStatus::Code(7)),
                ExitReason::Exited,
                r#"{"code":7,"reason":"exited"}"#,
            ),
            (
                Some(ExitStatus::Signal(15)),
                ExitReason::KilledByUser,
                r#"{"signal":15,"reason":"killed-by-user"}"#,
            ),
            (None, ExitReason::NotStarted, r#"{"reason":"not-started"}"#),
        ] {
            let exit = Exit { status, reason };
            assert_eq!(serde_json::to_string(&exit).unwrap(), text);
            assert_eq!(serde_json::from_str::<Exit>(text).unwrap(), exit);
        }
        for (text, reason) in [
            (r#"{"code":0}"#, ExitReason::Exited),
            (r#"{"signal":9}"#, ExitReason::Signalled),
            ("{}", ExitReason::Lost),
        ] {
            assert_eq!(serde_json::from_str::<Exit>(text).unwrap().reason, reason);
        }
    }
}
