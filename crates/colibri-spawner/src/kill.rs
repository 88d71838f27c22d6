//! Ends an agent and verifies it: signal, grace, KILL, and a look at what is left.
//!
//! The shim does this for all that it may signal. What runs as another user inside a FreeBSD jail is
//! reached through the privilege backend: single processes of a persistent jail, the whole of one of ours.

use std::process::Stdio;
use std::time::Duration;

use colibri_jail_core::{CommandLine, JailEngine, JailName, JailOp, Pid, Signal};
use colibri_shim::control::{Op, Reply};
use colibri_shim::record::{self, ShimRecord};
use colibri_shim::{layout, process};

use crate::link::AT_ONCE;
use crate::{Agent, AgentSpec, LinkError, SpawnError, Spawner};

/// How long a shim itself waits for the dead to disappear after KILL.
const SHIM_VERIFIES: Duration = Duration::from_secs(5);

/// How a kill went.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KillOutcome {
    /// The first signal was enough.
    Terminated,
    /// It took KILL, or the removal of the jail.
    Killed,
    /// There was nothing left to end.
    AlreadyExited,
    /// A signal was delivered; no more was asked for.
    Signalled,
}

/// What was done. Nothing of the agent is left, unless only a signal was asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KillReport {
    /// How it went.
    pub outcome: KillOutcome,
}

impl Spawner {
    /// Delivers a signal and does no more.
    ///
    /// # Errors
    /// The agent runs as somebody else and the backend refuses.
    pub async fn signal(&self, agent: &Agent, signal: Signal) -> Result<KillReport, SpawnError> {
        let op = Op::Signal {
            signal: signal.to_string(),
        };
        let outcome = match agent.link.request_within(AT_ONCE, op, Vec::new()).await {
            Ok(Reply::Signalled(delivery)) => {
                self.signal_elevated(&agent.spec, signal, &delivery.denied)
                    .await?;
                KillOutcome::Signalled
            }
            Ok(_) | Err(LinkError::Gone) => KillOutcome::AlreadyExited,
            Err(error) => return Err(error.into()),
        };
        Ok(KillReport { outcome })
    }

    /// Signal, grace, KILL, verify.
    ///
    /// # Errors
    /// [`SpawnError::KillUnverified`] names the processes that are left.
    pub async fn kill(
        &self,
        agent: &Agent,
        signal: Signal,
        grace: Duration,
    ) -> Result<KillReport, SpawnError> {
        // On Linux it is the backend that makes the agent another user.
        let in_jail_of_another_user = agent.spec.config.is_jailed()
            && (matches!(self.engine, JailEngine::FreebsdJail) || agent.spec.privilege != "none");
        let lived = in_jail_of_another_user
            && self.signal(agent, signal).await?.outcome == KillOutcome::Signalled;
        if lived
            && tokio::time::timeout(grace, agent.link.ended())
                .await
                .is_ok()
        {
            return Ok(KillReport {
                outcome: KillOutcome::Terminated,
            });
        }
        let (signal, grace) = if in_jail_of_another_user {
            // bubblewrap has no command to remove a sandbox, and not every backend has one of its own.
            let remove = self
                .own_jail(&agent.spec)
                .map(|name| JailOp::Remove { name })
                .filter(|remove| self.backend.elevate(remove, &self.engine).is_ok());
            match remove {
                Some(remove) => self.run_elevated(&remove).await?,
                None => drop(self.signal(agent, Signal::KILL).await?),
            }
            ("KILL".to_owned(), Duration::ZERO)
        } else {
            (signal.to_string(), grace)
        };
        let (forced, remaining, denied) = match self.shim_kill(agent, &signal, grace).await? {
            Some(reply) => reply,
            // Gone by now: through the backend, if it was there before.
            None if lived => {
                return Ok(KillReport {
                    outcome: KillOutcome::Killed,
                });
            }
            None => {
                return Ok(KillReport {
                    outcome: KillOutcome::AlreadyExited,
                });
            }
        };
        if !denied.is_empty() {
            self.signal_elevated(&agent.spec, Signal::KILL, &denied)
                .await?;
            if let Some((_, remaining, _)) = self.shim_kill(agent, "KILL", Duration::ZERO).await? {
                unverified(
                    agent,
                    remaining,
                    "KILL was sent through the privilege backend too",
                )?;
            }
        } else {
            unverified(agent, remaining, "KILL was sent for 5 s")?;
        }
        let outcome = if forced {
            KillOutcome::Killed
        } else {
            KillOutcome::Terminated
        };
        Ok(KillReport { outcome })
    }

    /// Asks the shim; `None` where it has gone, which it does only after its agent. A shim that does not
    /// answer (somebody stopped it) is killed itself: its agent dies with it, and what is left is ended when
    /// its end is recorded.
    async fn shim_kill(
        &self,
        agent: &Agent,
        signal: &str,
        grace: Duration,
    ) -> Result<Option<(bool, Vec<i32>, Vec<i32>)>, SpawnError> {
        let grace_ms = u64::try_from(grace.as_millis()).unwrap_or(u64::MAX);
        let limit = grace.saturating_add(SHIM_VERIFIES).saturating_add(AT_ONCE);
        loop {
            let op = Op::Kill {
                signal: signal.to_owned(),
                grace_ms,
            };
            return match agent.link.request_within(limit, op, Vec::new()).await {
                Ok(Reply::Killed {
                    forced,
                    remaining,
                    denied,
                }) => Ok(Some((forced, remaining, denied))),
                Ok(_) | Err(LinkError::Gone) => Ok(None),
                // To ask twice does no harm.
                Err(LinkError::Interrupted) => continue,
                Err(LinkError::Silent(limit)) => {
                    self.kill_shim(agent, limit).await?;
                    Ok(Some((true, Vec::new(), Vec::new())))
                }
                Err(error) => Err(error.into()),
            };
        }
    }

    async fn kill_shim(&self, agent: &Agent, limit: Duration) -> Result<(), SpawnError> {
        let path = agent.directory.join(layout::SHIM);
        let silent = || SpawnError::Link(LinkError::Silent(limit));
        let shim: ShimRecord = record::read(&path)
            .map_err(|error| SpawnError::from_io("reading", &path, error))?
            .ok_or_else(silent)?;
        let found = process::find(shim.shim_pid).map_err(|error| {
            SpawnError::from_io("looking for the shim of", &agent.directory, error)
        })?;
        // The start time says that it is the shim still, and no other process with its number.
        if let Some(process) = found.filter(|found| found.start == shim.shim_start) {
            tracing::warn!(id = %agent.spec.id, pid = process.pid, "killing a shim that does not answer");
            process::kill(&process).map_err(|error| {
                SpawnError::from_io("killing the shim of", &agent.directory, error)
            })?;
        }
        tokio::time::timeout(AT_ONCE, agent.link.ended())
            .await
            .map(drop)
            .map_err(|_| silent())
    }

    /// The jail that was made for this agent, if there is one that can be removed.
    pub(crate) fn own_jail(&self, spec: &AgentSpec) -> Option<JailName> {
        let jail = spec.config.jail.as_ref()?;
        if jail.name.is_some() || jail.path.is_none() {
            return None;
        }
        format!("colibri-{}", spec.id).parse().ok()
    }

    pub(crate) async fn signal_elevated(
        &self,
        spec: &AgentSpec,
        signal: Signal,
        pids: &[i32],
    ) -> Result<(), SpawnError> {
        let pids = match &self.engine {
            JailEngine::Bubblewrap(_) if signal != Signal::KILL => inside(pids),
            _ => pids.to_vec(),
        };
        let pids: Vec<Pid> = pids
            .iter()
            .filter_map(|pid| u32::try_from(*pid).ok())
            .filter_map(|pid| Pid::new(pid).ok())
            .collect();
        if pids.is_empty() {
            return Ok(());
        }
        let jail = spec
            .config
            .jail
            .as_ref()
            .and_then(|jail| jail.name.as_ref()?.parse().ok());
        self.run_elevated(&JailOp::Signal { jail, pids, signal })
            .await
    }

    pub(crate) async fn run_elevated(&self, op: &JailOp) -> Result<(), SpawnError> {
        let command = self.backend.elevate(op, &self.engine)?;
        self.run_command(&command).await
    }

    pub(crate) async fn run_command(&self, command: &CommandLine) -> Result<(), SpawnError> {
        tracing::info!(command = %command, "running through the privilege backend");
        let output = tokio::process::Command::new(command.program())
            .args(command.args())
            .env_clear()
            .stdin(Stdio::null())
            .output()
            .await
            .map_err(|error| SpawnError::from_io("running", command.program().as_ref(), error))?;
        if !output.status.success() {
            // What is gone already cannot be signalled or removed; verification decides, not this.
            tracing::warn!(command = %command, status = %output.status,
                stderr = %String::from_utf8_lossy(&output.stderr), "privileged command failed");
        }
        Ok(())
    }
}

/// Those of the processes that are in a pid namespace of their own, or all where none is: whatever stands between the
/// shim and the sandbox (bwrap, sudo) would take the agent with it before it has heard of the signal.
fn inside(pids: &[i32]) -> Vec<i32> {
    // NSpid lists a number for each namespace, from that of /proc inwards (proc_pid_status(5)).
    let depth = |process: &str| {
        let status = std::fs::read_to_string(format!("/proc/{process}/status")).ok()?;
        let line = status.lines().find(|line| line.starts_with("NSpid:"))?;
        Some(line.split_whitespace().count())
    };
    let own = depth("self");
    let inside: Vec<i32> = pids
        .iter()
        .copied()
        .filter(|pid| depth(&pid.to_string()) > own)
        .collect();
    if inside.is_empty() {
        pids.to_vec()
    } else {
        inside
    }
}

fn unverified(agent: &Agent, remaining: Vec<i32>, why: &str) -> Result<(), SpawnError> {
    if remaining.is_empty() {
        return Ok(());
    }
    Err(SpawnError::KillUnverified {
        id: agent.spec.id.to_string(),
        remaining,
        why: why.to_owned(),
    })
}
