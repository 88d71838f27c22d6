//! The command of a privilege backend that signals processes, with the signal and the pids left out.

use serde::{Deserialize, Serialize};

/// Placeholder for the name of the signal, without `SIG`.
pub const SIGNAL_PLACEHOLDER: &str = "{signal}";
/// Placeholder for a pid.
pub const PID_PLACEHOLDER: &str = "{pid}";

/// A command that signals processes with privilege. The words of the command are those of `before`, those of `per_pid`
/// once for each pid, and those of `after`; the first word is the program.
///
/// The shim runs it for processes that it may not signal. It contains no secret.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SignalTemplate {
    /// Words before the pids.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub before: Vec<String>,
    /// Words that are repeated for each pid.
    pub per_pid: Vec<String>,
    /// Words after the pids.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub after: Vec<String>,
}

impl SignalTemplate {
    /// Returns whether one command can signal several processes. Without words before the pids, the repeated words
    /// would contain the program.
    #[must_use]
    pub fn takes_several_pids(&self) -> bool {
        !self.before.is_empty()
    }

    /// Returns the words of the command for a signal, by its name without `SIG`, and pids.
    #[must_use]
    pub fn words(&self, signal: &str, pids: &[i32]) -> Vec<String> {
        let fill = |word: &String| word.replace(SIGNAL_PLACEHOLDER, signal);
        let per_pid = pids.iter().flat_map(|pid| {
            let pid = pid.to_string();
            let fill_pid = move |word: String| word.replace(PID_PLACEHOLDER, &pid);
            self.per_pid.iter().map(fill).map(fill_pid)
        });
        let before = self.before.iter().map(fill);
        let after = self.after.iter().map(fill);
        before.chain(per_pid).chain(after).collect()
    }
}
