//! What an agent's requester and monitor agree on; docs/helper-protocol.md specifies their connection.

use std::fmt;

/// Environment variable with the number of the descriptor of the monitor's control socket.
pub const CONTROL_VARIABLE: &str = "COLIBRI_CONTROL_FD";

/// Environment variable with the number of the descriptor over which the proxy of a filtered network receives its listening
/// socket.
pub const PROXY_VARIABLE: &str = "COLIBRI_PROXY_FD";

/// Environment variable with a file of root certificates by which the proxy verifies servers, besides the system's.
pub const ROOTS_VARIABLE: &str = "COLIBRI_PROXY_ROOTS";

/// Environment variable with the ids of the agent's user on the host, `UID:GID`, from colibri-sandbox outside to its part inside.
pub const USER_VARIABLE: &str = "COLIBRI_SANDBOX_USER";

/// The processes that a signal is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SignalScope {
    /// The process group of the agent's first process.
    Group,
    /// All processes of the agent.
    All,
}

impl SignalScope {
    /// Returns the scope with this name, as [`fmt::Display`] writes it.
    #[must_use]
    pub fn of_name(name: &str) -> Option<Self> {
        [Self::Group, Self::All]
            .into_iter()
            .find(|scope| scope.to_string() == name)
    }
}

impl fmt::Display for SignalScope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Group => "group",
            Self::All => "all",
        })
    }
}
