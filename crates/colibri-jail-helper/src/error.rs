//! Every way to stop before an agent runs, with the exit code of docs/helper-protocol.md.

use std::io;

use crate::decide::Refusal;
use crate::place::PlaceError;
use crate::policy::PolicyError;
use crate::request::RequestError;

/// Why nothing was done. Shown to the caller in one line; what it may not know is in the log only.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Stop {
    #[error(
        "started without a name of its own (argc is 0 or argv[0] is empty); start it as a program usually is"
    )]
    NoName,
    #[error(
        "descriptor {0} {1}; give it 0 to read, and 1 and 2 to write, none of them a directory"
    )]
    Descriptor(i32, &'static str),
    #[error(
        "not setuid root; as root: chown root colibri-jail-helper && chmod 4755 colibri-jail-helper, on a file system without nosuid, and start it without no_new_privs"
    )]
    NotSetuid,
    /// Says nothing of what the policy holds.
    #[error("uid {0} may not use this program; the administrator of this host decides who may")]
    NotListed(u32),
    /// Nobody is listed in a policy that cannot be read.
    #[error("the policy cannot be used; the administrator finds the reason in the system log")]
    Policy(#[from] PolicyError),
    #[error(transparent)]
    Words(#[from] RequestError),
    #[error("refused: {0}")]
    Refused(#[from] Refusal),
    #[error(
        "no system log takes the decision: {0}; start syslogd, or write syslog = \"best-effort\" in the policy"
    )]
    NoLog(io::Error),
    #[error(transparent)]
    Place(#[from] PlaceError),
    #[error("no program {0} in the jail; give one that is there")]
    NoProgram(String),
    #[error("no user {0} there; give one that is known, or UID:GID")]
    NoUser(String),
    #[error("jail {0} exists already; give the new one another name")]
    JailExists(String),
    #[error("jail {0} is not there; make it first")]
    #[cfg_attr(not(target_os = "freebsd"), allow(dead_code))]
    NoJail(String),
    #[error("jail {0} is not usable: {1}")]
    #[cfg_attr(not(target_os = "freebsd"), allow(dead_code))]
    BadJail(String, &'static str),
    #[error(
        "{0} is a controlling terminal's; run it under setsid(1) or daemon(8), so that the agent cannot type into it"
    )]
    #[cfg_attr(not(target_os = "freebsd"), allow(dead_code))]
    Terminal(&'static str),
    #[error(
        "jail {jail} was not empty after {seconds} s; look at its processes, and remove it again"
    )]
    #[cfg_attr(not(target_os = "linux"), allow(dead_code))]
    NotEmpty { jail: String, seconds: u64 },
    #[error("{what}: {error}")]
    System { what: String, error: io::Error },
}

impl Stop {
    /// The system refused something.
    pub(crate) fn system(what: impl Into<String>, error: io::Error) -> Self {
        Self::System {
            what: what.into(),
            error,
        }
    }

    /// sysexits(3): `EX_USAGE`, `EX_NOPERM`, `EX_OSERR`.
    pub(crate) fn exit_code(&self) -> i32 {
        match self {
            Self::Words(_) => 64,
            Self::Refused(_) | Self::NotListed(_) => 77,
            _ => 71,
        }
    }

    /// The whole reason, for the log of root's.
    pub(crate) fn reason(&self) -> String {
        match self {
            Self::Policy(error) => error.to_string(),
            other => other.to_string(),
        }
    }
}
