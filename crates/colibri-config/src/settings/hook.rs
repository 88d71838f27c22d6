//! `[[hook]]`: a command that is run when an agent's state changes.

use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// The states that a hook can wait for.
pub const STATES: &[&str] = &[
    "starting", "idle", "working", "blocked", "stalled", "done", "error",
];
/// So long a hook may take where nothing else is said, in milliseconds.
const DEFAULT_TIMEOUT_MS: u64 = 30_000;
/// The longest that may be said: a day.
const MAX_TIMEOUT_MS: u64 = 86_400_000;

/// A `[[hook]]` of the settings file.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HookSettings {
    /// The states that it is run for, when an agent comes into one of them.
    pub on: Vec<String>,
    /// Program, by its absolute path, and arguments.
    pub command: Vec<String>,
    /// It is killed after so long, in milliseconds.
    pub timeout_ms: Option<u64>,
}

/// A hook that can be run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hook {
    /// The states that it is run for, each out of [`STATES`].
    pub on: Vec<String>,
    /// Absolute path of the program.
    pub program: PathBuf,
    /// Its arguments.
    pub args: Vec<String>,
    /// It is killed after so long.
    pub timeout: Duration,
}

/// What is wrong with a hook.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum HookError {
    /// It would never be run.
    #[error("`on` is empty; give states out of {states}", states = STATES.join(", "))]
    NoState,
    /// No state is called so.
    #[error("`on` has {0:?}, which is no state; give some of {states}", states = STATES.join(", "))]
    UnknownState(String),
    /// There is nothing to run.
    #[error(
        "`command` is empty; give the program and its arguments, like [\"/usr/local/bin/notify\", \"agents\"]"
    )]
    NoCommand,
    /// A name is searched nowhere.
    #[error("the program {0:?} is no absolute path; give it from the root, as it is not searched")]
    RelativeProgram(String),
    /// A word that execve(2) cannot take.
    #[error("`command` has a NUL character, which no argument can hold; leave it out")]
    Nul,
    /// No time at all, or too long to be meant.
    #[error("timeout_ms is {0}; give 1 to {MAX_TIMEOUT_MS}")]
    Timeout(u64),
}

impl HookSettings {
    /// Checks what was written.
    ///
    /// # Errors
    /// See [`HookError`].
    pub fn check(&self) -> Result<Hook, HookError> {
        if self.on.is_empty() {
            return Err(HookError::NoState);
        }
        let unknown = |state: &&String| !STATES.contains(&state.as_str());
        if let Some(state) = self.on.iter().find(unknown) {
            return Err(HookError::UnknownState(state.clone()));
        }
        let (program, args) = self.command.split_first().ok_or(HookError::NoCommand)?;
        if !Path::new(program).is_absolute() {
            return Err(HookError::RelativeProgram(program.clone()));
        }
        if self.command.iter().any(|word| word.contains('\0')) {
            return Err(HookError::Nul);
        }
        let timeout = match self.timeout_ms.unwrap_or(DEFAULT_TIMEOUT_MS) {
            ms @ 1..=MAX_TIMEOUT_MS => Duration::from_millis(ms),
            ms => return Err(HookError::Timeout(ms)),
        };
        Ok(Hook {
            on: self.on.clone(),
            program: PathBuf::from(program),
            args: args.to_vec(),
            timeout,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hook_needs_states_and_an_absolute_program() {
        let hook = |on: &[&str], command: &[&str], timeout_ms| {
            let words = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect();
            HookSettings {
                on: words(on),
                command: words(command),
                timeout_ms,
            }
            .check()
        };
        let good = hook(&["blocked", "done"], &["/bin/notify", "a b"], None).unwrap();
        assert_eq!(good.timeout, Duration::from_secs(30));
        assert_eq!(
            (good.program.as_path(), &good.args[..]),
            (Path::new("/bin/notify"), &["a b".to_owned()][..])
        );
        for (on, command, timeout_ms, error) in [
            (&[][..], &["/x"][..], None, HookError::NoState),
            (
                &["asleep"],
                &["/x"],
                None,
                HookError::UnknownState("asleep".into()),
            ),
            (&["done"], &[], None, HookError::NoCommand),
            (
                &["done"],
                &["notify"],
                None,
                HookError::RelativeProgram("notify".into()),
            ),
            (&["done"], &["/x", "a\0"], None, HookError::Nul),
            (&["done"], &["/x"], Some(0), HookError::Timeout(0)),
            (
                &["done"],
                &["/x"],
                Some(86_400_001),
                HookError::Timeout(86_400_001),
            ),
        ] {
            assert_eq!(hook(on, command, timeout_ms), Err(error));
        }
    }
}
