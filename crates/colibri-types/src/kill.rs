//! Results of a kill.

use serde::{Deserialize, Serialize};

/// How a kill went.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "kebab-case")]
pub enum KillOutcome {
    /// The first signal was enough.
    Terminated,
    /// It took KILL, or the removal of the jail.
    Killed,
    /// No process was left to end.
    AlreadyExited,
    /// The signal was delivered, and no escalation was requested.
    Signalled,
}
