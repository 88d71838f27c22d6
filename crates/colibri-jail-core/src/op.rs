//! Operations on jails. Only these go through an engine and a privilege backend.

use crate::{CommandLine, EphemeralJail, JailName, JailPath, JailUser, Mount, Pid, Signal};

/// One operation on jails.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum JailOp {
    /// Run a command in an existing jail.
    Attach {
        /// The jail.
        name: JailName,
        /// The user inside it.
        user: Option<JailUser>,
        /// Working directory inside it.
        workdir: Option<JailPath>,
        /// The command to run in the jail.
        command: CommandLine,
    },
    /// Create a jail for one command.
    Create {
        /// The new jail.
        jail: EphemeralJail,
        /// Working directory inside it.
        workdir: Option<JailPath>,
        /// The command to run in the jail.
        command: CommandLine,
    },
    /// Signal processes that the caller has no permission to signal.
    Signal {
        /// The persistent jail of the processes, if they are in one.
        jail: Option<JailName>,
        /// The processes, by their ids on the host.
        pids: Vec<Pid>,
        /// The signal.
        signal: Signal,
    },
    /// Remove a jail with all processes in it.
    Remove {
        /// The jail.
        name: JailName,
    },
    /// Run `command`, which needs root, under a monitor: a root process that reaps and signals the agent's processes and
    /// removes what was created for them.
    Monitor {
        /// What the command creates for one agent; `None` for a command in an existing jail.
        created: Option<CreatedJail>,
        /// The command of another operation, without privilege.
        command: CommandLine,
    },
    /// Remove what is left of an ephemeral jail, and verify that nothing is left. Nothing is not an error.
    Clean(CreatedJail),
    /// List the names of the existing jails, one per line.
    List,
    /// Run a command of the engine on the host, before or after a run: set limits, or unmount.
    HostCommand {
        /// What the command does: a verb phrase for messages, like "set limits".
        purpose: &'static str,
        /// The command.
        command: CommandLine,
    },
}

/// What a command of [`JailOp::Create`] creates on the host.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct CreatedJail {
    /// The jail.
    pub name: JailName,
    /// Number of commands that the engine's program starts before the agent.
    pub setup_commands: usize,
    /// Whether a proxy filters its network: see [`crate::EphemeralJail::allow`].
    pub is_filtered: bool,
    /// What the monitor prepares in the root directory before the command; `None` for an existing root as it is, without mounts.
    pub root: Option<CreatedRoot>,
}

/// What the monitor prepares in a root directory before the jail's creation, and removes after the agent's end. The paths
/// of its lists are inside the root.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct CreatedRoot {
    /// The root directory on the host, or the template of it.
    pub base: JailPath,
    /// Whether `base` is a template.
    pub is_template: bool,
    /// Private writable directories in a root that is not a writable copy of the template.
    pub writable: Vec<JailPath>,
    /// Mount points to create in them.
    pub mount_points: Vec<JailPath>,
    /// Mounts, in this order.
    pub mounts: Vec<Mount>,
    /// Whether to mount a devfs at `/dev`.
    pub devfs: bool,
    /// Whether to mount a fdescfs at `/dev/fd`.
    pub fdescfs: bool,
}

impl JailOp {
    /// Returns the name of the operation, for messages.
    #[must_use]
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Attach { .. } => "attach",
            Self::Create { .. } => "create",
            Self::Signal { .. } => "signal",
            Self::Remove { .. } => "remove",
            Self::Monitor { .. } => "monitor",
            Self::Clean(_) => "clean",
            Self::List => "list",
            Self::HostCommand { .. } => "host-command",
        }
    }

    /// Returns the command that the operation runs in a jail; `None` if it runs none.
    #[must_use]
    pub fn agent(&self) -> Option<&CommandLine> {
        match self {
            Self::Attach { command, .. } | Self::Create { command, .. } => Some(command),
            _ => None,
        }
    }
}
