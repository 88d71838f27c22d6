//! Kill of an agent: signal, grace period, KILL, verification.
//!
//! The shim does this, also for processes of another user, through the command of the privilege backend that its launch
//! contains. A shim of an earlier release has no such command; the daemon then runs it.

use std::time::Duration;

use colibri_jail_core::{JailOp, Signal};
use colibri_prepare::Preparer;
use colibri_shim::control::{ELEVATION_TIMEOUT, KillReport, ShimOp, ShimReply, SignalDelivery};
use colibri_shim::layout;
use colibri_shim::record::{self, ShimRecord};
use colibri_sys::process;
use colibri_types::KillOutcome;

use crate::shim_client::{REQUEST_TIMEOUT, milliseconds};
use crate::{AgentHandle, AgentSpec, ShimClientError, SpawnError, Spawner};

/// Grace period for the last signal to an agent whose shim speaks protocol 1, where that signal is sent as a kill.
const UNBOUNDED_GRACE: Duration = Duration::from_secs(24 * 3600);
/// What a kill has tried if processes remain that the shim may signal.
const KILL_SENT: &str = "KILL was sent for 5 s";
/// First protocol version of shims that run the privilege backend themselves.
const ELEVATION_PROTOCOL: u32 = 3;
/// Time that a shim waits for killed processes to disappear.
const SHIM_VERIFY_TIMEOUT: Duration = Duration::from_secs(5);

impl Spawner {
    /// Delivers a signal, without escalation.
    ///
    /// # Errors
    /// The signal was not delivered: the shim does not answer, or the agent runs as another user and the command of the
    /// privilege backend failed.
    pub async fn signal(
        &self,
        agent: &AgentHandle,
        signal: Signal,
    ) -> Result<KillOutcome, SpawnError> {
        self.send_signal(agent, signal, false).await
    }

    /// Delivers a signal; the agent is never started again after it.
    ///
    /// # Errors
    /// As [`Spawner::signal`].
    pub async fn signal_last(
        &self,
        agent: &AgentHandle,
        signal: Signal,
    ) -> Result<KillOutcome, SpawnError> {
        if agent.shim.protocol() >= 2 {
            return self.send_signal(agent, signal, true).await;
        }
        // A shim of protocol 1 stops restarts only with a kill, and replies after the kill has ended.
        let shim = agent.shim.clone();
        let op = kill_op(signal, UNBOUNDED_GRACE);
        tokio::spawn(async move { shim.request(UNBOUNDED_GRACE * 2, op, Vec::new()).await });
        Ok(KillOutcome::Signalled)
    }

    /// Ends the agent's current run as a kill with TERM does; its shim starts the next one immediately.
    ///
    /// # Errors
    /// The agent has ended or is being ended, or its shim does not answer or is of an earlier release.
    pub async fn restart(&self, agent: &AgentHandle, grace: Duration) -> Result<(), SpawnError> {
        if agent.shim.protocol() < 2 {
            return Err(ShimClientError::Refused(
                "it is of an earlier release and cannot restart an agent; kill the agent and spawn it again"
                    .to_owned(),
            )
            .into());
        }
        let op = ShimOp::Restart {
            grace_ms: milliseconds(grace),
        };
        let restarted = agent.shim.request(REQUEST_TIMEOUT, op, Vec::new()).await;
        Ok(restarted.map(drop)?)
    }

    /// Delivers a signal. No run follows the current one if it is the `last`.
    async fn send_signal(
        &self,
        agent: &AgentHandle,
        signal: Signal,
        last: bool,
    ) -> Result<KillOutcome, SpawnError> {
        let op = ShimOp::Signal {
            signal: signal.to_string(),
            last,
        };
        let limit = REQUEST_TIMEOUT + self.elevation_timeout(agent);
        match agent.shim.request(limit, op, Vec::new()).await {
            Ok(ShimReply::Signalled(SignalDelivery {
                denied,
                reason: Some(why),
                ..
            })) => Err(SpawnError::SignalDenied {
                id: agent.spec.id.to_string(),
                denied,
                why,
            }),
            Ok(ShimReply::Signalled(delivery)) => {
                self.signal_elevated(&agent.spec, signal, &delivery.denied)
                    .await?;
                Ok(KillOutcome::Signalled)
            }
            Ok(_) | Err(ShimClientError::Closed) => Ok(KillOutcome::AlreadyExited),
            Err(error) => Err(error.into()),
        }
    }

    /// Kills an agent: signal, grace period, KILL, verification.
    ///
    /// # Errors
    /// [`SpawnError::KillUnverified`] names the processes that survived.
    pub async fn kill(
        &self,
        agent: &AgentHandle,
        signal: Signal,
        grace: Duration,
    ) -> Result<KillOutcome, SpawnError> {
        if agent.shim.protocol() >= ELEVATION_PROTOCOL {
            let Some(report) = self.shim_kill(agent, signal, grace).await? else {
                return Ok(KillOutcome::AlreadyExited);
            };
            let is_final = report.denied.is_empty() || report.reason.is_some();
            if report.remaining.is_empty() {
                return Ok(match report.forced {
                    true => KillOutcome::Killed,
                    false => KillOutcome::Terminated,
                });
            }
            if is_final {
                return Err(SpawnError::KillUnverified {
                    id: agent.spec.id.to_string(),
                    remaining: report.remaining,
                    why: report.reason.unwrap_or_else(|| KILL_SENT.to_owned()),
                });
            }
        }
        self.kill_through_backend(agent, signal, grace).await
    }

    /// Kills an agent whose shim has no command of the privilege backend, because it or the daemon that started it is of
    /// an earlier release.
    async fn kill_through_backend(
        &self,
        agent: &AgentHandle,
        signal: Signal,
        grace: Duration,
    ) -> Result<KillOutcome, SpawnError> {
        let runs_as_other_user = agent.spec.config.is_jailed()
            && (self.preparer.engine.needs_root() || !self.preparer.backend.runs_as_caller());
        let was_signalled =
            runs_as_other_user && self.signal(agent, signal).await? == KillOutcome::Signalled;
        if was_signalled
            && tokio::time::timeout(grace, agent.shim.ended())
                .await
                .is_ok()
        {
            return Ok(KillOutcome::Terminated);
        }
        let mut failure = None;
        let (signal, grace) = if runs_as_other_user {
            // bubblewrap and some backends have no operation that removes a sandbox.
            let Preparer {
                backend, engine, ..
            } = &self.preparer;
            let remove = removal_of_own_jail(&agent.spec)
                .filter(|remove| backend.elevate(remove, &**engine).is_ok());
            // The verification below checks whether processes are left, and then reports this failure as the cause.
            let ended = match remove {
                Some(remove) => self.run_elevated(&remove).await,
                None => self.signal(agent, Signal::KILL).await.map(drop),
            };
            if let Err(error) = ended {
                tracing::warn!(id = %agent.spec.id, %error, "cannot end a jail through the privilege backend");
                failure = Some(error.to_string());
            }
            (Signal::KILL, Duration::ZERO)
        } else {
            (signal, grace)
        };
        let Some(kill) = self.shim_kill(agent, signal, grace).await? else {
            // An agent that received the signal has ended through the backend since then.
            return Ok(match was_signalled {
                true => KillOutcome::Killed,
                false => KillOutcome::AlreadyExited,
            });
        };
        let (remaining, tried) = if kill.denied.is_empty() {
            (kill.remaining, KILL_SENT)
        } else {
            let sent = self
                .signal_elevated(&agent.spec, Signal::KILL, &kill.denied)
                .await;
            failure = sent.err().map(|error| error.to_string()).or(failure);
            let verified = self.shim_kill(agent, Signal::KILL, Duration::ZERO).await?;
            let remaining = verified.unwrap_or_default().remaining;
            (remaining, "KILL was sent through the privilege backend too")
        };
        if !remaining.is_empty() {
            return Err(SpawnError::KillUnverified {
                id: agent.spec.id.to_string(),
                remaining,
                why: failure.unwrap_or_else(|| tried.to_owned()),
            });
        }
        // An agent that outlived the grace period was killed, even if the shim only observed its end.
        Ok(match kill.forced || was_signalled {
            true => KillOutcome::Killed,
            false => KillOutcome::Terminated,
        })
    }

    /// Returns the additional time for a request to a shim that may run commands of the privilege backend.
    fn elevation_timeout(&self, agent: &AgentHandle) -> Duration {
        let elevates = !self.preparer.backend.runs_as_caller()
            || (agent.spec.config.is_jailed() && self.preparer.engine.needs_root());
        match elevates && agent.shim.protocol() >= ELEVATION_PROTOCOL {
            true => ELEVATION_TIMEOUT,
            false => Duration::ZERO,
        }
    }

    /// Requests a kill from the shim; returns `None` if the shim, and therefore the agent, has ended. A shim that does not
    /// reply, for example because it was stopped, is killed with its agent. Its orphans are killed when the end of the
    /// shim is recorded.
    async fn shim_kill(
        &self,
        agent: &AgentHandle,
        signal: Signal,
        grace: Duration,
    ) -> Result<Option<KillReport>, SpawnError> {
        let limit = grace
            .saturating_add(SHIM_VERIFY_TIMEOUT)
            .saturating_add(self.elevation_timeout(agent))
            .saturating_add(REQUEST_TIMEOUT);
        loop {
            let op = kill_op(signal, grace);
            return match agent.shim.request(limit, op, Vec::new()).await {
                Ok(ShimReply::Killed(report)) => Ok(Some(report)),
                Ok(_) | Err(ShimClientError::Closed) => Ok(None),
                // The request is idempotent.
                Err(ShimClientError::Interrupted) => continue,
                Err(ShimClientError::Silent(limit)) => {
                    self.kill_shim(agent, limit).await?;
                    Ok(Some(KillReport {
                        forced: true,
                        ..KillReport::default()
                    }))
                }
                Err(error) => Err(error.into()),
            };
        }
    }

    /// Kills a shim that did not reply within `limit`, and waits for its end.
    async fn kill_shim(&self, agent: &AgentHandle, limit: Duration) -> Result<(), SpawnError> {
        let path = agent.directory.join(layout::SHIM);
        let silent = || SpawnError::ShimClient(ShimClientError::Silent(limit));
        let shim: ShimRecord = record::read(&path)
            .map_err(|error| SpawnError::from_io("reading", &path, error))?
            .ok_or_else(silent)?;
        let found = process::find(shim.shim_pid)
            .map_err(|error| SpawnError::from_io("finding the shim of", &agent.directory, error))?;
        // A different start time shows that the pid was reused.
        if let Some(process) = found.filter(|found| found.start == shim.shim_start) {
            tracing::warn!(id = %agent.spec.id, pid = process.pid, "killing a shim that does not reply");
            process::kill(&process).map_err(|error| {
                SpawnError::from_io("killing the shim of", &agent.directory, error)
            })?;
        }
        tokio::time::timeout(REQUEST_TIMEOUT, agent.shim.ended())
            .await
            .map(drop)
            .map_err(|_| silent())
    }
}

/// Returns the removal of the ephemeral jail that was created for this agent.
pub(crate) fn removal_of_own_jail(spec: &AgentSpec) -> Option<JailOp> {
    let jail = spec.config.jail.as_ref()?;
    if jail.name.is_some() || !jail.is_jail() {
        return None;
    }
    let name = format!("colibri-{}", spec.id).parse().ok()?;
    Some(JailOp::Remove { name })
}

fn kill_op(signal: Signal, grace: Duration) -> ShimOp {
    ShimOp::Kill {
        signal: signal.to_string(),
        grace_ms: milliseconds(grace),
    }
}
