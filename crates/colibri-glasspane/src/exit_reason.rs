//! Why an agent ended.

use std::fmt;

use serde::{Deserialize, Serialize};

/// Why an agent ended. The names are stable: they are in `exit.json` and on the wire.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
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

impl ExitReason {
    /// The name, as in `exit.json` and on the wire.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Exited => "exited",
            Self::Signalled => "signalled",
            Self::KilledByUser => "killed-by-user",
            Self::WallTime => "wall-time",
            Self::NotStarted => "not-started",
            Self::Lost => "lost",
        }
    }
}

impl fmt::Display for ExitReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
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
            assert_eq!(json, reason.as_str());
        }
    }
}
