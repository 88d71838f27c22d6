//! Cleanup of the orphans of an agent whose shim was killed.
//!
//! The kernel kills the first process of a run with the shim, and a sandbox with its first process. Other descendants are
//! found by the agent's id in their environment and by the sessions of the shim and of the agent's terminal. A process without a jail can leave both,
//! and is then not found. On FreeBSD the monitor of a jailed agent ends all its processes with the shim; the record claims
//! only what was verified here.

use std::collections::HashSet;
use std::fmt;
use std::io;
use std::time::{Duration, Instant};

use colibri_jail_core::{CommandLine, Signal};
use colibri_sys::process::{self, Process};
use colibri_types::AGENT_VARIABLE;
use tokio::sync::Semaphore;

use crate::kill::removal_of_own_jail;
use crate::{AgentSpec, Spawner};

/// Time for killed processes to disappear after KILL.
const VERIFY_TIMEOUT: Duration = Duration::from_secs(5);
/// Time for processes that this user may not signal: the monitor of a jailed agent ends after its own clean-up.
const MONITOR_TIMEOUT: Duration = Duration::from_secs(2);
/// Interval between two rounds, which also kill processes forked in between.
const ROUND_INTERVAL: Duration = Duration::from_millis(10);

/// When the end of a shim was detected.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LossDetection {
    /// At its end: the session id of the shim is not yet reused.
    Live,
    /// By a later daemon: the session id may belong to other processes.
    AfterRestart,
}

/// Result of the cleanup.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum OrphanCleanup {
    /// This number of processes was killed, and none is left.
    Ended(usize),
    /// These processes survived.
    Remaining(Vec<i32>),
    /// The processes of the host could not be listed.
    Unknown(String),
    /// The agent runs as another user, whose processes this one cannot attribute, and its jail was not removed: the reason.
    Unverified(String),
}

impl fmt::Display for OrphanCleanup {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ended(0) => f.write_str("the agent left no process"),
            Self::Ended(1) => f.write_str("1 remaining process was killed"),
            Self::Ended(count) => write!(f, "{count} remaining processes were killed"),
            Self::Remaining(pids) => {
                let pids: Vec<_> = pids.iter().map(ToString::to_string).collect();
                write!(
                    f,
                    "still running: pid {}; end them with kill(1)",
                    pids.join(", ")
                )
            }
            Self::Unknown(error) => write!(f, "cannot list the remaining processes: {error}"),
            Self::Unverified(reason) => {
                write!(
                    f,
                    "the end of its other processes was not verified: {reason}"
                )
            }
        }
    }
}

impl Spawner {
    /// Kills the remaining processes of a lost agent, and removes its jail, mounts, limits and cgroup. `sessions` are
    /// those of its shim and of its terminal, if the ids cannot have been reused.
    pub(crate) async fn end_orphans(&self, spec: &AgentSpec, sessions: &[i32]) -> OrphanCleanup {
        let clean_up = self.post_commands(spec);
        let remove =
            removal_of_own_jail(spec).filter(|remove| self.preparer.engine.check(remove).is_ok());
        let mut removed = match remove {
            // The commands after a run remove the jail too, also if the agent's monitor has removed it.
            Some(remove) if clean_up.is_empty() => Some(self.run_elevated(&remove).await),
            _ => None,
        };
        let mut cleanup = kill_in_rounds(spec, sessions).await;
        if let OrphanCleanup::Remaining(pids) = &cleanup {
            // They run as another user, as in a jail; only the privilege backend can signal them.
            if let Err(error) = self.signal_elevated(spec, Signal::KILL, pids).await {
                tracing::warn!(id = %spec.id, %error, "cannot signal the processes of a lost agent");
            }
            cleanup = kill_in_rounds(spec, sessions).await;
        }
        self.preparer.cgroups.end(spec.id.as_str()).await;
        for command in clean_up {
            removed = Some(self.run_command(&command).await);
            if let Some(Err(error)) = &removed {
                tracing::warn!(id = %spec.id, %error, "cannot clean up the jail of a lost agent");
            }
        }
        let is_hidden = spec.config.is_jailed()
            && (self.preparer.engine.needs_root() || !self.preparer.backend.runs_as_caller());
        match (cleanup, removed) {
            (OrphanCleanup::Ended(count), Some(Ok(()))) => OrphanCleanup::Ended(count),
            (OrphanCleanup::Ended(_), Some(Err(error))) => {
                OrphanCleanup::Unverified(error.to_string())
            }
            (OrphanCleanup::Ended(_), None) if is_hidden => OrphanCleanup::Unverified(
                "they run as another user, and colibri-jail-helper ends them with the shim"
                    .to_owned(),
            ),
            (cleanup, _) => cleanup,
        }
    }

    /// Returns the commands that follow each run: they remove what the agent's jail left, and verify that.
    fn post_commands(&self, spec: &AgentSpec) -> Vec<CommandLine> {
        match self.preparer.prepare_as(&spec.config, spec.id.as_str()) {
            Ok(prepared) => prepared.post_run,
            Err(error) => {
                tracing::warn!(id = %spec.id, %error, "cannot clean up the jail of a lost agent");
                Vec::new()
            }
        }
    }
}

/// Maximum number of concurrent rounds. Each reads every process of the host on a thread of the blocking pool.
static ROUNDS: Semaphore = Semaphore::const_new(1);

/// Ends the remaining processes of an agent in rounds. Each round is a short task on the blocking pool, so that many
/// lost agents share its threads; the wait between rounds occupies none.
async fn kill_in_rounds(spec: &AgentSpec, sessions: &[i32]) -> OrphanCleanup {
    let start = Instant::now();
    let mut all_killed = HashSet::new();
    loop {
        let (id, sessions) = (spec.id.to_string(), sessions.to_vec());
        let round = {
            // Fails only for a closed semaphore; this one is never closed.
            let _slot = ROUNDS.acquire().await;
            tokio::task::spawn_blocking(move || kill_all(&id, &sessions)).await
        };
        let Round {
            remaining,
            killed,
            can_signal_any,
        } = match round.map_err(io::Error::other).flatten() {
            Ok(round) => round,
            Err(error) => return OrphanCleanup::Unknown(error.to_string()),
        };
        if remaining.is_empty() {
            return OrphanCleanup::Ended(all_killed.len());
        }
        all_killed.extend(killed);
        let timeout = match can_signal_any {
            true => VERIFY_TIMEOUT,
            false => MONITOR_TIMEOUT,
        };
        if start.elapsed() >= timeout {
            return OrphanCleanup::Remaining(remaining);
        }
        tokio::time::sleep(ROUND_INTERVAL).await;
    }
}

/// Result of one round.
struct Round {
    /// Pids of all processes found.
    remaining: Vec<i32>,
    /// Processes that received KILL.
    killed: Vec<Process>,
    /// Whether this user may signal any of them.
    can_signal_any: bool,
}

/// Sends KILL to all processes of the agent.
fn kill_all(id: &str, sessions: &[i32]) -> io::Result<Round> {
    let found: Vec<Process> = process::find_marked(&format!("{AGENT_VARIABLE}={id}"), sessions)?;
    let mut round = Round {
        remaining: found.iter().map(|process| process.pid).collect(),
        killed: Vec::new(),
        can_signal_any: false,
    };
    for process in found {
        match process::kill(&process) {
            Ok(existed) => {
                round.can_signal_any = true;
                if existed {
                    round.killed.push(process);
                }
            }
            // If the process stays, the last round reports it as remaining.
            Err(error) => {
                tracing::debug!(pid = process.pid, %error, "cannot kill a remaining process")
            }
        }
    }
    Ok(round)
}
