//! What the servers on standard input and output share: bounded lines, and the agents that a server has started.

mod lines;
mod own_agents;

pub(crate) use lines::next_line;
pub(crate) use own_agents::{OwnAgents, kill};

use std::time::Duration;

/// Maximum time until an agent has accepted a prompt, an answer or an abort.
pub(crate) const ACCEPT_TIMEOUT: Duration = Duration::from_secs(60);
