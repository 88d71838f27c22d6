//! Every failure before an agent runs, with its exit code of docs/helper-protocol.md.

use std::io;

use crate::authorize::Refusal;
use crate::request::RequestError;
use crate::safe_open::OpenError;
use crate::sys::{EXIT_FAILED, SysError};

/// A failure, displayed to the caller in one line. [`HelperError::reason`] adds what only root may read.
// Each system has failures that the other one does not have.
#[allow(dead_code)]
#[derive(Debug, thiserror::Error)]
pub(crate) enum HelperError {
    #[error("argc is 0 or argv[0] is empty; pass the program's name as argv[0]")]
    NoName,
    #[error(
        "not setuid root; as root run: chown root colibri-jail-helper && chmod 4755 colibri-jail-helper, on a file system without nosuid, and start it without no_new_privs"
    )]
    NotSetuid,
    /// Reveals nothing about the policy.
    #[error("uid {0} may not use this program; ask the administrator of this host for access")]
    NotListed(u32),
    /// The cause is in the log only: a policy that cannot be read lists no caller.
    #[error("cannot use the policy; ask the administrator to read the cause in the system log")]
    Policy(String),
    #[error(transparent)]
    Request(#[from] RequestError),
    #[error("refused: {0}")]
    Refused(#[from] Refusal),
    #[error(
        "cannot write the decision to the system log: {0}; start syslogd, or set syslog = \"best-effort\" in the policy"
    )]
    NoLog(io::Error),
    #[error(
        "cannot write the decision to the system log, whose socket is full, nor to the fallback file: {0}; let root resume syslogd, and remove the file if it is full"
    )]
    NoLogFile(String),
    #[error(transparent)]
    Open(#[from] OpenError),
    #[error(transparent)]
    Sys(#[from] SysError),
    #[error("cannot start the agent: the process that requested it has ended")]
    Orphaned,
    #[error("user {0} does not exist; give a known user, or UID:GID")]
    NoUser(String),
    /// Why the user table of a jail is not trusted.
    #[error(
        "cannot look up user {user}: {problem}; let only root write /, /etc and /etc/passwd of the jail, or give UID:GID that the policy allows"
    )]
    UserTable { user: String, problem: String },
    #[error(
        "user {user} has the ids {uid}:{gid} in the jail, but uid 0 and the groups 0, 2 and 5 have rights on the host; give another user"
    )]
    PrivilegedUser { user: String, uid: u32, gid: u32 },
    #[error("jail {0} exists; give the new jail another name")]
    JailExists(String),
    #[error(
        "uid {uid} cannot reach the directory {path}; create it, or let this uid enter the directories above it"
    )]
    Unreachable { path: String, uid: u32 },
    #[error(
        "cannot start the agent: the limit of {0} running agents of this caller is reached; end one, or raise agents in the limits of the policy"
    )]
    TooManyAgents(u64),
    #[error(
        "cannot lock the records of this caller: other requests held the lock for {0} s; resume or end them, and repeat the request"
    )]
    Busy(u64),
    #[error("cannot filter system calls on this kind of processor; use x86-64 or aarch64")]
    NoFilter,
    #[error("jail {0} does not exist; create it first")]
    NoJail(String),
    #[error("cannot use --hide on FreeBSD: a jail has its own root directory; omit the option")]
    HideOnFreeBsd,
    #[error(
        "the session has a controlling terminal, into which the agent could inject input; start the helper without it, such as with daemon -p FILE"
    )]
    Terminal,
    /// What the clean-up after an agent could not remove: the messages.
    #[error("{0}; remove it as root, by jail(8), umount(8), zfs(8) or rctl(8)")]
    Remains(String),
    /// Why the root directory of a jail could not be made.
    #[error(
        "cannot prepare the root of jail {0}: {1}; correct the cause and start the agent again"
    )]
    Root(String, String),
    #[error("cannot enter a new jail: the process that tried it failed; read its message above")]
    Probe,
    #[error(
        "--network filtered is not available on Linux: bubblewrap filters without this program; omit the option"
    )]
    FilterOnLinux,
    #[error(
        "--network filtered needs a proxy, and {0} names no socket; start the command by colibri-proxy run"
    )]
    NoProxy(&'static str),
    #[error(
        "cannot open the port of the proxy in jail {jail}: {problem}; check that colibri-proxy runs, and start the agent again"
    )]
    ProxyPort { jail: String, problem: String },
    #[error(
        "the proxy of jail {jail} does not listen after {seconds} s; check that colibri-proxy runs"
    )]
    ProxyTimeout { jail: String, seconds: u64 },
    #[error(
        "cannot monitor, clean or await a proxy on Linux: only the freebsd engine needs it; use create or remove"
    )]
    MonitorOnLinux,
    #[error(
        "cannot remove jail {jail}: processes remain after {seconds} s; check them and repeat the request"
    )]
    NotEmpty { jail: String, seconds: u64 },
}

impl HelperError {
    /// Returns the exit code (sysexits(3)): `EX_USAGE`, `EX_NOPERM` or `EX_OSERR`.
    pub(crate) fn exit_code(&self) -> i32 {
        match self {
            Self::Request(_) => 64,
            Self::Refused(_) | Self::NotListed(_) => 77,
            _ => EXIT_FAILED,
        }
    }

    /// Returns the complete reason, for the system log.
    pub(crate) fn reason(&self) -> String {
        match self {
            Self::Policy(cause) => cause.clone(),
            other => other.to_string(),
        }
    }
}
