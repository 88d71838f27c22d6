//! What needs an engine, and perhaps root: these operations, and nothing else goes through a backend.

use crate::{CommandLine, Ip4Policy, JailName, JailPath, JailSetup, JailUser, Limits, Pid, Signal};

/// One operation on jails.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum JailOp {
    /// Run a command in a jail that exists.
    Attach {
        /// The jail.
        name: JailName,
        /// The user inside it.
        user: Option<JailUser>,
        /// Working directory inside it.
        workdir: Option<JailPath>,
        /// The agent.
        command: CommandLine,
    },
    /// Make a jail for one command.
    Create {
        /// The new jail's name.
        name: JailName,
        /// Its root directory.
        path: JailPath,
        /// Its IPv4.
        ip4: Ip4Policy,
        /// The user inside it.
        user: Option<JailUser>,
        /// Working directory inside it.
        workdir: Option<JailPath>,
        /// What it has besides its root.
        setup: JailSetup,
        /// The agent.
        command: CommandLine,
    },
    /// Signal processes that the caller may not signal itself.
    Signal {
        /// The jail that they are in, if it is a persistent one.
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
    /// Undo a mount that a jail has left behind (FreeBSD).
    Unmount {
        /// Where it is on the host.
        target: JailPath,
    },
    /// Hold a jail to limits, also one that is yet to be made (FreeBSD).
    Limit {
        /// The jail.
        name: JailName,
        /// Memory, processes and processors; the others are not a jail's.
        limits: Limits,
    },
    /// Lift all limits of a jail (FreeBSD).
    Unlimit {
        /// The jail.
        name: JailName,
    },
    /// Name the jails that exist, one a line.
    List,
}
