//! Which program confines: a value and not a `cfg`, so that every engine is tested on every host.

use std::str::FromStr;

use crate::{Bubblewrap, CommandLine, Confinement, JailError, JailOp, JailPath, Limits, freebsd};

/// What confines.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum JailEngine {
    /// jail(8) and jexec(8).
    FreebsdJail,
    /// bwrap(1).
    Bubblewrap(Bubblewrap),
}

/// What the exit status of the first process says about the agent's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ExitFidelity {
    /// It is the agent's own, a death by signal N perhaps as 128+N.
    Exact,
    /// Every failure is 1 (jail(8) waits for the command and reports only that it failed).
    Collapsed,
}

impl JailEngine {
    /// The name in settings and answers.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Self::FreebsdJail => "freebsd",
            Self::Bubblewrap(_) => "bubblewrap",
        }
    }

    /// Whether an ordinary user needs a privilege backend for it.
    #[must_use]
    pub fn needs_root(&self) -> bool {
        matches!(self, Self::FreebsdJail)
    }

    /// The exact command for an operation, without privilege.
    ///
    /// # Errors
    /// The engine cannot do it; the message says what to do instead.
    pub fn command_line(&self, op: &JailOp) -> Result<CommandLine, JailError> {
        match self {
            Self::FreebsdJail => freebsd::command_line(op),
            Self::Bubblewrap(bubblewrap) => bubblewrap.command_line(op),
        }
    }

    /// Refuses what [`JailEngine::command_line`] refuses; for backends that pass the operation on.
    ///
    /// # Errors
    /// The engine cannot do it.
    pub fn check(&self, op: &JailOp) -> Result<(), JailError> {
        self.command_line(op).map(drop)
    }

    /// What is to be done before each run of this operation's command, so that it is held to these limits.
    #[must_use]
    pub fn before(&self, op: &JailOp, limits: &Limits) -> Vec<JailOp> {
        match (self, op) {
            (Self::FreebsdJail, JailOp::Create { name, .. }) if limits.of_a_jail() => {
                vec![JailOp::Limit {
                    name: name.clone(),
                    limits: limits.clone(),
                }]
            }
            _ => Vec::new(),
        }
    }

    /// What is to be done after each run of this operation's command, when nothing of it is left: mounts are
    /// undone, the innermost first, and limits lifted.
    #[must_use]
    pub fn after(&self, op: &JailOp, limits: &Limits) -> Vec<JailOp> {
        let (
            Self::FreebsdJail,
            JailOp::Create {
                name, path, setup, ..
            },
        ) = (self, op)
        else {
            return Vec::new();
        };
        let unmounts = setup.mounts.iter().rev().map(|mount| JailOp::Unmount {
            target: path.join(&mount.target),
        });
        let unlimit = limits
            .of_a_jail()
            .then(|| JailOp::Unlimit { name: name.clone() });
        unmounts.chain(unlimit).collect()
    }

    /// What the exit status of this operation's process says.
    #[must_use]
    pub fn exit_fidelity(&self, op: &JailOp) -> ExitFidelity {
        match (self, op) {
            (Self::FreebsdJail, JailOp::Create { .. }) => ExitFidelity::Collapsed,
            _ => ExitFidelity::Exact,
        }
    }
}

impl FromStr for JailEngine {
    type Err = JailError;

    fn from_str(text: &str) -> Result<Self, JailError> {
        match text {
            "freebsd" => Ok(Self::FreebsdJail),
            "bubblewrap" => Ok(Self::Bubblewrap(Bubblewrap::default())),
            other => Err(JailError::UnknownEngine(other.to_owned())),
        }
    }
}

/// Wraps `command` so that it runs confined, in `workdir` inside the jail. Without a jail the very same
/// command comes back: its working directory is then set by whoever starts it.
///
/// # Errors
/// The engine cannot confine so; the message says what to do instead.
pub fn jail_wrap(
    engine: &JailEngine,
    confinement: &Confinement,
    workdir: Option<&JailPath>,
    command: CommandLine,
) -> Result<CommandLine, JailError> {
    match confinement
        .clone()
        .into_op(workdir.cloned(), command.clone())
    {
        None => Ok(command),
        Some(op) => engine.command_line(&op),
    }
}
