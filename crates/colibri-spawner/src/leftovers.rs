//! What an agent leaves when its shim is killed, and its end.
//!
//! The kernel ends the first process with the shim, and a sandbox with its first process. Descendants of an
//! agent without a jail are found by the id in their environment and by the shim's session. One that hides
//! from both, by its own doing, is not found: that is one of the reasons for a jail.

use std::collections::HashSet;
use std::fmt;
use std::io;
use std::time::{Duration, Instant};

use colibri_jail_core::{JailOp, Signal};
use colibri_sys::process::{self, Process};
use colibri_types::AGENT_VARIABLE;
use tokio::sync::Semaphore;

use crate::{AgentSpec, Spawner};

/// How long the dead may take to disappear after KILL; those out of this user's reach are not waited for.
const VERIFY: Duration = Duration::from_secs(5);
/// Between two looks: a process that forks faster than it is found is hit again.
const ROUND: Duration = Duration::from_millis(10);

/// When it was seen that a shim is gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Seen {
    /// As it happened, so that the number of its session cannot be another's yet.
    AtOnce,
    /// Later, perhaps after days.
    Later,
}

/// What was found and ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Leftovers {
    /// So many processes were ended, and none is left.
    Ended(usize),
    /// These could not be ended.
    Remaining(Vec<i32>),
    /// The system did not say.
    Unknown(String),
}

impl fmt::Display for Leftovers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ended(0) => f.write_str("no process of it was left"),
            Self::Ended(1) => f.write_str("1 process that it had left was ended"),
            Self::Ended(count) => write!(f, "{count} processes that it had left were ended"),
            Self::Remaining(pids) => {
                let pids: Vec<_> = pids.iter().map(ToString::to_string).collect();
                write!(
                    f,
                    "still running: pid {}; end them by hand",
                    pids.join(", ")
                )
            }
            Self::Unknown(error) => write!(f, "what it left is not known: {error}"),
        }
    }
}

impl Spawner {
    pub(crate) async fn end_leftovers(&self, spec: &AgentSpec, session: Option<i32>) -> Leftovers {
        let remove = self
            .own_jail(spec)
            .map(|name| JailOp::Remove { name })
            .filter(|remove| self.preparer.engine.check(remove).is_ok());
        if let Some(remove) = remove
            && let Err(error) = self.run_elevated(&remove).await
        {
            tracing::warn!(id = %spec.id, %error, "the jail of a lost agent was not removed");
        }
        let mut found = look(spec, session).await;
        if let Leftovers::Remaining(pids) = &found {
            // Another user's, as in a jail: through the backend, as a kill would.
            if let Err(error) = self.signal_elevated(spec, Signal::KILL, pids).await {
                tracing::warn!(id = %spec.id, %error, "what a lost agent left was not signalled");
            }
            found = look(spec, session).await;
        }
        self.undo(spec).await;
        found
    }

    /// What was done for a lost agent's jail is undone: mounts, limits, cgroup.
    async fn undo(&self, spec: &AgentSpec) {
        self.preparer.cgroups.end(spec.id.as_str()).await;
        let ops = match self.preparer.prepare_as(&spec.config, spec.id.as_str()) {
            Ok(prepared) => prepared.post_run,
            Err(error) => {
                tracing::warn!(id = %spec.id, %error, "what was done for a lost agent is not undone");
                return;
            }
        };
        for command in ops {
            if let Err(error) = self.run_command(&command).await {
                tracing::warn!(id = %spec.id, %error, "what was done for a lost agent is not undone");
            }
        }
    }
}

/// Rounds at a time: each looks at every process of the host, and others need the threads too.
static ROUNDS: Semaphore = Semaphore::const_new(1);

/// Ends the remaining processes of an agent in rounds. Each round is a short task on the blocking pool, so that many
/// lost agents share its threads; the wait between rounds occupies none.
async fn look(spec: &AgentSpec, session: Option<i32>) -> Leftovers {
    let until = Instant::now() + VERIFY;
    let mut ended = HashSet::new();
    loop {
        let id = spec.id.to_string();
        let round = {
            // A closed semaphore would be the only error, and it is never closed.
            let _slot = ROUNDS.acquire().await;
            tokio::task::spawn_blocking(move || kill_all(&id, session)).await
        };
        let Round {
            left,
            hit,
            in_reach,
        } = match round.map_err(io::Error::other).flatten() {
            Ok(round) => round,
            Err(error) => return Leftovers::Unknown(error.to_string()),
        };
        if left.is_empty() {
            return Leftovers::Ended(ended.len());
        }
        ended.extend(hit);
        if !in_reach || Instant::now() >= until {
            return Leftovers::Remaining(left);
        }
        tokio::time::sleep(ROUND).await;
    }
}

/// Result of one round.
struct Round {
    /// Pids of all processes found.
    left: Vec<i32>,
    /// Processes that were sent KILL.
    hit: Vec<Process>,
    /// Whether this user may signal any of them.
    in_reach: bool,
}

fn kill_all(id: &str, session: Option<i32>) -> io::Result<Round> {
    let found: Vec<Process> = process::find_marked(&format!("{AGENT_VARIABLE}={id}"), session)?;
    let mut round = Round {
        left: found.iter().map(|process| process.pid).collect(),
        hit: Vec::new(),
        in_reach: false,
    };
    for process in found {
        match process::kill(&process) {
            Ok(there) => {
                round.in_reach = true;
                if there {
                    round.hit.push(process);
                }
            }
            // If the process stays, the last round reports it as remaining.
            Err(error) => tracing::debug!(pid = process.pid, %error, "not ended"),
        }
    }
    Ok(round)
}
