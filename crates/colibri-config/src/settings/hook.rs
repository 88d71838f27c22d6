//! `[[hook]]`: a command that runs when the state of an agent changes.

use std::path::{Path, PathBuf};
use std::time::Duration;

use colibri_glasspane::AgentState;
use serde::Deserialize;
use strum::VariantNames;

/// Default timeout of a hook, in milliseconds.
const DEFAULT_TIMEOUT_MS: u64 = 30_000;
/// Maximum timeout of a hook, in milliseconds: one day.
const MAX_TIMEOUT_MS: u64 = 86_400_000;

/// A `[[hook]]` entry of the settings file, not yet validated.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HookSettings {
    /// States that trigger the hook when an agent enters one of them.
    pub on: Vec<AgentState>,
    /// Absolute path of the program, then its arguments.
    pub command: Vec<String>,
    /// Timeout after which the command is killed, in milliseconds.
    pub timeout_ms: Option<u64>,
}

/// A validated hook.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hook {
    /// States that trigger the hook.
    pub on: Vec<AgentState>,
    /// Absolute path of the program.
    pub program: PathBuf,
    /// Arguments of the program.
    pub args: Vec<String>,
    /// Timeout after which the command is killed.
    pub timeout: Duration,
}

/// Why a hook is invalid.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum HookError {
    /// `on` is empty.
    #[error("`on` is empty; list states out of {states}", states = AgentState::VARIANTS.join(", "))]
    NoState,
    /// `command` is empty.
    #[error(
        "`command` is empty; set the program and its arguments, like [\"/usr/local/bin/notify\", \"agents\"]"
    )]
    NoCommand,
    /// The program is not an absolute path.
    #[error(
        "the program {0:?} is not an absolute path; write its full path, because PATH is not searched"
    )]
    RelativeProgram(String),
    /// A word contains a NUL character, which ends an argument of execve(2).
    #[error("`command` contains a NUL character, which an argument cannot contain; remove it")]
    Nul,
    /// `timeout_ms` is out of range.
    #[error("timeout_ms is {0}; set 1 to {MAX_TIMEOUT_MS}")]
    Timeout(u64),
}

impl HookSettings {
    /// Validates the entry.
    ///
    /// # Errors
    /// See [`HookError`].
    pub fn validate(&self) -> Result<Hook, HookError> {
        if self.on.is_empty() {
            return Err(HookError::NoState);
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
    fn hook_without_state_or_absolute_program_is_refused() {
        let hook = |on: &[AgentState], command: &[&str], timeout_ms| {
            HookSettings {
                on: on.to_vec(),
                command: command.iter().map(|word| (*word).to_owned()).collect(),
                timeout_ms,
            }
            .validate()
        };
        let done = &[AgentState::Done][..];
        let good = hook(
            &[AgentState::Blocked, AgentState::Done],
            &["/bin/notify", "a b"],
            None,
        )
        .unwrap();
        assert_eq!(good.timeout, Duration::from_secs(30));
        assert_eq!(
            (good.program.as_path(), &good.args[..]),
            (Path::new("/bin/notify"), &["a b".to_owned()][..])
        );
        for (on, command, timeout_ms, error) in [
            (&[][..], &["/x"][..], None, HookError::NoState),
            (done, &[], None, HookError::NoCommand),
            (
                done,
                &["notify"],
                None,
                HookError::RelativeProgram("notify".into()),
            ),
            (done, &["/x", "a\0"], None, HookError::Nul),
            (done, &["/x"], Some(0), HookError::Timeout(0)),
            (
                done,
                &["/x"],
                Some(86_400_001),
                HookError::Timeout(86_400_001),
            ),
        ] {
            assert_eq!(hook(on, command, timeout_ms), Err(error));
        }
    }
}
